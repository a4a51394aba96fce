//! Named data sets of a recipe, shared by several stages.

use std::collections::{BTreeMap, BTreeSet};

use super::{Places, Recipe};
use crate::data::{DataConfig, DataSource, RowFormat};
use crate::error::{Problem, some_of};
use crate::suggest::did_you_mean;

/// More problems than an error lists: names that are like a wrong one are not looked for any further.
const ENOUGH: usize = 200;

/// Replaces each `Data("name")` by the named data set; returns problems with the names.
///
/// The resolved recipe has no named data sets.
pub(super) fn resolve(recipe: &mut Recipe, places: &Places) -> Vec<Problem> {
    let mut problems = Vec::new();
    let sets = std::mem::take(&mut recipe.data);
    for (name, data) in &sets {
        if let DataSource::Data(other) = &data.source {
            let key = format!("data.{name}.source");
            let message =
                format!("names the set `{other}`; a set of the recipe has a source of its own");
            problems.push(places.problem(&key, message));
        }
    }
    let stages: Vec<String> = (recipe.stages.iter())
        .map(|stage| stage.name().to_owned())
        .collect();
    let mut resolver = Resolver {
        sets: &sets,
        stages,
        places,
        used: BTreeSet::new(),
        problems,
    };
    for (index, stage) in recipe.stages.iter_mut().enumerate() {
        let path = places.stage_path(index, stage.name());
        let keys: Vec<&str> = stage.inputs().data.iter().map(|data| data.key).collect();
        for (key, data) in keys.into_iter().zip(stage.data_mut()) {
            resolver.resolve(data, &format!("{path}.{key}"));
        }
    }
    let Resolver {
        used, mut problems, ..
    } = resolver;
    for name in sets.keys().filter(|name| !used.contains(*name)) {
        let problem = places.problem(&format!("data.{name}"), "no stage reads this set");
        problems.push(problem.with_help(format!(
            "use it as `source: Data(\"{name}\")`, or leave it out"
        )));
    }
    problems
}

struct Resolver<'a> {
    sets: &'a BTreeMap<String, DataConfig>,
    /// Names of the stages: `HeldOut` names one of them or a set.
    stages: Vec<String>,
    places: &'a Places,
    used: BTreeSet<String>,
    problems: Vec<Problem>,
}

impl Resolver<'_> {
    /// Resolves the data set at `key`, or the sets of its mixture.
    fn resolve(&mut self, data: &mut DataConfig, key: &str) {
        let name = match &mut data.source {
            DataSource::Data(name) => name.clone(),
            DataSource::HeldOut(name)
                if self.sets.contains_key(name) && !self.stages.contains(name) =>
            {
                name.clone()
            }
            DataSource::Mix(parts) => {
                for (i, (_, part)) in parts.iter_mut().enumerate() {
                    self.resolve(part, &format!("{key}.source.{i}.1"));
                }
                return;
            }
            _ => return,
        };
        let Some(named) = self.sets.get(&name) else {
            if self.problems.len() >= ENOUGH {
                return;
            }
            let problem = (self.places).problem(
                &format!("{key}.source"),
                format!("the recipe's `data` has no set `{name}`"),
            );
            let names = || self.sets.keys().map(String::as_str);
            self.problems.push(match did_you_mean(&name, names()) {
                Some(help) => problem.with_help(help),
                None if self.sets.is_empty() => problem.with_help(
                    "add `data: {\"name\": (source: ..)}` to the recipe, beside `stages`",
                ),
                None => {
                    let names: Vec<String> = names().map(|name| format!("`{name}`")).collect();
                    problem.with_help(format!("it has {}", some_of(&names)))
                }
            });
            return;
        };
        if data.format != RowFormat::default() {
            let message = format!("the format of a named set is given at data.{name}.format");
            let problem = self.places.problem(&format!("{key}.format"), message);
            self.problems.push(problem);
        }
        *data = data.of_named(named);
        self.used.insert(name);
    }
}
