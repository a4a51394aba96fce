//! sentencepiece's BPE: pieces with scores in GGUF files, merges in a `tokenizer.json`.
//!
//! llama.cpp joins the neighbours whose piece has the best score, the first ones of equals. With one merge for each pair of
//! pieces that makes a piece, ordered by its score, the tokenizers crate does the same.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use serde_json::{Value, json};

/// Stands for a space.
pub(super) const MARK: &str = "\u{2581}";

/// Most bytes of all merges: those of the largest vocabularies, of 256,000 pieces, are 7 million.
const MAX_BYTES: usize = 64 << 20;

/// Most bytes that are looked up for them: for each piece its length times its places to part.
const MAX_LOOK_UPS: usize = 1 << 30;

/// The merges of `pieces` with their scores, best first; of a piece those with the longest left part first, as transformers has them.
///
/// # Errors
/// If they are more than any model's: pieces that are beginnings of each other have a merge at each of their characters.
pub(super) fn merges<'a>(pieces: &[(&'a str, f32)]) -> Result<Vec<[&'a str; 2]>, String> {
    let known: HashSet<&str> = pieces.iter().map(|(text, _)| *text).collect();
    let squares = pieces
        .iter()
        .map(|(text, _)| text.len().saturating_mul(text.len()));
    if squares.fold(0, usize::saturating_add) > MAX_LOOK_UPS {
        return Err("the pieces of its tokenizer are too long".to_owned());
    }
    let mut merges = Vec::new();
    let mut bytes = 0;
    for &(text, score) in pieces {
        for (at, _) in text.char_indices().skip(1) {
            let (left, right) = text.split_at(at);
            if known.contains(left) && known.contains(right) {
                merges.push((score, left.chars().count(), [left, right]));
                bytes += text.len();
                if bytes > MAX_BYTES {
                    let most = MAX_BYTES >> 20;
                    return Err(format!(
                        "the pieces of its tokenizer make over {most} MiB of merges"
                    ));
                }
            }
        }
    }
    merges.sort_by(|a, b| b.0.total_cmp(&a.0).then(b.1.cmp(&a.1)));
    Ok(merges.into_iter().map(|(_, _, merge)| merge).collect())
}

/// Scores by which llama.cpp joins `pieces` in the order of `merges`; of those that no merge makes there is none.
///
/// Merges of other tokens do not count: added ones are found before anything is joined.
///
/// # Errors
/// If no scores give this order: a piece has some of its merges only, or those of another piece between them.
pub(super) fn scores(
    pieces: &[&str],
    merges: &[[&str; 2]],
) -> Result<BTreeMap<String, f32>, String> {
    let other = || {
        Err("the merges of its tokenizer are not those of a sentencepiece model, whose pieces are joined by score".to_owned())
    };
    let known: HashSet<&str> = pieces.iter().copied().collect();
    let is_known = |merge: &&[&str; 2]| {
        merge.iter().all(|part| known.contains(part)) && known.contains(merge.concat().as_str())
    };
    let merges: Vec<&[&str; 2]> = merges.iter().filter(is_known).collect();
    let mut scores: BTreeMap<String, f32> = BTreeMap::new();
    let mut last = String::new();
    for merge in &merges {
        let piece = merge.concat();
        if piece == last {
            continue;
        }
        let rank = scores.len() as f32;
        if scores.insert(piece.clone(), -rank - 1.0).is_some() {
            return other();
        }
        last = piece;
    }
    let scored: Vec<(&str, f32)> = (pieces.iter())
        .map(|piece| (*piece, scores.get(*piece).copied().unwrap_or(0.0)))
        .collect();
    let found: BTreeSet<[&str; 2]> = self::merges(&scored)?.into_iter().collect();
    match found == merges.into_iter().copied().collect() {
        true => Ok(scores),
        false => other(),
    }
}

/// The normalizer of a `tokenizer.json`; `prefix`: a space begins a text, and what follows a special token.
pub(super) fn normalizer(prefix: bool) -> Value {
    let replace = json!({"type": "Replace", "pattern": {"String": " "}, "content": MARK});
    match prefix {
        true => {
            json!({"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": MARK}, replace]})
        }
        false => replace,
    }
}

/// The decoder of a `tokenizer.json`.
pub(super) fn decoder(prefix: bool) -> Value {
    let mut steps = vec![
        json!({"type": "Replace", "pattern": {"String": MARK}, "content": " "}),
        json!({"type": "ByteFallback"}),
        json!({"type": "Fuse"}),
    ];
    if prefix {
        steps.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
    }
    json!({"type": "Sequence", "decoders": steps})
}

/// Whether a `tokenizer.json` is of this kind, and then whether a space begins a text.
pub(super) fn prefix_of(tokenizer: &Value) -> Option<bool> {
    let pre = &tokenizer["pre_tokenizer"];
    // Gemma's, which finds no space: the normalizer has replaced them.
    let idle = pre["type"] == "Split" && pre["pattern"] == json!({"String": " "});
    let bpe = tokenizer["model"]["byte_fallback"] == true && (pre.is_null() || idle);
    let prefixes = [true, false].into_iter();
    prefixes
        .filter(|_| bpe)
        .find(|prefix| tokenizer["normalizer"] == normalizer(*prefix))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_that_make_too_many_merges_are_refused() {
        // Each is the beginning of the next: n pieces have about n^2 / 2 merges of n / 3 bytes.
        let texts: Vec<String> = (1..1000).map(|len| "a".repeat(len)).collect();
        let pieces: Vec<(&str, f32)> = texts.iter().map(|text| (text.as_str(), 0.0)).collect();
        let message = merges(&pieces).unwrap_err();
        assert_eq!(
            message,
            "the pieces of its tokenizer make over 64 MiB of merges"
        );
        let long = "a".repeat(40_000);
        let message = merges(&[(long.as_str(), 0.0)]).unwrap_err();
        assert_eq!(message, "the pieces of its tokenizer are too long");
    }

    #[test]
    fn merges_and_scores_say_the_same() {
        let pieces = [
            ("a", 0.0),
            ("b", 0.0),
            ("ab", -2.0),
            ("aa", -1.0),
            ("aab", -3.0),
        ];
        let merges = merges(&pieces).unwrap();
        let expected = [["a", "a"], ["a", "b"], ["aa", "b"], ["a", "ab"]];
        assert_eq!(merges, expected);
        let texts = pieces.map(|(text, _)| text);
        let scores = scores(&texts, &merges).unwrap();
        let found = texts.map(|text| scores.get(text).copied());
        assert_eq!(found, [None, None, Some(-2.0), Some(-1.0), Some(-3.0)]);
        // One of the ways to "aab" is not there, or another piece's merge is between.
        assert!(super::scores(&texts, &merges[..3]).is_err());
        let between = [["aa", "b"], ["a", "a"], ["a", "b"], ["a", "ab"]];
        assert!(super::scores(&texts, &between).is_err());
    }

    #[test]
    fn the_kind_is_known_by_its_steps() {
        let json = |prefix: bool, pre: Value| json!({"normalizer": normalizer(prefix), "pre_tokenizer": pre, "model": {"byte_fallback": true}});
        let idle = json!({"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": false});
        assert_eq!(prefix_of(&json(true, Value::Null)), Some(true));
        assert_eq!(prefix_of(&json(false, idle)), Some(false));
        assert_eq!(prefix_of(&json(true, json!({"type": "Metaspace"}))), None);
    }
}
