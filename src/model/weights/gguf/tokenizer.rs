//! The tokenizer inside a GGUF file as the files that transformers would have.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::header::MetadataValue;
use super::layout::architecture;
use super::phi3;
use super::sentencepiece;
use super::splitting::Splitting;
use super::vocabulary::{CONTROL, NORMAL, UNKNOWN, UNUSED, USER_DEFINED};

/// Files by name: `tokenizer.json`, `tokenizer_config.json` and `generation_config.json`.
pub(super) type Files = BTreeMap<String, Vec<u8>>;

/// What ends a turn in some family, where a file does not say so.
const TURN_ENDS: [&str; 4] = ["<|im_end|>", "<|eot_id|>", "<end_of_turn>", "<|end|>"];

/// The files of a byte-level BPE, or of sentencepiece's.
///
/// # Errors
/// What is missing, or of a kind that is not read.
pub(super) fn files(metadata: &BTreeMap<String, MetadataValue>) -> Result<Files, String> {
    let keys = Keys(metadata);
    let vocabulary = Vocabulary::of(keys)?;
    let (parts, adds_bos) = match keys.text("model") {
        Some("gpt2") => byte_level(keys, &vocabulary)?,
        Some("llama") => (by_scores(keys, &vocabulary)?, true),
        Some(other) => {
            return Err(format!(
                "the tokenizer inside the file is of kind {other:?}; \"gpt2\" (byte-level BPE) and \"llama\" (sentencepiece's BPE) are read"
            ));
        }
        None => return Err("there is no tokenizer inside the file".into()),
    };
    let special = |key: &str, adds: bool| vocabulary.named(keys, key).filter(|_| adds);
    let frame = frame(
        special("bos", keys.flag("add_bos_token").unwrap_or(adds_bos)),
        special("eos", keys.flag("add_eos_token").unwrap_or(false)),
    );
    let has = |token: &str| vocabulary.0.iter().any(|(text, _)| *text == token);
    let strips =
        architecture(metadata).is_ok_and(|architecture| phi3::markers_strip(architecture, has));
    let tokenizer = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": vocabulary.added(strips), "normalizer": parts.normalizer,
        "pre_tokenizer": parts.pre_tokenizer, "post_processor": frame, "decoder": parts.decoder, "model": parts.model,
    });
    let mut config = Map::new();
    for (name, key) in [
        ("bos_token", "bos"),
        ("eos_token", "eos"),
        ("pad_token", "padding"),
        ("unk_token", "unknown"),
    ] {
        if let Some((_, token)) = vocabulary.named(keys, key) {
            config.insert(name.into(), json!(token));
        }
    }
    let template = metadata.get("tokenizer.chat_template");
    let template = template.and_then(MetadataValue::as_str);
    if let Some(template) = template {
        config.insert("chat_template".into(), json!(template));
    }
    let turn_end = vocabulary.named(keys, "eot").or_else(|| {
        let ends = TURN_ENDS.into_iter();
        let mut ends = ends.filter(|end| template.is_some_and(|text| text.contains(end)));
        ends.find_map(|end| vocabulary.control(end))
    });
    let ends = [vocabulary.named(keys, "eos"), turn_end];
    let ends: Vec<usize> = ends.into_iter().flatten().map(|(id, _)| id).collect();
    let text = |value: Value| value.to_string().into_bytes();
    Ok(Files::from([
        ("tokenizer.json".into(), text(tokenizer)),
        ("tokenizer_config.json".into(), text(config.into())),
        (
            "generation_config.json".into(),
            text(json!({ "eos_token_id": ends })),
        ),
    ]))
}

/// The keys `tokenizer.ggml.*`.
#[derive(Clone, Copy)]
struct Keys<'a>(&'a BTreeMap<String, MetadataValue>);

impl<'a> Keys<'a> {
    fn get(self, key: &str) -> Option<&'a MetadataValue> {
        self.0.get(&format!("tokenizer.ggml.{key}"))
    }

    fn text(self, key: &str) -> Option<&'a str> {
        self.get(key).and_then(MetadataValue::as_str)
    }

    fn flag(self, key: &str) -> Option<bool> {
        match self.get(key)? {
            MetadataValue::Bool(flag) => Some(*flag),
            _ => None,
        }
    }

    fn list(self, key: &str) -> Result<&'a [MetadataValue], String> {
        let list = self.get(key).and_then(MetadataValue::as_array);
        list.ok_or_else(|| format!("the GGUF metadata has no tokenizer.ggml.{key}"))
    }
}

/// Tokens by id, with their kinds.
struct Vocabulary<'a>(Vec<(&'a str, i32)>);

impl<'a> Vocabulary<'a> {
    fn of(keys: Keys<'a>) -> Result<Self, String> {
        if keys.text("model").is_none() {
            return Err("there is no tokenizer inside the file".into());
        }
        let kinds = keys.list("token_type").unwrap_or_default();
        let kind = |id: usize| {
            let kind = kinds.get(id).and_then(MetadataValue::as_i64);
            kind.and_then(|kind| i32::try_from(kind).ok())
        };
        let tokens = keys.list("tokens")?.iter().enumerate();
        let tokens = tokens.map(|(id, text)| {
            (
                text.as_str().unwrap_or_default(),
                kind(id).unwrap_or(NORMAL),
            )
        });
        Ok(Self(tokens.collect()))
    }

