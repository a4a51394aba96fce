//! A byte-level BPE of a `tokenizer.json` as llama.cpp's metadata.

use serde_json::Value as Json;

use super::file::Value;

/// llama.cpp's kinds of tokens.
const NORMAL: i32 = 1;
pub(super) const CONTROL: i32 = 3;
pub(super) const USER_DEFINED: i32 = 4;
pub(super) const UNUSED: i32 = 5;

/// How Qwen2 splits text before merging; with `{1,3}` behind `\\p{N}` Llama 3 does.
pub(super) const QWEN2_SPLIT: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
pub(super) const LLAMA3_SPLIT: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// The keys `tokenizer.ggml.*` for the contents of a `tokenizer.json`. `rows`: those of the embedding; ids without a token get an unused one.
///
/// # Errors
/// What llama.cpp has no name for.
pub(super) fn keys(tokenizer: &Json, rows: usize) -> Result<Vec<(String, Value)>, String> {
    let model = &tokenizer["model"];
    let kind = model["type"].as_str().unwrap_or("BPE");
    if kind != "BPE" || model["byte_fallback"].as_bool() == Some(true) {
        return Err(format!(
            "its tokenizer is a {kind}{} model; GGUF files are written for byte-level BPE (GPT-2, Llama 3, Qwen, SmolLM)",
            if kind == "BPE" {
                " with byte fallback"
            } else {
                ""
            }
        ));
    }
    let pre = pre_tokenizer(tokenizer)?;
    let mut tokens: Vec<Option<(String, i32)>> = vec![None; rows];
    let mut put = |text: &str, id: Option<u64>, kind: i32| {
        let place = id.and_then(|id| tokens.get_mut(usize::try_from(id).ok()?));
        match place {
            Some(place) => {
                *place = Some((text.to_owned(), kind));
                Ok(())
            }
            None => Err(format!(
                "token {text:?} has no row among the embedding's {rows}"
            )),
        }
    };
    for (text, id) in model["vocab"].as_object().into_iter().flatten() {
        put(text, id.as_u64(), NORMAL)?;
    }
    for added in tokenizer["added_tokens"].as_array().into_iter().flatten() {
        let kind = match added["special"].as_bool() {
            Some(true) => CONTROL,
            _ => USER_DEFINED,
        };
        put(
            added["content"].as_str().unwrap_or_default(),
            added["id"].as_u64(),
            kind,
        )?;
    }
    let tokens = tokens.into_iter().enumerate();
    let (texts, kinds) = tokens
        .map(|(id, token)| token.unwrap_or_else(|| (format!("[PAD{id}]"), UNUSED)))
        .unzip();
    Ok(vec![
        ("tokenizer.ggml.model".into(), Value::Text("gpt2".into())),
        ("tokenizer.ggml.pre".into(), Value::Text(pre.into())),
        ("tokenizer.ggml.tokens".into(), Value::Texts(texts)),
        ("tokenizer.ggml.token_type".into(), Value::Integers(kinds)),
        ("tokenizer.ggml.merges".into(), Value::Texts(merges(model)?)),
    ])
}

/// Merges as `left right`, in which form older files have them.
fn merges(model: &Json) -> Result<Vec<String>, String> {
    let merge = |merge: &Json| match merge {
        Json::String(text) => Some(text.clone()),
        Json::Array(pair) => match pair.as_slice() {
            [Json::String(left), Json::String(right)] => Some(format!("{left} {right}")),
            _ => None,
        },
        _ => None,
    };
    let merges = model["merges"].as_array().into_iter().flatten();
    merges
        .map(|pair| merge(pair).ok_or_else(|| format!("tokenizer.json: {pair} is not a merge")))
        .collect()
}

/// The pattern of a step that cuts text at its matches.
fn split(step: &Json) -> Option<&str> {
    let isolates = step["type"] == "Split" && step["behavior"] == "Isolated";
    isolates
        .then(|| step["pattern"]["Regex"].as_str())
        .flatten()
}

