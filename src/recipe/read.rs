//! Parses a recipe file strictly and reports all problems at once.
//!
//! serde stops at the first error. Therefore the file is split into header and stages, which are parsed separately. After an error
//! the offending key is blanked out, or a missing key is filled in, and the part is parsed again. Positions are preserved.

mod describe;

use std::ops::Range;
use std::path::Path;

use ron::Error as Ron;
use serde::de::DeserializeOwned;

use crate::error::Problem;
use crate::recipe::Recipe;
use crate::recipe::elsewhere;
use crate::recipe::places::Places;
use crate::recipe::rounds::expand;
use crate::recipe::scan::{Field, Kind, Lines, Node, index_of, line_column, scan};
use crate::recipe::shorthand;
use crate::recipe::write::dialect;
use crate::suggest::nearest;
use crate::train::Stage;
use describe::describe;

/// Most errors repaired in the header or in one stage.
const MAX_REPAIRS: usize = 40;

/// Most characters of all stages, those of a `Repeat` in each of its rounds.
const MAX_CHARACTERS: usize = 1 << 26;

/// More problems than an error lists: stages after them are not read.
const ENOUGH: usize = 200;

/// Placeholder values tried for a required key that is missing or invalid.
const PLACEHOLDERS: [&str; 9] = [
    "\"x\"",
    "1",
    "[]",
    "{}",
    "Base",
    "Gold",
    "Model(Base)",
    "(source: Posts(rows: 1, seed: 0))",
    "Posts(rows: 1, seed: 0)",
];

/// The parsed parts of a recipe's text.
#[derive(Debug)]
pub(super) struct ParsedRecipe {
    /// The recipe, with placeholders for the keys in `broken`; absent if a stage could not be parsed at all.
    pub(super) recipe: Option<Recipe>,
    /// Positions of the keys.
    pub(super) places: Places,
    /// Problems of the text.
    pub(super) problems: Vec<Problem>,
    /// Key paths with placeholders or defaults instead of a valid value.
    pub(super) broken: Vec<String>,
}

