//! A JSON schema as a reward.

use std::collections::BTreeMap;

use regex::Regex;
use serde_json::{Map, Value};

use crate::error::Result;
use crate::reward::{Completion, RewardSource};

/// 1 if the response is JSON that the schema allows, else 0. The response may stand in a fenced block (three backticks), of which the last
/// counts; otherwise it is all of the response.
pub(in crate::reward) struct SchemaReward {
    pub(in crate::reward) schema: Schema,
}

impl RewardSource for SchemaReward {
    fn score(&mut self, completions: &[Completion]) -> Result<Vec<f32>> {
        Ok((completions.iter())
            .map(|completion| {
                let value = serde_json::from_str::<Value>(json_of(&completion.response));
                let allowed = value.is_ok_and(|value| self.schema.allows(&value));
                f32::from(u8::from(allowed))
            })
            .collect())
    }
}

/// The contents of the last fenced block, or all of `response`.
fn json_of(response: &str) -> &str {
    const FENCE: &str = "```";
    let Some(end) = response.rfind(FENCE) else {
        return response.trim();
    };
    let Some(start) = response[..end].rfind(FENCE) else {
        return response.trim();
    };
    let inner = &response[start + FENCE.len()..end];
    inner.strip_prefix("json").unwrap_or(inner).trim()
}

/// A JSON schema: the keywords that say what is allowed of one document. References to other documents, and keywords that are unknown here, are
/// refused when it is read, so that no condition is dropped in silence.
///
/// # Source
/// JSON Schema 2020-12, core and validation vocabularies.
#[derive(Debug, Clone)]
pub(in crate::reward) struct Schema {
    root: Value,
    /// Expressions of `pattern`, by their text.
    patterns: BTreeMap<String, Regex>,
}

/// Keywords that allow everything.
const ANNOTATIONS: [&str; 11] = [
    "$schema",
    "$id",
    "$comment",
    "$defs",
    "definitions",
    "title",
    "description",
    "default",
    "examples",
    "deprecated",
    "format",
];
/// Keywords that hold one schema.
const ONE: [&str; 4] = ["items", "additionalProperties", "not", "contains"];
/// Keywords that hold a list of schemas.
const LISTS: [&str; 4] = ["anyOf", "oneOf", "allOf", "prefixItems"];
/// Keywords that hold schemas by name.
const MAPS: [&str; 3] = ["properties", "$defs", "definitions"];
/// Keywords with a number.
const NUMBERS: [&str; 11] = [
    "minimum",
    "maximum",
    "exclusiveMinimum",
    "exclusiveMaximum",
    "multipleOf",
    "minLength",
    "maxLength",
    "minItems",
    "maxItems",
    "minProperties",
    "maxProperties",
];
const TYPES: [&str; 7] = [
    "null", "boolean", "object", "array", "number", "integer", "string",
];

impl Schema {
    /// Reads a schema.
    ///
    /// # Errors
    /// What is no JSON or no schema, or is not supported, with its place.
    pub(in crate::reward) fn parse(text: &str) -> Result<Self, String> {
        let root = serde_json::from_str(text).map_err(|error| format!("is not JSON: {error}"))?;
        let mut schema = Self {
            root,
            patterns: BTreeMap::new(),
        };
        let root = schema.root.clone();
        schema.check(&root, "#", 0)?;
        Ok(schema)
    }

