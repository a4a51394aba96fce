//! Selective unfreezing: some of a model's own weights, chosen by name, are trained and the rest stays frozen.
//!
//! An entry is a tensor's name, a module's path, or a part of one: whole components between dots, wherever they stand.
//! `model.layers.29`, `layers.29`, `mlp.up_proj`, `lm_head` and `bias` are entries. `*` in a component stands for any
//! characters but a dot, and a number below zero counts from the end: `layers.-1` is the last block. `layers[-2:]` are the last
//! two blocks, `layers[:4]` the first four, `layers[4:8]` those from 4 to 7: Python's slices. An entry may also be a regular
//! expression on whole tensor names.

use std::collections::BTreeSet;
use std::ops::Range;

use super::targets::{close_names, whole};
use crate::error::{Error, Result};

/// A tensor that a model's file may hold.
#[derive(Debug, Clone, Copy)]
pub struct TensorName<'a> {
    /// Its name, e.g. `model.layers.0.mlp.up_proj.weight`.
    pub name: &'a str,
    /// The tensor that it shares its values with.
    pub tied_to: Option<&'a str>,
}

/// The names that `entries` choose. An entry that chooses none is no error here; see [`resolve`].
pub fn chosen<'a>(
    entries: &[String],
    names: impl Iterator<Item = &'a str> + Clone,
) -> BTreeSet<String> {
    let last_block = last_block(names.clone());
    let entries: Vec<Entry> = (entries.iter())
        .map(|entry| Entry::new(entry, last_block))
        .collect();
    names
        .filter(|name| entries.iter().any(|entry| entry.chooses(name)))
        .map(str::to_owned)
        .collect()
}

/// The names that `entries` choose, each of which has to choose something.
///
/// # Errors
/// `Error::Usage` that names every entry which chooses nothing, or only a tensor that is tied to another.
pub fn resolve(entries: &[String], tensors: &[TensorName<'_>]) -> Result<BTreeSet<String>> {
    let own: Vec<&str> = (tensors.iter())
        .filter(|tensor| tensor.tied_to.is_none())
        .map(|tensor| tensor.name)
        .collect();
    let last_block = last_block(own.iter().copied());
    let mut problems = Vec::new();
    for text in entries {
        let entry = Entry::new(text, last_block);
        if own.iter().any(|name| entry.chooses(name)) {
            continue;
        }
        let tied =
            (tensors.iter()).find(|tensor| tensor.tied_to.is_some() && entry.chooses(tensor.name));
        problems.push(match tied {
            Some(TensorName { name, tied_to }) => {
                let other = module(tied_to.unwrap_or_default());
                format!(
                    "\"{text}\": {} is tied to {other} in this model, the two are one parameter; name \"{other}\" to train it as both",
                    module(name)
                )
            }
            None => format!("\"{text}\" matches no parameter{}", hint(text, &own)),
        });
    }
    if problems.is_empty() {
        return Ok(chosen(entries, own.into_iter()));
    }
    Err(Error::Usage(format!(
        "{}; this model has {}",
        problems.join("; "),
        outline(&own).join(", ")
    )))
}

/// One entry, ready to be matched.
struct Entry {
    parts: Vec<Part>,
    expression: Option<super::targets::Expression>,
}

impl Entry {
    fn new(text: &str, last_block: Option<usize>) -> Self {
        let blocks = last_block.map_or(0, |last| last + 1);
        Self {
            parts: (text.split('.'))
                .flat_map(|part| Part::read(part, blocks))
                .collect(),
            expression: whole(text).ok(),
        }
    }

    fn chooses(&self, name: &str) -> bool {
        let components: Vec<&str> = name.split('.').collect();
        let mut runs = components.windows(self.parts.len());
        runs.any(|run| {
            (run.iter().zip(&self.parts)).all(|(component, part)| part.matches(component))
        }) || (self.expression.as_ref()).is_some_and(|expression| expression.is_match(name))
    }
}

/// What one component of a name has to be.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    /// The component's text, a negative number resolved; `*` stands for any characters.
    Text(String),
    /// One of these blocks.
    Blocks(Range<usize>),
}

