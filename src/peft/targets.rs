//! Which linear layers an adapter is put on, by PEFT's rules.

use std::collections::BTreeSet;

use regex::Regex;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// One linear layer of the backbone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LinearSpec {
    /// Module path, e.g. `model.layers.0.self_attn.q_proj`.
    pub name: String,
    /// Width of the input.
    pub in_features: usize,
    /// Width of the output.
    pub out_features: usize,
}

/// PEFT's `target_modules`: one string or a list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum TargetModules {
    /// `"all-linear"`, or a regular expression that has to match whole paths.
    One(String),
    /// Last path components (`"q_proj"`, `"mlp.up_proj"`), whole paths, or regular expressions on whole paths.
    List(Vec<String>),
}

impl TargetModules {
    fn entries(&self) -> &[String] {
        match self {
            Self::One(entry) => std::slice::from_ref(entry),
            Self::List(entries) => entries,
        }
    }
}

/// The indices into `linear` that the targets select, ascending.
///
/// An entry selects every layer if it is `"all-linear"`; otherwise the layers whose path is the entry or ends with it
/// after a dot (in a list only, as in PEFT); otherwise those whose whole path it matches as a regular expression. PEFT
/// itself has no regular expressions inside lists; no module path is changed in meaning by allowing them.
///
/// # Errors
/// `Error::Usage` that names every entry which selects nothing, with the layer kinds there are, and for an empty list.
pub fn resolve_targets(targets: &TargetModules, linear: &[LinearSpec]) -> Result<Vec<usize>> {
    let mut chosen = BTreeSet::new();
    let mut unmatched = Vec::new();
    let in_list = matches!(targets, TargetModules::List(_));
    for entry in targets.entries() {
        if entry == "all-linear" {
            chosen.extend(0..linear.len());
            continue;
        }
        let mut matched: Vec<usize> = Vec::new();
        if in_list {
            matched = select(linear, |path| is_suffix(path, entry));
        }
        if matched.is_empty() {
            match Regex::new(&format!("^(?:{entry})$")) {
                Ok(pattern) => matched = select(linear, |path| pattern.is_match(path)),
                Err(_) => {
                    unmatched.push(format!(
                        "\"{entry}\" is neither a layer nor a regular expression"
                    ));
                    continue;
                }
            }
        }
        if matched.is_empty() {
            unmatched.push(match nearest(entry, linear) {
                Some(kind) => format!("\"{entry}\" matches no layer; did you mean \"{kind}\"?"),
                None => format!("\"{entry}\" matches no layer"),
            });
        }
        chosen.extend(matched);
    }
    if targets.entries().is_empty() {
        unmatched.push("the list is empty".into());
    }
    if unmatched.is_empty() {
        return Ok(chosen.into_iter().collect());
    }
    Err(Error::Usage(format!(
        "target_modules: {}; this model has {} (or \"all-linear\")",
        unmatched.join("; "),
        kinds(linear).join(", ")
    )))
}

/// The last components of the layers' paths, each once, in the order of the model.
pub fn kinds(linear: &[LinearSpec]) -> Vec<&str> {
    let mut kinds: Vec<&str> = Vec::new();
    for l in linear {
        let kind = last_component(&l.name);
        if !kinds.contains(&kind) {
            kinds.push(kind);
        }
    }
    kinds
}

/// Whether `entry` is `path` or its last components.
pub(crate) fn is_suffix(path: &str, entry: &str) -> bool {
    path == entry
        || path
            .strip_suffix(entry)
            .is_some_and(|head| head.ends_with('.'))
}

fn last_component(path: &str) -> &str {
    path.rsplit_once('.').map_or(path, |(_, last)| last)
}

fn select(linear: &[LinearSpec], test: impl Fn(&str) -> bool) -> Vec<usize> {
    (0..linear.len())
        .filter(|&i| test(&linear[i].name))
        .collect()
}

/// The kind closest to `entry`, if it is at most half of it away.
fn nearest<'a>(entry: &str, linear: &'a [LinearSpec]) -> Option<&'a str> {
    let entry = last_component(entry);
    kinds(linear)
        .into_iter()
        .map(|kind| (edit_distance(entry, kind), kind))
        .min()
        .filter(|(distance, kind)| 2 * distance <= kind.len())
        .map(|(_, kind)| kind)
}

/// Levenshtein distance in characters.
fn edit_distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let substituted = diagonal + usize::from(x != *y);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn linear() -> Vec<LinearSpec> {
        (0..2)
            .flat_map(|layer| {
                ["self_attn.q_proj", "self_attn.v_proj", "mlp.up_proj"].map(|name| LinearSpec {
                    name: format!("model.layers.{layer}.{name}"),
                    in_features: 4,
                    out_features: 4,
                })
            })
            .collect()
    }

    fn list(entries: &[&str]) -> Result<Vec<usize>> {
        let entries = entries.iter().map(ToString::to_string).collect();
        resolve_targets(&TargetModules::List(entries), &linear())
    }

    fn one(entry: &str) -> Result<Vec<usize>> {
        resolve_targets(&TargetModules::One(entry.into()), &linear())
    }

    #[test]
    fn targets_select_as_in_peft() {
        assert_eq!(one("all-linear").unwrap(), [0, 1, 2, 3, 4, 5]);
        assert_eq!(list(&["all-linear"]).unwrap(), [0, 1, 2, 3, 4, 5]);
        assert_eq!(list(&["v_proj", "q_proj"]).unwrap(), [0, 1, 3, 4]);
        assert_eq!(list(&["mlp.up_proj"]).unwrap(), [2, 5]);
        assert_eq!(list(&["model.layers.1.mlp.up_proj"]).unwrap(), [5]);
        assert_eq!(one(r".*\.1\..*_proj").unwrap(), [3, 4, 5]);
        assert_eq!(list(&[r".*\.0\.self_attn\.[qv]_proj"]).unwrap(), [0, 1]);
        // A string is matched as a whole path, and a suffix begins after a dot.
        assert!(one("q_proj").is_err());
        assert!(list(&["proj"]).is_err());
    }

    #[test]
    fn entries_that_select_nothing_are_all_named() {
        let message = list(&["q_prj", "q_proj", "wte", "("])
            .unwrap_err()
            .to_string();
        assert_eq!(
            message,
            "target_modules: \"q_prj\" matches no layer; did you mean \"q_proj\"?; \"wte\" matches no layer; \
             \"(\" is neither a layer nor a regular expression; this model has q_proj, v_proj, up_proj (or \"all-linear\")"
        );
        assert!(
            list(&[])
                .unwrap_err()
                .to_string()
                .contains("the list is empty")
        );
    }

    #[test]
    fn distances_count_edits() {
        assert_eq!(edit_distance("kitten", "sitting"), 3);
        assert_eq!(edit_distance("", "abc"), 3);
    }
}
