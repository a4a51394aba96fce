//! Short forms of data sets: `data: "rows.csv"` for `data: (source: File("rows.csv"))`.
//!
//! RON tells variants by their names, so that a plain string is none. It is completed in the recipe's text before that is parsed.

use super::rounds::each;
use super::scan::{Field, Kind, Node};

/// Keys of stages that hold a data set.
const DATA_KEYS: [&str; 3] = ["data", "eval_data", "center_on"];

/// Texts to insert, each before the character of that index, ascending, that complete the short forms in the text of a recipe.
///
/// A string is the recipe's data set of that name, or else a file, folder or pattern.
pub(super) fn insertions(text: &[char], root: &Node) -> Vec<(usize, String)> {
    let sets = root.field("data").map(|field| field.value.inner(text));
    let sets: Vec<&str> = match sets.map(|sets| &sets.kind) {
        Some(Kind::Fields(fields)) => fields.iter().map(|field| field.key.as_str()).collect(),
        _ => Vec::new(),
    };
    let mut completer = Completer {
        text,
        sets,
        insertions: Vec::new(),
    };
    if let Kind::Fields(fields) = &root.kind {
        for field in fields {
            match (field.key.as_str(), &field.value.inner(text).kind) {
                ("data", Kind::Fields(sets)) => {
                    for set in sets {
                        completer.data_set(&set.value);
                        completer.walk(&set.value);
                    }
                }
                _ => completer.walk(&field.value),
            }
        }
    }
    completer.insertions.sort_by_key(|(at, _)| *at);
    completer.insertions
}

/// The text with its short forms completed.
pub(super) fn completed(text: &[char], root: &Node) -> String {
    let mut out = String::with_capacity(text.len());
    let mut from = 0;
    for (at, inserted) in insertions(text, root) {
        out.extend(&text[from..at]);
        out.push_str(&inserted);
        from = at;
    }
    out.extend(&text[from..]);
    out
}

struct Completer<'a> {
    text: &'a [char],
    /// Names of the recipe's data sets.
    sets: Vec<&'a str>,
    insertions: Vec<(usize, String)>,
}

impl Completer<'_> {
    /// Completes what stands below a value.
    fn walk(&mut self, node: &Node) {
        match &node.kind {
            Kind::Fields(fields) => {
                for field in fields {
                    self.field(field);
                }
            }
            Kind::Items(items) => {
                for item in items {
                    self.walk(item);
                }
            }
            Kind::Text(_) | Kind::Leaf => {}
        }
    }

    fn field(&mut self, field: &Field) {
        match field.key.as_str() {
            "source" => self.source(&field.value),
            key if DATA_KEYS.contains(&key) => self.data_set(&field.value),
            _ => {}
        }
        self.walk(&field.value);
    }

    /// Completes a string in the place of a data set.
    fn data_set(&mut self, node: &Node) {
        for value in each(self.text, node).unwrap_or_default() {
            self.data_set(value);
        }
        if let Kind::Text(name) = &node.kind {
            self.wrap(node, "(source: ", name);
        }
    }

    /// Completes a string in the place of a source, the strings of a mixture, and a repository without keys.
    fn source(&mut self, node: &Node) {
        if let Some(values) = each(self.text, node) {
            for value in values {
                self.source(value);
            }
            return;
        }
        match &node.kind {
            Kind::Text(name) => self.wrap(node, "", name),
            Kind::Items(items) if self.is_variant(node, "Hub") => {
                if let [repo] = items.as_slice() {
                    self.insertions.push((repo.span.start, "repo: ".to_owned()));
                }
            }
            Kind::Items(_) => {
                let Kind::Items(parts) = &node.inner(self.text).kind else {
                    return;
                };
                for part in parts {
                    if let Kind::Items(pair) = &part.kind
                        && let [_, set] = pair.as_slice()
                    {
                        self.data_set(set);
                    }
                }
            }
            Kind::Fields(_) | Kind::Leaf => {}
        }
    }

    fn is_variant(&self, node: &Node, name: &str) -> bool {
        let end = node.span.start + name.len();
        let follows = self
            .text
            .get(end)
            .is_some_and(|c| *c == '(' || c.is_whitespace());
        self.text[node.span.start..]
            .iter()
            .take(name.len())
            .copied()
            .eq(name.chars())
            && follows
    }

    fn wrap(&mut self, node: &Node, before: &str, name: &str) {
        let variant = match self.sets.contains(&name) {
            true => "Data",
            false => "File",
        };
        let closing = if before.is_empty() { ")" } else { "))" };
        self.insertions
            .push((node.span.start, format!("{before}{variant}(")));
        self.insertions.push((node.span.end, closing.to_owned()));
    }
}

#[cfg(test)]
mod tests {
    use super::super::scan::scan;
    use super::*;

    #[test]
    fn strings_become_files_and_named_sets() {
        let text = r#"(name: "data", data: {"mine": "a.csv", "other": (source: "b.csv")}, stages: [
            Sft(name: "source", data: "mine", eval_data: (source: "c.jsonl", limit: 3)),
            Sft(data: (source: Jsonl("d"), format: (prompt: "data"))),
            Ppo(ptx: (data: "e")),
            Sft(data: (source: Mix([(0.7, "mine"), (0.3, (source: "f", skip: 1))]))),
            Sft(data: (source: Hub("me/set")), eval_data: (source: Hub(repo: "me/set", split: "test"))),
        ])"#;
        let expected = r#"(name: "data", data: {"mine": (source: File("a.csv")), "other": (source: File("b.csv"))}, stages: [
            Sft(name: "source", data: (source: Data("mine")), eval_data: (source: File("c.jsonl"), limit: 3)),
            Sft(data: (source: Jsonl("d"), format: (prompt: "data"))),
            Ppo(ptx: (data: (source: File("e")))),
            Sft(data: (source: Mix([(0.7, (source: Data("mine"))), (0.3, (source: File("f"), skip: 1))]))),
            Sft(data: (source: Hub(repo: "me/set")), eval_data: (source: Hub(repo: "me/set", split: "test"))),
        ])"#;
        let chars: Vec<char> = text.chars().collect();
        assert_eq!(completed(&chars, &scan(&chars).unwrap()), expected);
    }
}