    fn check(&mut self, schema: &Value, place: &str, depth: usize) -> Result<(), String> {
        let rules = match schema {
            Value::Bool(_) => return Ok(()),
            Value::Object(rules) => rules,
            _ => return Err(format!("{place}: a schema is an object, true or false")),
        };
        if depth > 64 {
            return Err(format!("{place}: nested more than 64 deep"));
        }
        for (key, value) in rules {
            let place = format!("{place}/{key}");
            let expected = |what: &str| Err(format!("{place}: expected {what}, found {value}"));
            match key.as_str() {
                key if ONE.contains(&key) => self.check(value, &place, depth + 1)?,
                key if MAPS.contains(&key) => match value {
                    Value::Object(named) => {
                        for (name, inner) in named {
                            self.check(inner, &format!("{place}/{name}"), depth + 1)?;
                        }
                    }
                    _ => return expected("schemas by name"),
                },
                key if LISTS.contains(&key) => match value {
                    Value::Array(list) if !list.is_empty() => {
                        for (at, inner) in list.iter().enumerate() {
                            self.check(inner, &format!("{place}/{at}"), depth + 1)?;
                        }
                    }
                    _ => return expected("a list of schemas"),
                },
                key if NUMBERS.contains(&key) => {
                    if !value.is_number() {
                        return expected("a number");
                    }
                }
                "type" => {
                    let names = match value {
                        Value::Array(names) => names.iter().collect(),
                        name => vec![name],
                    };
                    let known =
                        |name: &&Value| name.as_str().is_some_and(|name| TYPES.contains(&name));
                    if !names.iter().all(known) {
                        return expected("the names of types");
                    }
                }
                "required" => {
                    let is_list = |value: &Value| {
                        value
                            .as_array()
                            .is_some_and(|names| names.iter().all(Value::is_string))
                    };
                    if !is_list(value) {
                        return expected("a list of names");
                    }
                }
                "enum" if !value.is_array() => return expected("a list of values"),
                "uniqueItems" if !value.is_boolean() => return expected("true or false"),
                "pattern" => {
                    let Some(pattern) = value.as_str() else {
                        return expected("a regular expression");
                    };
                    let regex = Regex::new(pattern)
                        .map_err(|_| format!("{place}: {pattern:?} is not a regular expression"))?;
                    self.patterns.insert(pattern.to_owned(), regex);
                }
                "$ref" => {
                    let target = value.as_str().and_then(|path| self.target(path));
                    if target.is_none() {
                        return expected(
                            "a path in this document that exists, such as \"#/$defs/name\"",
                        );
                    }
                }
                "enum" | "const" | "uniqueItems" => {}
                key if ANNOTATIONS.contains(&key) => {}
                _ => return Err(format!("{place}: the keyword {key:?} is not supported")),
            }
        }
        Ok(())
    }

    /// The schema at a path such as `#/$defs/name`.
    fn target(&self, path: &str) -> Option<&Value> {
        self.root.pointer(path.strip_prefix('#')?)
    }

    /// Whether the schema allows `value`.
    pub(in crate::reward) fn allows(&self, value: &Value) -> bool {
        self.holds(&self.root, value, 0)
    }

    fn holds(&self, schema: &Value, value: &Value, depth: usize) -> bool {
        let rules = match schema {
            Value::Bool(allowed) => return *allowed,
            Value::Object(rules) => rules,
            _ => return false,
        };
        // A reference to itself describes no finite value.
        if depth > 256 {
            return false;
        }
        let inner = |schema: &Value, value: &Value| self.holds(schema, value, depth + 1);
        rules.iter().all(|(key, rule)| match key.as_str() {
            "type" => match rule {
                Value::Array(names) => names.iter().any(|name| is_of(value, name)),
                name => is_of(value, name),
            },
            "enum" => rule
                .as_array()
                .is_some_and(|list| list.iter().any(|one| equal(one, value))),
            "const" => equal(rule, value),
            "$ref" => (rule.as_str().and_then(|path| self.target(path)))
                .is_some_and(|target| inner(target, value)),
            "not" => !inner(rule, value),
            "allOf" => list(rule).iter().all(|one| inner(one, value)),
            "anyOf" => list(rule).iter().any(|one| inner(one, value)),
            "oneOf" => list(rule).iter().filter(|one| inner(one, value)).count() == 1,
            _ => match value {
                Value::Object(map) => object_holds(rules, key, rule, map, &inner),
                Value::Array(items) => array_holds(rules, key, rule, items, &inner),
                Value::String(text) => self.string_holds(key, rule, text),
                Value::Number(number) => number_holds(key, rule, number.as_f64()),
                _ => true,
            },
        })
    }

