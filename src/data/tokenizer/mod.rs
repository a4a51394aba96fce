//! Text to token ids and back: a thin layer over the `tokenizers` crate that knows which tokens begin and end a text.
//!
//! There is no pad token: batches are packed (see [`crate::tokens`]), and truncation or padding asked for by a
//! `tokenizer.json` is switched off, as transformers does before it applies its own.

mod compare;
mod files;
#[cfg(test)]
pub(crate) mod testing;

use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::{Map, Value};

use self::files::{add_tokens, find_chat_template, find_eos_id, id_list, load_inner, named_tokens};
use crate::data::chat::ChatTemplate;
use crate::error::{Error, Result};

/// Files that belong to a tokenizer, in Hugging Face's layout. `config.json` is read for its EOS id but never saved:
/// it belongs to the model.
const FILES: [&str; 11] = [
    "tokenizer.json",
    "tokenizer_config.json",
    "generation_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "encoder.json",
    "vocab.bpe",
    "config.json",
];

/// Files of which any makes a folder one with a vocabulary.
const VOCABULARIES: [&str; 3] = ["tokenizer.json", "vocab.json", "encoder.json"];

/// Files that say which text has which id, and so belong together.
const VOCABULARY_FILES: [&str; 6] = [
    "tokenizer.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "encoder.json",
    "vocab.bpe",
];

/// A tokenizer with its chat template and its special tokens. A clone shares vocabulary and files: those of 49,152 tokens take
/// tens of megabytes, and every stage of a plan has one.
#[derive(Debug, Clone)]
pub struct Tokenizer {
    inner: Arc<tokenizers::Tokenizer>,
    files: Arc<BTreeMap<String, Vec<u8>>>,
    origin: PathBuf,
    special_ids: HashSet<u32>,
    bos: Option<(u32, String)>,
    pad: Option<u32>,
    eos_text: String,
    stop_ids: Vec<u32>,
    chat: Option<ChatTemplate>,
}

impl Tokenizer {
    /// Loads the tokenizer files of a model folder: `tokenizer.json`, or else GPT-2's pair `vocab.json` + `merges.txt`
    /// (`encoder.json` + `vocab.bpe`), with what stands beside it of `tokenizer_config.json`,
    /// `special_tokens_map.json`, `generation_config.json`, `chat_template.jinja` and `config.json`.
    ///
    /// # Errors
    /// If there is no tokenizer, a file does not parse, or no file says which token ends a text.
    pub fn load(dir: &Path) -> Result<Self> {
        Self::load_layered(&[dir])
    }

    /// The same of several folders, such as an adapter's and its base's: a file of an earlier one wins, and vocabularies
    /// are not mixed.
    ///
    /// # Errors
    /// As [`Tokenizer::load`].
    pub fn load_layered(dirs: &[&Path]) -> Result<Self> {
        let has_vocabulary = |dir: &&Path| VOCABULARIES.iter().any(|name| dir.join(name).is_file());
        let own = dirs.iter().copied().find(has_vocabulary);
        let mut files = BTreeMap::new();
        for dir in dirs {
            for name in FILES {
                let of_another = VOCABULARY_FILES.contains(&name) && own != Some(*dir);
                let path = dir.join(name);
                if !of_another && !files.contains_key(name) && path.is_file() {
                    let bytes = fs::read(&path).map_err(Error::io("read", &path))?;
                    files.insert(name.to_owned(), bytes);
                }
            }
        }
        let origin = own.or(dirs.first().copied()).unwrap_or(Path::new("."));
        Self::from_files(files, origin)
    }

