//! Text to token ids and back: a thin layer over the `tokenizers` crate with special and stop tokens.
//!
//! Nothing is padded: batches are packed (see [`crate::tokens`]), and truncation or padding set in a `tokenizer.json` is disabled,
//! as in transformers.

mod added;
mod compare;
mod components;
mod encoder;
mod ending;
mod files;
mod frame;
mod limits;
mod named;
mod response_text;
mod special;
mod templates;
#[cfg(test)]
pub(crate) mod testing;
mod vocabulary;

use std::collections::{BTreeMap, HashSet};
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

pub(in crate::data) use self::compare::today;
pub use self::encoder::{CutSide, EncodedText, EncoderTokenizer};
use self::files::Files;
pub(crate) use self::files::is_tokenizer_file;
use self::frame::Frame;
use self::limits::Limits;
pub use self::response_text::ResponseText;
use self::special::DeclaredTokens;
pub use self::templates::FOLDER as CHAT_TEMPLATES;
use self::vocabulary::{Source, Vocabulary};
use crate::data::chat::ChatTemplate;
use crate::error::{Error, Result};

/// A tokenizer with its chat template and special tokens. Clones share vocabulary and files, which take tens of megabytes for
/// 49,152 tokens.
#[derive(Debug, Clone)]
pub struct Tokenizer {
    inner: Arc<tokenizers::Tokenizer>,
    limits: Arc<Limits>,
    files: Arc<Files>,
    special_ids: HashSet<u32>,
    max_id: u32,
    embeddings: Option<usize>,
    bos: Option<(u32, String)>,
    pad: Option<u32>,
    eos_text: String,
    stop_ids: Vec<u32>,
    frame: Frame,
    chat: Option<ChatTemplate>,
}

impl Tokenizer {
    /// Loads the tokenizer of a model folder: `tokenizer.json`, or else `vocab.json` with `merges.txt` (`encoder.json` with
    /// `vocab.bpe`), read as the tokenizer class that the folder names; with `tokenizer_config.json`, `special_tokens_map.json`,
    /// `added_tokens.json`, `generation_config.json` and `config.json` where present; and the chat templates in all of transformers'
    /// places.
    ///
    /// # Errors
    /// If there is no tokenizer, a file does not parse, a token cannot have the id that a file gives it, or no file names an EOS.
    pub fn load(folder: &Path) -> Result<Self> {
        Self::load_layered(&[folder])
    }

    /// Whether a folder has the vocabulary of a tokenizer.
    pub fn is_in(folder: &Path) -> bool {
        Files::any_in(folder)
    }

    /// Loads a tokenizer from layered folders: an adapter's first, then its base's.
    ///
    /// The vocabulary is that of the first folder that has one, with the token properties in this folder and those before it. The
    /// chat templates are those of the first folder with any. `generation_config.json` and `config.json` are each taken from the
    /// first folder that has them.
    ///
    /// # Errors
    /// As [`Tokenizer::load`].
    pub fn load_layered(folders: &[&Path]) -> Result<Self> {
        Self::of(Files::layered(folders)?)
    }

    /// Loads a tokenizer from files in memory, by name; `origin`: the path for error messages.
    ///
    /// # Errors
    /// As [`Tokenizer::load`].
    pub fn from_files(files: BTreeMap<String, Vec<u8>>, origin: &Path) -> Result<Self> {
        Self::of(Files::new(files, origin))
    }

    fn of(files: Files) -> Result<Self> {
        let source = vocabulary::read(&files)?;
        let limits = Limits::read(&source.json, &source.path)?;
        let (bytes, shared) = (source.json.len(), limits.clone());
        limits.load(bytes, move || Self::build(source, shared, files))
    }

