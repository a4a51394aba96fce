//! Which linear layers an adapter is put on, by PEFT's rules.

use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::Arc;

use fancy_regex::{Regex, RegexBuilder};
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// What a layer that can carry an adapter is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LayerKind {
    /// A linear layer of the backbone: one of PEFT's "all-linear".
    #[default]
    Linear,
    /// The token embedding: its input is a one-hot token.
    Embedding,
    /// The output head.
    Head,
}

/// One layer that can carry an adapter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LinearSpec {
    /// What it is.
    pub kind: LayerKind,
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
    /// The string, or those of the list.
    pub fn entries(&self) -> &[String] {
        match self {
            Self::One(entry) => std::slice::from_ref(entry),
            Self::List(entries) => entries,
        }
    }

    /// Whether it names nothing.
    pub fn is_empty(&self) -> bool {
        self.entries().iter().all(String::is_empty)
    }
}

/// Which layers an adapter's file is for, by PEFT's keys of these names; see [`Selection`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Targets {
    /// Which layers.
    pub target_modules: TargetModules,
    /// Which of them not.
    pub exclude_modules: Option<TargetModules>,
    /// Of the layers that an entry of a list selects by its end, those with these numbers only.
    pub layers_to_transform: Option<Vec<usize>>,
    /// Before the number stands one of these; any name if empty.
    pub layers_pattern: Vec<String>,
}

impl Targets {
    /// These layers, without exceptions.
    pub fn of(target_modules: TargetModules) -> Self {
        Self {
            target_modules,
            exclude_modules: None,
            layers_to_transform: None,
            layers_pattern: Vec::new(),
        }
    }

    /// Those that a recipe lists.
    pub fn listed(
        target_modules: &[String],
        exclude_modules: &[String],
        layers_to_transform: Option<&[usize]>,
    ) -> Self {
        let excludes = !exclude_modules.is_empty();
        Self {
            target_modules: TargetModules::List(target_modules.to_vec()),
            exclude_modules: excludes.then(|| TargetModules::List(exclude_modules.to_vec())),
            layers_to_transform: layers_to_transform.map(<[usize]>::to_vec),
            layers_pattern: Vec::new(),
        }
    }

    /// The entries of `exclude_modules`, as recipes list them.
    pub fn excluded(&self) -> Vec<String> {
        let modules = self.exclude_modules.iter();
        modules.flat_map(TargetModules::entries).cloned().collect()
    }

    /// The same, borrowed.
    pub fn selection(&self) -> Selection<'_> {
        Selection {
            target_modules: &self.target_modules,
            exclude_modules: self.exclude_modules.as_ref(),
            layers_to_transform: self.layers_to_transform.as_deref(),
            layers_pattern: &self.layers_pattern,
        }
    }
}

/// Which layers get an adapter, by PEFT's keys of these names.
#[derive(Debug, Clone, Copy)]
pub struct Selection<'a> {
    /// Which layers.
    pub target_modules: &'a TargetModules,
    /// Which of them not.
    pub exclude_modules: Option<&'a TargetModules>,
    /// Of the layers that an entry of a list selects, other than by its whole path, those with these numbers only.
    pub layers_to_transform: Option<&'a [usize]>,
    /// Names that may stand before the number (regular expressions); any if empty.
    pub layers_pattern: &'a [String],
}

/// How an entry selects a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Match {
    /// It is the path.
    Whole,
    /// By its end, as a regular expression, or as one of all.
    Part,
}

