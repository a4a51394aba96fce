//! The BPE of a `tokenizer.json` as llama.cpp's metadata.

use serde_json::Value as Json;

use super::file::Value;
use super::sentencepiece;
use super::splitting::Splitting;

/// llama.cpp's kinds of tokens.
pub(super) const NORMAL: i32 = 1;
pub(super) const UNKNOWN: i32 = 2;
pub(super) const CONTROL: i32 = 3;
pub(super) const USER_DEFINED: i32 = 4;
pub(super) const UNUSED: i32 = 5;
const BYTE: i32 = 6;

/// The keys `tokenizer.ggml.*` for the contents of a `tokenizer.json`. `rows`: those of the embedding; ids without a token get an unused one.
///
/// # Errors
/// What llama.cpp has no name for.
pub(super) fn keys(tokenizer: &Json, rows: usize) -> Result<Vec<(String, Value)>, String> {
    let model = &tokenizer["model"];
    let kind = model["type"].as_str().unwrap_or("BPE");
    if kind != "BPE" {
        return Err(format!(
            "its tokenizer is a {kind} model; GGUF files are written for byte-level BPE (GPT-2, Llama 3, Qwen, SmolLM) and \
             sentencepiece's BPE (Llama 2, Mistral, Gemma)"
        ));
    }
    let prefix = sentencepiece::prefix_of(tokenizer);
    let tokens = tokens(tokenizer, rows, prefix.is_some())?;
    let pairs = merges(model)?;
    let mut keys = match prefix {
        Some(prefix) => by_scores(model, &tokens, &pairs, prefix)?,
        None => {
            let merges = pairs.iter().map(|[left, right]| format!("{left} {right}"));
            vec![
                ("model", Value::Text("gpt2".into())),
                (
                    "pre",
                    Value::Text(Splitting::of_json(tokenizer)?.name().into()),
                ),
                ("merges", Value::Texts(merges.collect())),
            ]
        }
    };
    let (texts, kinds) = tokens.into_iter().unzip();
    keys.push(("tokens", Value::Texts(texts)));
    keys.push(("token_type", Value::Integers(kinds)));
    let named = |(key, value)| (format!("tokenizer.ggml.{key}"), value);
    Ok(keys.into_iter().map(named).collect())
}

/// Texts and kinds by id.
fn tokens(tokenizer: &Json, rows: usize, has_bytes: bool) -> Result<Vec<(String, i32)>, String> {
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
    let model = &tokenizer["model"];
    for (text, id) in model["vocab"].as_object().into_iter().flatten() {
        let kind = match has_bytes && is_byte(text) {
            true => BYTE,
            false => NORMAL,
        };
        put(text, id.as_u64(), kind)?;
    }
    for added in tokenizer["added_tokens"].as_array().into_iter().flatten() {
        let text = added["content"].as_str().unwrap_or_default();
        let kind = match added["special"].as_bool() {
            Some(true) if has_bytes && model["unk_token"] == text => UNKNOWN,
            Some(true) => CONTROL,
            _ => USER_DEFINED,
        };
        // llama.cpp finds them in the text as it is.
        match has_bytes && kind == USER_DEFINED {
            true => put(
                &text.replace(sentencepiece::MARK, " "),
                added["id"].as_u64(),
                kind,
            )?,
            false => put(text, added["id"].as_u64(), kind)?,
        }
    }
    let tokens = tokens.into_iter().enumerate();
    Ok(tokens
        .map(|(id, token)| token.unwrap_or_else(|| (format!("[PAD{id}]"), UNUSED)))
        .collect())
}

/// Whether a token of sentencepiece stands for a byte: `<0x0A>`.
fn is_byte(text: &str) -> bool {
    let digits = text
        .strip_prefix("<0x")
        .and_then(|text| text.strip_suffix('>'));
    digits.is_some_and(|digits| digits.len() == 2 && u8::from_str_radix(digits, 16).is_ok())
}

/// The keys of sentencepiece's BPE.
fn by_scores(
    model: &Json,
    tokens: &[(String, i32)],
    merges: &[[&str; 2]],
    prefix: bool,
) -> Result<Vec<(&'static str, Value)>, String> {
    let pieces = tokens.iter().filter(|(_, kind)| *kind == NORMAL);
    let pieces: Vec<&str> = pieces.map(|(text, _)| text.as_str()).collect();
    let scores = sentencepiece::scores(&pieces, merges)?;
    let of = |(text, _): &(String, i32)| scores.get(text).copied().unwrap_or(0.0);
    let mut keys = vec![
        ("model", Value::Text("llama".into())),
        ("pre", Value::Text("default".into())),
        ("scores", Value::Floats(tokens.iter().map(of).collect())),
        ("add_space_prefix", Value::Bool(prefix)),
    ];
    let unknown = tokens
        .iter()
        .position(|(text, _)| model["unk_token"] == **text);
    keys.extend(unknown.map(|id| ("unknown_token_id", Value::U32(id as u32))));
    Ok(keys)
}

