//! Compares a recipe with that of the run to resume: results under mixed settings would be meaningless.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Serialize;
use serde_json::Value;

use super::begun::Begun;
use super::write::dialect;
use super::{Places, Recipe};
use crate::checkpoint::latest;
use crate::error::Problem;
use crate::outside;
use crate::train::Stage;

/// Keys that do not change a stage's result.
const FREE: [&str; 4] = [
    "micro_batch_tokens",
    "gradient_checkpointing",
    "generation_batch_size",
    "cadence",
];

/// Keys of the whole recipe that determine the results of all its stages.
const WHOLE: [&str; 6] = [
    "seed",
    "model",
    "eos_token",
    "add_tokens",
    "base_precision",
    "matmul_precision",
];

/// A problem for each changed setting and changed data file of stages that have begun or are done (marked by the file `done`) in the
/// run at `output`, those of the stage `except` left out; later stages may change.
pub(super) fn changes(
    recipe: &Recipe,
    places: &Places,
    output: &Path,
    done: &str,
    except: Option<&str>,
) -> Vec<Problem> {
    // Runs of earlier versions have no other record of their settings.
    let copy = outside::read_text(&output.join("recipe.ron"), outside::SETTINGS).ok();
    let copy = copy.and_then(|text| dialect().from_str::<Recipe>(&text).ok());
    let is_begun = |stage: &&Stage| {
        let dir = output.join(stage.name());
        Some(stage.name()) != except && (dir.join(done).exists() || latest(&dir).is_some())
    };
    let (mut problems, mut pairs, mut wholes) = (Vec::new(), Vec::new(), Vec::new());
    let (mut of_data, mut of_files) = (Vec::new(), Vec::new());
    for is in recipe.stages.iter().filter(is_begun) {
        let (name, dir) = (is.name(), output.join(is.name()));
        let path = format!("stages.{name}");
        let was = match Begun::read(&dir) {
            Ok(was) => was,
            Err(error) => {
                let problem = places.problem(&path, error.to_string());
                of_files.push(problem.with_help(begin_again(name)));
                continue;
            }
        };
        match (was, &copy) {
            (Some(was), _) => {
                of_data.extend(was.changed_data(is, output, &path));
                pairs.push((path, was.settings, settings(is)));
                if !wholes.contains(&was.recipe) {
                    wholes.push(was.recipe);
                }
            }
            (None, Some(copy)) => {
                let was = copy.stages.iter().find(|was| was.name() == name);
                pairs.extend(was.map(|was| (path, settings(was), settings(is))));
                if !wholes.contains(&whole(copy)) {
                    wholes.push(whole(copy));
                }
            }
            (None, None) => {
                let message = format!(
                    "has begun, but neither {} nor {} says with which settings",
                    dir.join("begun.json").display(),
                    output.join("recipe.ron").display()
                );
                let problem = places.problem(&path, message);
                of_files.push(problem.with_help(begin_again(name)));
            }
        }
    }
    for was in wholes {
        for key in WHOLE {
            pairs.push((key.to_owned(), was[key].clone(), whole(recipe)[key].clone()));
        }
    }
    for (path, was, is) in pairs {
        let (was, is) = (leaves(&path, &was), leaves(&path, &is));
        let new = is.keys().filter(|key| !was.contains_key(*key));
        for key in was.keys().chain(new) {
            let (was, is) = (was.get(key), is.get(key));
            if was != is {
                let message = format!(
                    "{} was begun with {}, found {}",
                    output.display(),
                    shown(was),
                    shown(is)
                );
                let help = "to resume, restore the old value; for a new run, leave out --resume and choose another --output";
                problems.push(places.problem(key, message).with_help(help));
            }
        }
    }
    for problem in of_data {
        let help = "to resume, restore the file; for a new run, leave out --resume and choose another --output";
        let problem = places.problem(&problem.place, problem.message);
        problems.push(problem.with_help(help));
    }
    problems.extend(of_files);
    problems
}

fn begin_again(stage: &str) -> String {
    format!("begin the stage again: the same command with `--stage {stage}` in place of `--resume`")
}

/// The settings of a whole recipe that determine the results of its stages.
pub(super) fn whole(recipe: &Recipe) -> Value {
    let values = [
        json(&recipe.seed),
        json(&recipe.model),
        json(&recipe.eos_token),
        json(&recipe.add_tokens),
        json(&recipe.base_precision),
        json(&recipe.matmul_precision),
    ];
    Value::from_iter(WHOLE.into_iter().zip(values))
}

fn json(value: &impl Serialize) -> Value {
    // Invariant: recipes hold plain numbers, strings, lists and maps with string keys.
    serde_json::to_value(value).expect("a recipe is representable in JSON")
}

