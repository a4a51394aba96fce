//! Tokenizers of encoders: texts and pairs of texts between special tokens, cut to the positions that the model has.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::{Map, Value, json};
use tokenizers::{EncodeInput, PostProcessor, TruncationDirection, TruncationParams};

use super::files::{Files, MODEL_CONFIG, TOKENIZER_CONFIG};
use super::limits::Limits;
use super::special::DeclaredTokens;
use super::vocabulary;
use crate::error::{Error, Result};

/// Names of the special tokens of BERT's classes, where files do not name them.
const BERT_TOKENS: &[(&str, &str)] = &[
    ("unk_token", "[UNK]"),
    ("sep_token", "[SEP]"),
    ("pad_token", "[PAD]"),
    ("cls_token", "[CLS]"),
    ("mask_token", "[MASK]"),
];

/// The same of RoBERTa's.
const ROBERTA_TOKENS: &[(&str, &str)] = &[
    ("bos_token", "<s>"),
    ("eos_token", "</s>"),
    ("unk_token", "<unk>"),
    ("sep_token", "</s>"),
    ("pad_token", "<pad>"),
    ("cls_token", "<s>"),
    ("mask_token", "<mask>"),
];

/// Keys of `tokenizer_config.json` that transformers gives to BERT's normalizer, whatever `tokenizer.json` says, and what they are
/// called there.
const NORMALIZER_KEYS: [(&str, &str); 3] = [
    ("do_lower_case", "lowercase"),
    ("strip_accents", "strip_accents"),
    ("tokenize_chinese_chars", "handle_chinese_chars"),
];

/// A text, or a pair of texts, as an encoder reads it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EncodedText {
    /// Token ids, special tokens included.
    pub ids: Vec<u32>,
    /// The type of each token: 0, and 1 in the second text of a pair.
    pub type_ids: Vec<u32>,
    /// Whether the text was longer than the model can read, and was cut.
    pub is_cut: bool,
}

/// Which tokens of a long text are cut off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CutSide {
    /// Those that `truncation_side` in `tokenizer_config.json` says; the last ones without it.
    AsConfigured,
    /// The first ones.
    First,
}

/// The tokenizer of an encoder.
#[derive(Debug, Clone)]
pub struct EncoderTokenizer {
    inner: Arc<tokenizers::Tokenizer>,
    limits: Arc<Limits>,
    origin: PathBuf,
    limit: TruncationParams,
}

impl EncoderTokenizer {
    /// Loads the tokenizer of an encoder's folder: `tokenizer.json`, `vocab.txt` (WordPiece), or `vocab.json` with `merges.txt`
    /// (RoBERTa's); with `tokenizer_config.json`, `special_tokens_map.json` and `added_tokens.json` where present.
    ///
    /// A text gets at most `max_positions` tokens, or `model_max_length` of `tokenizer_config.json` if that is less.
    ///
    /// # Errors
    /// If there is no tokenizer, a file does not parse, or a token has an id beyond the model's `rows`.
    ///
    /// # Source
    /// transformers 5.23: `BertTokenizer`, `DistilBertTokenizer`, `RobertaTokenizer`.
    pub fn load(folder: &Path, rows: usize, max_positions: usize) -> Result<Self> {
        let files = Files::read(folder)?;
        let config = files.object(TOKENIZER_CONFIG)?;
        let source = vocabulary(&files, &config)?;
        let (file, json) = (source.0, source.1.to_string());
        let limits = Limits::read(json.as_bytes(), &files.path(file))?;
        let (bytes, shared, folder) = (json.len(), limits.clone(), folder.to_path_buf());
        limits.load(bytes, move || {
            Self::build(
                &files,
                (file, &json, source.2),
                shared,
                folder,
                rows,
                max_positions,
            )
        })
    }