    fn string_holds(&self, key: &str, rule: &Value, text: &str) -> bool {
        let len = text.chars().count() as f64;
        let limit = rule.as_f64();
        match key {
            "minLength" => limit.is_none_or(|limit| len >= limit),
            "maxLength" => limit.is_none_or(|limit| len <= limit),
            "pattern" => (rule.as_str().and_then(|pattern| self.patterns.get(pattern)))
                .is_some_and(|pattern| pattern.is_match(text)),
            _ => true,
        }
    }
}

fn object_holds(
    rules: &Map<String, Value>,
    key: &str,
    rule: &Value,
    map: &Map<String, Value>,
    inner: &dyn Fn(&Value, &Value) -> bool,
) -> bool {
    let len = map.len() as f64;
    let limit = rule.as_f64();
    match key {
        "required" => list(rule)
            .iter()
            .all(|name| name.as_str().is_some_and(|name| map.contains_key(name))),
        "properties" => (rule.as_object().into_iter().flatten())
            .all(|(name, schema)| map.get(name).is_none_or(|value| inner(schema, value))),
        "additionalProperties" => {
            let named = rules.get("properties").and_then(Value::as_object);
            map.iter().all(|(name, value)| {
                named.is_some_and(|named| named.contains_key(name)) || inner(rule, value)
            })
        }
        "minProperties" => limit.is_none_or(|limit| len >= limit),
        "maxProperties" => limit.is_none_or(|limit| len <= limit),
        _ => true,
    }
}

fn array_holds(
    rules: &Map<String, Value>,
    key: &str,
    rule: &Value,
    items: &[Value],
    inner: &dyn Fn(&Value, &Value) -> bool,
) -> bool {
    let len = items.len() as f64;
    let limit = rule.as_f64();
    match key {
        "prefixItems" => list(rule)
            .iter()
            .zip(items)
            .all(|(schema, value)| inner(schema, value)),
        "items" => {
            let first = rules
                .get("prefixItems")
                .map_or(0, |prefix| list(prefix).len());
            items.iter().skip(first).all(|value| inner(rule, value))
        }
        "contains" => items.iter().any(|value| inner(rule, value)),
        "minItems" => limit.is_none_or(|limit| len >= limit),
        "maxItems" => limit.is_none_or(|limit| len <= limit),
        "uniqueItems" => {
            rule != &Value::Bool(true)
                || (items.iter().enumerate())
                    .all(|(at, one)| items[..at].iter().all(|other| !equal(one, other)))
        }
        _ => true,
    }
}

fn number_holds(key: &str, rule: &Value, number: Option<f64>) -> bool {
    let (Some(limit), Some(number)) = (rule.as_f64(), number) else {
        return true;
    };
    match key {
        "minimum" => number >= limit,
        "maximum" => number <= limit,
        "exclusiveMinimum" => number > limit,
        "exclusiveMaximum" => number < limit,
        "multipleOf" => {
            limit != 0.0
                && ((number / limit).round() * limit - number).abs() < 1e-9 * number.abs().max(1.0)
        }
        _ => true,
    }
}

/// Whether `value` has the type of that name; numbers without a fraction are integers.
fn is_of(value: &Value, name: &Value) -> bool {
    match name.as_str() {
        Some("null") => value.is_null(),
        Some("boolean") => value.is_boolean(),
        Some("object") => value.is_object(),
        Some("array") => value.is_array(),
        Some("string") => value.is_string(),
        Some("number") => value.is_number(),
        Some("integer") => value.as_f64().is_some_and(|number| number.fract() == 0.0),
        _ => false,
    }
}

/// Equality of JSON values: 1 and 1.0 are one number.
fn equal(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Number(a), Value::Number(b)) => a == b || a.as_f64() == b.as_f64(),
        (Value::Array(a), Value::Array(b)) => {
            a.len() == b.len() && a.iter().zip(b).all(|(a, b)| equal(a, b))
        }
        (Value::Object(a), Value::Object(b)) => {
            a.len() == b.len()
                && a.iter()
                    .all(|(key, a)| b.get(key).is_some_and(|b| equal(a, b)))
        }
        _ => a == b,
    }
}

