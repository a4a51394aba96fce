//! Loads the vocabulary: `tokenizer.json`, or `vocab.json` with `merges.txt` read as the tokenizer class that the folder names.
//!
//! # Source
//! transformers 5.23: `GPT2Tokenizer`, `CodeGenTokenizer`, `GPTNeoXTokenizer`, `Qwen2Tokenizer`, and
//! `AutoTokenizer.from_pretrained` for the choice among them.

use std::path::PathBuf;

use serde_json::{Map, Value, json};
use tokenizers::PostProcessorWrapper;

use super::files::{Files, MODEL_CONFIG, TOKENIZER_CONFIG};
use crate::error::{Error, Result};

/// File names of vocabulary and merges; the second pair is GPT-2's original one.
const PAIRS: [(&str, &str); 2] = [("vocab.json", "merges.txt"), ("encoder.json", "vocab.bpe")];

/// GPT-2's special token, the default of several classes.
const END_OF_TEXT: &str = "<|endoftext|>";

/// How a tokenizer class of transformers reads a byte-level vocabulary with merges.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Class {
    name: &'static str,
    /// Whether texts are normalised (NFC) first.
    composes: bool,
    /// Pre-tokenisation pattern; GPT-2's if absent.
    pattern: Option<&'static str>,
    /// Default named special tokens.
    pub(super) named: &'static [(&'static str, &'static str)],
}

/// Qwen2's pattern: words with contractions and a leading character, single digits, punctuation with line breaks, white space.
const QWEN2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

const GPT2_NAMED: &[(&str, &str)] = &[
    ("bos_token", END_OF_TEXT),
    ("eos_token", END_OF_TEXT),
    ("unk_token", END_OF_TEXT),
];
const CLASSES: [Class; 4] = [
    Class {
        name: "GPT2Tokenizer",
        composes: false,
        pattern: None,
        named: GPT2_NAMED,
    },
    Class {
        name: "CodeGenTokenizer",
        composes: false,
        pattern: None,
        named: GPT2_NAMED,
    },
    Class {
        name: "GPTNeoXTokenizer",
        composes: true,
        pattern: None,
        named: &[
            ("bos_token", END_OF_TEXT),
            ("eos_token", END_OF_TEXT),
            ("unk_token", END_OF_TEXT),
            ("pad_token", "<|padding|>"),
        ],
    },
    Class {
        name: "Qwen2Tokenizer",
        composes: true,
        pattern: Some(QWEN2),
        named: &[
            ("eos_token", END_OF_TEXT),
            ("unk_token", END_OF_TEXT),
            ("pad_token", END_OF_TEXT),
        ],
    },
];

/// The class by `model_type`, if the folder names none.
const BY_MODEL_TYPE: [(&str, &str); 13] = [
    ("codegen", "GPT2Tokenizer"),
    ("gpt2", "GPT2Tokenizer"),
    ("gpt_neo", "GPT2Tokenizer"),
    ("gptj", "GPT2Tokenizer"),
    ("opt", "GPT2Tokenizer"),
    ("phi", "GPT2Tokenizer"),
    ("gpt_neox", "GPTNeoXTokenizer"),
    ("mpt", "GPTNeoXTokenizer"),
    ("olmo", "GPTNeoXTokenizer"),
    ("qwen2", "Qwen2Tokenizer"),
    ("qwen2_moe", "Qwen2Tokenizer"),
    ("qwen3", "Qwen2Tokenizer"),
    ("qwen3_moe", "Qwen2Tokenizer"),
];

/// Model types whose published folders name a wrong class; the class of the model type overrides it.
const MODEL_TYPE_COUNTS: [&str; 1] = ["qwen2"];

/// A vocabulary, with the class that read it.
pub(super) struct Vocabulary {
    pub(super) inner: tokenizers::Tokenizer,
    /// Absent for `tokenizer.json`, which is complete.
    pub(super) class: Option<&'static Class>,
}

/// The file of a vocabulary, in the form of `tokenizer.json`.
pub(super) struct Source {
    pub(super) json: Vec<u8>,
    /// The file to name in errors.
    pub(super) path: PathBuf,
    class: Option<&'static Class>,
}

impl Source {
    /// Loads the vocabulary.
    ///
    /// # Errors
    /// If it does not parse.
    pub(super) fn load(&self) -> Result<Vocabulary> {
        let inner = tokenizers::Tokenizer::from_bytes(&self.json)
            .map_err(|e| Error::format(&self.path, e.to_string()))?;
        Ok(Vocabulary {
            inner,
            class: self.class,
        })
    }
}

/// Reads the vocabulary of a folder.
///
/// # Errors
/// If there is none, it does not parse, or the class is unknown.
pub(super) fn read(files: &Files) -> Result<Source> {
    if let Some(bytes) = files.get("tokenizer.json") {
        return Ok(Source {
            json: bytes.to_vec(),
            path: files.path("tokenizer.json"),
            class: None,
        });
    }
    for (vocab, merges) in PAIRS {
        if let (Some(vocab_bytes), Some(merges_text)) = (files.get(vocab), files.text(merges)?) {
            let (class, config) = (class(files)?, files.object(TOKENIZER_CONFIG)?);
            let json = serde_json::from_slice(vocab_bytes)
                .map(|vocab| tokenizer_json(class, vocab, &merges_text, &config))
                .map_err(|e| Error::format(files.path(vocab), e.to_string()))?;
            return Ok(Source {
                json: json.to_string().into_bytes(),
                path: files.path(vocab),
                class: Some(class),
            });
        }
    }
    Err(Error::format(
        files.origin(),
        "no tokenizer: expected tokenizer.json, or vocab.json with merges.txt",
    ))
}

