//! What the parts of a foreign `tokenizer.json` may do to a text, found before the library reads the file.

use std::fmt;

use serde::Deserialize;
use serde::de::{self, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

/// Most bytes of a token's text; the longest of published vocabularies have some hundreds.
pub(super) const TOKEN_BYTES: usize = 4096;
/// Most ids that a post-processor adds to a text.
const ADDED_IDS: usize = 4096;
/// Most bytes of a pattern.
const PATTERN_BYTES: usize = 16_384;
/// Most copies that the counted repetitions of a pattern may ask for: each is compiled.
const COPIES: usize = 512;
/// More parts than this are watched.
const PARTS: usize = 32;
/// More characters of a word than this make WordPiece slow: its time is quadratic in them.
const WORD_CHARS: u64 = 1000;
/// How much composition may lengthen a text: NFKC writes U+FDFA, three bytes, as 33.
const COMPOSED: f64 = 11.0;

/// Patterns of published tokenizers (GPT-2, Qwen 2, Llama 3), known to need time proportional to the text.
const KNOWN: [&str; 3] = [
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
];

/// Longest text that a part may return: `factor * bytes + more` for a text of `bytes`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Growth {
    pub(super) factor: f64,
    pub(super) more: f64,
}

impl Growth {
    const NONE: Self = Self {
        factor: 1.0,
        more: 0.0,
    };

    /// Both, one after the other.
    fn then(self, factor: f64, more: f64) -> Self {
        Self {
            factor: self.factor * factor,
            more: self.more * factor + more,
        }
    }
}

/// What is known of one kind of parts: normalizers, pre-tokenizers or decoders.
#[derive(Debug)]
pub(super) struct Part {
    pub(super) growth: Growth,
    /// Whether its time must be watched.
    pub(super) watched: bool,
    /// Patterns that may give up on a text, which the library would not say.
    pub(super) patterns: Vec<fancy_regex::Regex>,
    count: usize,
    /// How much composition may lengthen a text.
    composed: f64,
}

/// All parts of a file.
#[derive(Debug)]
pub(super) struct Components {
    pub(super) normalizer: Part,
    pub(super) pre_tokenizer: Part,
    pub(super) decoder: Part,
    /// Whether the model's time must be watched.
    pub(super) slow_model: bool,
}

impl Components {
    /// Reads a `tokenizer.json`.
    ///
    /// # Errors
    /// A message that names the part.
    pub(super) fn read(bytes: &[u8]) -> Result<Self, String> {
        let file: File = serde_json::from_slice(bytes).map_err(|e| e.to_string())?;
        let part =
            |name: &str, value: &Value| Part::read(value).map_err(|e| format!("{name}: {e}"));
        added_ids(&file.post_processor).map_err(|e| format!("post_processor: {e}"))?;
        let word = file.model.max_input_chars_per_word.as_u64();
        Ok(Self {
            normalizer: part("normalizer", &file.normalizer)?,
            pre_tokenizer: part("pre_tokenizer", &file.pre_tokenizer)?,
            decoder: part("decoder", &file.decoder)?,
            slow_model: word.is_some_and(|word| word > WORD_CHARS),
        })
    }
}

impl Part {
    fn read(value: &Value) -> Result<Self, String> {
        let mut part = Self {
            growth: Growth::NONE,
            watched: false,
            patterns: Vec::new(),
            count: 0,
            composed: 1.0,
        };
        part.visit(value)?;
        part.watched |= part.count > PARTS;
        // What is composed once stays as it is.
        part.growth = part.growth.then(part.composed, 0.0);
        Ok(part)
    }

    /// Visits a part and those inside of it, by their keys: files of older versions name no types.
    fn visit(&mut self, value: &Value) -> Result<(), String> {
        match value {
            Value::Array(parts) => parts.iter().try_for_each(|part| self.visit(part)),
            Value::Object(part) => {
                self.count += 1;
                self.read_part(part)?;
                part.values().try_for_each(|value| self.visit(value))
            }
            _ => Ok(()),
        }
    }