/// A stage's kind and the settings that determine its result.
pub(super) fn settings(stage: &Stage) -> Value {
    let mut whole = json(stage);
    for config in whole
        .as_object_mut()
        .into_iter()
        .flat_map(|map| map.values_mut())
    {
        if let Some(config) = config.as_object_mut() {
            let cadence = config.get("cadence").cloned().unwrap_or_default();
            config.retain(|key, _| !FREE.contains(&key.as_str()));
            // Which weights a stage leaves depends on where it evaluates.
            if !cadence["keep_best"].is_null() {
                let chosen = ["keep_best", "eval_steps"].map(|key| (key, cadence[key].clone()));
                config.insert("cadence".into(), Value::from_iter(chosen));
            }
        }
    }
    match whole {
        // `{"Sft": {..}}`: the kind counts as a setting but is not part of key paths.
        Value::Object(map) => {
            let mut flat = serde_json::Map::new();
            for (kind, config) in map {
                flat.insert("kind".to_owned(), Value::String(kind));
                flat.extend(config.as_object().cloned().unwrap_or_default());
            }
            Value::Object(flat)
        }
        other => other,
    }
}

/// All leaves of a value by path.
fn leaves(path: &str, value: &Value) -> BTreeMap<String, Value> {
    let mut all = BTreeMap::new();
    match value {
        Value::Object(map) => {
            for (key, value) in map {
                all.extend(leaves(&format!("{path}.{key}"), value));
            }
        }
        Value::Array(items) => {
            for (i, value) in items.iter().enumerate() {
                all.extend(leaves(&format!("{path}.{i}"), value));
            }
        }
        value => {
            all.insert(path.to_owned(), value.clone());
        }
    }
    all
}

fn shown(value: Option<&Value>) -> String {
    match value {
        None | Some(Value::Null) => "nothing".to_owned(),
        Some(value) => value.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recipe(text: &str) -> Recipe {
        dialect().from_str(text).unwrap()
    }

    const TEXT: &str = r#"(name: "r", model: "m", seed: 3, stages: [
        Sft(name: "sft", data: (source: Posts(rows: 8, seed: 1)), batch_size: 4),
        Ppo(name: "ppo", init: Stage("sft"), data: (source: Posts(rows: 8, seed: 2)), reward: Gold, total_episodes: 8, response_length: 16, batch_size: 4),
    ])"#;

    fn found(changed: &str, begun: &[&str]) -> Vec<String> {
        let folder = tempfile::tempdir().unwrap();
        let saved = super::super::to_ron(&recipe(TEXT));
        std::fs::write(folder.path().join("recipe.ron"), saved).unwrap();
        for stage in begun {
            std::fs::create_dir(folder.path().join(stage)).unwrap();
            std::fs::write(folder.path().join(stage).join("DONE"), "").unwrap();
        }
        let problems = changes(
            &recipe(changed),
            &Places::default(),
            folder.path(),
            "DONE",
            None,
        );
        let shown = |problem: Problem| {
            let message = problem
                .message
                .replace(&folder.path().display().to_string(), "DIR");
            format!("{}: {message}", problem.place)
        };
        problems.into_iter().map(shown).collect()
    }

    #[test]
    fn the_same_recipe_goes_on() {
        assert_eq!(found(TEXT, &["sft", "ppo"]), [""; 0]);
    }

    #[test]
    fn what_a_begun_stage_was_begun_with_may_not_change() {
        let changed = TEXT
            .replace("seed: 3", "seed: 4")
            .replace("rows: 8, seed: 1", "rows: 9, seed: 1")
            .replace(
                "batch_size: 4),\n        Ppo",
                "batch_size: 5, epochs: 2),\n        Ppo",
            );
        let problems = found(&changed, &["sft"]);
        assert_eq!(
            problems,
            [
                "stages.sft.batch_size: DIR was begun with 4, found 5",
                "stages.sft.data.source.Posts.rows: DIR was begun with 8, found 9",
                "stages.sft.epochs: DIR was begun with 1, found 2",
                "seed: DIR was begun with 3, found 4",
            ]
        );
    }

    #[test]
    fn stages_to_come_and_ways_of_computing_may_change() {
        let changed = TEXT
            .replace(
                "batch_size: 4),\n        Ppo",
                "batch_size: 4, micro_batch_tokens: 999, cadence: (save_steps: 7)),\n        Ppo",
            )
            .replace("total_episodes: 8", "total_episodes: 16");
        assert_eq!(found(&changed, &["sft"]), [""; 0]);
        assert_eq!(
            found(&changed, &["sft", "ppo"]),
            ["stages.ppo.total_episodes: DIR was begun with 8, found 16"]
        );
        assert_eq!(found(&changed.replace("seed: 3", "seed: 4"), &[]), [""; 0]);
    }

    #[test]
    fn another_kind_is_another_stage() {
        let changed = TEXT.replace("Sft(name", "Pretrain(name");
        let problems = found(&changed, &["sft"]);
        assert!(
            problems.contains(
                &"stages.sft.kind: DIR was begun with \"Sft\", found \"Pretrain\"".to_owned()
            ),
            "{problems:?}"
        );
    }
}