/// `vocab.json` with `merges.txt` in the form of `tokenizer.json`, read as GPT-2's class does and without a post-processor, if the
/// files are there.
///
/// # Errors
/// If one of them does not parse.
pub(super) fn byte_level(files: &Files, config: &Map<String, Value>) -> Result<Option<Value>> {
    let (vocab, merges) = PAIRS[0];
    let (Some(bytes), Some(merges)) = (files.get(vocab), files.text(merges)?) else {
        return Ok(None);
    };
    let read =
        serde_json::from_slice(bytes).map_err(|e| Error::format(files.path(vocab), e.to_string()));
    Ok(Some(tokenizer_json(&CLASSES[0], read?, &merges, config)))
}

/// The class that `tokenizer_config.json` or `config.json` names.
///
/// # Errors
/// If one of them does not parse.
pub(super) fn named_class(files: &Files) -> Result<Option<String>> {
    for file in [TOKENIZER_CONFIG, MODEL_CONFIG] {
        if let Some(name) = files
            .object(file)?
            .get("tokenizer_class")
            .and_then(Value::as_str)
        {
            return Ok(Some(name.to_owned()));
        }
    }
    Ok(None)
}

/// The class named by `tokenizer_config.json` or `config.json`, or that of the model type; GPT-2's if there is neither.
fn class(files: &Files) -> Result<&'static Class> {
    let (config, model) = (files.object(TOKENIZER_CONFIG)?, files.object(MODEL_CONFIG)?);
    let text = |object: &Map<String, Value>, key: &str| {
        object.get(key).and_then(Value::as_str).map(str::to_owned)
    };
    let model_type = text(&model, "model_type").unwrap_or_default();
    let by_type = BY_MODEL_TYPE.iter().find(|(name, _)| *name == model_type);
    let by_type = by_type.map(|(_, class)| (*class).to_owned());
    let (file, name) = match (
        text(&config, "tokenizer_class"),
        text(&model, "tokenizer_class"),
    ) {
        _ if MODEL_TYPE_COUNTS.contains(&model_type.as_str()) => (MODEL_CONFIG, by_type),
        (Some(name), _) => (TOKENIZER_CONFIG, Some(name)),
        (None, Some(name)) => (MODEL_CONFIG, Some(name)),
        (None, None) if model_type.is_empty() => {
            (TOKENIZER_CONFIG, Some(CLASSES[0].name.to_owned()))
        }
        (None, None) => (MODEL_CONFIG, by_type),
    };
    let named = name.as_deref().map(|name| {
        let slow = name.strip_suffix("Fast").unwrap_or(name);
        CLASSES.iter().find(|class| class.name == slow)
    });
    named.flatten().ok_or_else(|| {
        let known: Vec<&str> = CLASSES.iter().map(|class| class.name).collect();
        let what = match name {
            Some(name) => format!("the tokenizer is a {name}"),
            None => format!("no tokenizer_class is named, and a {model_type} model goes with none of these"),
        };
        Error::format(
            files.path(file),
            format!(
                "{what}; vocab.json with merges.txt can be read as {}. For any other class a tokenizer.json is needed, \
                 which `AutoTokenizer.from_pretrained(folder).save_pretrained(folder)` of transformers writes",
                known.join(", ")
            ),
        )
    })
}

/// Vocabulary and merges in the form of `tokenizer.json`.
fn tokenizer_json(
    class: &Class,
    vocab: Map<String, Value>,
    merges: &str,
    config: &Map<String, Value>,
) -> Value {
    let merges: Vec<&str> = merges
        .lines()
        .filter(|line| !line.is_empty() && !line.starts_with("#version"))
        .collect();
    let prefix = config
        .get("add_prefix_space")
        .and_then(Value::as_bool)
        .unwrap_or(false);
    let byte_level = |use_regex: bool| json!({"type": "ByteLevel", "add_prefix_space": prefix, "trim_offsets": false, "use_regex": use_regex});
    let pre_tokenizer = match class.pattern {
        None => byte_level(true),
        Some(pattern) => json!({"type": "Sequence", "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false},
            byte_level(false)]}),
    };
    json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [],
        "normalizer": class.composes.then(|| json!({"type": "NFC"})),
        "pre_tokenizer": pre_tokenizer, "post_processor": null, "decoder": byte_level(true),
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
                  "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "vocab": vocab, "merges": merges},
    })
}

/// The post-processor of a class: adds BOS and EOS by the configuration's `add_bos_token` and `add_eos_token`. (Beside
/// `tokenizer.json` transformers 5 ignores these keys and uses its post-processor.)
pub(super) fn post_processor(
    config: &Map<String, Value>,
    token: impl Fn(&str) -> Option<(u32, String)>,
) -> Result<Option<PostProcessorWrapper>, String> {
    let asked = |key: &str| config.get(key).and_then(Value::as_bool) == Some(true);
    let special = |text: &str| json!({"SpecialToken": {"id": text, "type_id": 0}});
    let mut around = vec![json!({"Sequence": {"id": "A", "type_id": 0}})];
    let mut names = Map::new();
    if let Some((id, text)) = token("bos_token").filter(|_| asked("add_bos_token")) {
        around.insert(0, special(&text));
        names.insert(
            text.clone(),
            json!({"id": text, "ids": [id], "tokens": [text]}),
        );
    }
    if let Some((id, text)) = token("eos_token").filter(|_| asked("add_eos_token")) {
        around.push(special(&text));
        names.insert(
            text.clone(),
            json!({"id": text, "ids": [id], "tokens": [text]}),
        );
    }
    if names.is_empty() {
        return Ok(None);
    }
    let pair =
        json!([{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}]);
    let json = json!({"type": "TemplateProcessing", "single": around, "pair": pair, "special_tokens": names});
    serde_json::from_value(json)
        .map(Some)
        .map_err(|e| e.to_string())
}
