//! The tokenizer inside a GGUF file as the files that transformers would have.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::header::MetadataValue;
use super::vocabulary::{CONTROL, LLAMA3_SPLIT, QWEN2_SPLIT, UNUSED, USER_DEFINED};

/// Files by name: `tokenizer.json`, `tokenizer_config.json` and `generation_config.json`.
pub(super) type Files = BTreeMap<String, Vec<u8>>;

/// The files of a byte-level BPE.
///
/// # Errors
/// What is missing, or of a kind that is not read.
pub(super) fn files(metadata: &BTreeMap<String, MetadataValue>) -> Result<Files, String> {
    let get = |key: &str| metadata.get(&format!("tokenizer.ggml.{key}"));
    let text = |key: &str| get(key).and_then(MetadataValue::as_str);
    let list = |key: &str| {
        get(key)
            .and_then(MetadataValue::as_array)
            .ok_or_else(|| format!("the GGUF metadata has no tokenizer.ggml.{key}"))
    };
    match text("model") {
        Some("gpt2") => {}
        Some(other) => {
            return Err(format!(
                "the tokenizer inside the file is of kind {other:?}; \"gpt2\", byte-level BPE, is read"
            ));
        }
        None => return Err("there is no tokenizer inside the file".into()),
    }
    let Splitting {
        normalizer,
        pre_tokenizer,
        ignore_merges,
    } = splitting(text("pre").unwrap_or("gpt-2"))?;
    let tokens: Vec<&str> = (list("tokens")?.iter())
        .map(|token| token.as_str().unwrap_or_default())
        .collect();
    let kinds: Vec<i64> = match list("token_type") {
        Ok(kinds) => kinds
            .iter()
            .map(|kind| kind.as_i64().unwrap_or(1))
            .collect(),
        Err(_) => vec![1; tokens.len()],
    };
    let (mut vocab, mut added) = (Map::new(), Vec::new());
    for (id, (token, kind)) in tokens.iter().zip(kinds).enumerate() {
        let kind = i32::try_from(kind).unwrap_or_default();
        if kind == UNUSED {
            continue;
        }
        vocab.insert((*token).to_owned(), json!(id));
        if kind == CONTROL || kind == USER_DEFINED {
            added.push(json!({
                "id": id, "content": token, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false,
                "special": kind == CONTROL,
            }));
        }
    }
    let merges: Vec<&str> = (list("merges")?.iter())
        .map(|merge| merge.as_str().unwrap_or_default())
        .collect();
    let named = |key: &str| {
        let id = get(&format!("{key}_token_id")).and_then(MetadataValue::as_u64)?;
        let token = tokens.get(usize::try_from(id).ok()?)?;
        Some((id, *token))
    };
    let byte_level = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
    let starts = get("add_bos_token") == Some(&MetadataValue::Bool(true));
    let post_processor = match named("bos").filter(|_| starts) {
        Some((id, bos)) => json!({
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": bos, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {bos: {"id": bos, "ids": [id], "tokens": [bos]}},
        }),
        None => byte_level.clone(),
    };
    let tokenizer = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added, "normalizer": normalizer,
        "pre_tokenizer": pre_tokenizer, "post_processor": post_processor, "decoder": byte_level,
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null, "end_of_word_suffix": null,
            "fuse_unk": false, "byte_fallback": false, "ignore_merges": ignore_merges, "vocab": vocab, "merges": merges,
        },
    });
    let mut config = Map::new();
    for (name, key) in [
        ("bos_token", "bos"),
        ("eos_token", "eos"),
        ("pad_token", "padding"),
    ] {
        if let Some((_, token)) = named(key) {
            config.insert(name.into(), json!(token));
        }
    }
    let template = metadata.get("tokenizer.chat_template");
    if let Some(template) = template.and_then(MetadataValue::as_str) {
        config.insert("chat_template".into(), json!(template));
    }
    let ends = [named("eos"), named("eot")];
    let ends: Vec<u64> = ends.into_iter().flatten().map(|(id, _)| id).collect();
    Ok(Files::from([
        ("tokenizer.json".into(), tokenizer.to_string().into_bytes()),
        (
            "tokenizer_config.json".into(),
            Value::Object(config).to_string().into_bytes(),
        ),
        (
            "generation_config.json".into(),
            json!({ "eos_token_id": ends }).to_string().into_bytes(),
        ),
    ]))
}

/// How text is split before merging.
struct Splitting {
    normalizer: Value,
    pre_tokenizer: Value,
    /// Whether a piece that is a token is not merged from its characters.
    ignore_merges: bool,
}

fn splitting(pre: &str) -> Result<Splitting, String> {
    let bytes = |use_regex: bool| json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": use_regex});
    let after =
        |first: Value, bytes: Value| json!({"type": "Sequence", "pretokenizers": [first, bytes]});
    let cut = |regex: &str| json!({"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": false});
    let plain = |pre_tokenizer: Value| Splitting {
        normalizer: Value::Null,
        pre_tokenizer,
        ignore_merges: false,
    };
    Ok(match pre {
        "gpt-2" => plain(bytes(true)),
        "smollm" => plain(after(
            json!({"type": "Digits", "individual_digits": true}),
            bytes(true),
        )),
        "qwen2" => Splitting {
            normalizer: json!({"type": "NFC"}),
            ..plain(after(cut(QWEN2_SPLIT), bytes(false)))
        },
        "llama-bpe" => Splitting {
            ignore_merges: true,
            ..plain(after(cut(LLAMA3_SPLIT), bytes(false)))
        },
        other => {
            return Err(format!(
                "the tokenizer inside the file splits text as {other:?}; gpt-2, smollm, qwen2 and llama-bpe are read"
            ));
        }
    })
}