impl Part {
    /// The parts that a component of an entry stands for, in a model of so many blocks: `layers[-2:]` is two.
    fn read(text: &str, blocks: usize) -> Vec<Self> {
        let from_end = |number: i64| match number {
            ..0 => (blocks as i64 + number).max(0) as usize,
            number => number as usize,
        };
        let bound = |text: &str, default: usize| match text.trim() {
            "" => Some(default),
            number => number.parse().ok().map(from_end),
        };
        let slice = (text.strip_suffix(']'))
            .and_then(|text| text.split_once('['))
            .and_then(|(name, slice)| Some((name, slice.split_once(':')?)))
            .and_then(|(name, (start, end))| Some((name, bound(start, 0)?..bound(end, blocks)?)));
        match (slice, text.parse::<i64>()) {
            (Some((name, range)), _) => vec![Self::Text(name.to_owned()), Self::Blocks(range)],
            (None, Ok(number)) if number < 0 && blocks > 0 => {
                vec![Self::Text((blocks as i64 + number).to_string())]
            }
            _ => vec![Self::Text(text.to_owned())],
        }
    }

    fn matches(&self, component: &str) -> bool {
        match self {
            Self::Text(part) => matches_part(part, component),
            Self::Blocks(range) => (component.parse()).is_ok_and(|block| range.contains(&block)),
        }
    }
}

/// Whether a component is the part, where `*` stands for any characters.
fn matches_part(part: &str, component: &str) -> bool {
    let mut pieces = part.split('*');
    let head = pieces.next().unwrap_or_default();
    let Some(mut rest) = component.strip_prefix(head) else {
        return false;
    };
    let Some(tail) = pieces.next_back() else {
        return rest.is_empty();
    };
    // The first place for each piece leaves the most to those after it.
    for piece in pieces {
        let Some(at) = rest.find(piece) else {
            return false;
        };
        rest = &rest[at + piece.len()..];
    }
    rest.ends_with(tail)
}

/// The highest number among the components.
fn last_block<'a>(names: impl Iterator<Item = &'a str>) -> Option<usize> {
    let numbers = names.flat_map(|name| name.split('.').filter_map(|part| part.parse().ok()));
    numbers.max()
}

/// The path of the module that holds a tensor.
fn module(tensor: &str) -> &str {
    let is_leaf = |leaf: &&str| matches!(*leaf, "weight" | "bias");
    match tensor.rsplit_once('.') {
        Some((path, leaf)) if is_leaf(&leaf) => path,
        _ => tensor,
    }
}

/// What the writer may have meant.
fn hint(entry: &str, names: &[&str]) -> String {
    let parts = names.iter().flat_map(|name| name.split('.'));
    let mut known: Vec<&str> = parts
        .filter(|part| part.parse::<usize>().is_err())
        .collect();
    known.sort_unstable();
    known.dedup();
    let mut close: Vec<&str> = (entry.split('.'))
        .filter(|part| !known.contains(part))
        .flat_map(|part| close_names(part, &known))
        .collect();
    close.dedup();
    match close.is_empty() {
        true => String::new(),
        false => format!("; did you mean \"{}\"?", close.join("\" or \"")),
    }
}

