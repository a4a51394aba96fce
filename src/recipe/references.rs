//! Stages that name other stages: they must exist, come earlier and be of the right kind.

use crate::data::RowKind;
use crate::recipe::Recipe;
use crate::recipe::known::learned;
use crate::recipe::places::Places;
use crate::suggest::{did_you_mean, quoted};
use crate::train::checks::Checks;
use crate::train::config::Init;
use crate::train::{Gives, Stage, reward_folder};

/// Stage names that mean something else.
const RESERVED: [&str; 1] = ["base"];

/// What a reference expects of the stage it names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Expected {
    Policy,
    RewardModel,
    /// Rows that can be used as rows of this kind.
    Rows(RowKind),
}

impl Expected {
    fn accepts(self, gives: Gives) -> bool {
        match (self, gives) {
            (Self::Policy, Gives::Policy) | (Self::RewardModel, Gives::RewardModel) => true,
            (Self::Rows(needed), Gives::Rows(given)) => needed.takes(given),
            _ => false,
        }
    }

    /// In words, with the kinds of stages that fit: "a policy (`Pretrain`, `Sft`, `Dpo` or `Ppo`)".
    fn words(self) -> String {
        let kinds: Vec<&str> = Stage::KINDS
            .iter()
            .filter(|(_, gives)| self.accepts(*gives))
            .map(|(kind, _)| *kind)
            .collect();
        match self {
            Self::Policy => format!("a policy ({})", listed(&kinds)),
            Self::RewardModel => format!("a reward model ({})", listed(&kinds)),
            Self::Rows(_) => format!("a {} stage", listed(&kinds)),
        }
    }
}

/// "`a`, `b` or `c`".
fn listed(names: &[&str]) -> String {
    match names {
        [] => "none".into(),
        [name] => format!("`{name}`"),
        [first @ .., last] => format!("{} or `{last}`", quoted(first.iter().copied())),
    }
}

/// One mention of a stage by another.
struct Reference {
    /// Key path below the stage.
    key: String,
    target: String,
    expected: Expected,
}

/// Checks names, references and models of all stages.
pub(super) fn check(checks: &mut Checks, recipe: &Recipe, places: &Places) {
    let stages = &recipe.stages;
    for (index, stage) in stages.iter().enumerate() {
        let path = places.stage_path(index, stage.name());
        let name = stage.name();
        if RESERVED.contains(&name) {
            checks.say(
                format!("{path}.name"),
                format!("`{name}` is reserved for the recipe's model"),
            );
        }
        if let Some(first) = stages[..index]
            .iter()
            .position(|other| other.name() == name)
        {
            checks.say(
                format!("{path}.name"),
                format!(
                    "the name `{name}` is already taken by stage {} ({})",
                    first + 1,
                    stages[first].kind()
                ),
            );
            checks.help("stage names must be unique: later stages and `--set` refer to them");
        }
        for (key, init) in stage.reads().models {
            if *init == Init::Base && recipe.model.is_none() {
                checks.say(
                    format!("{path}.{key}"),
                    "starts from `Base`, but the recipe names no `model`",
                );
                checks.help("add `model: \"..\"` to the recipe, or an `init` to the stage");
            }
        }
        for reference in references(stage) {
            check_reference(checks, stages, index, &path, &reference);
        }
        check_rows(checks, &path, stage);
    }
}

