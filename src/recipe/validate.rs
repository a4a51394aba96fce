//! Validates a recipe without reading other files: data and weights that it names may still be missing.

use std::collections::HashSet;

use crate::error::Problem;
use crate::ops::Precision;
use crate::recipe::Recipe;
use crate::recipe::places::Places;
use crate::recipe::references;
use crate::report::ReportTo;
use crate::train::Stage;
use crate::train::checks::Checks;
use crate::web::url_problem;

/// Most texts of `add_tokens`: each is looked for in all text, and costs time when the tokenizer is made.
const MOST_NEW_TOKENS: usize = 10_000;

/// All problems of a recipe that can be found without opening other files, in the order of the stages.
pub fn validate(recipe: &Recipe, places: &Places) -> Vec<Problem> {
    validate_except(recipe, places, &[])
}

/// [`validate`] without problems that depend on the key paths `broken`, which hold placeholders.
pub(super) fn validate_except(recipe: &Recipe, places: &Places, broken: &[String]) -> Vec<Problem> {
    let mut checks = Checks::default();
    checks.name("name", &recipe.name);
    if let Some(model) = &recipe.model {
        checks.must("model", !model.is_empty(), "a name or a folder", model);
    }
    let mut listed = HashSet::new();
    checks.must(
        "add_tokens",
        recipe.add_tokens.len() <= MOST_NEW_TOKENS,
        &format!("at most {MOST_NEW_TOKENS} texts"),
        recipe.add_tokens.len(),
    );
    for (index, text) in recipe.add_tokens.iter().enumerate() {
        let key = format!("add_tokens.{index}");
        if text.is_empty() {
            checks.problem(key, "is empty; a token has a text, such as \"<|think|>\"");
        } else if !listed.insert(text) {
            checks.problem(key, format!("{text:?} is listed twice"));
        }
    }
    for (index, to) in recipe.report_to.iter().enumerate() {
        let key = format!("report_to.{index}");
        if let ReportTo::Mlflow(uri) = to
            && let Some(problem) = url_problem(
                uri,
                "http://127.0.0.1:5000",
                "MLflow's token is read from MLFLOW_TRACKING_TOKEN",
            )
        {
            checks.problem(&key, problem);
        }
        if recipe.report_to[..index].contains(to) {
            checks.problem(key, "is listed twice");
        }
    }
    for name in recipe.data.keys() {
        checks.name(&format!("data.{name}"), name);
    }
    if recipe.stages.is_empty() {
        checks.problem("stages", "a recipe needs at least one stage");
    }
    for (index, stage) in recipe.stages.iter().enumerate() {
        let path = places.stage_path(index, stage.name());
        checks.name(&format!("{path}.name"), stage.name());
        stage.check(&mut checks, &path);
        check_precision(&mut checks, &path, stage, recipe.base_precision);
    }
    let stage_name_broken =
        |key: &String| key == "stages" || (key.starts_with("stages.") && key.ends_with(".name"));
    if !broken.iter().any(stage_name_broken) {
        references::check(&mut checks, recipe, places);
    }
    problems(checks, places, broken)
}

/// Refuses to train weights in reduced precision.
fn check_precision(checks: &mut Checks, path: &str, stage: &Stage, precision: Precision) {
    let whole = (stage.training()).is_some_and(|training| training.peft.trains_base());
    if precision != Precision::F32 && whole {
        checks.problem(
            format!("{path}.peft"),
            format!(
                "this trains weights of the model, in f32, and base_precision is {}",
                precision.name()
            ),
        );
        checks.help("use `peft: Lora(rank: 16)`, or leave base_precision out");
        checks.depends_on("base_precision");
    }
}

/// The problems with their places, except those that depend on a `broken` key.
fn problems(checks: Checks, places: &Places, broken: &[String]) -> Vec<Problem> {
    let is_broken = |key: &String| {
        broken.iter().any(|b| {
            key == b || key.starts_with(&format!("{b}.")) || b.starts_with(&format!("{key}."))
        })
    };
    let mut problems: Vec<Problem> = Vec::new();
    for found in checks.into_problems() {
        if found.keys.iter().any(is_broken) {
            continue;
        }
        let problem = places.problem(&found.keys[0], found.message);
        let problem = match found.help {
            Some(help) => problem.with_help(help),
            None => problem,
        };
        if !problems.contains(&problem) {
            problems.push(problem);
        }
    }
    problems
}