/// The modules of a model, blocks as one.
fn outline(names: &[&str]) -> Vec<String> {
    let mut modules: Vec<String> = Vec::new();
    for name in names {
        let parts = module(name).split('.');
        let path: Vec<&str> = parts
            .map(|part| part.parse::<usize>().map_or(part, |_| "N"))
            .collect();
        let path = path.join(".");
        if !modules.contains(&path) {
            modules.push(path);
        }
    }
    modules
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAMES: [&str; 9] = [
        "model.embed_tokens.weight",
        "model.layers.0.self_attn.q_proj.weight",
        "model.layers.0.self_attn.q_proj.bias",
        "model.layers.1.self_attn.q_proj.weight",
        "model.layers.1.self_attn.q_proj.bias",
        "model.layers.11.self_attn.q_proj.weight",
        "model.layers.11.self_attn.q_proj.bias",
        "model.norm.weight",
        "lm_head.weight",
    ];

    fn indices(entries: &[&str]) -> Vec<usize> {
        let entries: Vec<String> = entries.iter().map(ToString::to_string).collect();
        let chosen = chosen(&entries, NAMES.iter().copied());
        (0..NAMES.len())
            .filter(|&i| chosen.contains(NAMES[i]))
            .collect()
    }

    fn refused(entries: &[&str], tied: bool) -> String {
        let entries: Vec<String> = entries.iter().map(ToString::to_string).collect();
        let tensors = NAMES.map(|name| TensorName {
            name,
            tied_to: (tied && name == "lm_head.weight").then_some(NAMES[0]),
        });
        resolve(&entries, &tensors).unwrap_err().to_string()
    }

    #[test]
    fn stars_stand_for_any_characters() {
        for (part, component, expected) in [
            ("q_proj", "q_proj", true),
            ("q_proj", "q_proj2", false),
            ("*_proj", "q_proj", true),
            ("*", "", true),
            ("q*proj*", "q_proj", true),
            ("q*q", "q", false),
            ("*o*o", "o_pro", true),
            ("*a*b*c*", "xaxbxc", true),
            ("*a*b*c*", "xaxcxb", false),
        ] {
            assert_eq!(
                matches_part(part, component),
                expected,
                "{part} {component}"
            );
        }
        assert!(!matches_part(&"*a".repeat(40), &"a".repeat(39)));
        assert!(!matches_part(
            &format!("{}b", "*".repeat(60)),
            &"a".repeat(60)
        ));
    }

    #[test]
    fn entries_choose_by_whole_components() {
        assert_eq!(indices(&["model.layers.1"]), [3, 4]);
        assert_eq!(indices(&["layers.11", "norm"]), [5, 6, 7]);
        assert_eq!(indices(&["bias"]), [2, 4, 6]);
        assert_eq!(indices(&["lm_head"]), [8]);
        assert_eq!(indices(&["model.norm.weight"]), [7]);
        assert_eq!(indices(&["head"]), [0; 0]);
        assert_eq!(indices(&["layers.*.self_attn.*.bias"]), [2, 4, 6]);
        assert_eq!(indices(&["layers.1*"]), [3, 4, 5, 6]);
        assert_eq!(indices(&["*_head"]), [8]);
        assert_eq!(indices(&["layers.-1"]), [5, 6]);
        assert_eq!(indices(&["layers[-2:]"]), [5, 6]);
        assert_eq!(indices(&["layers[-11:]"]), [3, 4, 5, 6]);
        assert_eq!(indices(&["model.layers[:2].self_attn"]), [1, 2, 3, 4]);
        assert_eq!(indices(&["layers[1:12].*.*.bias"]), [4, 6]);
        assert_eq!(indices(&[r"model\.layers\.(0|11)\..*weight"]), [1, 5]);
        assert_eq!(indices(&[r"model\.(?!layers).*"]), [0, 7]);
    }

    #[test]
    fn what_chooses_nothing_is_named_with_what_comes_close() {
        assert_eq!(
            refused(&["lm_hed", "layers.12", "norm"], false),
            "\"lm_hed\" matches no parameter; did you mean \"lm_head\"?; \"layers.12\" matches no parameter; \
             this model has model.embed_tokens, model.layers.N.self_attn.q_proj, model.norm, lm_head"
        );
    }

    #[test]
    fn a_tied_head_is_no_parameter_of_its_own() {
        let message = refused(&["lm_head"], true);
        assert!(
            message.starts_with(
                "\"lm_head\": lm_head is tied to model.embed_tokens in this model, the two are one parameter; \
                 name \"model.embed_tokens\" to train it as both"
            ),
            "{message}"
        );
    }
}