    fn build(source: Source, limits: Arc<Limits>, files: Files) -> Result<Self> {
        let Vocabulary { mut inner, class } = source.load()?;
        inner.with_padding(None);
        inner
            .with_truncation(None)
            .map_err(|e| Error::format(files.origin(), e.to_string()))?;
        let declared = DeclaredTokens::read(&files, class.map_or(&[], |class| class.named))?;
        declared.add_to(&mut inner, &files)?;
        let token = |key: &str| -> Result<Option<(u32, String)>> {
            let Some(text) = declared.named(key) else {
                return Ok(None);
            };
            let id = inner.token_to_id(text).ok_or_else(|| {
                Error::format(
                    files.origin(),
                    format!("{key} is {text:?}, which is not in the vocabulary"),
                )
            })?;
            Ok(Some((id, text.to_owned())))
        };
        let (bos, eos) = (token("bos_token")?, token("eos_token")?);
        let pad = declared.named("pad_token");
        let pad = pad.and_then(|text| inner.token_to_id(text));
        let (eos_id, eos_text) = match eos {
            Some(eos) => eos,
            None => ending::eos_of_the_model(&inner, &files)?,
        };
        if class.is_some() {
            let named = |key: &str| match key {
                "bos_token" => bos.clone(),
                _ => Some((eos_id, eos_text.clone())),
            };
            let config = files.object(files::TOKENIZER_CONFIG)?;
            let post_processor = vocabulary::post_processor(&config, named)
                .map_err(|e| Error::format(files.path(files::TOKENIZER_CONFIG), e))?;
            inner.with_post_processor(post_processor);
        }
        let special_ids = inner
            .get_added_tokens_decoder()
            .into_iter()
            .filter(|(_, token)| token.special)
            .map(|(id, _)| id)
            .collect();
        let mut specials: BTreeMap<String, String> = declared.names().collect();
        specials.insert("eos_token".into(), eos_text.clone());
        Ok(Self {
            chat: templates::compile(&files, specials)?,
            frame: Frame::of(&inner).map_err(|e| Error::format(files.origin(), e))?,
            stop_ids: ending::stop_ids(eos_id, &files)?,
            // A vocabulary may have gaps: the largest id is not the number of tokens less one.
            max_id: inner.get_vocab(true).into_values().max().unwrap_or(0),
            embeddings: files.embedding_rows()?,
            inner: Arc::new(inner),
            limits,
            files: Arc::new(files),
            special_ids,
            bos,
            pad,
            eos_text,
        })
    }

    /// Token ids of `text`. `add_special_tokens` adds the post-processor's tokens, usually a BOS.
    ///
    /// # Errors
    /// If the tokenizer cannot encode the text.
    pub fn encode(&self, text: &str, add_special_tokens: bool) -> Result<Vec<u32>> {
        self.limits
            .encode(&self.inner, (text, None), move |inner, text, _| {
                let encoding = inner.encode_fast(text, add_special_tokens)?;
                Ok(encoding.get_ids().to_vec())
            })
    }

    /// Token ids of a whole text with the post-processor's tokens before and after it, once even if the text contains them.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`], and if the ids start with two BOS tokens.
    pub fn encode_document(&self, text: &str) -> Result<Vec<u32>> {
        let ids = self.encode(text, false)?;
        let after = self.frame.after(&ids);
        let mut ids = self.started(ids)?;
        ids.extend(after);
        Ok(ids)
    }

    /// Token ids of a text to be continued, such as a prompt: with the post-processor's tokens before it, without those after it.
    ///
    /// # Errors
    /// As [`Tokenizer::encode_document`].
    pub fn encode_start(&self, text: &str) -> Result<Vec<u32>> {
        self.started(self.encode(text, false)?)
    }

