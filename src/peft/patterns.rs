//! Values by module path, as PEFT's `rank_pattern` and `alpha_pattern` give them.

use std::fmt;
use std::marker::PhantomData;

use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde::ser::{Serialize, Serializer};

use super::targets::{Expression, before_plain, is_plain, too_many};

/// Patterns with their values, in the order of the file: the first that matches a path counts.
///
/// A pattern is a regular expression for the end of a module path, from a dot or the start of the path on: `q_proj`,
/// `layers\.1\.mlp\..*`, `^model\.layers\.0\.self_attn\.q_proj`.
///
/// # Source
/// PEFT 0.21, `get_pattern_key`: `re.match(rf"(.*\.)?({key})$", path)`.
#[derive(Debug, Clone, PartialEq)]
pub struct Patterns<T>(Vec<(String, T)>);

impl<T> Default for Patterns<T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<T> FromIterator<(String, T)> for Patterns<T> {
    fn from_iter<I: IntoIterator<Item = (String, T)>>(patterns: I) -> Self {
        Self(patterns.into_iter().collect())
    }
}

impl<T> Patterns<T> {
    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Patterns and values, in order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &T)> {
        self.0.iter().map(|(key, value)| (key.as_str(), value))
    }

    /// The value of the first pattern that matches. A pattern that is no regular expression matches nothing; see
    /// [`Patterns::invalid`].
    pub fn get(&self, path: &str) -> Option<&T> {
        let mut patterns = self.0.iter();
        let found = patterns.find(|(key, _)| matches(key, path));
        found.map(|(_, value)| value)
    }

    /// Patterns that cannot be compiled.
    pub fn invalid(&self) -> Vec<&str> {
        let keys = self.0.iter().map(|(key, _)| key.as_str());
        keys.filter(|key| !is_plain(key) && compile(key).is_err())
            .collect()
    }

    /// Patterns that match none of the paths.
    pub fn unused<'a>(&self, paths: impl Iterator<Item = &'a str> + Clone) -> Vec<&str> {
        let unused = |key: &&str| !paths.clone().any(|path| matches(key, path));
        let keys = self.0.iter().map(|(key, _)| key.as_str());
        keys.filter(unused).collect()
    }
}

fn matches(pattern: &str, path: &str) -> bool {
    match is_plain(pattern) {
        true => before_plain(pattern, path)
            .is_some_and(|before| before.is_empty() || before.ends_with('.')),
        false => compile(pattern).is_ok_and(|regex| regex.is_match(path)),
    }
}

fn compile(pattern: &str) -> Result<Expression, String> {
    Expression::new(&format!(r"^(?:.*\.)?(?:{pattern})$"))
}

impl<T: Serialize> Serialize for Patterns<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(key, value)| (key, value)))
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Patterns<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(InOrder(PhantomData))
    }
}

/// Reads a map without sorting it.
struct InOrder<T>(PhantomData<T>);

impl<'de, T: Deserialize<'de>> Visitor<'de> for InOrder<T> {
    type Value = Patterns<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a map of module patterns to values")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut patterns = Vec::new();
        while let Some(entry) = map.next_entry()? {
            patterns.push(entry);
        }
        let keys = patterns.iter().map(|(key, _): &(String, T)| key.as_str());
        too_many(keys).map_err(serde::de::Error::custom)?;
        Ok(Patterns(patterns))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn patterns(entries: &[(&str, usize)]) -> Patterns<usize> {
        let entries = entries.iter();
        entries
            .map(|(key, value)| ((*key).into(), *value))
            .collect()
    }

    #[test]
    fn the_first_pattern_that_matches_the_end_counts() {
        let path = "model.layers.1.self_attn.v_proj";
        // Python: get_pattern_key(keys, path)
        assert_eq!(patterns(&[("v_proj", 1)]).get(path), Some(&1));
        assert_eq!(patterns(&[("proj", 1)]).get(path), None);
        assert_eq!(patterns(&[("_attn.v_proj", 1)]).get(path), None);
        assert_eq!(patterns(&[("self_attn", 1)]).get(path), None);
        assert_eq!(patterns(&[(r".*\.1\..*", 1)]).get(path), Some(&1));
        assert_eq!(patterns(&[("^model.*", 1)]).get(path), Some(&1));
        assert_eq!(patterns(&[("^v_proj", 1)]).get(path), None);
        assert_eq!(patterns(&[("q_proj|v_proj", 1)]).get(path), Some(&1));
        assert_eq!(
            patterns(&[("layers.[12].self_attn.[kv]_proj", 1)]).get(path),
            Some(&1)
        );
        let both = patterns(&[("v_proj", 1), (r"layers\.1\..*", 2)]);
        assert_eq!(both.get(path), Some(&1));
        assert_eq!(both.get("model.layers.1.mlp.up_proj"), Some(&2));
        let turned = patterns(&[(r"layers\.1\..*", 2), ("v_proj", 1)]);
        assert_eq!(turned.get(path), Some(&2));
    }

    #[test]
    fn what_matches_nothing_is_found() {
        let paths = ["model.q_proj", "model.v_proj"];
        let all = patterns(&[("q_proj", 1), ("k_proj", 2), ("(", 3), ("(?=v)v_proj", 4)]);
        assert_eq!(all.unused(paths.into_iter()), ["k_proj", "("]);
        assert_eq!(all.invalid(), ["("]);
    }

    #[test]
    fn the_order_of_a_file_is_kept() {
        let text = r#"{"z":1,"a":2,"m":3}"#;
        let read: Patterns<usize> = serde_json::from_str(text).unwrap();
        assert_eq!(read, patterns(&[("z", 1), ("a", 2), ("m", 3)]));
        assert_eq!(serde_json::to_string(&read).unwrap(), text);
        assert!(serde_json::from_str::<Patterns<usize>>(r#"{"z":-1}"#).is_err());
    }
}