/// Parses the text of a recipe.
pub(super) fn read(file: &Path, source: &str) -> ParsedRecipe {
    let text: Vec<char> = source.chars().collect();
    if let Some(help) = elsewhere::other_format(source) {
        let message = "expected a recipe in RON, which begins with `(`";
        return ParsedRecipe {
            recipe: None,
            places: Places::scan(file, source),
            problems: vec![Problem::new(file.display().to_string(), message).with_help(help)],
            broken: Vec::new(),
        };
    }
    let root = match scan(&text) {
        Ok(root) => root,
        Err(error) => {
            let (line, column) = line_column(&text, error.at);
            let place = format!("{}:{line}:{column}", file.display());
            return ParsedRecipe {
                recipe: None,
                places: Places::scan(file, source),
                problems: vec![Problem::new(place, error.message)],
                broken: Vec::new(),
            };
        }
    };
    let list = root.field("stages").map(|field| &field.value);
    let stages = match list.map(|node| &node.kind) {
        Some(Kind::Items(items)) => items.as_slice(),
        _ => &[],
    };
    let expanded = expand(&text, stages);
    let lengths = expanded.stages.iter().map(|stage| stage.node.span.len());
    let characters = lengths.fold(0, usize::saturating_add);
    if characters > MAX_CHARACTERS {
        let message = format!(
            "its stages, each in all of its rounds, have {characters} characters; at most {MAX_CHARACTERS} are possible"
        );
        return ParsedRecipe {
            recipe: None,
            places: Places::default(),
            problems: vec![Problem::new(file.display().to_string(), message)],
            broken: Vec::new(),
        };
    }
    let mut reader = Reader {
        text: &text,
        places: Places::of(file, &text, &root),
        problems: Vec::new(),
        broken: Vec::new(),
    };

    let mut header = text.clone();
    if let (Some(list), false) = (list, stages.is_empty()) {
        blank(&mut header[list.span.start + 1..list.span.end - 1]);
    }
    let inserted = shorthand::insertions(&text, &root);
    // Those of the stages belong to the stages' own units.
    let (of_stages, of_header): (Vec<_>, Vec<_>) =
        (inserted.into_iter()).partition(|(at, _)| list.is_some_and(|list| list.span.contains(at)));
    let draft = PatchedText {
        start: 0,
        text: header,
        insertions: of_header,
    };
    let recipe: Option<Recipe> = reader.unit(draft, &root, "");
    let is_sound = expanded.problems.is_empty();
    let lines = Lines::of(&text);
    for problem in expanded.problems {
        let position = lines.position(problem.at);
        let found = (reader.places).problem_at(position, &problem.path, problem.message);
        reader.problems.push(with_help(found, problem.help));
    }
    let stages: Vec<Option<Stage>> = (expanded.stages.iter())
        .map(|stage| {
            if stage.is_broken {
                return None;
            }
            let node = stage.node;
            let start = node.span.start;
            let mut unit = text[node.span.clone()].to_vec();
            for part in &stage.edits.blanks {
                blank(&mut unit[part.start - start..part.end - start]);
            }
            // What is inserted before a blank stands after what is kept.
            let left_out = |at: &usize| {
                (stage.edits.blanks.iter()).any(|part| part.start < *at && *at < part.end)
            };
            let before = |end: usize| of_stages.partition_point(|(at, _)| *at < end);
            let inside = &of_stages[before(start)..before(node.span.end)];
            let kept = inside.iter().filter(|(at, _)| !left_out(at));
            let mut insertions: Vec<(usize, String)> = kept.cloned().collect();
            insertions.extend(stage.edits.insertions.iter().cloned());
            insertions.sort_by_key(|(at, _)| *at);
            insertions.iter_mut().for_each(|(at, _)| *at -= start);
            let draft = PatchedText {
                start,
                text: unit,
                insertions,
            };
            reader.unit(draft, node, &stage.path)
        })
        .collect();
    // What a mistaken Repeat would hold is unknown: references to it are not judged.
    let recipe = match (
        recipe.filter(|_| is_sound),
        stages.into_iter().collect::<Option<Vec<_>>>(),
    ) {
        (Some(recipe), Some(stages)) => Some(Recipe { stages, ..recipe }),
        _ => None,
    };
    ParsedRecipe {
        recipe,
        places: reader.places,
        problems: reader.problems,
        broken: reader.broken,
    }
}

/// Parses the text of a recipe; the error is the first problem's message, without a place, and advice.
pub(super) fn first_error(source: &str) -> Result<Recipe, (String, Option<String>)> {
    let mut text: Vec<char> = source.chars().collect();
    if let Ok(root) = scan(&text) {
        text = shorthand::completed(&text, &root).chars().collect();
    }
    let source: String = text.iter().collect();
    dialect().from_str::<Recipe>(&source).map_err(|error| {
        let at = index_of(&text, error.span.end.line, error.span.end.col);
        let found = scan(&text)
            .ok()
            .and_then(|root| {
                innermost(&text, &root, "", at, &[]).map(|(_, field, _)| field.value.span.clone())
            })
            .map(|span| excerpt(&text[span]))
            .unwrap_or_default();
        describe(&error.code, &found)
    })
}

struct Reader<'a> {
    text: &'a [char],
    places: Places,
    problems: Vec<Problem>,
    broken: Vec<String>,
}

