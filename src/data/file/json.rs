//! Parses one JSON object per row: refuses duplicate keys, with readable error messages.

use std::fmt;

use serde::de::{self, Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::error::Category;
use serde_json::{Map, Number, Value};

use crate::data::rows::json_kind;

/// A value without duplicate keys in its objects; JSON parsers silently keep one of them.
pub(crate) struct Strict(pub(crate) Value);

/// Parses a line as an object.
///
/// # Errors
/// A message with the expected and the found, and the column.
pub(crate) fn object(line: &str) -> Result<Map<String, Value>, String> {
    check_values(line)?;
    match serde_json::from_str(line) {
        Ok(Strict(Value::Object(columns))) => Ok(columns),
        Ok(Strict(other)) => Err(format!(
            "expected a JSON object, found {}",
            json_kind(&other)
        )),
        Err(error) => Err(explain(line, &error)),
    }
}

/// Most values of a row: each takes tens of times as much memory as its text.
const MAX_VALUES: usize = 1 << 22;

/// Refuses a row of too many values before they are made. Only a long row is looked at; commas in its texts count too.
fn check_values(text: &str) -> Result<(), String> {
    let parts = |text: &str| text.bytes().filter(|byte| b",[{".contains(byte)).count();
    match text.len() > MAX_VALUES && parts(text) > MAX_VALUES {
        true => Err(format!(
            "has over {MAX_VALUES} values, the most that a row may have"
        )),
        false => Ok(()),
    }
}

/// Parses an element of an array of rows.
///
/// # Errors
/// A message with what was found, and where in the element.
pub(crate) fn element(text: &str) -> Result<Value, String> {
    check_values(text)?;
    match serde_json::from_str(text) {
        Ok(Strict(value)) => Ok(value),
        Err(error) => Err(match lone_surrogate(text) {
            Some((column, escape)) => lone(column, escape),
            None => format!("cannot be parsed: {error} of the row"),
        }),
    }
}

/// The error message for half of a character.
fn lone(column: usize, escape: &str) -> String {
    format!(
        "lone surrogate {escape} at column {column}: half of a character that is written as two escapes, and no text by itself"
    )
}

/// The error message for a line that does not parse.
fn explain(line: &str, error: &serde_json::Error) -> String {
    if let Some((column, escape)) = lone_surrogate(line) {
        return lone(column, escape);
    }
    let text = error.to_string();
    let text = text.replace(" at line 1 column ", " at column ");
    if text.starts_with(DUPLICATE) {
        // The reported position is the end of the second key.
        let end = text.rfind(" at column ").unwrap_or(text.len());
        return text[..end].to_owned();
    }
    let at = line.get(error.column().saturating_sub(1)..).unwrap_or("");
    let no_number = ["NaN", "Infinity", "-Infinity"];
    let advice = if error.classify() == Category::Eof {
        "; each row must be on one line"
    } else if text.starts_with("trailing characters") {
        "; each row must be on a line of its own"
    } else if no_number.iter().any(|name| at.starts_with(name)) {
        "; JSON has no NaN and no infinity: write null"
    } else if at.starts_with('\'') {
        "; JSON takes double quotes (this is how Python prints a dict)"
    } else {
        ""
    };
    format!("expected one JSON object on the line, found bad JSON: {text}{advice}")
}

/// The first `\ud8..` to `\udf..` that is not half of a pair, and its column from 1.
fn lone_surrogate(line: &str) -> Option<(usize, &str)> {
    let unit = |at: usize| {
        let digits = line.get(at..at + 6)?.strip_prefix("\\u")?;
        u16::from_str_radix(digits, 16).ok()
    };
    let mut at = 0;
    while let Some(found) = line[at..].find('\\') {
        at += found;
        match unit(at) {
            Some(0xd800..=0xdbff) => match unit(at + 6) {
                Some(0xdc00..=0xdfff) => at += 12,
                _ => return Some((at + 1, &line[at..at + 6])),
            },
            Some(0xdc00..=0xdfff) => return Some((at + 1, &line[at..at + 6])),
            // Skips escaped backslashes.
            _ => at += 2,
        }
        if !line.is_char_boundary(at) {
            return None;
        }
    }
    None
}

/// Prefix of the error for a duplicate key.
const DUPLICATE: &str = "the key ";

impl<'de> Deserialize<'de> for Strict {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(StrictVisitor).map(Self)
    }
}

struct StrictVisitor;

impl<'de> Visitor<'de> for StrictVisitor {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(Number::from_f64(value).map_or(Value::Null, Value::Number))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::String(value.to_owned()))
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(Value::String(value))
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut values = Vec::new();
        while let Some(Strict(value)) = items.next_element()? {
            values.push(value);
        }
        Ok(Value::Array(values))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let mut map = Map::new();
        while let Some(key) = entries.next_key::<String>()? {
            let Strict(value) = entries.next_value()?;
            if map.contains_key(&key) {
                return Err(de::Error::custom(format!(
                    "{DUPLICATE}`{key}` stands twice"
                )));
            }
            map.insert(key, value);
        }
        Ok(Value::Object(map))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_those_of_serde_json() {
        let line =
            r#"{"b":[1,-2,2.5,1e300,18446744073709551615,null,true],"a":{"c":"\u00e9\n","d":{}}}"#;
        let expected: Value = serde_json::from_str(line).unwrap();
        assert_eq!(Value::Object(object(line).unwrap()), expected);
        let keys: Vec<_> = object(line).unwrap().keys().cloned().collect();
        assert_eq!(keys, ["b", "a"]);
    }

    #[test]
    fn what_is_wrong_is_said_in_words() {
        for (line, message) in [
            ("[1]", "expected a JSON object, found an array"),
            (r#"{"a":1,"b":2,"a":3}"#, "the key `a` stands twice"),
            (
                r#"{"a":[{"role":"user","role":"x"}]}"#,
                "the key `role` stands twice",
            ),
            (
                r#"{"a":"x \ud83d y"}"#,
                r"lone surrogate \ud83d at column 9: half of a character that is written as two escapes, and no text by itself",
            ),
            (
                r#"{"a":"\\ud83d \ud83d\ude00 \ude00"}"#,
                r"lone surrogate \ude00 at column 28: half of a character that is written as two escapes, and no text by itself",
            ),
            (
                r#"{"a": NaN}"#,
                "expected one JSON object on the line, found bad JSON: expected value at column 7; JSON has no NaN and no infinity: write null",
            ),
            (
                "{'a': 1}",
                "expected one JSON object on the line, found bad JSON: key must be a string at column 2; JSON takes double quotes (this is how Python prints a dict)",
            ),
            (
                r#"{"a": 1} {"a": 2}"#,
                "expected one JSON object on the line, found bad JSON: trailing characters at column 10; each row must be on a line of its own",
            ),
            (
                r#"{"a": 1,"#,
                "expected one JSON object on the line, found bad JSON: EOF while parsing a value at column 8; each row must be on one line",
            ),
        ] {
            assert_eq!(object(line).unwrap_err(), message, "{line}");
        }
        assert!(object(r#"{"a":"\\ud83d"}"#).is_ok());
        assert!(object("{\"a\": \"\\\u{e9}\"}").is_err());
    }
}