    fn read_part(&mut self, part: &Map<String, Value>) -> Result<(), String> {
        let text = |key: &str| part.get(key).and_then(Value::as_str);
        let kind = text("type").unwrap_or_default();
        if ["NFC", "NFD", "NFKC", "NFKD"].contains(&kind) {
            self.composed = self.composed.max(COMPOSED);
        }
        if part.get("length").and_then(Value::as_u64) == Some(0) {
            return Err(format!("{kind} has length 0; expected at least 1"));
        }
        // Spaces around a character and its accents apart; U+0130 as two characters; a byte as a character of two.
        let factors = [
            ("BertNormalizer", 3.0),
            ("Lowercase", 1.5),
            ("ByteLevel", 2.0),
        ];
        if let Some((_, factor)) = factors.iter().find(|(name, _)| *name == kind) {
            self.growth = self.growth.then(*factor, 0.0);
        }
        if let Some(map) = text("precompiled_charsmap") {
            let longest = longest_entry(map)?;
            self.composed = self.composed.max(longest as f64 / 3.0).max(COMPOSED);
        }
        for key in [
            "prepend",
            "replacement",
            "suffix",
            "prefix",
            "word_delimiter_token",
        ] {
            if let Some(text) = text(key) {
                if text.len() > TOKEN_BYTES {
                    return Err(format!(
                        "{kind} has a {key} of {} bytes; at most {TOKEN_BYTES} are possible",
                        text.len()
                    ));
                }
                let per_character = if key == "prepend" { 1.0 } else { 3.0 };
                self.growth = self.growth.then(per_character, text.len() as f64);
            }
        }
        let Some(pattern) = part.get("pattern") else {
            return Ok(());
        };
        let content = text("content").map_or(0, str::len) as f64;
        let regex = pattern.get("Regex").and_then(Value::as_str);
        let literal = pattern
            .get("String")
            .or(Some(pattern))
            .and_then(Value::as_str);
        if let Some(regex) = regex {
            self.read_pattern(regex)?;
        }
        // A pattern may match between any two bytes.
        let (factor, more) = match literal.map(str::len) {
            Some(bytes) if bytes > 0 && regex.is_none() => ((content / bytes as f64).max(1.0), 0.0),
            _ if text("content").is_some() => (content + 1.0, content),
            _ => (1.0, 0.0),
        };
        self.growth = self.growth.then(factor, more);
        Ok(())
    }

    fn read_pattern(&mut self, pattern: &str) -> Result<(), String> {
        if KNOWN.contains(&pattern) {
            return Ok(());
        }
        let shape = Shape::of(pattern);
        if pattern.is_empty() {
            return Err("an empty pattern".to_owned());
        }
        if pattern.len() > PATTERN_BYTES || shape.copies > COPIES {
            return Err(format!(
                "the pattern {:?}.. has {} bytes and repeats parts {} times; at most {PATTERN_BYTES} and {COPIES} are possible",
                pattern.chars().take(40).collect::<String>(),
                pattern.len(),
                shape.copies
            ));
        }
        self.watched = true;
        let compiled = fancy_regex::Regex::new(pattern);
        let compiled = compiled.map_err(|e| format!("the pattern {pattern:?}: {e}"))?;
        // Patterns without look-around do not backtrack.
        if regex::Regex::new(pattern).is_err() && !shape.is_plain {
            self.patterns.push(compiled);
        }
        Ok(())
    }
}

/// The quantifiers of a pattern.
#[derive(Debug, PartialEq, Eq)]
struct Shape {
    /// Sum of all counts in braces.
    copies: usize,
    /// No group is repeated without limit, no group is referred to, and an alternative has at most three unlimited quantifiers:
    /// it gives up on no usual text.
    is_plain: bool,
}

