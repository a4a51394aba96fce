//! Text to token ids and back: a thin layer over the `tokenizers` crate that knows which tokens begin and end a text.
//!
//! There is no pad token: batches are packed (see [`crate::tokens`]), and truncation or padding asked for by a
//! `tokenizer.json` is switched off, as transformers does before it applies its own.

use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

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

/// A tokenizer with its chat template and its special tokens.
#[derive(Debug, Clone)]
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    files: BTreeMap<String, Vec<u8>>,
    origin: PathBuf,
    special_ids: HashSet<u32>,
    bos: Option<(u32, String)>,
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
        let mut files = BTreeMap::new();
        for name in FILES {
            let path = dir.join(name);
            if path.is_file() {
                let bytes = fs::read(&path).map_err(Error::io("read", &path))?;
                files.insert(name.to_owned(), bytes);
            }
        }
        Self::from_files(files, dir)
    }

    /// The same from files in memory, by their names; `origin` is what errors name.
    ///
    /// # Errors
    /// As [`Tokenizer::load`].
    pub fn from_files(files: BTreeMap<String, Vec<u8>>, origin: &Path) -> Result<Self> {
        let mut inner = load_inner(&files, origin)?;
        inner.with_padding(None);
        inner
            .with_truncation(None)
            .map_err(|e| Error::format(origin, e.to_string()))?;

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

        let mut specials = BTreeMap::new();
        for key in ["bos_token", "eos_token", "unk_token", "pad_token"] {
            if let Some(text) = token_text(&config, key).or_else(|| token_text(&special_map, key)) {
                specials.insert(key.to_owned(), text);
            }
        }
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
            .map(|(source, path)| ChatTemplate::new(&source, specials, &path))
            .transpose()?;
        Ok(Self {
            inner,
            files,
            origin: origin.to_path_buf(),
            special_ids,
            bos,
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
        for (name, bytes) in &self.files {
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

fn load_inner(files: &BTreeMap<String, Vec<u8>>, origin: &Path) -> Result<tokenizers::Tokenizer> {
    if let Some(bytes) = files.get("tokenizer.json") {
        return tokenizers::Tokenizer::from_bytes(bytes)
            .map_err(|e| Error::format(origin.join("tokenizer.json"), e.to_string()));
    }
    let pairs = [("vocab.json", "merges.txt"), ("encoder.json", "vocab.bpe")];
    for (vocab, merges) in pairs {
        if let (Some(vocab_bytes), Some(merges_bytes)) = (files.get(vocab), files.get(merges)) {
            let json = gpt2_tokenizer_json(vocab_bytes, merges_bytes)
                .map_err(|e| Error::format(origin.join(vocab), e))?;
            return tokenizers::Tokenizer::from_bytes(json)
                .map_err(|e| Error::format(origin.join(vocab), e.to_string()));
        }
    }
    Err(Error::format(
        origin,
        "no tokenizer: expected tokenizer.json, or vocab.json with merges.txt",
    ))
}

/// A `tokenizer.json` for GPT-2's byte-level BPE from its vocabulary and its list of merges.
fn gpt2_tokenizer_json(vocab: &[u8], merges: &[u8]) -> std::result::Result<String, String> {
    let vocab: Map<String, Value> = serde_json::from_slice(vocab).map_err(|e| e.to_string())?;
    let merges = std::str::from_utf8(merges).map_err(|e| format!("the list of merges: {e}"))?;
    let merges: Vec<&str> = merges
        .lines()
        .filter(|line| !line.is_empty() && !line.starts_with("#version"))
        .collect();
    let added: Vec<Value> = vocab
        .get("<|endoftext|>")
        .map(|id| {
            json!({"id": id, "content": "<|endoftext|>", "single_word": false, "lstrip": false, "rstrip": false,
                   "normalized": false, "special": true})
        })
        .into_iter()
        .collect();
    let byte_level = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": true});
    Ok(json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added, "normalizer": null,
        "pre_tokenizer": byte_level, "post_processor": null, "decoder": byte_level,
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
                  "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "vocab": vocab, "merges": merges},
    })
    .to_string())
}

/// A special token as transformers writes it: a string, or an object with `content`.
fn token_text(config: &Map<String, Value>, key: &str) -> Option<String> {
    match config.get(key)? {
        Value::String(text) => Some(text.clone()),
        Value::Object(token) => token.get("content")?.as_str().map(str::to_owned),
        _ => None,
    }
}

/// One id or a list of ids.
fn id_list(config: &Map<String, Value>, key: &str) -> Vec<u32> {
    let id = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
    match config.get(key) {
        Some(Value::Array(ids)) => ids.iter().filter_map(id).collect(),
        Some(value) => id(value).into_iter().collect(),
        None => Vec::new(),
    }
}

/// The EOS id where no file names the token: the model's config, the generation config, or GPT-2's convention for a
/// bare vocabulary.
fn find_eos_id(
    inner: &tokenizers::Tokenizer,
    files: &BTreeMap<String, Vec<u8>>,
    model_config: &Map<String, Value>,
    generation: &Map<String, Value>,
) -> Option<u32> {
    let first = |config| id_list(config, "eos_token_id").first().copied();
    first(model_config)
        .or_else(|| first(generation))
        .or_else(|| {
            let bare = !files.contains_key("tokenizer.json");
            bare.then(|| inner.token_to_id("<|endoftext|>")).flatten()
        })
}

/// `chat_template.jinja`, or the config's template: a string, or a list of named ones of which `default` is taken.
fn find_chat_template(
    files: &BTreeMap<String, Vec<u8>>,
    config: &Map<String, Value>,
    origin: &Path,
) -> Result<Option<(String, PathBuf)>> {
    if let Some(bytes) = files.get("chat_template.jinja") {
        let path = origin.join("chat_template.jinja");
        let source = String::from_utf8(bytes.clone())
            .map_err(|e| Error::format(&path, format!("expected UTF-8: {e}")))?;
        return Ok(Some((source, path)));
    }
    let path = origin.join("tokenizer_config.json");
    match config.get("chat_template") {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(source)) => Ok(Some((source.clone(), path))),
        Some(Value::Array(named)) => {
            let default = named
                .iter()
                .find(|entry| entry.get("name").and_then(Value::as_str) == Some("default"))
                .and_then(|entry| entry.get("template"))
                .and_then(Value::as_str);
            match default {
                Some(source) => Ok(Some((source.to_owned(), path))),
                None => Err(Error::format(
                    path,
                    "`chat_template` is a list without one named `default`",
                )),
            }
        }
        Some(_) => Err(Error::format(
            path,
            "`chat_template` is neither a string nor a list of named templates",
        )),
    }
}

#[cfg(test)]
pub(crate) mod testing {
    //! A byte-level BPE whose ids are the bytes themselves, plus two merges and four special tokens.

    use super::*;

    /// First id after the 256 bytes: the merge `h` + `i`.
    pub(crate) const HI: u32 = 256;
    /// The merge `\n` + `\n`.
    pub(crate) const NN: u32 = 257;
    /// `<s>`
    pub(crate) const BOS: u32 = 258;
    /// `</s>`
    pub(crate) const EOS: u32 = 259;
    /// `<|im_start|>`
    pub(crate) const IM_START: u32 = 260;
    /// `<|im_end|>`
    pub(crate) const IM_END: u32 = 261;

    /// ChatML in the usual spelling, without a default system message.
    pub(crate) const CHATML: &str = "{% for message in messages %}\n{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}\n{%- endfor %}\n{%- if add_generation_prompt %}\n{{- '<|im_start|>assistant\n' }}\n{%- endif %}\n";

    /// The visible characters that byte-level BPE writes for the 256 bytes.
    fn byte_chars() -> Vec<char> {
        let mut next = 256u32;
        (0..=255u8)
            .map(|byte| match byte {
                b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff => char::from(byte),
                _ => {
                    next += 1;
                    char::from_u32(next - 1).unwrap()
                }
            })
            .collect()
    }

    /// `tokenizer.json` of the toy; with `bos`, its post-processor puts `<s>` first.
    pub(crate) fn tokenizer_json(bos: bool) -> Vec<u8> {
        let chars = byte_chars();
        let mut vocab = Map::new();
        for (id, c) in chars.iter().enumerate() {
            vocab.insert(c.to_string(), json!(id));
        }
        let newline = chars[10];
        vocab.insert("hi".into(), json!(HI));
        vocab.insert(format!("{newline}{newline}"), json!(NN));
        let specials = ["<s>", "</s>", "<|im_start|>", "<|im_end|>"];
        let added: Vec<Value> = specials
            .iter()
            .zip(BOS..)
            .map(|(content, id)| {
                json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
                       "normalized": false, "special": true})
            })
            .collect();
        let post = bos.then(|| {
            json!({"type": "TemplateProcessing",
                   "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
                   "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
                   "special_tokens": {"<s>": {"id": "<s>", "ids": [BOS], "tokens": ["<s>"]}}})
        });
        let byte_level = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": false});
        json!({
            "version": "1.0",
            "truncation": {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0},
            "padding": null, "added_tokens": added, "normalizer": null,
            "pre_tokenizer": byte_level, "post_processor": post, "decoder": byte_level,
            "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
                      "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "vocab": vocab,
                      "merges": ["h i", format!("{newline} {newline}")]},
        })
        .to_string()
        .into_bytes()
    }

    /// The toy's files.
    pub(crate) fn files(bos: bool, chat: Option<&str>) -> BTreeMap<String, Vec<u8>> {
        let config = json!({"bos_token": {"content": "<s>", "lstrip": false}, "eos_token": "</s>", "chat_template": chat});
        BTreeMap::from([
            ("tokenizer.json".to_owned(), tokenizer_json(bos)),
            (
                "tokenizer_config.json".to_owned(),
                config.to_string().into_bytes(),
            ),
            (
                "generation_config.json".to_owned(),
                br#"{"eos_token_id": [259, 261]}"#.to_vec(),
            ),
        ])
    }

    /// The toy.
    pub(crate) fn tokenizer(bos: bool, chat: Option<&str>) -> Tokenizer {
        Tokenizer::from_files(files(bos, chat), Path::new("toy")).unwrap()
    }
}

#[cfg(test)]
mod tests {
    use super::testing::*;
    use super::*;

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
            tok.chat().unwrap().render(&[], false).unwrap(),
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
        let config = json!({"eos_token": "</s>", "chat_template": [{"name": "rag", "template": "r"}, {"name": "default", "template": "d"}]});
        files.insert(
            "tokenizer_config.json".into(),
            config.to_string().into_bytes(),
        );
        let tok = Tokenizer::from_files(files, Path::new("toy")).unwrap();
        assert_eq!(tok.chat().unwrap().render(&[], false).unwrap(), "d");
        let error = tokenizer(false, None).chat().unwrap_err().to_string();
        assert!(error.contains("no chat template"), "{error}");
    }
}
