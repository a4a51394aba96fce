//! What the files of a tokenizer say: the tokenizer itself, its special tokens, where a text ends, the chat template.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};
use tokenizers::AddedToken;

use crate::error::{Error, Result};

/// Keys of the named special tokens, as templates see them.
pub(super) const SPECIAL_TOKENS: [&str; 7] = [
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
];

/// The tokenizer of `tokenizer.json`, or else of a vocabulary with its merges.
///
/// `tokenizer.json` says itself what stands around a text; without it `add_bos_token` and `add_eos_token` of the
/// configuration do, as in transformers 5.
pub(super) fn load_inner(
    files: &BTreeMap<String, Vec<u8>>,
    config: &Map<String, Value>,
    origin: &Path,
) -> Result<tokenizers::Tokenizer> {
    if let Some(bytes) = files.get("tokenizer.json") {
        return tokenizers::Tokenizer::from_bytes(bytes)
            .map_err(|e| Error::format(origin.join("tokenizer.json"), e.to_string()));
    }
    let pairs = [("vocab.json", "merges.txt"), ("encoder.json", "vocab.bpe")];
    for (vocab, merges) in pairs {
        if let (Some(vocab_bytes), Some(merges_bytes)) = (files.get(vocab), files.get(merges)) {
            let json = gpt2_tokenizer_json(vocab_bytes, merges_bytes, config)
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
fn gpt2_tokenizer_json(
    vocab: &[u8],
    merges: &[u8],
    config: &Map<String, Value>,
) -> std::result::Result<String, String> {
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
    let mut around = vec![json!({"Sequence": {"id": "A", "type_id": 0}})];
    let mut names = Map::new();
    for (asked, key) in [
        ("add_bos_token", "bos_token"),
        ("add_eos_token", "eos_token"),
    ] {
        let text = token_text(config, key)
            .filter(|_| config.get(asked).and_then(Value::as_bool) == Some(true));
        let Some(text) = text else { continue };
        let id = vocab
            .get(&text)
            .ok_or_else(|| format!("{asked}: {key} is {text:?}, which is not in the vocabulary"))?;
        let piece = json!({"SpecialToken": {"id": text, "type_id": 0}});
        match key {
            "bos_token" => around.insert(0, piece),
            _ => around.push(piece),
        }
        names.insert(
            text.clone(),
            json!({"id": text, "ids": [id], "tokens": [text]}),
        );
    }
    let post_processor = (!names.is_empty()).then(|| {
        json!({"type": "TemplateProcessing", "single": around, "pair": [{"Sequence": {"id": "A", "type_id": 0}},
               {"Sequence": {"id": "B", "type_id": 1}}], "special_tokens": names})
    });
    let byte_level = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": true});
    Ok(json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added, "normalizer": null,
        "pre_tokenizer": byte_level, "post_processor": post_processor, "decoder": byte_level,
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
                  "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "vocab": vocab, "merges": merges},
    })
    .to_string())
}

/// A special token as transformers writes it: a string, or an object with `content`.
pub(super) fn token_text(config: &Map<String, Value>, key: &str) -> Option<String> {
    match config.get(key)? {
        Value::String(text) => Some(text.clone()),
        Value::Object(token) => token.get("content")?.as_str().map(str::to_owned),
        _ => None,
    }
}

/// One id or a list of ids.
pub(super) fn id_list(config: &Map<String, Value>, key: &str) -> Vec<u32> {
    let id = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
    match config.get(key) {
        Some(Value::Array(ids)) => ids.iter().filter_map(id).collect(),
        Some(value) => id(value).into_iter().collect(),
        None => Vec::new(),
    }
}

/// The EOS id where no file names the token: the model's config, the generation config, or GPT-2's convention for a
/// bare vocabulary.
pub(super) fn find_eos_id(
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

/// `chat_template.jinja`, or the config's template: a string, or a list of named ones of which `default` is taken, and
/// `tool_use` where there are tools.
pub(super) fn find_chat_template(
    files: &BTreeMap<String, Vec<u8>>,
    config: &Map<String, Value>,
    origin: &Path,
) -> Result<Option<FoundTemplate>> {
    let alone = |source, path| FoundTemplate {
        source,
        path,
        tool_use: None,
    };
    if let Some(bytes) = files.get("chat_template.jinja") {
        let path = origin.join("chat_template.jinja");
        let source = String::from_utf8(bytes.clone())
            .map_err(|e| Error::format(&path, format!("expected UTF-8: {e}")))?;
        return Ok(Some(alone(source, path)));
    }
    let path = origin.join("tokenizer_config.json");
    match config.get("chat_template") {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(source)) => Ok(Some(alone(source.clone(), path))),
        Some(Value::Array(named)) => {
            let find = |name: &str| {
                let mut named = named.iter();
                let entry =
                    named.find(|entry| entry.get("name").and_then(Value::as_str) == Some(name));
                let source = entry.and_then(|entry| entry.get("template"))?.as_str()?;
                Some(source.to_owned())
            };
            match find("default") {
                Some(source) => Ok(Some(FoundTemplate {
                    source,
                    path,
                    tool_use: find("tool_use"),
                })),
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

/// A chat template and the file that it stands in.
pub(super) struct FoundTemplate {
    pub(super) source: String,
    pub(super) path: PathBuf,
    /// The one for conversations with tools, if there is another.
    pub(super) tool_use: Option<String>,
}

/// Named special tokens by key. `special_tokens_map.json` is an older file: it counts only where the configuration does
/// not list its added tokens, and then goes before it, as in transformers.
pub(super) fn named_tokens(
    config: &Map<String, Value>,
    special_map: &Map<String, Value>,
) -> BTreeMap<String, String> {
    let legacy = !config.contains_key("added_tokens_decoder");
    let mut tokens = BTreeMap::new();
    for key in SPECIAL_TOKENS {
        let older = token_text(special_map, key).filter(|_| legacy);
        if let Some(text) = older.or_else(|| token_text(config, key)) {
            tokens.insert(key.to_owned(), text);
        }
    }
    tokens
}

/// Makes added tokens of those that only the configuration names: `added_tokens_decoder`, and the named special tokens
/// that the vocabulary holds as ordinary entries.
///
/// # Errors
/// If a token would get another id than the configuration says.
pub(super) fn add_tokens(
    inner: &mut tokenizers::Tokenizer,
    config: &Map<String, Value>,
    named: &BTreeMap<String, String>,
    origin: &Path,
) -> Result<()> {
    let refuse = |message: String| {
        let path = origin.join("tokenizer_config.json");
        Err(Error::format(path, message))
    };
    let mut listed = Vec::new();
    if let Some(Value::Object(decoder)) = config.get("added_tokens_decoder") {
        for (id, token) in decoder {
            let content = token.get("content").and_then(Value::as_str);
            match (id.parse::<u32>(), content) {
                (Ok(id), Some(content)) => listed.push((id, content.to_owned(), token)),
                _ => return refuse(format!("added_tokens_decoder: {id:?} is not a token")),
            }
        }
    }
    listed.sort_by_key(|(id, ..)| *id);
    let known = |inner: &tokenizers::Tokenizer, text: &str| {
        let mut added = inner.get_added_tokens_decoder().into_values();
        added.any(|token| token.content == text)
    };
    for (id, content, token) in listed {
        if !known(inner, &content) {
            let flag = |key: &str| token.get(key).and_then(Value::as_bool).unwrap_or(false);
            let added = AddedToken {
                content: content.clone(),
                single_word: flag("single_word"),
                lstrip: flag("lstrip"),
                rstrip: flag("rstrip"),
                normalized: flag("normalized"),
                special: flag("special"),
            };
            inner.add_tokens(&[added]);
        }
        if inner.token_to_id(&content) != Some(id) {
            return refuse(format!(
                "added_tokens_decoder says that {content:?} is token {id}; the tokenizer has it as {:?}",
                inner.token_to_id(&content)
            ));
        }
    }
    for text in named.values() {
        if !known(inner, text) && inner.token_to_id(text).is_some() {
            inner.add_special_tokens(&[AddedToken::from(text.clone(), true)]);
        }
    }
    Ok(())
}