impl Shape {
    fn of(pattern: &str) -> Self {
        let mut shape = Self {
            copies: 0,
            is_plain: true,
        };
        let (mut last, mut in_class, mut unlimited) = (' ', false, 0);
        let mut chars = pattern.chars().peekable();
        while let Some(c) = chars.next() {
            match c {
                '\\' => {
                    let escaped = chars.next().unwrap_or_default();
                    shape.is_plain &= !(escaped.is_ascii_digit() || "kgG".contains(escaped));
                    if "pPx".contains(escaped) && chars.peek() == Some(&'{') {
                        chars.by_ref().find(|c| *c == '}');
                    }
                    last = 'a';
                    continue;
                }
                '[' => in_class = true,
                ']' => in_class = false,
                '|' if !in_class => unlimited = 0,
                '*' | '+' if !in_class => {
                    // `*+` and `++` are possessive.
                    unlimited += usize::from(!"*+".contains(last));
                    shape.is_plain &= last != ')' && unlimited <= 3;
                }
                '{' if !in_class => {
                    let inside: String = chars.by_ref().take_while(|c| *c != '}').collect();
                    let counts = inside
                        .split(',')
                        .map(|count| count.trim().parse().unwrap_or(0));
                    shape.copies = shape.copies.saturating_add(counts.max().unwrap_or(0));
                    if inside.ends_with(',') {
                        unlimited += 1;
                        shape.is_plain &= last != ')' && unlimited <= 3;
                    }
                    last = '}';
                    continue;
                }
                _ => {}
            }
            last = c;
        }
        shape
    }
}

/// The longest text that a table of SentencePiece's replaces a character by: its texts end with 0 and follow the trie.
fn longest_entry(map: &str) -> Result<usize, String> {
    let wrong = |what: &str| format!("Precompiled: {what}");
    let bytes = base64(map).ok_or_else(|| wrong("precompiled_charsmap is not base64"))?;
    let trie = bytes
        .first_chunk()
        .map(|size| u32::from_le_bytes(*size) as usize);
    let trie = trie.filter(|size| *size >= 1024 && size % 4 == 0);
    let texts = trie.and_then(|size| bytes.get(4 + size..));
    let texts =
        texts.ok_or_else(|| wrong("precompiled_charsmap has no trie of at least 256 nodes"))?;
    Ok(texts
        .split(|byte| *byte == 0)
        .map(<[u8]>::len)
        .max()
        .unwrap_or(0))
}

fn base64(text: &str) -> Option<Vec<u8>> {
    let text = text.trim_end_matches('=');
    let mut bytes = Vec::with_capacity(text.len() / 4 * 3 + 3);
    let (mut held, mut bits) = (0u32, 0);
    for c in text.bytes() {
        let digit = match c {
            b'A'..=b'Z' => c - b'A',
            b'a'..=b'z' => c - b'a' + 26,
            b'0'..=b'9' => c - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return None,
        };
        held = held << 6 | u32::from(digit);
        bits += 6;
        if bits >= 8 {
            bits -= 8;
            bytes.push((held >> bits) as u8);
            held &= (1 << bits) - 1;
        }
    }
    Some(bytes)
}

/// Refuses post-processors that add many ids to a text: templates name ids by tokens, often.
fn added_ids(value: &Value) -> Result<(), String> {
    match value {
        Value::Array(parts) => parts.iter().try_for_each(added_ids),
        Value::Object(part) => {
            let tokens = part.get("special_tokens");
            for side in ["single", "pair"] {
                let pieces = part.get(side).and_then(Value::as_array);
                let mut count = 0;
                for piece in pieces.into_iter().flatten() {
                    let Some(id) = piece.pointer("/SpecialToken/id").and_then(Value::as_str) else {
                        count += 1;
                        continue;
                    };
                    let Some(token) = tokens.and_then(|tokens| tokens.get(id)) else {
                        return Err(format!(
                            "the template `{side}` names {id:?}, which is not among its special_tokens"
                        ));
                    };
                    count += token
                        .get("ids")
                        .and_then(Value::as_array)
                        .map_or(0, Vec::len);
                }
                if count > ADDED_IDS {
                    return Err(format!(
                        "the template `{side}` has {count} tokens; at most {ADDED_IDS} are possible"
                    ));
                }
            }
            part.values().try_for_each(added_ids)
        }
        _ => Ok(()),
    }
}

/// A `tokenizer.json`, with its tables checked and not kept.
#[derive(Deserialize)]
struct File {
    #[serde(default)]
    normalizer: Value,
    #[serde(default)]
    pre_tokenizer: Value,
    #[serde(default)]
    post_processor: Value,
    #[serde(default)]
    decoder: Value,
    #[serde(default, rename = "added_tokens")]
    _added_tokens: Table,
    #[serde(default)]
    model: Model,
}