fn list(rule: &Value) -> &[Value] {
    rule.as_array().map_or(&[], Vec::as_slice)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn allows(schema: Value, value: Value) -> bool {
        Schema::parse(&schema.to_string()).unwrap().allows(&value)
    }

    // Cases in the manner of the test suite of json-schema.org: schema, value, whether it is allowed.
    #[test]
    fn keywords_mean_what_the_standard_says() {
        for (schema, value, expected) in [
            (json!({"type": "integer"}), json!(1.0), true),
            (json!({"type": "integer"}), json!(1.5), false),
            (json!({"type": ["string", "null"]}), json!(null), true),
            (json!({"required": ["a"]}), json!({"b": 1}), false),
            (json!({"required": ["a"]}), json!([1]), true),
            (
                json!({"properties": {"a": {"type": "string"}}, "additionalProperties": false}),
                json!({"a": "x"}),
                true,
            ),
            (
                json!({"properties": {"a": {"type": "string"}}, "additionalProperties": false}),
                json!({"a": "x", "b": 1}),
                false,
            ),
            (
                json!({"additionalProperties": {"minimum": 3}}),
                json!({"x": 2}),
                false,
            ),
            (
                json!({"items": {"type": "number"}, "minItems": 1}),
                json!([1, "a"]),
                false,
            ),
            (
                json!({"prefixItems": [{"type": "string"}], "items": {"type": "number"}}),
                json!(["a", 1]),
                true,
            ),
            (json!({"uniqueItems": true}), json!([1, 1.0]), false),
            (json!({"enum": [1, "a"]}), json!("a"), true),
            (json!({"const": {"a": [1]}}), json!({"a": [1.0]}), true),
            (json!({"pattern": "^a+$"}), json!("aab"), false),
            (json!({"maxLength": 2}), json!("\u{e9}\u{e9}"), true),
            (json!({"exclusiveMaximum": 3}), json!(3), false),
            (json!({"multipleOf": 0.01}), json!(19.99), true),
            (
                json!({"oneOf": [{"minimum": 2}, {"maximum": 4}]}),
                json!(3),
                false,
            ),
            (
                json!({"anyOf": [{"minimum": 2}, {"maximum": 4}], "not": {"const": 3}}),
                json!(3),
                false,
            ),
            (
                json!({"$ref": "#/$defs/n", "$defs": {"n": {"properties": {"next": {"$ref": "#/$defs/n"}}, "required": ["v"]}}}),
                json!({"v": 1, "next": {"w": 2}}),
                false,
            ),
            (json!({"contains": {"const": 2}}), json!([1, 2]), true),
            (json!(false), json!(1), false),
        ] {
            assert_eq!(
                allows(schema.clone(), value.clone()),
                expected,
                "{schema} {value}"
            );
        }
    }

    #[test]
    fn what_is_not_supported_is_refused_with_its_place() {
        for (schema, message) in [
            ("{", "is not JSON"),
            ("[]", "#: a schema is an object, true or false"),
            (
                r#"{"properties": {"a": {"if": {}}}}"#,
                "#/properties/a/if: the keyword \"if\" is not supported",
            ),
            (r#"{"type": "text"}"#, "#/type: expected the names of types"),
            (
                r##"{"$ref": "#/$defs/x"}"##,
                "#/$ref: expected a path in this document that exists",
            ),
            (
                r#"{"minimum": "3"}"#,
                "#/minimum: expected a number, found \"3\"",
            ),
            (
                r#"{"pattern": "("}"#,
                "#/pattern: \"(\" is not a regular expression",
            ),
        ] {
            let found = Schema::parse(schema).unwrap_err();
            assert!(found.contains(message), "{found}");
        }
    }

    #[test]
    fn fenced_json_counts() {
        let mut source = SchemaReward {
            schema: Schema::parse(r#"{"type": "object", "required": ["a"]}"#).unwrap(),
        };
        let completions = [
            " {\"a\": 1} ",
            "Here: ```json\n{\"a\": 1}\n``` as asked",
            "Here: {\"a\": 1}",
            "```{\"b\": 1}```",
            "{\"a\": 1",
        ]
        .map(|response| Completion {
            response: response.into(),
            ..Completion::default()
        });
        assert_eq!(
            source.score(&completions).unwrap(),
            [1.0, 1.0, 0.0, 0.0, 0.0]
        );
    }
}
