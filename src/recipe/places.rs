//! Positions of a recipe's keys, for messages with line and column.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::Path;

use crate::error::Problem;
use crate::recipe::rounds::expand;
use crate::recipe::scan::{Kind, Lines, Node, scan};

/// The position of every key path of a recipe file.
///
/// A key path consists of stage name and keys: `seed`, `stages.ppo.optim.lr`, `stages.compare.policies.0`. Variant names are not
/// part of it: `stages.sft.data.source.rows` for `source: Posts(rows: 100, seed: 1)`.
#[derive(Debug, Clone, Default)]
pub struct Places {
    file: String,
    positions: BTreeMap<String, (usize, usize)>,
    stages: Vec<String>,
    /// Paths of stages of later rounds, each with that of the first round.
    copies: Vec<(String, String)>,
    sets: BTreeMap<String, String>,
}

impl Places {
    /// The positions in `text`, the content of `file`; empty if it is not RON.
    pub fn scan(file: &Path, text: &str) -> Self {
        let text: Vec<char> = text.chars().collect();
        match scan(&text) {
            Ok(root) => Self::of(file, &text, &root),
            Err(_) => Self {
                file: file.display().to_string(),
                ..Self::default()
            },
        }
    }

    pub(super) fn of(file: &Path, text: &[char], root: &Node) -> Self {
        let mut places = Self {
            file: file.display().to_string(),
            ..Self::default()
        };
        places.walk(text, &Lines::of(text), root, "");
        places
    }

    fn walk(&mut self, text: &[char], lines: &Lines, node: &Node, path: &str) {
        let node = node.inner(text);
        let below = |key: &str| {
            if path.is_empty() {
                key.to_string()
            } else {
                format!("{path}.{key}")
            }
        };
        match &node.kind {
            Kind::Fields(fields) => {
                for field in fields {
                    let path = below(&field.key);
                    self.insert(lines, &path, field.key_span.start);
                    self.walk(text, lines, &field.value, &path);
                }
            }
            Kind::Items(items) if path == "stages" => {
                // Each round's copy of a stage has its own paths, which lead to the one text.
                for stage in expand(text, items).stages {
                    self.insert(lines, &stage.path, stage.node.span.start);
                    self.walk(text, lines, stage.node, &stage.path);
                    self.copies
                        .extend(stage.first_copy.map(|first| (stage.path.clone(), first)));
                    self.stages.push(stage.path);
                }
            }
            Kind::Items(items) => {
                for (index, item) in items.iter().enumerate() {
                    let path = below(&index.to_string());
                    self.insert(lines, &path, item.span.start);
                    self.walk(text, lines, item, &path);
                }
            }
            Kind::Text(_) | Kind::Leaf => {}
        }
    }

    fn insert(&mut self, lines: &Lines, path: &str, at: usize) {
        self.positions
            .entry(path.to_string())
            .or_insert_with(|| lines.position(at));
    }

    /// 1-based line and column of a key, or of its nearest ancestor in the file; `None` if there is no ancestor either.
    pub fn position(&self, key_path: &str) -> Option<(usize, usize)> {
        ancestors(key_path).find_map(|path| self.positions.get(path).copied())
    }

    /// Whether the file or the command line sets this key itself.
    pub fn is_written(&self, key_path: &str) -> bool {
        self.positions.contains_key(key_path) || self.sets.contains_key(key_path)
    }

    /// A problem with the value of a key: `recipes/x.ron:12:9: stages.ppo.kl_coef: <message>`.
    ///
    /// For a key set on the command line, the place is its argument: `--set stages.ppo.kl_coef=-1: ..`.
    pub fn problem(&self, key_path: &str, message: impl Into<String>) -> Problem {
        if let Some(set) = ancestors(key_path).find_map(|path| self.sets.get(path)) {
            return Problem::new(format!("--set {set}"), message);
        }
        match self.position(key_path) {
            Some(position) => self.problem_at(position, key_path, message),
            None if self.file.is_empty() => Problem::new(key_path, message),
            None => Problem::new(format!("{}: {key_path}", self.file), message),
        }
    }