impl Selection<'_> {
    /// Whether the layer at `path` gets an adapter.
    ///
    /// # Source
    /// PEFT 0.21, `check_target_module_exists`. An entry of a list that selects nothing by its end is a regular expression
    /// on whole paths here, and `"all-linear"` may stand in a list; no path is changed in meaning by allowing them.
    pub fn selects(&self, layer: &LinearSpec) -> bool {
        let path = layer.name.as_str();
        let excluded = self
            .exclude_modules
            .is_some_and(|modules| modules.matches(layer).is_some());
        if excluded {
            return false;
        }
        match (self.target_modules.matches(layer), self.layers_to_transform) {
            (None, _) => false,
            (Some(Match::Part), Some(layers)) => {
                block_number(path, self.layers_pattern).is_some_and(|block| layers.contains(&block))
            }
            (Some(_), _) => true,
        }
    }

    /// Refuses entries that are no regular expression where one is needed.
    ///
    /// # Errors
    /// With the entry.
    pub(super) fn check(&self) -> std::result::Result<(), String> {
        for (key, modules) in [
            ("target_modules", Some(self.target_modules)),
            ("exclude_modules", self.exclude_modules),
        ] {
            if let Some(TargetModules::One(entry)) = modules
                && whole(entry).is_err()
            {
                return Err(format!(
                    "\"{key}\": \"{entry}\" cannot be read as a regular expression"
                ));
            }
            let entries = modules.map_or(&[][..], TargetModules::entries);
            too_many(entries.iter().map(String::as_str)).map_err(|m| format!("\"{key}\": {m}"))?;
        }
        for pattern in self.layers_pattern {
            if numbered(pattern).is_err() {
                return Err(format!(
                    "\"layers_pattern\": \"{pattern}\" cannot be read as a regular expression"
                ));
            }
        }
        Ok(())
    }
}

impl TargetModules {
    fn matches(&self, layer: &LinearSpec) -> Option<Match> {
        let path = layer.name.as_str();
        match self {
            Self::One(entry) => matches_alone(entry, layer).then_some(Match::Part),
            Self::List(entries) => {
                if entries.iter().any(|entry| entry == path) {
                    return Some(Match::Whole);
                }
                let part = |entry: &String| is_suffix(path, entry) || matches_alone(entry, layer);
                entries.iter().any(part).then_some(Match::Part)
            }
        }
    }
}

/// Refuses more patterns than can be matched with every module.
///
/// # Errors
/// With their number.
pub(super) fn too_many<'a>(
    patterns: impl Iterator<Item = &'a str>,
) -> std::result::Result<(), String> {
    match patterns.filter(|pattern| !is_plain(pattern)).count() {
        count if count > MAX_PATTERNS => Err(format!(
            "{count} regular expressions; at most {MAX_PATTERNS} are possible beside names of modules"
        )),
        _ => Ok(()),
    }
}

/// A string on its own: `"all-linear"`, or a regular expression on the whole path.
fn matches_alone(entry: &str, layer: &LinearSpec) -> bool {
    match entry == ALL_LINEAR {
        true => layer.kind == LayerKind::Linear,
        false if is_plain(entry) => before_plain(entry, &layer.name) == Some(""),
        false => whole(entry).is_ok_and(|pattern| pattern.is_match(&layer.name)),
    }
}

/// Whether a pattern is the name of a module, in which a dot stands for any character, and needs no compiling.
pub(super) fn is_plain(pattern: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '.';
    !pattern.is_empty() && pattern.chars().all(plain)
}

/// What stands before the end of `text` that a plain pattern matches.
pub(super) fn before_plain<'a>(pattern: &str, text: &'a str) -> Option<&'a str> {
    let at = text.len().checked_sub(pattern.len())?;
    let (before, end) = text.split_at_checked(at)?;
    let mut pairs = pattern.bytes().zip(end.bytes());
    (end.is_ascii() && pairs.all(|(p, t)| p == b'.' || p == t)).then_some(before)
}

/// Most patterns of one list that are not plain: each is compiled, and matched with every module.
pub(super) const MAX_PATTERNS: usize = 1000;
/// Most bytes of a pattern.
const PATTERN_BYTES: usize = 16 << 10;
/// Most bytes of a compiled pattern, or of each of its parts.
const COMPILED_BYTES: usize = 1 << 20;
/// Most steps back in a module's path.
const STEPS: usize = 20_000;
/// Compiled patterns that are kept.
const KEPT: usize = 2 * MAX_PATTERNS;