    /// The same from files in memory, by their names; `origin` is what errors name.
    ///
    /// # Errors
    /// As [`Tokenizer::load`].
    pub fn from_files(files: BTreeMap<String, Vec<u8>>, origin: &Path) -> Result<Self> {
        let object = |name: &str| -> Result<Map<String, Value>> {
            match files.get(name) {
                None => Ok(Map::new()),
                Some(bytes) => serde_json::from_slice(bytes)
                    .map_err(|e| Error::format(origin.join(name), e.to_string())),
            }
        };
        let config = object("tokenizer_config.json")?;
        let special_map = object("special_tokens_map.json")?;
        let generation = object("generation_config.json")?;
        let model_config = object("config.json")?;

        let mut specials = named_tokens(&config, &special_map);
        let mut inner = load_inner(&files, &config, origin)?;
        inner.with_padding(None);
        inner
            .with_truncation(None)
            .map_err(|e| Error::format(origin, e.to_string()))?;
        add_tokens(&mut inner, &config, &specials, origin)?;
        let id_of = |key: &str, text: &str| {
            inner.token_to_id(text).ok_or_else(|| {
                Error::format(
                    origin,
                    format!("{key} is {text:?}, which is not in the vocabulary"),
                )
            })
        };

        let eos_id = match specials.get("eos_token") {
            Some(text) => id_of("eos_token", text)?,
            None => find_eos_id(&inner, &files, &model_config, &generation).ok_or_else(|| {
                Error::format(
                    origin,
                    "no EOS token: expected `eos_token` in tokenizer_config.json or `eos_token_id` in config.json. \
                     Without one a model cannot learn where to stop",
                )
            })?,
        };
        let eos_text = inner.id_to_token(eos_id).ok_or_else(|| {
            Error::format(
                origin,
                format!("eos_token_id is {eos_id}, which is not in the vocabulary"),
            )
        })?;
        specials.insert("eos_token".into(), eos_text.clone());
        let bos = match specials.get("bos_token") {
            Some(text) => Some((id_of("bos_token", text)?, text.clone())),
            None => None,
        };

        let pad = specials
            .get("pad_token")
            .and_then(|text| inner.token_to_id(text));
        let mut stop_ids = vec![eos_id];
        for id in id_list(&generation, "eos_token_id") {
            if !stop_ids.contains(&id) {
                stop_ids.push(id);
            }
        }
        let special_ids = inner
            .get_added_tokens_decoder()
            .into_iter()
            .filter(|(_, token)| token.special)
            .map(|(id, _)| id)
            .collect();
        let chat = find_chat_template(&files, &config, origin)?
            .map(|found| {
                let chat = ChatTemplate::new(&found.source, specials, &found.path)?;
                match &found.tool_use {
                    Some(source) => chat.with_tool_template(source),
                    None => Ok(chat),
                }
            })
            .transpose()?;
        Ok(Self {
            inner: Arc::new(inner),
            files: Arc::new(files),
            origin: origin.to_path_buf(),
            special_ids,
            bos,
            pad,
            eos_text,
            stop_ids,
            chat,
        })
    }

    /// Token ids of `text`. `add_special_tokens` adds what the tokenizer's own post-processor adds, usually a BOS.
    ///
    /// # Errors
    /// If the tokenizer cannot represent the text.
    pub fn encode(&self, text: &str, add_special_tokens: bool) -> Result<Vec<u32>> {
        let encoding = self
            .inner
            .encode_fast(text, add_special_tokens)
            .map_err(|e| self.failure(&e))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// Token ids of a whole text that a model is to read: special tokens are added unless the text already starts
    /// with the BOS token.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`], and if the ids start with two BOS tokens: a model has never seen that.
    pub fn encode_document(&self, text: &str) -> Result<Vec<u32>> {
        let written = self
            .bos
            .as_ref()
            .is_some_and(|(_, bos)| text.starts_with(bos.as_str()));
        let ids = self.encode(text, !written)?;
        self.check_bos(&ids)?;
        Ok(ids)
    }

    /// Refuses ids that start with two BOS tokens.
    ///
    /// # Errors
    /// If they do.
    pub fn check_bos(&self, ids: &[u32]) -> Result<()> {
        match (&self.bos, ids) {
            (Some((bos, text)), [first, second, ..]) if first == bos && second == bos => {
                Err(Error::format(
                    &self.origin,
                    format!(
                        "a text starts with two BOS tokens ({text:?}): both the text or chat template and the tokenizer add one; \
                         remove it from the text"
                    ),
                ))
            }
            _ => Ok(()),
        }
    }

    /// Ids without special tokens added, each with the bytes of `text` that it stands for.
    ///
    /// Tokens that share one multi-byte character all carry the whole character's range.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`].
    pub fn encode_with_offsets(&self, text: &str) -> Result<Vec<(u32, Range<usize>)>> {
        let encoding = self
            .inner
            .encode(text, false)
            .map_err(|e| self.failure(&e))?;
        Ok(encoding
            .get_ids()
            .iter()
            .zip(encoding.get_offsets())
            .map(|(&id, &(start, end))| (id, start..end))
            .collect())
    }

    /// The token that `text` is.
    ///
    /// # Errors
    /// If it is none or several, and as [`Tokenizer::encode`].
    pub fn single_token(&self, text: &str) -> Result<u32> {
        match self.encode(text, false)?.as_slice() {
            [id] => Ok(*id),
            ids => Err(Error::Usage(format!(
                "{text:?} is {} tokens of this vocabulary; the text of one token was expected",
                ids.len()
            ))),
        }
    }

    /// Text of `ids`; `skip_special` leaves special tokens out.
    ///
    /// # Errors
    /// If an id's decoder fails.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String> {
        self.inner
            .decode(ids, skip_special)
            .map_err(|e| self.failure(&e))
    }