    /// A problem at a given line and column.
    pub(super) fn problem_at(
        &self,
        (line, column): (usize, usize),
        key_path: &str,
        message: impl Into<String>,
    ) -> Problem {
        let place = format!("{}:{line}:{column}", self.file);
        if key_path.is_empty() {
            Problem::new(place, message)
        } else {
            Problem::new(format!("{place}: {key_path}"), message)
        }
    }

    /// The key path of the stage at `index`: `stages.<name>`, or `stages.<index>` if the name is not unique.
    pub fn stage_path(&self, index: usize, name: &str) -> String {
        self.stages
            .get(index)
            .cloned()
            .unwrap_or_else(|| format!("stages.{name}"))
    }

    /// Leaves out problems of later rounds that the first round has, too.
    pub(super) fn without_copies(&self, problems: &mut Vec<Problem>) {
        let firsts: HashMap<&str, &str> = (self.copies.iter())
            .map(|(path, first)| (path.as_str(), first.as_str()))
            .collect();
        let of_first = |place: &str| {
            let (before, key) = place.split_at(place.rfind(": stages.")? + 2);
            let (end, _) = key.match_indices('.').nth(1)?;
            Some(format!(
                "{before}{}{}",
                firsts.get(&key[..end])?,
                &key[end..]
            ))
        };
        let mut known = HashSet::new();
        problems.retain(|problem| {
            let place = of_first(&problem.place).unwrap_or_else(|| problem.place.clone());
            known.insert((place, problem.message.clone()))
        });
    }

    /// Notes that `path` was set on the command line by `argument`.
    pub(super) fn note_set(&mut self, path: &str, argument: &str) {
        self.sets.insert(path.to_string(), argument.to_string());
    }

    /// Line and column of a problem, for sorting problems in the order of the file.
    pub(super) fn order(&self, problem: &Problem) -> (usize, usize) {
        let last = (usize::MAX, usize::MAX);
        let Some(rest) = problem
            .place
            .strip_prefix(&self.file)
            .and_then(|rest| rest.strip_prefix(':'))
        else {
            return last;
        };
        let mut parts = rest.split(':').map(str::parse::<usize>);
        match (parts.next(), parts.next()) {
            (Some(Ok(line)), Some(Ok(column))) => (line, column),
            _ => last,
        }
    }
}

/// A path and its ancestors, longest first.
fn ancestors(path: &str) -> impl Iterator<Item = &str> {
    std::iter::successors(Some(path), |path| path.rfind('.').map(|dot| &path[..dot]))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "(\n  name: \"x\",\n  stages: [\n    Sft(name: \"a\", optim: (lr: 1.0)),\n    Ppo(name: \"b\", init: Stage(\"a\"), reward: Sum([(1.0, Gold)])),\n    Ppo(name: \"b\"),\n  ],\n)";

    #[test]
    fn paths_lead_to_lines_and_columns() {
        let places = Places::scan(Path::new("r.ron"), TEXT);
        assert_eq!(places.position("name"), Some((2, 3)));
        assert_eq!(places.position("stages.a.optim.lr"), Some((4, 28)));
        assert_eq!(places.position("stages.b.reward.0.1"), Some((5, 57)));
        assert_eq!(places.position("stages.2.name"), Some((6, 9)));
        // Not written: the nearest key above.
        assert_eq!(places.position("stages.a.optim.beta1"), Some((4, 20)));
        assert_eq!(places.position("seed"), None);
    }

    #[test]
    fn problems_name_file_line_and_column_or_the_command_line() {
        let mut places = Places::scan(Path::new("r.ron"), TEXT);
        assert_eq!(
            places.problem("stages.a.optim.lr", "no").to_string(),
            "r.ron:4:28: stages.a.optim.lr: no"
        );
        assert_eq!(places.problem("seed", "no").to_string(), "r.ron: seed: no");
        places.note_set("stages.a.optim.lr", "stages.a.optim.lr=-1");
        assert_eq!(
            places.problem("stages.a.optim.lr", "no").to_string(),
            "--set stages.a.optim.lr=-1: no"
        );
    }
}