/// Merges as pairs; older files have them as `left right`.
fn merges(model: &Json) -> Result<Vec<[&str; 2]>, String> {
    fn pair(merge: &Json) -> Option<[&str; 2]> {
        match merge {
            Json::String(text) => text.split_once(' ').map(<[&str; 2]>::from),
            Json::Array(pair) => match pair.as_slice() {
                [Json::String(left), Json::String(right)] => Some([left, right]),
                _ => None,
            },
            _ => None,
        }
    }
    let merges = model["merges"].as_array().into_iter().flatten();
    merges
        .map(|merge| pair(merge).ok_or_else(|| format!("tokenizer.json: {merge} is not a merge")))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn tokenizer(pre: Json) -> Json {
        json!({
            "normalizer": null, "pre_tokenizer": pre,
            "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 3}, "merges": [["a", "b"], "b a"]},
            "added_tokens": [
                {"id": 2, "content": "<s>", "special": true}, {"id": 4, "content": "<x>", "special": false},
            ],
        })
    }

    fn bytes() -> Json {
        json!({"type": "ByteLevel", "add_prefix_space": false, "use_regex": true})
    }

    fn key(keys: &[(String, Value)], name: &str) -> Value {
        let name = format!("tokenizer.ggml.{name}");
        let found = keys.iter().find(|(key, _)| *key == name);
        found.map(|(_, value)| value.clone()).unwrap()
    }

    fn texts<const N: usize>(list: [&str; N]) -> Value {
        Value::Texts(list.map(String::from).to_vec())
    }

    #[test]
    fn tokens_stand_at_their_ids() {
        let keys = keys(&tokenizer(bytes()), 6).unwrap();
        assert_eq!(key(&keys, "pre"), Value::Text("gpt-2".into()));
        assert_eq!(
            key(&keys, "tokens"),
            texts(["a", "b", "<s>", "ab", "<x>", "[PAD5]"])
        );
        assert_eq!(
            key(&keys, "token_type"),
            Value::Integers(vec![1, 1, 3, 1, 4, 5])
        );
        assert_eq!(key(&keys, "merges"), texts(["a b", "b a"]));
        let error = super::keys(&tokenizer(bytes()), 4).unwrap_err();
        assert!(
            error.contains("\"<x>\" has no row among the embedding's 4"),
            "{error}"
        );
    }

    #[test]
    fn sentencepiece_has_scores() {
        let mut own = tokenizer(Json::Null);
        own["normalizer"] = sentencepiece::normalizer(true);
        own["added_tokens"][1]["content"] = json!("\u{2581}\u{2581}");
        own["model"] = json!({
            "type": "BPE", "byte_fallback": true, "unk_token": "<s>", "vocab": {"a": 0, "b": 1, "ab": 3, "<0x0A>": 5, "\u{2581}\u{2581}": 4},
            "merges": ["a b", "\u{2581} \u{2581}"],
        });
        let keys = keys(&own, 6).unwrap();
        assert_eq!(key(&keys, "model"), Value::Text("llama".into()));
        assert_eq!(
            key(&keys, "token_type"),
            Value::Integers(vec![1, 1, 2, 1, 4, 6])
        );
        assert_eq!(
            key(&keys, "scores"),
            Value::Floats(vec![0.0, 0.0, 0.0, -1.0, 0.0, 0.0])
        );
        assert_eq!(
            key(&keys, "tokens"),
            texts(["a", "b", "<s>", "ab", "  ", "<0x0A>"])
        );
        assert_eq!(key(&keys, "unknown_token_id"), Value::U32(2));
        assert_eq!(key(&keys, "add_space_prefix"), Value::Bool(true));
        // Without its merges "ab" is a piece that llama.cpp would make all the same.
        own["model"]["merges"] = json!([]);
        let error = super::keys(&own, 6).unwrap_err();
        assert!(
            error.contains("not those of a sentencepiece model"),
            "{error}"
        );
    }
}