    fn build(
        files: &Files,
        (file, json, defaults): (&str, &str, Defaults),
        limits: Arc<Limits>,
        folder: PathBuf,
        rows: usize,
        max_positions: usize,
    ) -> Result<Self> {
        let config = files.object(TOKENIZER_CONFIG)?;
        let wrong = |file: &str, message: String| Error::format(files.path(file), message);
        let mut inner = tokenizers::Tokenizer::from_bytes(json)
            .map_err(|error| wrong(file, error.to_string()))?;
        inner.with_padding(None);
        let declared = DeclaredTokens::read(files, defaults)?;
        declared.add_to(&mut inner, files)?;
        if !defaults.is_empty() {
            let post_processor = post_processor(file, &declared, &inner)
                .and_then(|json| serde_json::from_value(json).map_err(|e| e.to_string()));
            let post_processor = post_processor.map_err(|message| wrong(file, message))?;
            inner.with_post_processor(Some::<tokenizers::PostProcessorWrapper>(post_processor));
        }
        let last = inner.get_vocab(true).into_iter().max_by_key(|(_, id)| *id);
        if let Some((token, id)) = last.filter(|(_, id)| *id as usize >= rows) {
            return Err(wrong(
                file,
                format!(
                    "token id {id} (`{token}`): the model has ids 0 to {}. The tokenizer and the model do not belong together",
                    rows - 1
                ),
            ));
        }
        let most = config.get("model_max_length").and_then(Value::as_f64);
        // transformers writes 1e30 where there is no limit.
        let most = most.filter(|most| *most >= 1.0 && *most < max_positions as f64);
        let from_left = config.get("truncation_side").and_then(Value::as_str) == Some("left");
        let tokenizer = Self {
            inner: Arc::new(inner),
            limits,
            origin: folder,
            limit: TruncationParams {
                max_length: most.map_or(max_positions, |most| most as usize),
                direction: match from_left {
                    true => TruncationDirection::Left,
                    false => TruncationDirection::Right,
                },
                ..TruncationParams::default()
            },
        };
        tokenizer.cutting(CutSide::AsConfigured)
    }

    /// The same tokenizer with long texts cut at this side.
    ///
    /// # Errors
    /// If the model has no position beside those of special tokens.
    pub fn cutting(mut self, side: CutSide) -> Result<Self> {
        if side == CutSide::First {
            self.limit.direction = TruncationDirection::Left;
        }
        let inner = Arc::make_mut(&mut self.inner);
        let special = inner
            .get_post_processor()
            .map_or(0, |post_processor| post_processor.added_tokens(true));
        if self.limit.max_length <= special {
            return Err(Error::format(
                &self.origin,
                format!(
                    "a text may have {} tokens, and a pair of texts takes {special} special ones",
                    self.limit.max_length
                ),
            ));
        }
        inner
            .with_truncation(Some(self.limit.clone()))
            .map_err(|error| Error::format(&self.origin, error.to_string()))?;
        Ok(self)
    }

    /// Most tokens of a text, special ones included.
    pub fn max_length(&self) -> usize {
        self.limit.max_length
    }

    /// A text, or a pair of texts, with its special tokens; of a pair the longer text is cut first.
    ///
    /// # Errors
    /// If the tokenizer cannot encode the text.
    pub fn encode(&self, text: &str, pair: Option<&str>) -> Result<EncodedText> {
        let encoding = (self.limits).encode(&self.inner, (text, pair), |inner, text, second| {
            let input: EncodeInput<'_> = match second {
                Some(second) => (text, second).into(),
                None => text.into(),
            };
            inner.encode(input, true)
        })?;
        Ok(EncodedText {
            ids: encoding.get_ids().to_vec(),
            type_ids: encoding.get_type_ids().to_vec(),
            is_cut: !encoding.get_overflowing().is_empty(),
        })
    }
}

/// Default names of special tokens.
type Defaults = &'static [(&'static str, &'static str)];

/// The vocabulary in the form of `tokenizer.json`, and the file that it is from; without post-processor, and with the class's default
/// names of special tokens, unless it is a `tokenizer.json`.
fn vocabulary(
    files: &Files,
    config: &Map<String, Value>,
) -> Result<(&'static str, Value, Defaults)> {
    if let Some(bytes) = files.get("tokenizer.json") {
        let mut json: Value = serde_json::from_slice(bytes)
            .map_err(|e| Error::format(files.path("tokenizer.json"), e.to_string()))?;
        let normalizer = json.get_mut("normalizer").and_then(Value::as_object_mut);
        if let Some(normalizer) =
            normalizer.filter(|n| n.get("type") == Some(&json!("BertNormalizer")))
        {
            for (key, name) in NORMALIZER_KEYS {
                if let Some(value) = config.get(key) {
                    normalizer.insert(name.to_owned(), value.clone());
                }
            }
        }
        return Ok(("tokenizer.json", json, &[]));
    }
    if let Some(text) = files.text("vocab.txt")? {
        return Ok(("vocab.txt", word_piece(&text, config), BERT_TOKENS));
    }
    let class = vocabulary::named_class(files)?;
    let is_roberta = match class {
        Some(name) => name.trim_end_matches("Fast") == "RobertaTokenizer",
        None => files.object(MODEL_CONFIG)?.get("model_type") == Some(&json!("roberta")),
    };
    if is_roberta && let Some(json) = vocabulary::byte_level(files, config)? {
        return Ok(("vocab.json", json, ROBERTA_TOKENS));
    }
    Err(Error::format(
        files.origin(),
        "no tokenizer of an encoder: expected tokenizer.json, vocab.txt, or RoBERTa's vocab.json with merges.txt. \
         `AutoTokenizer.from_pretrained(folder).save_pretrained(folder)` of transformers writes tokenizer.json",
    ))
}

