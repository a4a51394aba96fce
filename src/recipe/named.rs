//! Named data sets of a recipe, shared by several stages.

use std::collections::BTreeSet;

use super::{Places, Recipe};
use crate::data::{DataSource, RowFormat};
use crate::error::Problem;
use crate::suggest::{did_you_mean, quoted};

/// Replaces each `Data("name")` by the named data set; returns problems with the names.
///
/// The resolved recipe has no named data sets.
pub(super) fn resolve(recipe: &mut Recipe, places: &Places) -> Vec<Problem> {
    let mut problems = Vec::new();
    let mut used = BTreeSet::new();
    let sets = std::mem::take(&mut recipe.data);
    for (name, data) in &sets {
        if let DataSource::Data(other) = &data.source {
            let key = format!("data.{name}.source");
            let message =
                format!("names the set `{other}`; a set of the recipe has a source of its own");
            problems.push(places.problem(&key, message));
        }
    }
    for (index, stage) in recipe.stages.iter_mut().enumerate() {
        let path = places.stage_path(index, stage.name());
        let keys: Vec<&str> = stage.inputs().data.iter().map(|data| data.key).collect();
        for (key, data) in keys.into_iter().zip(stage.data_mut()) {
            let DataSource::Data(name) = &data.source else {
                continue;
            };
            let Some(named) = sets.get(name) else {
                let key = format!("{path}.{key}.source");
                let problem =
                    places.problem(&key, format!("the recipe's `data` has no set `{name}`"));
                let names = || sets.keys().map(String::as_str);
                problems.push(match did_you_mean(name, names()) {
                    Some(help) => problem.with_help(help),
                    None if sets.is_empty() => problem.with_help(
                        "add `data: {\"name\": (source: ..)}` to the recipe, beside `stages`",
                    ),
                    None => problem.with_help(format!("it has {}", quoted(names()))),
                });
                continue;
            };
            used.insert(name.clone());
            if data.format != RowFormat::default() {
                let key = format!("{path}.{key}.format");
                let message = format!("the format of a named set is given at data.{name}.format");
                problems.push(places.problem(&key, message));
            }
            *data = data.of_named(named);
        }
    }
    for name in sets.keys().filter(|name| !used.contains(*name)) {
        let problem = places.problem(&format!("data.{name}"), "no stage reads this set");
        problems.push(problem.with_help(format!(
            "use it as `source: Data(\"{name}\")`, or leave it out"
        )));
    }
    problems
}