impl Reader<'_> {
    /// Parses the header, the whole text without the stages, or one stage, its own text; insertions complete its short forms. `root` is
    /// its value.
    fn unit<T: DeserializeOwned>(
        &mut self,
        mut draft: PatchedText,
        root: &Node,
        path: &str,
    ) -> Option<T> {
        if self.problems.len() >= ENOUGH {
            return None;
        }
        // Starts of blanked fields, and (struct start, key) of missing keys that have been reported.
        let mut blanked: Vec<usize> = Vec::new();
        let mut explained: Vec<(usize, String)> = Vec::new();
        for _ in 0..MAX_REPAIRS {
            let error = match dialect().from_str::<T>(&draft.render()) {
                Ok(value) => return Some(value),
                Err(error) => error,
            };
            let (at, _) = draft.original(error.span.end.line, error.span.end.col);
            let (from, _) = draft.original(error.span.start.line, error.span.start.col);
            if let Ron::MissingStructField { field, .. } = &error.code {
                let (node_path, node) = struct_ending(self.text, root, path, at + 1)?;
                let key_path = join(&node_path, field);
                if !explained.contains(&(node.span.start, field.to_string())) {
                    let name = if node_path.is_empty() {
                        "the recipe"
                    } else {
                        &node_path
                    };
                    let message = format!("required key of {name} is missing");
                    self.problems.push(self.places.problem(&key_path, message));
                }
                self.broken.push(key_path);
                draft.fill::<T>(self.text, node, field)?;
                continue;
            }
            // Unknown names end where the parser was before, invalid values start where it stopped.
            let named = matches!(
                error.code,
                Ron::NoSuchStructField { .. }
                    | Ron::NoSuchEnumVariant { .. }
                    | Ron::DuplicateStructField { .. }
            );
            let place = if named { from } else { at };
            let Some((key_path, field, owner)) = innermost(self.text, root, path, place, &blanked)
            else {
                let (message, help) = describe(&error.code, "");
                let (line, column) = line_column(self.text, place);
                let problem = self.places.problem_at((line, column), path, message);
                self.problems.push(with_help(problem, help));
                return None;
            };
            let (message, help) =
                describe(&error.code, &excerpt(&self.text[field.value.span.clone()]));
            let position = line_column(self.text, field.key_span.start);
            let problem = self.places.problem_at(position, &key_path, message);
            self.problems.push(with_help(problem, help));
            match &error.code {
                Ron::NoSuchStructField {
                    expected, found, ..
                } if field.key == *found => {
                    if let Some(meant) = nearest(found, expected.iter().copied()) {
                        explained.push((owner.span.start, meant.to_string()));
                    }
                }
                Ron::DuplicateStructField { .. } => {}
                _ => {
                    explained.push((owner.span.start, field.key.clone()));
                    self.broken.push(key_path);
                }
            }
            blanked.push(field.span.start);
            draft.blank(field.span.clone());
        }
        None
    }
}

/// A unit's text with repairs.
struct PatchedText {
    /// Where it begins in the original text.
    start: usize,
    text: Vec<char>,
    /// Inserted texts with the index of the following character in `text`, ascending.
    insertions: Vec<(usize, String)>,
}

impl PatchedText {
    /// Blanks out a field, by its place in the original text, and what was inserted after its key.
    fn blank(&mut self, span: Range<usize>) {
        let span = span.start - self.start..span.end - self.start;
        (self.insertions).retain(|(at, _)| *at <= span.start || *at > span.end);
        blank(&mut self.text[span]);
    }

    fn render(&self) -> String {
        let mut rendered = String::with_capacity(self.text.len());
        let mut from = 0;
        for (at, inserted) in &self.insertions {
            rendered.extend(&self.text[from..*at]);
            rendered.push_str(inserted);
            from = *at;
        }
        rendered.extend(&self.text[from..]);
        rendered
    }

    /// Maps a line and column of the repaired text to an index in the original text, and tells whether it is inside an insertion.
    fn original(&self, line: usize, column: usize) -> (usize, bool) {
        let rendered: Vec<char> = self.render().chars().collect();
        let at = index_of(&rendered, line, column);
        let mut shift = 0;
        for (start, inserted) in &self.insertions {
            let len = inserted.chars().count();
            if at < start + shift {
                break;
            }
            if at < start + shift + len {
                return (self.start + start, true);
            }
            shift += len;
        }
        (self.start + at - shift, false)
    }