thread_local! {
    /// By pattern. A list of them is matched with hundreds of modules.
    static COMPILED: RefCell<HashMap<String, std::result::Result<Expression, String>>> = RefCell::default();
}

/// A regular expression of Python's kind, look-around and back-references included.
#[derive(Debug, Clone)]
pub(super) struct Expression(Arc<Regex>);

impl Expression {
    /// # Errors
    /// With the cause, in one line.
    pub(super) fn new(pattern: &str) -> std::result::Result<Self, String> {
        COMPILED.with_borrow_mut(|known| {
            if let Some(found) = known.get(pattern) {
                return found.clone();
            }
            if known.len() >= KEPT {
                known.clear();
            }
            let compiled = Self::compile(pattern);
            known.insert(pattern.to_owned(), compiled.clone());
            compiled
        })
    }

    fn compile(pattern: &str) -> std::result::Result<Self, String> {
        if pattern.len() > PATTERN_BYTES {
            return Err(format!(
                "it has {} bytes; at most {PATTERN_BYTES} are possible",
                pattern.len()
            ));
        }
        let mut builder = RegexBuilder::new(pattern);
        let built = builder
            .backtrack_limit(STEPS)
            .delegate_size_limit(COMPILED_BYTES)
            .build();
        built.map(|regex| Self(Arc::new(regex))).map_err(|error| {
            // The message may span lines and ends with the cause; positions in it count what was put around the pattern.
            let cause = error.to_string();
            let cause = cause.lines().last().unwrap_or_default();
            let cause = match cause.strip_prefix("Parsing error at position ") {
                Some(rest) => rest.split_once(": ").map_or(rest, |(_, cause)| cause),
                None => cause,
            };
            cause.trim_start_matches("error: ").to_owned()
        })
    }

    /// Whether it matches; an expression that gives up on a text does not.
    pub(super) fn is_match(&self, text: &str) -> bool {
        self.0.is_match(text).unwrap_or(false)
    }
}

/// An entry as an expression that has to match a whole path.
///
/// # Errors
/// With the cause, in one line.
pub(super) fn whole(entry: &str) -> std::result::Result<Expression, String> {
    Expression::new(&format!("^(?:{entry})$"))
}

/// `pattern`, then a number between dots.
fn numbered(pattern: &str) -> std::result::Result<Expression, String> {
    Expression::new(&format!(r"^(?:.*?\.)?(?:{pattern})\.(\d+)\."))
}

/// The number of the block that a layer is in: the first component that is one, with at least two before it, or the first
/// after one of the names.
fn block_number(path: &str, names: &[String]) -> Option<usize> {
    if names.is_empty() {
        let parts: Vec<&str> = path.split('.').collect();
        let inner = parts.get(2..parts.len().saturating_sub(1))?;
        return inner.iter().find_map(|part| part.parse().ok());
    }
    names.iter().find_map(|name| {
        let found = numbered(name).ok()?.0.captures(path).ok()??;
        found.iter().skip(1).flatten().last()?.as_str().parse().ok()
    })
}

/// PEFT's word for every linear layer but the output head.
const ALL_LINEAR: &str = "all-linear";

/// The indices into `linear` of the layers that a recipe selects, ascending. Every entry has to select something.
///
/// # Errors
/// `Error::Usage` that names every entry which selects nothing, with the layer kinds there are, and for an empty list.
pub fn resolve_targets(selection: &Selection<'_>, linear: &[LinearSpec]) -> Result<Vec<usize>> {
    let mut problems = Vec::new();
    for (key, modules) in [
        ("target_modules", Some(selection.target_modules)),
        ("exclude_modules", selection.exclude_modules),
    ] {
        let Some(modules) = modules else { continue };
        too_many(modules.entries().iter().map(String::as_str))
            .map_err(|message| Error::Usage(format!("{key}: {message}")))?;
        let unmatched = unmatched(modules, linear);
        if !unmatched.is_empty() {
            problems.push(format!("{key}: {}", unmatched.join("; ")));
        }
    }
    if !problems.is_empty() {
        return Err(Error::Usage(format!(
            "{}; this model has {} (or \"{ALL_LINEAR}\")",
            problems.join("; "),
            kinds(linear).join(", ")
        )));
    }
    for wanted in selection.layers_to_transform.unwrap_or_default() {
        let mut blocks = linear
            .iter()
            .filter_map(|layer| block_number(&layer.name, &[]));
        if !blocks.any(|block| block == *wanted) {
            return Err(Error::Usage(format!(
                "layers_to_transform: there is no layer {wanted}; they are counted from 0"
            )));
        }
    }
    let chosen = select(linear, |layer| selection.selects(layer));
    if chosen.is_empty() {
        return Err(Error::Usage(
            "target_modules: nothing is left after exclude_modules and layers_to_transform".into(),
        ));
    }
    Ok(chosen)
}