    /// The token that ends a text.
    pub fn eos_id(&self) -> u32 {
        self.stop_ids[0]
    }

    /// Its text.
    pub fn eos_text(&self) -> &str {
        &self.eos_text
    }

    /// Every token at which generation stops: [`Tokenizer::eos_id`] first, then `generation_config.json`'s others.
    pub fn stop_ids(&self) -> &[u32] {
        &self.stop_ids
    }

    /// The token that begins a text, if the tokenizer names one.
    pub fn bos_id(&self) -> Option<u32> {
        self.bos.as_ref().map(|(id, _)| *id)
    }

    /// Whether `id` is an added special token (`<|im_end|>`), as opposed to a piece of text.
    pub fn is_special(&self, id: u32) -> bool {
        self.special_ids.contains(&id)
    }

    /// The padding token that the files name, which may be the EOS.
    pub fn pad_id(&self) -> Option<u32> {
        self.pad
    }

    /// One more than the highest id.
    pub fn id_limit(&self) -> u32 {
        let highest = self.inner.get_vocab(true).into_values().max();
        highest.map_or(0, |id| id + 1)
    }

    /// The vocabulary's entry for `id`, in the vocabulary's own spelling (`Ġthe`).
    pub fn token_str(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }

    /// Number of tokens, added ones included. A model's embedding may have more rows.
    pub fn vocab_size(&self) -> usize {
        self.inner.get_vocab_size(true)
    }

    /// The chat template.
    ///
    /// # Errors
    /// If the tokenizer has none.
    pub fn chat(&self) -> Result<&ChatTemplate> {
        self.chat.as_ref().ok_or_else(|| {
            Error::format(
                &self.origin,
                "rows are conversations, but the tokenizer has no chat template: expected chat_template.jinja \
                 or `chat_template` in tokenizer_config.json. Use a model tuned for chat, or text columns with `chat: false`",
            )
        })
    }

    /// The same tokenizer with its chat template at a fixed time: see [`ChatTemplate::at`].
    ///
    /// # Errors
    /// As [`ChatTemplate::new`].
    pub fn at(mut self, now: i64) -> Result<Self> {
        self.chat = self.chat.map(|chat| chat.at(now)).transpose()?;
        Ok(self)
    }

    /// Whether there is a chat template.
    pub fn has_chat(&self) -> bool {
        self.chat.is_some()
    }

    /// Writes the files that it was loaded from into `dir`, byte for byte (`config.json` excepted: it is the model's).
    ///
    /// # Errors
    /// If a file cannot be written.
    pub fn save(&self, dir: &Path) -> Result<()> {
        fs::create_dir_all(dir).map_err(Error::io("create", dir))?;
        for (name, bytes) in self.files.iter() {
            if name != "config.json" {
                let path = dir.join(name);
                fs::write(&path, bytes).map_err(Error::io("write", &path))?;
            }
        }
        Ok(())
    }

