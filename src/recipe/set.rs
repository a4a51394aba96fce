//! `--set path=value`: changes a key of a recipe from the command line.

use crate::error::Problem;
use crate::recipe::Recipe;
use crate::recipe::places::Places;
use crate::recipe::read::first_error;
use crate::recipe::scan::{Kind, Node, scan};
use crate::recipe::write::to_ron;
use crate::suggest::{did_you_mean, quoted};
use crate::train::Stage;

/// Applies `path=value` arguments in order; later ones override earlier ones.
///
/// A path consists of stage name and keys (`seed`, `stages.ppo.optim.lr`, `stages.rank.data.source.rows`). The value is RON
/// (`0.1`, `Cosine(warmup_ratio: 0.1)`, `None`); a bare word is accepted as a string.
///
/// Works on the recipe's text with all defaults written out, so that any key can be set, with the same error messages as for the
/// file.
pub(super) fn apply(recipe: &mut Recipe, places: &mut Places, sets: &[String]) -> Vec<Problem> {
    let mut problems = Vec::new();
    for set in sets {
        let problem = |message: String| Problem::new(format!("--set {set}"), message);
        let Some((path, value)) = set.split_once('=') else {
            problems.push(problem("expected `path=value`".into()).with_help("e.g. `--set seed=3`"));
            continue;
        };
        let (path, value) = (path.trim(), value.trim());
        for path in in_all_rounds(recipe, path) {
            match edit(recipe, &path, value) {
                Ok(changed) => {
                    *recipe = changed;
                    places.note_set(&path, set);
                }
                Err((message, help)) => {
                    let problem = problem(message);
                    problems.push(match help {
                        Some(help) => problem.with_help(help),
                        None => problem,
                    });
                    break;
                }
            }
        }
    }
    problems
}

/// The path, or if it names a stage of a Repeat without its round, that of each round.
fn in_all_rounds(recipe: &Recipe, path: &str) -> Vec<String> {
    let names = || recipe.stages.iter().map(Stage::name);
    let stage = path
        .strip_prefix("stages.")
        .and_then(|rest| rest.split_once('.'));
    let Some((name, key)) = stage.filter(|(name, _)| names().all(|other| other != *name)) else {
        return vec![path.to_owned()];
    };
    let is_round = |stage: &&str| {
        let mut rounds = stage.strip_prefix(name).unwrap_or_default().split('-');
        let is_number =
            |round: &str| !round.is_empty() && round.bytes().all(|b| b.is_ascii_digit());
        rounds.next() == Some("") && rounds.clone().count() > 0 && rounds.all(is_number)
    };
    let rounds: Vec<String> = (names().filter(is_round))
        .map(|stage| format!("stages.{stage}.{key}"))
        .collect();
    match rounds.is_empty() {
        true => vec![path.to_owned()],
        false => rounds,
    }
}

/// The recipe with one value replaced.
fn edit(recipe: &Recipe, path: &str, value: &str) -> Result<Recipe, (String, Option<String>)> {
    let text: Vec<char> = to_ron(recipe).chars().collect();
    // Invariant: what `to_ron` writes is RON.
    let root = scan(&text).expect("a written recipe can be scanned");
    let target = find(&text, &root, path)?;
    let replaced = |value: &str| -> String {
        text[..target.span.start]
            .iter()
            .copied()
            .chain(value.chars())
            .chain(text[target.span.end..].iter().copied())
            .collect()
    };
    let literal: Vec<char> = value.chars().collect();
    let read = match scan(&literal) {
        Ok(_) => first_error(&replaced(value)),
        Err(error) => Err((format!("the value is not RON: {}", error.message), None)),
    };
    // Shells remove quotes, so a bare word may be meant as a string.
    read.or_else(|error| first_error(&replaced(&format!("{value:?}"))).map_err(|_| error))
}

/// Whether a recipe has a stage of this name.
fn is_stage(text: &[char], root: &Node, name: &str) -> bool {
    let stages = match &root.inner(text).kind {
        Kind::Fields(fields) => fields.iter().find(|field| field.key == "stages"),
        _ => None,
    };
    let items = stages.map(|field| &field.value.inner(text).kind);
    matches!(items, Some(Kind::Items(items)) if items.iter().any(|item| stage_name(item) == name))
}

/// The value at a key path.
fn find<'a>(
    text: &[char],
    root: &'a Node,
    path: &str,
) -> Result<&'a Node, (String, Option<String>)> {
    let mut node = root;
    let mut walked = String::new();
    for key in path.split('.') {
        let here = if walked.is_empty() {
            "the recipe"
        } else {
            &walked
        };
        let inner = node.inner(text);
        let known: Vec<String> = match &inner.kind {
            Kind::Fields(fields) => fields.iter().map(|field| field.key.clone()).collect(),
            Kind::Items(items) if walked == "stages" => items.iter().map(stage_name).collect(),
            Kind::Items(items) => (0..items.len()).map(|index| index.to_string()).collect(),
            Kind::Text(_) | Kind::Leaf => {
                let value: String = text[inner.span.clone()].iter().collect();
                return Err((format!("{here} is `{value}` and has no keys"), None));
            }
        };
        let Some(index) = known.iter().position(|name| name == key) else {
            let noun = if walked == "stages" { "stage" } else { "key" };
            let stage = walked.is_empty() && is_stage(text, root, key);
            return Err((
                format!(
                    "no {noun} `{key}` in {here}; it has {}",
                    quoted(known.iter().map(String::as_str))
                ),
                match stage {
                    true => Some(format!("did you mean `stages.{path}`?")),
                    false => did_you_mean(key, known.iter().map(String::as_str)),
                },
            ));
        };
        node = match &inner.kind {
            Kind::Fields(fields) => &fields[index].value,
            Kind::Items(items) => &items[index],
            Kind::Text(_) | Kind::Leaf => inner,
        };
        if !walked.is_empty() {
            walked.push('.');
        }
        walked.push_str(key);
    }
    Ok(node)
}

fn stage_name(stage: &Node) -> String {
    match stage.field("name").map(|field| &field.value.kind) {
        Some(Kind::Text(name)) => name.clone(),
        _ => String::new(),
    }
}