#[derive(Default, Deserialize)]
struct Model {
    #[serde(default)]
    max_input_chars_per_word: Value,
    #[serde(default, rename = "vocab")]
    _vocab: Table,
    #[serde(default, rename = "merges")]
    _merges: Table,
}

/// A table of tokens: no text in it is longer than [`TOKEN_BYTES`], or twice that with a space for a merge.
#[derive(Default)]
struct Table;

impl<'de> Deserialize<'de> for Table {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(TableVisitor)
    }
}

struct TableVisitor;

impl<'de> Visitor<'de> for TableVisitor {
    type Value = Table;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a table of tokens")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Table, E> {
        match text.len() {
            0..=TOKEN_BYTES => Ok(Table),
            bytes if bytes <= 2 * TOKEN_BYTES + 1 && text.contains(' ') => Ok(Table),
            bytes => Err(E::custom(format!(
                "a token of {bytes} bytes; at most {TOKEN_BYTES} are possible"
            ))),
        }
    }

    fn visit_bool<E: de::Error>(self, _: bool) -> Result<Table, E> {
        Ok(Table)
    }

    fn visit_i64<E: de::Error>(self, _: i64) -> Result<Table, E> {
        Ok(Table)
    }

    fn visit_u64<E: de::Error>(self, number: u64) -> Result<Table, E> {
        match number {
            0..=0x7fff_fffe => Ok(Table),
            id => Err(E::custom(format!(
                "token id {id}; at most {} is possible",
                0x7fff_fffe
            ))),
        }
    }

    fn visit_f64<E: de::Error>(self, _: f64) -> Result<Table, E> {
        Ok(Table)
    }

    fn visit_unit<E: de::Error>(self) -> Result<Table, E> {
        Ok(Table)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Table, A::Error> {
        while items.next_element::<Table>()?.is_some() {}
        Ok(Table)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Table, A::Error> {
        while entries.next_entry::<Table, Table>()?.is_some() {}
        Ok(Table)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(changes: &Value) -> Result<Components, String> {
        Components::read(changes.to_string().as_bytes())
    }

    #[test]
    fn growth_is_that_of_all_parts() {
        let replace = |pattern: Value, content: &str| json!({"type": "Replace", "pattern": pattern, "content": content});
        let parts = json!({"type": "Sequence", "normalizers": [
            {"type": "Prepend", "prepend": "ab"}, replace(json!({"String": "ab"}), "cccccc"), replace(json!({"Regex": "x*"}), "yz")]});
        let growth = read(&json!({"normalizer": parts}))
            .unwrap()
            .normalizer
            .growth;
        // (n + 2) * 3 * 3 + 2
        assert_eq!(
            growth,
            Growth {
                factor: 9.0,
                more: 20.0
            }
        );
        let spaces = replace(json!({"String": " "}), "\u{2581}");
        let growth = read(
            &json!({"normalizer": {"type": "Sequence", "normalizers": [spaces, {"type": "NFKC"}]}}),
        );
        assert_eq!(growth.unwrap().normalizer.growth.factor, 33.0);
    }

    #[test]
    fn patterns_are_watched_unless_they_are_known() {
        let part = |pattern: &str| {
            let split = json!({"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false});
            read(&json!({"pre_tokenizer": split})).map(|parts| parts.pre_tokenizer)
        };
        for pattern in KNOWN {
            assert!(!part(pattern).unwrap().watched);
        }
        let plain =
            part(r"[^\r\n\p{L}]?[\p{Lu}\p{M}]*[\p{Ll}]+(?i:'s|'t)?|\p{N}{1,3}|\s+(?!\S)|\s+")
                .unwrap();
        assert!(plain.watched && plain.patterns.is_empty());
        assert_eq!(part(r"(?:a+)+(?!b)").unwrap().patterns.len(), 1);
        assert_eq!(part(r"(a)\1").unwrap().patterns.len(), 1);
        assert!(part("").unwrap_err().contains("empty pattern"));
        assert!(
            part(r"(?:\w{400}){400}(?!b)")
                .unwrap_err()
                .contains("800 times")
        );
        assert!(
            part("(")
                .unwrap_err()
                .contains("pre_tokenizer: the pattern \"(\"")
        );
    }
}