    fn failure(&self, error: &tokenizers::Error) -> Error {
        Error::format(&self.origin, error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::testing::*;
    use super::*;
    use crate::data::ChatOptions;

    #[test]
    fn ids_are_those_of_the_merges_and_come_back_as_the_text() {
        let tok = tokenizer(false, None);
        // Longer than the file's truncation of 4, which must not apply.
        let ids = tok.encode("hi\n\nh\u{e9}</s>", true).unwrap();
        assert_eq!(ids, [HI, NN, 104, 0xc3, 0xa9, EOS]);
        assert_eq!(tok.decode(&ids, false).unwrap(), "hi\n\nh\u{e9}</s>");
        assert_eq!(tok.decode(&ids, true).unwrap(), "hi\n\nh\u{e9}");
        assert_eq!(tok.vocab_size(), 262);
        assert_eq!(tok.token_str(HI).as_deref(), Some("hi"));
        assert_eq!(tok.token_str(9999), None);
    }

    #[test]
    fn offsets_are_bytes_of_the_text() {
        let tok = tokenizer(true, None);
        let offsets = tok.encode_with_offsets("\u{e9}hi</s>a").unwrap();
        assert_eq!(
            offsets,
            [
                (0xc3, 0..2),
                (0xa9, 0..2),
                (HI, 2..4),
                (EOS, 4..8),
                (97, 8..9)
            ]
        );
    }

    #[test]
    fn bos_is_added_once() {
        let tok = tokenizer(true, None);
        assert_eq!(tok.encode_document("a").unwrap(), [BOS, 97]);
        assert_eq!(tok.encode_document("<s>a").unwrap(), [BOS, 97]);
        let error = tok.encode_document("<s><s>a").unwrap_err().to_string();
        assert!(error.contains("two BOS"), "{error}");
        assert_eq!(tok.bos_id(), Some(BOS));
    }

    #[test]
    fn stop_ids_start_with_eos_and_follow_the_generation_config() {
        let tok = tokenizer(false, None);
        assert_eq!(tok.stop_ids(), [EOS, IM_END]);
        assert_eq!((tok.eos_id(), tok.eos_text()), (EOS, "</s>"));
        assert!(tok.is_special(EOS) && !tok.is_special(97));
    }

    #[test]
    fn eos_comes_from_the_config_or_is_missed_in_words() {
        let mut files = files(false, None);
        files.insert("tokenizer_config.json".into(), b"{}".to_vec());
        files.remove("generation_config.json");
        let error = Tokenizer::from_files(files.clone(), Path::new("toy")).unwrap_err();
        assert!(error.to_string().contains("no EOS token"), "{error}");
        files.insert(
            "config.json".into(),
            br#"{"eos_token_id": [261, 259]}"#.to_vec(),
        );
        let tok = Tokenizer::from_files(files.clone(), Path::new("toy")).unwrap();
        assert_eq!((tok.eos_id(), tok.eos_text()), (IM_END, "<|im_end|>"));
        files.insert(
            "tokenizer_config.json".into(),
            br#"{"eos_token": "<none>"}"#.to_vec(),
        );
        let error = Tokenizer::from_files(files, Path::new("toy")).unwrap_err();
        assert_eq!(
            error.to_string(),
            "toy: eos_token is \"<none>\", which is not in the vocabulary"
        );
    }

    #[test]
    fn a_vocabulary_with_merges_is_enough() {
        let vocab = r#"{"h":0,"i":1,"hi":2,"\u0120":3,"\u0120hi":4,"<|endoftext|>":5}"#;
        let merges = "#version: 0.2\nh i\n\u{120} hi\n";
        let files = BTreeMap::from([
            ("vocab.json".to_owned(), vocab.as_bytes().to_vec()),
            ("merges.txt".to_owned(), merges.as_bytes().to_vec()),
        ]);
        let tok = Tokenizer::from_files(files, Path::new("toy")).unwrap();
        assert_eq!(tok.encode("hi hi<|endoftext|>", true).unwrap(), [2, 4, 5]);
        assert_eq!(tok.eos_id(), 5);
    }

    #[test]
    fn saving_copies_the_files() {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("a"), dir.path().join("b"));
        fs::create_dir(&from).unwrap();
        for (name, bytes) in files(true, Some(CHATML)) {
            fs::write(from.join(name), bytes).unwrap();
        }
        fs::write(from.join("config.json"), "{}").unwrap();
        fs::write(from.join("chat_template.jinja"), "from the file").unwrap();
        Tokenizer::load(&from).unwrap().save(&to).unwrap();
        for name in [
            "tokenizer.json",
            "tokenizer_config.json",
            "chat_template.jinja",
        ] {
            assert_eq!(
                fs::read(from.join(name)).unwrap(),
                fs::read(to.join(name)).unwrap()
            );
        }
        assert!(!to.join("config.json").exists());
        let tok = Tokenizer::load(&to).unwrap();
        assert_eq!(
            tok.chat()
                .unwrap()
                .render(&[], &ChatOptions::default())
                .unwrap(),
            "from the file"
        );
    }

    #[test]
    fn a_missing_tokenizer_and_a_named_template() {
        let error = Tokenizer::from_files(BTreeMap::new(), Path::new("empty")).unwrap_err();
        assert!(
            error.to_string().starts_with("empty: no tokenizer"),
            "{error}"
        );
        let mut files = files(false, None);
        let config = json!({"eos_token": "</s>", "chat_template": [{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}]});
        files.insert(
            "tokenizer_config.json".into(),
            config.to_string().into_bytes(),
        );
        let tok = Tokenizer::from_files(files, Path::new("toy")).unwrap();
        assert_eq!(
            tok.chat()
                .unwrap()
                .render(&[], &ChatOptions::default())
                .unwrap(),
            "d"
        );
        let tools = ChatOptions {
            tools: Some(json!([])),
            ..ChatOptions::default()
        };
        assert_eq!(tok.chat().unwrap().render(&[], &tools).unwrap(), "t");
        let error = tokenizer(false, None).chat().unwrap_err().to_string();
        assert!(error.contains("no chat template"), "{error}");
    }

    #[test]
    fn tokens_that_only_the_configuration_names_are_tokens() {
        let mut files = files(false, None);
        let token = |content: &str, special: bool| json!({"content": content, "special": special, "lstrip": false});
        let mut config = json!({"eos_token": "hi", "added_tokens_decoder": {
            "263": token("<b>", false), "262": token("<a>", true), "259": token("</s>", true)}});
        let load = |files: &BTreeMap<String, Vec<u8>>| {
            Tokenizer::from_files(files.clone(), Path::new("toy"))
        };
        files.insert(
            "tokenizer_config.json".into(),
            config.to_string().into_bytes(),
        );
        let tok = load(&files).unwrap();
        assert_eq!(tok.encode("<b><a>hi", true).unwrap(), [263, 262, HI]);
        // `hi` is an entry of the vocabulary that the configuration makes special.
        assert!(tok.is_special(262) && !tok.is_special(263) && tok.is_special(HI));
        assert_eq!((tok.eos_id(), tok.vocab_size()), (HI, 264));
        config["added_tokens_decoder"]["264"] = token("<s>", true);
        files.insert(
            "tokenizer_config.json".into(),
            config.to_string().into_bytes(),
        );
        let error = load(&files).unwrap_err().to_string();
        assert!(
            error.contains("says that \"<s>\" is token 264; the tokenizer has it as Some(258)"),
            "{error}"
        );
    }

    #[test]
    fn the_older_map_counts_where_added_tokens_are_not_listed() {
        let mut files = files(false, None);
        files.insert(
            "special_tokens_map.json".into(),
            br#"{"eos_token": {"content": "<|im_end|>"}}"#.to_vec(),
        );
        let tok = Tokenizer::from_files(files.clone(), Path::new("toy")).unwrap();
        assert_eq!(tok.eos_id(), IM_END);
        let config = json!({"eos_token": "</s>", "added_tokens_decoder": {}});
        files.insert(
            "tokenizer_config.json".into(),
            config.to_string().into_bytes(),
        );
        let tok = Tokenizer::from_files(files, Path::new("toy")).unwrap();
        assert_eq!(tok.eos_id(), EOS);
    }

    #[test]
    fn a_bare_vocabulary_is_told_by_the_configuration_what_stands_around_a_text() {
        let vocab = r#"{"h":0,"i":1,"<|endoftext|>":2}"#;
        let load = |config: Value| {
            let files = BTreeMap::from([
                ("vocab.json".to_owned(), vocab.as_bytes().to_vec()),
                ("merges.txt".to_owned(), b"#version: 0.2\n".to_vec()),
                (
                    "tokenizer_config.json".to_owned(),
                    config.to_string().into_bytes(),
                ),
            ]);
            Tokenizer::from_files(files, Path::new("toy"))
        };
        let end = "<|endoftext|>";
        let tok = load(
            json!({"bos_token": end, "eos_token": end, "add_bos_token": true, "add_eos_token": true}),
        );
        let tok = tok.unwrap();
        assert_eq!(tok.encode("hi", true).unwrap(), [2, 0, 1, 2]);
        assert_eq!(tok.encode("hi", false).unwrap(), [0, 1]);
        let tok =
            load(json!({"bos_token": end, "eos_token": end, "add_bos_token": false})).unwrap();
        assert_eq!(tok.encode("hi", true).unwrap(), [0, 1]);
        let error = load(json!({"bos_token": "<s>", "eos_token": end, "add_bos_token": true}));
        let error = error.unwrap_err().to_string();
        assert!(
            error.contains("add_bos_token: bos_token is \"<s>\""),
            "{error}"
        );
    }
}