    /// Inserts a required key of `node` with the first suitable placeholder; `None` if there is none.
    fn fill<T: DeserializeOwned>(&mut self, text: &[char], node: &Node, key: &str) -> Option<()> {
        let open = text[node.span.clone()].iter().position(|&c| c == '(')?;
        let at = node.span.start + open + 1 - self.start;
        let slot = self.insertions.partition_point(|(other, _)| *other < at);
        for placeholder in PLACEHOLDERS {
            self.insertions
                .insert(slot, (at, format!("{key}: {placeholder}, ")));
            match dialect().from_str::<T>(&self.render()) {
                Ok(_) => return Some(()),
                Err(error) => {
                    let (start, started_inside) =
                        self.original(error.span.start.line, error.span.start.col);
                    let (_, ended_inside) = self.original(error.span.end.line, error.span.end.col);
                    let same = matches!(&error.code, Ron::MissingStructField { field, .. } if *field == key)
                        && start + 1 == node.span.end;
                    if !started_inside && !ended_inside && !same {
                        return Some(());
                    }
                }
            }
            self.insertions.remove(slot);
        }
        None
    }
}

/// Replaces characters by spaces, preserving line breaks.
fn blank(text: &mut [char]) {
    for c in text.iter_mut().filter(|c| **c != '\n') {
        *c = ' ';
    }
}

fn join(path: &str, key: &str) -> String {
    if path.is_empty() {
        key.to_string()
    } else {
        format!("{path}.{key}")
    }
}

/// The children of `node`, each with its key path and, if any, its field.
fn children<'a>(
    text: &[char],
    node: &'a Node,
    path: &str,
) -> Vec<(String, &'a Node, Option<&'a Field>)> {
    match &node.inner(text).kind {
        Kind::Fields(fields) => fields
            .iter()
            .map(|field| (join(path, &field.key), &field.value, Some(field)))
            .collect(),
        Kind::Items(items) => items
            .iter()
            .enumerate()
            .map(|(index, item)| (join(path, &index.to_string()), item, None))
            .collect(),
        Kind::Text(_) | Kind::Leaf => Vec::new(),
    }
}

/// The innermost field around the character `at` that is not blanked out, with its key path and its struct.
fn innermost<'a>(
    text: &[char],
    node: &'a Node,
    path: &str,
    at: usize,
    blanked: &[usize],
) -> Option<(String, &'a Field, &'a Node)> {
    for (path, value, field) in children(text, node, path) {
        let start = field.map_or(value.span.start, |field| field.key_span.start);
        // The end is included: at an early end the parser stops right after the value.
        if blanked.contains(&start) || at < start || at > value.span.end {
            continue;
        }
        if let Some(found) = innermost(text, value, &path, at, blanked) {
            return Some(found);
        }
        if let Some(field) = field {
            return Some((path, field, node.inner(text)));
        }
    }
    None
}

/// The struct that ends at `end`, with its key path.
fn struct_ending<'a>(
    text: &[char],
    node: &'a Node,
    path: &str,
    end: usize,
) -> Option<(String, &'a Node)> {
    let inner = node.inner(text);
    if inner.span.end == end && matches!(inner.kind, Kind::Fields(_)) {
        return Some((path.to_string(), inner));
    }
    children(text, node, path)
        .into_iter()
        .find_map(|(path, value, _)| struct_ending(text, value, &path, end))
}

/// The start of a value, as one line.
fn excerpt(value: &[char]) -> String {
    let line: String = value.iter().take_while(|&&c| c != '\n').collect();
    if line.chars().count() > 40 {
        let head: String = line.chars().take(37).collect();
        format!("{head}...")
    } else {
        line
    }
}

fn with_help(problem: Problem, help: Option<String>) -> Problem {
    match help {
        Some(help) => problem.with_help(help),
        None => problem,
    }
}