/// `vocab.txt`, a token a line, in the form of `tokenizer.json`.
fn word_piece(text: &str, config: &Map<String, Value>) -> Value {
    let tokens = text.lines().enumerate();
    // Of a token that is there twice the last line counts, as in transformers.
    let vocab: Map<String, Value> = tokens
        .map(|(id, token)| (token.to_owned(), json!(id)))
        .collect();
    let switch = |key: &str| config.get(key).and_then(Value::as_bool);
    json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [],
        "normalizer": {
            "type": "BertNormalizer", "clean_text": true,
            "handle_chinese_chars": switch("tokenize_chinese_chars").unwrap_or(true),
            "strip_accents": switch("strip_accents"),
            "lowercase": switch("do_lower_case").unwrap_or(true),
        },
        "pre_tokenizer": {"type": "BertPreTokenizer"}, "post_processor": null,
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": true},
        "model": {
            "type": "WordPiece", "unk_token": config.get("unk_token").and_then(Value::as_str).unwrap_or("[UNK]"),
            "continuing_subword_prefix": "##", "max_input_chars_per_word": 100, "vocab": vocab,
        },
    })
}

/// The post-processor of BERT's or RoBERTa's class.
fn post_processor(
    file: &str,
    declared: &DeclaredTokens,
    inner: &tokenizers::Tokenizer,
) -> Result<Value, String> {
    let token = |key: &str| {
        let text = declared
            .named(key)
            .ok_or_else(|| format!("no {key} is named"))?;
        let id = inner.token_to_id(text);
        let id = id.ok_or_else(|| format!("{key} is {text:?}, which is not in the vocabulary"))?;
        Ok::<_, String>((text.to_owned(), id))
    };
    let (kind, cls, sep) = (
        if file == "vocab.txt" {
            "BertProcessing"
        } else {
            "RobertaProcessing"
        },
        token("cls_token")?,
        token("sep_token")?,
    );
    let mut json = json!({"type": kind, "sep": sep, "cls": cls});
    if kind == "RobertaProcessing" {
        json["trim_offsets"] = json!(true);
        json["add_prefix_space"] = json!(false);
    }
    Ok(json)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    const VOCAB: &str = "[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\nhi\n##s\n";

    /// The tokenizer of a folder with these files.
    fn load(files: &[(&str, &str)], rows: usize, positions: usize) -> Result<EncoderTokenizer> {
        let folder = tempfile::tempdir().unwrap();
        for (name, text) in files {
            fs::write(folder.path().join(name), text).unwrap();
        }
        EncoderTokenizer::load(folder.path(), rows, positions)
    }

    #[test]
    fn a_vocabulary_alone_is_a_tokenizer_in_lower_case() {
        let tokenizer = load(&[("vocab.txt", VOCAB)], 7, 6).unwrap();
        let text = tokenizer.encode("HIs hi ho", None).unwrap();
        assert_eq!((text.ids, text.is_cut), (vec![2, 5, 6, 5, 1, 3], false));
        let pair = tokenizer.encode("his", Some("hi hi")).unwrap();
        // Six tokens, three of them special: one of each text is left, and the second has the odd one.
        assert_eq!(pair.ids, [2, 5, 3, 5, 5, 3]);
        assert_eq!(pair.type_ids, [0, 0, 0, 1, 1, 1]);
        assert!(pair.is_cut);
        let windows = VOCAB.replace('\n', "\r\n");
        let cased = (
            "tokenizer_config.json",
            r#"{"do_lower_case": false, "model_max_length": 4}"#,
        );
        let tokenizer = load(&[("vocab.txt", &windows), cased], 7, 6).unwrap();
        assert_eq!(tokenizer.encode("HIs hi", None).unwrap().ids, [2, 1, 5, 3]);
        assert_eq!(tokenizer.max_length(), 4);
    }

    #[test]
    fn what_is_wrong_with_a_tokenizer_is_said() {
        let message = |files: &[(&str, &str)], rows, positions| {
            load(files, rows, positions).unwrap_err().to_string()
        };
        let none = message(&[], 7, 6);
        assert!(
            none.contains("expected tokenizer.json, vocab.txt, or RoBERTa's"),
            "{none}"
        );
        let few = message(&[("vocab.txt", VOCAB)], 6, 6);
        assert!(
            few.contains("token id 6 (`##s`): the model has ids 0 to 5"),
            "{few}"
        );
        let short = message(&[("vocab.txt", VOCAB)], 7, 3);
        assert!(
            short.contains("a text may have 3 tokens, and a pair of texts takes 3 special ones"),
            "{short}"
        );
        // Added as the last token, which the model has no row for.
        let other = message(&[("vocab.txt", "[UNK]\n[CLS]\nhi\n")], 3, 6);
        assert!(other.contains("the model has ids 0 to 2"), "{other}");
    }
}