    fn started(&self, ids: Vec<u32>) -> Result<Vec<u32>> {
        let ids = self.frame.start(ids);
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
                    self.files.origin(),
                    format!(
                        "a text starts with two BOS tokens ({text:?}): both the text or chat template and the tokenizer add one; \
                         remove it from the text"
                    ),
                ))
            }
            _ => Ok(()),
        }
    }

    /// Token ids without added special tokens, each with its byte range in `text`.
    ///
    /// Tokens that share one multi-byte character all carry the whole character's range.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`].
    pub fn encode_with_offsets(&self, text: &str) -> Result<Vec<(u32, Range<usize>)>> {
        let encoding = (self.limits).encode(&self.inner, (text, None), |inner, text, _| {
            inner.encode(text, false)
        })?;
        Ok(encoding
            .get_ids()
            .iter()
            .zip(encoding.get_offsets())
            .map(|(&id, &(start, end))| (id, start..end))
            .collect())
    }

    /// The id of the single token that encodes `text`.
    ///
    /// # Errors
    /// If there are none or several, and as [`Tokenizer::encode`].
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
        self.limits.decode(&self.inner, ids, skip_special)
    }

    /// The contents of a `tokenizer.json`, with all special tokens, whatever files the tokenizer came from.
    ///
    /// # Errors
    /// If the tokenizer cannot be written.
    pub(crate) fn to_json(&self) -> Result<serde_json::Value> {
        let text = self.inner.to_string(false).map_err(|e| self.failure(&e))?;
        serde_json::from_str(&text).map_err(|e| Error::format(self.files.origin(), e.to_string()))
    }

    /// The EOS id.
    pub fn eos_id(&self) -> u32 {
        self.stop_ids[0]
    }

    /// The EOS as text.
    pub fn eos_text(&self) -> &str {
        &self.eos_text
    }

    /// All stop ids: [`Tokenizer::eos_id`], then those of `generation_config.json`, then those of `config.json`.
    pub fn stop_ids(&self) -> &[u32] {
        &self.stop_ids
    }

    /// The BOS id, if the tokenizer has one.
    pub fn bos_id(&self) -> Option<u32> {
        self.bos.as_ref().map(|(id, _)| *id)
    }

    /// The padding token of the files, which may be the EOS. It is not used here.
    pub fn pad_id(&self) -> Option<u32> {
        self.pad
    }

    /// Whether `id` is an added special token (`<|im_end|>`), as opposed to a piece of text.
    pub fn is_special(&self, id: u32) -> bool {
        self.special_ids.contains(&id)
    }

    /// The vocabulary's entry for `id`, in the vocabulary's own spelling (`Ġthe`).
    pub fn token_str(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }

    /// Number of tokens, added ones included. A model's embedding may have more rows, and the vocabulary may have gaps:
    /// for what fits, see [`Tokenizer::max_id`].
    pub fn vocab_size(&self) -> usize {
        self.inner.get_vocab_size(true)
    }

    /// The largest id that encoding can produce.
    pub fn max_id(&self) -> u32 {
        self.max_id
    }

    /// One more than the largest id.
    pub fn id_limit(&self) -> u32 {
        self.max_id + 1
    }

    /// Rows of the model's embedding, if a `config.json` was among the files.
    pub(crate) fn embeddings(&self) -> Option<usize> {
        self.embeddings
    }

    /// Refuses an embedding without a row for every id.
    ///
    /// # Errors
    /// `Error::Format` that names the largest id and its token.
    pub fn check_embedding(&self, rows: usize) -> Result<()> {
        check_ids(&[self.max_id], rows).map_err(|message| {
            let text = self.decode(&[self.max_id], false).unwrap_or_default();
            let token = message.split_once(':').map_or("", |(token, _)| token);
            Error::format(
                self.files.origin(),
                format!(
                    "{token} (`{}`){}. The tokenizer and the model do not belong together",
                    text.trim(),
                    &message[token.len()..]
                ),
            )
        })
    }

    /// The chat template.
    ///
    /// # Errors
    /// If the tokenizer has none.
    pub fn chat(&self) -> Result<&ChatTemplate> {
        self.chat.as_ref().ok_or_else(|| {
            Error::format(
                self.files.origin(),
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

    /// Writes its files into `folder`, byte for byte, except `config.json`, which is the model's.
    ///
    /// # Errors
    /// If a file cannot be written.
    pub fn save(&self, folder: &Path) -> Result<()> {
        self.files.save(folder)
    }

    fn failure(&self, error: &tokenizers::Error) -> Error {
        Error::format(self.files.origin(), error.to_string())
    }
}

/// Checks that an embedding of `rows` rows has a row for each id.
///
/// # Errors
/// A message with the first id without a row.
pub fn check_ids(ids: &[u32], rows: usize) -> std::result::Result<(), String> {
    match ids.iter().find(|&&id| id as usize >= rows) {
        Some(id) => Err(format!(
            "token id {id}: the model has ids 0 to {}",
            rows.saturating_sub(1)
        )),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use serde_json::{Value, json};

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
        // transformers makes a token of it; the model has no embedding for one more.
        let tok = Tokenizer::from_files(files.clone(), Path::new("toy")).unwrap();
        assert_eq!(
            (tok.eos_id(), tok.stop_ids()),
            (262, &[262, IM_END, EOS][..])
        );
        files.insert(
            "config.json".into(),
            br#"{"eos_token_id": [261, 259], "vocab_size": 262}"#.to_vec(),
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
    fn the_configuration_defines_special_tokens_around_text_for_a_bare_vocabulary() {
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
        let tok = load(json!({"bos_token": "<s>", "eos_token": end, "add_bos_token": true}));
        assert_eq!(tok.unwrap().encode("hi", true).unwrap(), [3, 0, 1]);
    }

    /// A folder with the given files; those of the toy where a name stands alone.
    fn folder(files: &[(&str, Value)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (name, value) in files {
            let path = dir.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            let text = match value {
                Value::String(text) => text.clone(),
                other => other.to_string(),
            };
            fs::write(path, text).unwrap();
        }
        dir
    }

    fn toy_json() -> Value {
        serde_json::from_slice(&tokenizer_json(false)).unwrap()
    }

    fn rendered(tok: &Tokenizer) -> String {
        let chat = tok.chat().unwrap();
        chat.render(&[], &ChatOptions::default()).unwrap()
    }

    #[test]
    fn an_adapter_lies_over_its_base() {
        let base = folder(&[
            ("tokenizer.json", toy_json()),
            (
                "tokenizer_config.json",
                json!({"eos_token": "</s>", "pad_token": "<pad>"}),
            ),
            (
                "generation_config.json",
                json!({"eos_token_id": [259, 261]}),
            ),
            (
                "config.json",
                json!({"eos_token_id": 258, "vocab_size": 300}),
            ),
            ("chat_template.jinja", json!("base")),
        ]);
        // Without files of its own it is the base's, and stops where any file of either says.
        let bare = folder(&[]);
        let tok = Tokenizer::load_layered(&[bare.path(), base.path()]).unwrap();
        assert_eq!(tok.stop_ids(), [EOS, IM_END, BOS]);
        assert_eq!((rendered(&tok).as_str(), tok.max_id()), ("base", 262));
        // Its own tokenizer, template and EOS win; what it does not say comes from the base.
        let own = folder(&[
            ("tokenizer.json", toy_json()),
            (
                "tokenizer_config.json",
                json!({"eos_token": "<|im_end|>", "chat_template": "own"}),
            ),
        ]);
        let tok = Tokenizer::load_layered(&[own.path(), base.path()]).unwrap();
        assert_eq!(tok.stop_ids(), [IM_END, EOS, BOS]);
        assert_eq!((rendered(&tok).as_str(), tok.max_id()), ("own", IM_END));
        let to = folder(&[]);
        tok.save(to.path()).unwrap();
        let again = Tokenizer::load(to.path()).unwrap();
        assert_eq!(
            (rendered(&again).as_str(), again.stop_ids()),
            ("own", &[IM_END, EOS][..])
        );
        // A configuration over the base's vocabulary, and a template over the base's configuration.
        let words = folder(&[(
            "tokenizer_config.json",
            json!({"eos_token": "<|im_start|>"}),
        )]);
        let tok = Tokenizer::load_layered(&[words.path(), base.path()]).unwrap();
        assert_eq!((tok.eos_id(), rendered(&tok).as_str()), (IM_START, "base"));
        let error = Tokenizer::load_layered(&[bare.path(), bare.path()]).unwrap_err();
        assert!(error.to_string().contains("no tokenizer"), "{error}");
    }

    #[test]
    fn a_template_of_the_base_is_saved_beside_the_configuration_over_it() {
        let base = folder(&[
            ("tokenizer.json", toy_json()),
            (
                "tokenizer_config.json",
                json!({"eos_token": "</s>", "chat_template": [
                {"name": "default", "template": "base"}, {"name": "tool_use", "template": "tools"}]}),
            ),
        ]);
        let own = folder(&[("tokenizer_config.json", json!({"eos_token": "</s>"}))]);
        let to = folder(&[]);
        let tok = Tokenizer::load_layered(&[own.path(), base.path()]).unwrap();
        tok.save(to.path()).unwrap();
        let read = |name: &str| fs::read_to_string(to.path().join(name)).unwrap();
        assert_eq!(read("chat_template.jinja"), "base");
        assert_eq!(read("additional_chat_templates/tool_use.jinja"), "tools");
        assert_eq!(rendered(&Tokenizer::load(to.path()).unwrap()), "base");
    }

    #[test]
    fn another_eos_is_in_rows_templates_and_files() {
        let dir = folder(&[
            ("tokenizer.json", toy_json()),
            ("tokenizer_config.json", json!({"eos_token": "</s>"})),
            ("special_tokens_map.json", json!({"eos_token": "</s>"})),
            (
                "generation_config.json",
                json!({"_from_model_config": true, "eos_token_id": 259, "top_k": 5}),
            ),
            ("config.json", json!({"eos_token_id": 258})),
            ("chat_template.jinja", json!("{{ eos_token }}")),
        ]);
        let tok = Tokenizer::load(dir.path()).unwrap();
        let changed = tok.with_eos_token("<|im_end|>").unwrap();
        assert_eq!(
            (changed.eos_id(), changed.eos_text()),
            (IM_END, "<|im_end|>")
        );
        assert_eq!(changed.stop_ids(), [IM_END, EOS, BOS]);
        assert_eq!(rendered(&changed), "<|im_end|>");
        let to = folder(&[]);
        changed.save(to.path()).unwrap();
        let read = |name: &str| -> Value {
            serde_json::from_slice(&fs::read(to.path().join(name)).unwrap()).unwrap()
        };
        assert_eq!(read("tokenizer_config.json")["eos_token"], "<|im_end|>");
        assert_eq!(read("special_tokens_map.json")["eos_token"], "<|im_end|>");
        assert_eq!(
            read("generation_config.json"),
            json!({"eos_token_id": [261, 259, 258], "top_k": 5})
        );
        let error = tok.with_eos_token("<none>").unwrap_err().to_string();
        assert!(
            error.contains("eos_token: \"<none>\" is not a token"),
            "{error}"
        );
        // One more token to stop at changes nothing but that.
        let more = tok.stopping_at(IM_END).unwrap();
        assert_eq!(
            (more.eos_id(), more.stop_ids()),
            (EOS, &[EOS, BOS, IM_END][..])
        );
        more.save(to.path()).unwrap();
        assert_eq!(
            read("generation_config.json")["eos_token_id"],
            json!([259, 258, 261])
        );
    }

    #[test]
    fn a_gap_in_the_vocabulary_counts() {
        let mut json = toy_json();
        json["model"]["vocab"]["hi"] = json!(800);
        let dir = folder(&[
            ("tokenizer.json", json.clone()),
            ("tokenizer_config.json", json!({"eos_token": "</s>"})),
        ]);
        let tok = Tokenizer::load(dir.path()).unwrap();
        assert_eq!((tok.vocab_size(), tok.max_id()), (262, 800));
        tok.check_embedding(801).unwrap();
        let error = tok.check_embedding(768).unwrap_err().to_string();
        assert!(
            error.contains(": token id 800 (`hi`): the model has ids 0 to 767."),
            "{error}"
        );
        assert_eq!(check_ids(&[0, 767], 768), Ok(()));
    }

    #[test]
    fn a_padding_token_without_an_embedding_is_none() {
        let files = |rows: usize| {
            folder(&[
                ("tokenizer.json", toy_json()),
                (
                    "tokenizer_config.json",
                    json!({"eos_token": "</s>", "pad_token": "<pad>"}),
                ),
                ("config.json", json!({"vocab_size": rows})),
            ])
        };
        assert_eq!(Tokenizer::load(files(262).path()).unwrap().max_id(), 261);
        let tok = Tokenizer::load(files(263).path()).unwrap();
        assert_eq!(tok.encode("<pad>", false).unwrap(), [262]);
        assert!(tok.is_special(262));
    }

    #[test]
    fn a_token_is_special_if_any_file_says_so() {
        let mut json = toy_json();
        json["added_tokens"][3]["special"] = json!(false);
        let config = |value: Value| {
            let dir = folder(&[
                ("tokenizer.json", json.clone()),
                ("tokenizer_config.json", value),
            ]);
            Tokenizer::load(dir.path()).unwrap().is_special(IM_END)
        };
        assert!(!config(json!({"eos_token": "</s>"})));
        assert!(config(
            json!({"eos_token": "</s>", "additional_special_tokens": ["<|im_end|>"]})
        ));
        assert!(config(
            json!({"eos_token": "</s>", "extra_special_tokens": {"x": "<|im_end|>"}})
        ));
        assert!(config(json!({"eos_token": "<|im_end|>"})));
        let token = json!({"content": "<|im_end|>", "special": true});
        assert!(config(
            json!({"eos_token": "</s>", "added_tokens_decoder": {"261": token}})
        ));
    }

    #[test]
    fn an_unknown_class_is_refused_by_name() {
        let dir = folder(&[
            ("vocab.json", json!({"h": 0, "<|endoftext|>": 1})),
            ("merges.txt", json!("#version: 0.2\n")),
            (
                "tokenizer_config.json",
                json!({"tokenizer_class": "WhisperTokenizerFast"}),
            ),
        ]);
        let error = Tokenizer::load(dir.path()).unwrap_err().to_string();
        assert!(error.contains("the tokenizer is a WhisperTokenizerFast; vocab.json with merges.txt can be read as GPT2Tokenizer,"), "{error}");
        fs::remove_file(dir.path().join("tokenizer_config.json")).unwrap();
        fs::write(dir.path().join("config.json"), r#"{"model_type": "llama"}"#).unwrap();
        let error = Tokenizer::load(dir.path()).unwrap_err().to_string();
        assert!(
            error.contains("no tokenizer_class is named, and a llama model goes with none"),
            "{error}"
        );
    }

    #[test]
    fn what_stands_around_a_text_is_there_once() {
        let mut json = toy_json();
        let special = |text: &str| json!({"SpecialToken": {"id": text, "type_id": 0}});
        let name = |text: &str, id: u32| json!({"id": text, "ids": [id], "tokens": [text]});
        json["post_processor"] = json!({"type": "TemplateProcessing",
            "single": [special("<s>"), {"Sequence": {"id": "A", "type_id": 0}}, special("</s>")], "pair": [],
            "special_tokens": {"<s>": name("<s>", BOS), "</s>": name("</s>", EOS)}});
        let dir = folder(&[
            ("tokenizer.json", json),
            (
                "tokenizer_config.json",
                json!({"bos_token": "<s>", "eos_token": "</s>"}),
            ),
        ]);
        let tok = Tokenizer::load(dir.path()).unwrap();
        assert_eq!(tok.encode_document("a").unwrap(), [BOS, 97, EOS]);
        assert_eq!(tok.encode_document("<s>a</s>").unwrap(), [BOS, 97, EOS]);
        assert_eq!(tok.encode_document("<s>a").unwrap(), [BOS, 97, EOS]);
        assert_eq!(tok.encode_start("a").unwrap(), [BOS, 97]);
        assert_eq!(tok.encode_start("").unwrap(), [BOS]);
    }
}