/// llama.cpp's name for how text is split before merging.
fn pre_tokenizer(tokenizer: &Json) -> Result<&'static str, String> {
    let pre = &tokenizer["pre_tokenizer"];
    let steps: Vec<&Json> = match pre["pretokenizers"].as_array() {
        Some(steps) => steps.iter().collect(),
        None => vec![pre],
    };
    let is = |step: &Json, kind: &str| step["type"].as_str() == Some(kind);
    let byte_level = |step: &Json, splits: bool| {
        is(step, "ByteLevel")
            && step["use_regex"].as_bool().unwrap_or(true) == splits
            && step["add_prefix_space"].as_bool() == Some(false)
    };
    let digits = |step: &Json| is(step, "Digits") && step["individual_digits"] == true;
    let normalised = tokenizer["normalizer"]["type"].as_str();
    let name = match (normalised, steps.as_slice()) {
        (None, [bytes]) if byte_level(bytes, true) => Some("gpt-2"),
        (None, [numbers, bytes]) if digits(numbers) && byte_level(bytes, true) => Some("smollm"),
        (None | Some("NFC"), [first, bytes]) if byte_level(bytes, false) => match split(first) {
            Some(QWEN2_SPLIT) => Some("qwen2"),
            Some(LLAMA3_SPLIT) if normalised.is_none() => Some("llama-bpe"),
            _ => None,
        },
        _ => None,
    };
    name.ok_or_else(|| {
        format!(
            "its tokenizer splits text as no tokenizer does that llama.cpp is known to have (normalizer {}, pre_tokenizer {pre}); \
             written are those of GPT-2, SmolLM, Qwen2 and Llama 3",
            tokenizer["normalizer"]
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn tokenizer(pre: Json) -> Json {
        json!({
            "pre_tokenizer": pre,
            "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 3}, "merges": [["a", "b"], "b a"]},
            "added_tokens": [
                {"id": 2, "content": "<s>", "special": true}, {"id": 4, "content": "<x>", "special": false},
            ],
        })
    }

    fn bytes(use_regex: bool) -> Json {
        json!({"type": "ByteLevel", "add_prefix_space": false, "use_regex": use_regex})
    }

    #[test]
    fn tokens_stand_at_their_ids() {
        let keys = keys(&tokenizer(bytes(true)), 6).unwrap();
        let texts = |list: [&str; 6]| Value::Texts(list.map(String::from).to_vec());
        assert_eq!(keys[1].1, Value::Text("gpt-2".into()));
        assert_eq!(keys[2].1, texts(["a", "b", "<s>", "ab", "<x>", "[PAD5]"]));
        assert_eq!(keys[3].1, Value::Integers(vec![1, 1, 3, 1, 4, 5]));
        assert_eq!(keys[4].1, Value::Texts(vec!["a b".into(), "b a".into()]));
        let error = super::keys(&tokenizer(bytes(true)), 4).unwrap_err();
        assert!(
            error.contains("\"<x>\" has no row among the embedding's 4"),
            "{error}"
        );
    }

    #[test]
    fn splits_have_llama_cpps_names_or_are_refused() {
        let sequence = |first: Json, second: Json| json!({"type": "Sequence", "pretokenizers": [first, second]});
        let split = |regex: &str| json!({"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": false});
        let digits = |individual: bool| json!({"type": "Digits", "individual_digits": individual});
        let name = |pre: Json| pre_tokenizer(&tokenizer(pre)).map_err(|error| error.len() > 9);
        assert_eq!(name(sequence(digits(true), bytes(true))), Ok("smollm"));
        assert_eq!(
            name(sequence(split(QWEN2_SPLIT), bytes(false))),
            Ok("qwen2")
        );
        assert_eq!(
            name(sequence(split(LLAMA3_SPLIT), bytes(false))),
            Ok("llama-bpe")
        );
        for other in [
            sequence(digits(false), bytes(true)),
            sequence(split("a+"), bytes(false)),
            bytes(false),
            json!({"type": "Metaspace"}),
            Json::Null,
        ] {
            assert_eq!(name(other), Err(true));
        }
        let mut fallback = tokenizer(bytes(true));
        fallback["model"]["byte_fallback"] = json!(true);
        assert!(keys(&fallback, 6).unwrap_err().contains("byte fallback"));
    }
}