/// Entries that an error names at most.
const ENOUGH: usize = 50;

/// What is wrong with each entry that selects nothing.
fn unmatched(modules: &TargetModules, linear: &[LinearSpec]) -> Vec<String> {
    let in_list = matches!(modules, TargetModules::List(_));
    let mut unmatched = Vec::new();
    for entry in modules.entries() {
        if unmatched.len() >= ENOUGH {
            unmatched.push("..".to_owned());
            break;
        }
        let selects = |layer: &LinearSpec| {
            (in_list && is_suffix(&layer.name, entry)) || matches_alone(entry, layer)
        };
        if linear.iter().any(selects) {
            continue;
        }
        unmatched.push(match nearest(entry, linear) {
            _ if whole(entry).is_err() => {
                format!("\"{entry}\" is neither a layer nor a regular expression")
            }
            Some(kind) => format!("\"{entry}\" matches no layer; did you mean \"{kind}\"?"),
            None => format!("\"{entry}\" matches no layer"),
        });
    }
    if modules.entries().is_empty() {
        unmatched.push("the list is empty".into());
    }
    unmatched
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

fn select(linear: &[LinearSpec], test: impl Fn(&LinearSpec) -> bool) -> Vec<usize> {
    (0..linear.len()).filter(|&i| test(&linear[i])).collect()
}

/// The kind closest to `entry`, if it is at most half of it away.
fn nearest<'a>(entry: &str, linear: &'a [LinearSpec]) -> Option<&'a str> {
    close_names(last_component(entry), &kinds(linear))
        .first()
        .copied()
}