fn check_reference(
    checks: &mut Checks,
    stages: &[Stage],
    index: usize,
    path: &str,
    reference: &Reference,
) {
    let key = format!("{path}.{}", reference.key);
    let target = &reference.target;
    let own = stages[index].name();
    if target == own {
        return checks.say(key, format!("stage `{own}` names itself"));
    }
    if let Some(stage) = stages[..index].iter().find(|stage| stage.name() == target) {
        if !reference.expected.accepts(stage.gives()) {
            checks.say(
                key,
                format!(
                    "`{target}` is a `{}`; {} was expected",
                    stage.kind(),
                    reference.expected.words()
                ),
            );
            let fitting = fitting(&stages[..index], reference.expected);
            if !fitting.is_empty() {
                checks.help(format!("earlier stages that fit: {}", quoted(fitting)));
            }
        }
        return;
    }
    if stages[index..].iter().any(|stage| stage.name() == target) {
        match path_between(stages, target, own) {
            Some(cycle) => {
                checks.say(key, format!("cycle: {own} -> {}", cycle.join(" -> ")));
                checks.help("stages run in the order of the file and can use earlier ones only");
            }
            None => {
                checks.say(
                    key,
                    format!("stage `{target}` comes later; a stage can use earlier ones only"),
                );
                checks.help(format!("move `{target}` before `{own}`"));
            }
        }
        return;
    }
    checks.say(key, format!("there is no stage `{target}`"));
    let names = || stages[..index].iter().map(Stage::name);
    match did_you_mean(target, names()) {
        Some(help) => checks.help(help),
        None if index == 0 => checks.help("this is the first stage; start it from `Base`"),
        None => checks.help(format!("earlier stages: {}", quoted(names()))),
    }
}

/// Whether some kind of stage leaves rows that can be used as rows of this kind.
fn some_stage_leaves(rows: RowKind) -> bool {
    let expected = Expected::Rows(rows);
    (Stage::KINDS.iter()).any(|(_, gives)| expected.accepts(*gives))
}

/// Rows that no stage leaves cannot be taken from one.
fn check_rows(checks: &mut Checks, path: &str, stage: &Stage) {
    for data in stage.reads().data {
        if data.config.source.stage().is_some() && !some_stage_leaves(data.rows) {
            checks.say(
                format!("{path}.{}.source", data.key),
                format!(
                    "the rows that stages leave are scored responses, expected {}",
                    data.rows.columns()
                ),
            );
        }
    }
}

/// Names of the stages from `from` to `to` along references, both included.
fn path_between(stages: &[Stage], from: &str, to: &str) -> Option<Vec<String>> {
    fn walk(stages: &[Stage], from: &str, to: &str, seen: &mut Vec<String>) -> bool {
        seen.push(from.to_string());
        if from == to {
            return true;
        }
        let stage = stages.iter().find(|stage| stage.name() == from);
        for reference in stage.map(references).unwrap_or_default() {
            if !seen.contains(&reference.target) && walk(stages, &reference.target, to, seen) {
                return true;
            }
        }
        seen.pop();
        false
    }
    let mut seen = Vec::new();
    walk(stages, from, to, &mut seen).then_some(seen)
}

fn fitting(stages: &[Stage], expected: Expected) -> Vec<&str> {
    stages
        .iter()
        .filter(|stage| expected.accepts(stage.gives()))
        .map(Stage::name)
        .collect()
}

/// Every mention of another stage.
fn references(stage: &Stage) -> Vec<Reference> {
    let mut found = Vec::new();
    let reads = stage.reads();
    for (key, init) in reads.models {
        if let Init::Stage(target) = init {
            found.push(Reference {
                key,
                target: target.clone(),
                expected: Expected::Policy,
            });
        }
    }
    for data in reads.data {
        if let Some(rows) = data.config.source.stage()
            && some_stage_leaves(data.rows)
        {
            found.push(Reference {
                key: format!("{}.source.stage", data.key),
                target: rows.stage.to_owned(),
                expected: Expected::Rows(data.rows),
            });
        }
    }
    for (key, reward) in reads.rewards {
        // A folder is no stage; the survey opens it.
        let stages = learned(&key, reward).into_iter();
        let stages = stages.filter(|(_, name)| reward_folder(name).is_none());
        found.extend(stages.map(|(key, target)| Reference {
            key,
            target,
            expected: Expected::RewardModel,
        }));
    }
    found
}