    /// All that are used, with their ids.
    fn used(&self) -> impl Iterator<Item = (usize, &'a str, i32)> {
        let tokens = self.0.iter().enumerate();
        let tokens = tokens.filter(|(_, (_, kind))| *kind != UNUSED);
        tokens.map(|(id, (text, kind))| (id, *text, *kind))
    }

    /// The token whose id is the value of `{key}_token_id`.
    fn named(&self, keys: Keys<'_>, key: &str) -> Option<(usize, &'a str)> {
        let id = keys
            .get(&format!("{key}_token_id"))
            .and_then(MetadataValue::as_u64)?;
        let id = usize::try_from(id).ok()?;
        Some((id, self.0.get(id)?.0))
    }

    /// The control token with a text.
    fn control(&self, text: &str) -> Option<(usize, &'a str)> {
        let id = self.0.iter().position(|token| *token == (text, CONTROL))?;
        Some((id, self.0[id].0))
    }

    /// Ids by text.
    fn ids(&self) -> Map<String, Value> {
        let used = self.used();
        used.map(|(id, text, _)| (text.to_owned(), json!(id)))
            .collect()
    }

    /// The tokens that are found in a text before it is split; `strips`: as Phi-3's.
    fn added(&self, strips: bool) -> Vec<Value> {
        let found = self.used();
        let found = found.filter(|(_, _, kind)| [CONTROL, UNKNOWN, USER_DEFINED].contains(kind));
        let added = found.map(|(id, text, kind)| {
            let strips = strips && !phi3::keeps_space(text);
            json!({
                "id": id, "content": text, "single_word": false, "lstrip": false, "rstrip": strips, "normalized": false,
                "special": kind != USER_DEFINED,
            })
        });
        added.collect()
    }
}

/// The parts of a `tokenizer.json` that depend on its kind.
struct Parts {
    normalizer: Value,
    pre_tokenizer: Value,
    decoder: Value,
    model: Value,
}

/// The parts of a byte-level BPE, and whether a text begins with BOS where the file does not say.
fn byte_level(keys: Keys<'_>, vocabulary: &Vocabulary<'_>) -> Result<(Parts, bool), String> {
    let splitting = Splitting::of_name(keys.text("pre").unwrap_or("gpt-2"))?;
    let merges: Vec<&str> = (keys.list("merges")?.iter())
        .map(|merge| merge.as_str().unwrap_or_default())
        .collect();
    let parts = Parts {
        normalizer: splitting.normalizer(),
        pre_tokenizer: splitting.pre_tokenizer(),
        decoder: json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true}),
        model: json!({
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null, "end_of_word_suffix": null,
            "fuse_unk": false, "byte_fallback": false, "ignore_merges": splitting.ignore_merges, "vocab": vocabulary.ids(),
            "merges": merges,
        }),
    };
    Ok((parts, splitting.adds_bos))
}

/// The parts of sentencepiece's BPE.
fn by_scores(keys: Keys<'_>, vocabulary: &Vocabulary<'_>) -> Result<Parts, String> {
    let scores = keys.list("scores")?;
    let score = |id: usize| {
        scores
            .get(id)
            .and_then(MetadataValue::as_f64)
            .unwrap_or(0.0) as f32
    };
    let pieces: Vec<(&str, f32)> = (vocabulary.used())
        .filter(|(_, _, kind)| *kind == NORMAL)
        .map(|(id, text, _)| (text, score(id)))
        .collect();
    let prefix = keys.flag("add_space_prefix").unwrap_or(true);
    // llama.cpp's, where a file has none.
    let unknown = vocabulary.named(keys, "unknown");
    let unknown = unknown.or_else(|| Some((0, vocabulary.0.first()?.0)));
    Ok(Parts {
        normalizer: sentencepiece::normalizer(prefix),
        pre_tokenizer: Value::Null,
        decoder: sentencepiece::decoder(prefix),
        model: json!({
            "type": "BPE", "dropout": null, "unk_token": unknown.map(|(_, text)| text), "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": true, "ignore_merges": false, "vocab": vocabulary.ids(),
            "merges": sentencepiece::merges(&pieces)?,
        }),
    })
}

/// Puts tokens around a text.
fn frame(bos: Option<(usize, &str)>, eos: Option<(usize, &str)>) -> Value {
    if bos.is_none() && eos.is_none() {
        return Value::Null;
    }
    let token = |token: Option<(usize, &str)>| {
        token.map(|(_, text)| json!({"SpecialToken": {"id": text, "type_id": 0}}))
    };
    let around = |text: &str| {
        let text = json!({"Sequence": {"id": text, "type_id": 0}});
        let parts = [token(bos), Some(text), token(eos)];
        parts.into_iter().flatten().collect::<Vec<Value>>()
    };
    let special: Map<String, Value> = ([bos, eos].into_iter().flatten())
        .map(|(id, text)| {
            (
                text.to_owned(),
                json!({"id": text, "ids": [id], "tokens": [text]}),
            )
        })
        .collect();
    let pair = [around("A"), around("B")].concat();
    json!({"type": "TemplateProcessing", "single": around("A"), "pair": pair, "special_tokens": special})
}