/// Those of `known` that are closest to `entry`, if they are at most half of their length away, in order.
pub(super) fn close_names<'a>(entry: &str, known: &[&'a str]) -> Vec<&'a str> {
    let distances = known.iter().map(|name| (edit_distance(entry, name), *name));
    let mut close: Vec<(usize, &str)> = distances
        .filter(|(distance, name)| 2 * distance <= name.len())
        .collect();
    close.sort_unstable();
    let least = close.first().map_or(0, |(distance, _)| *distance);
    let closest = close
        .into_iter()
        .take_while(|(distance, _)| *distance == least);
    closest.map(|(_, name)| name).collect()
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

    #[test]
    fn plain_patterns_match_as_expressions_do() {
        let path = "model.layers.1.self_attn.v_proj";
        for (pattern, suffix, is_whole) in [
            ("v_proj", true, false),
            ("_proj", false, false),
            ("self_attn.v_proj", true, false),
            ("self.attn.v.proj", true, false),
            ("model.layers.1.self_attn.v_proj", true, true),
            ("model.layers.2.self_attn.v_proj", false, false),
            (".model.layers.1.self_attn.v_proj", false, false),
        ] {
            assert!(is_plain(pattern));
            let before = before_plain(pattern, path);
            let at_dot = before.is_some_and(|b| b.is_empty() || b.ends_with('.'));
            assert_eq!(
                (at_dot, before == Some("")),
                (suffix, is_whole),
                "{pattern}"
            );
            let expression = Expression::new(&format!(r"^(?:.*\.)?(?:{pattern})$")).unwrap();
            assert_eq!(expression.is_match(path), suffix, "{pattern}");
            assert_eq!(
                whole(pattern).unwrap().is_match(path),
                is_whole,
                "{pattern}"
            );
        }
        assert!(!is_plain("") && !is_plain(".*_proj") && !is_plain("a|b"));
    }

    #[test]
    fn patterns_are_bounded_in_length_and_number() {
        let message = Expression::new(&"a".repeat(20_000)).unwrap_err();
        assert_eq!(message, "it has 20000 bytes; at most 16384 are possible");
        assert!(Expression::new("(?:a{1000}){1000}").is_err());
        assert_eq!(too_many(["q_proj"; 5000].into_iter()), Ok(()));
        let message = too_many([".*q_proj"; 1001].into_iter()).unwrap_err();
        assert!(
            message.starts_with("1001 regular expressions; at most 1000"),
            "{message}"
        );
    }

    fn linear() -> Vec<LinearSpec> {
        (0..2)
            .flat_map(|layer| {
                ["self_attn.q_proj", "self_attn.v_proj", "mlp.up_proj"].map(|name| LinearSpec {
                    kind: LayerKind::Linear,
                    name: format!("model.layers.{layer}.{name}"),
                    in_features: 4,
                    out_features: 4,
                })
            })
            .collect()
    }

    fn resolve(target_modules: &TargetModules) -> Result<Vec<usize>> {
        let selection = Selection {
            target_modules,
            exclude_modules: None,
            layers_to_transform: None,
            layers_pattern: &[],
        };
        resolve_targets(&selection, &linear())
    }

    fn list(entries: &[&str]) -> Result<Vec<usize>> {
        let entries = entries.iter().map(ToString::to_string).collect();
        resolve(&TargetModules::List(entries))
    }

    fn one(entry: &str) -> Result<Vec<usize>> {
        resolve(&TargetModules::One(entry.into()))
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
    fn numbers_go_with_ends_of_paths_and_not_with_whole_ones() {
        let names =
            |names: &[&str]| TargetModules::List(names.iter().map(ToString::to_string).collect());
        let selects = |targets: &[&str], exclude: Option<TargetModules>, patterns: &[&str]| {
            let patterns: Vec<String> = patterns.iter().map(ToString::to_string).collect();
            let selection = Selection {
                target_modules: &names(targets),
                exclude_modules: exclude.as_ref(),
                layers_to_transform: Some(&[1]),
                layers_pattern: &patterns,
            };
            select(&linear(), |layer| selection.selects(layer))
        };
        // PEFT: check_target_module_exists(LoraConfig(target_modules=.., layers_to_transform=[1]), path)
        assert_eq!(selects(&["q_proj"], None, &[]), [3]);
        assert_eq!(selects(&["q_proj"], None, &["layers"]), [3]);
        assert_eq!(selects(&["q_proj"], None, &["h", "layer."]), [3]);
        assert_eq!(selects(&["q_proj"], None, &["h"]), [0; 0]);
        assert_eq!(
            selects(&["model.layers.0.mlp.up_proj", "q_proj"], None, &[]),
            [2, 3]
        );
        let regex = TargetModules::One(".*self_attn.*".into());
        assert_eq!(selects(&["q_proj", "up_proj"], Some(regex), &[]), [5]);
        let by_name = names(&["self_attn.v_proj"]);
        assert_eq!(selects(&["q_proj", "v_proj"], Some(by_name), &[]), [3]);
        assert_eq!(block_number("transformer.h.7.attn.c_attn", &[]), Some(7));
        assert_eq!(
            block_number("model.layers.1.experts.0.up_proj", &[]),
            Some(1)
        );
        assert_eq!(block_number("h.3.q_proj", &[]), None);
        assert_eq!(block_number("model.layers.3", &[]), None);
    }

    #[test]
    fn distances_count_edits() {
        assert_eq!(edit_distance("kitten", "sitting"), 3);
        assert_eq!(edit_distance("", "abc"), 3);
    }
}
