//! Stages that name other stages: they must exist, come earlier and be of the right kind.

use crate::data::DataSource;
use crate::recipe::checks::Checks;
use crate::recipe::{Recipe, Stage};
use crate::reward::RewardConfig;
use crate::suggest::{did_you_mean, quoted};
use crate::train::config::{DataConfig, Init};
use crate::train::reward_folder;

/// Stage names that mean something else.
const RESERVED: [&str; 1] = ["base"];

/// What a reference expects of the stage it names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wanted {
    Policy,
    RewardModel,
    Rank,
}

impl Wanted {
    fn accepts(self, stage: &Stage) -> bool {
        match self {
            Self::Policy => {
                matches!(
                    stage,
                    Stage::Pretrain(_) | Stage::Sft(_) | Stage::Dpo(_) | Stage::Ppo(_)
                )
            }
            Self::RewardModel => matches!(stage, Stage::RewardModel(_)),
            Self::Rank => matches!(stage, Stage::Rank(_)),
        }
    }

    fn words(self) -> &'static str {
        match self {
            Self::Policy => "a policy (`Pretrain`, `Sft`, `Dpo` or `Ppo`)",
            Self::RewardModel => "a `RewardModel`",
            Self::Rank => "a `Rank` stage",
        }
    }
}

/// One mention of a stage by another.
struct Reference {
    /// Key path below the stage.
    key: String,
    target: String,
    wanted: Wanted,
}

/// Checks names, references and models of all stages.
pub(super) fn check(checks: &mut Checks, recipe: &Recipe) {
    let stages = &recipe.stages;
    for (index, stage) in stages.iter().enumerate() {
        let path = checks.places.stage_path(index, stage.name());
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
        for (key, init) in inits(stage) {
            if init == Init::Base && recipe.model.is_none() {
                checks.say(
                    format!("{path}.{key}"),
                    "starts from `Base`, but the recipe names no `model`",
                );
                checks.help("add `model: \"..\"` to the recipe, or an `init` to the stage");
            }
            if matches!((stage, &init), (Stage::Compare(_), Init::Random(_))) {
                checks.say(
                    format!("{path}.{key}"),
                    "random weights cannot be compared; use `Base` or `Stage(..)`",
                );
            }
        }
        for reference in references(stage) {
            check_reference(checks, stages, index, &path, &reference);
        }
        check_comparisons(checks, &path, stage);
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
        if !reference.wanted.accepts(stage) {
            checks.say(
                key,
                format!(
                    "`{target}` is a `{}`; {} was expected",
                    stage.kind(),
                    reference.wanted.words()
                ),
            );
            let fitting = fitting(&stages[..index], reference.wanted);
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

/// Comparisons feed reward models and direct preference optimisation, and nothing else.
fn check_comparisons(checks: &mut Checks, path: &str, stage: &Stage) {
    let allowed = matches!(stage, Stage::RewardModel(_) | Stage::Dpo(_));
    for (key, data) in data_sets(stage) {
        let comparisons = matches!(data.source, DataSource::Ranked { .. });
        if comparisons && !(allowed && key != "center_on") {
            checks.say(
                format!("{path}.{key}.source"),
                "`Ranked(..)` holds comparisons, which only `data` and `eval_data` of a `RewardModel` or `Dpo` stage can use",
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

fn fitting(stages: &[Stage], wanted: Wanted) -> Vec<&str> {
    stages
        .iter()
        .filter(|stage| wanted.accepts(stage))
        .map(Stage::name)
        .collect()
}

/// Every model a stage starts from or looks at, with its key.
fn inits(stage: &Stage) -> Vec<(String, Init)> {
    let one = |init: &Init| vec![("init".to_string(), init.clone())];
    match stage {
        Stage::Pretrain(c) => one(&c.init),
        Stage::Sft(c) => one(&c.init),
        Stage::Rank(c) => one(&c.init),
        Stage::RewardModel(c) => one(&c.init),
        Stage::Dpo(c) => one(&c.init),
        Stage::Ppo(c) => one(&c.init),
        Stage::Compare(c) => {
            let policies = c.policies.iter().enumerate();
            policies
                .map(|(index, init)| (format!("policies.{index}"), init.clone()))
                .chain(
                    c.reference
                        .iter()
                        .map(|init| ("reference".to_string(), init.clone())),
                )
                .collect()
        }
    }
}

/// Every data set of a stage, with its key.
fn data_sets(stage: &Stage) -> Vec<(&'static str, &DataConfig)> {
    let (data, eval_data, other) = match stage {
        Stage::Pretrain(c) => (&c.data, c.eval_data.as_ref(), None),
        Stage::Sft(c) => (&c.data, c.eval_data.as_ref(), None),
        Stage::Rank(c) => (&c.data, None, None),
        Stage::RewardModel(c) => {
            let center_on = c.center_on.as_ref().map(|data| ("center_on", data));
            (&c.data, c.eval_data.as_ref(), center_on)
        }
        Stage::Dpo(c) => (&c.data, c.eval_data.as_ref(), None),
        Stage::Ppo(c) => {
            let ptx = c.ptx.as_ref().map(|ptx| ("ptx.data", &ptx.data));
            (&c.data, c.eval_data.as_ref(), ptx)
        }
        Stage::Compare(c) => (&c.data, None, None),
    };
    std::iter::once(("data", data))
        .chain(eval_data.map(|data| ("eval_data", data)))
        .chain(other)
        .collect()
}

/// Every reward source of a stage, with its key.
fn rewards(stage: &Stage) -> Vec<(String, &RewardConfig)> {
    match stage {
        Stage::Pretrain(_) | Stage::Sft(_) | Stage::RewardModel(_) | Stage::Dpo(_) => Vec::new(),
        Stage::Rank(c) => vec![("reward".into(), &c.reward)],
        Stage::Ppo(c) => std::iter::once(("reward".to_string(), &c.reward))
            .chain(c.gold.iter().map(|gold| ("gold".to_string(), gold)))
            .collect(),
        Stage::Compare(c) => c
            .rewards
            .iter()
            .map(|(title, reward)| (format!("rewards.{title}"), reward))
            .collect(),
    }
}

/// Every mention of another stage.
fn references(stage: &Stage) -> Vec<Reference> {
    let mut found = Vec::new();
    for (key, init) in inits(stage) {
        if let Init::Stage(target) = init {
            found.push(Reference {
                key,
                target,
                wanted: Wanted::Policy,
            });
        }
    }
    for (key, data) in data_sets(stage) {
        if let DataSource::Ranked { stage: target, .. } = &data.source {
            found.push(Reference {
                key: format!("{key}.source.stage"),
                target: target.clone(),
                wanted: Wanted::Rank,
            });
        }
    }
    for (key, reward) in rewards(stage) {
        collect_learned(&key, reward, &mut found);
    }
    found
}

fn collect_learned(key: &str, reward: &RewardConfig, found: &mut Vec<Reference>) {
    match reward {
        // A folder is no stage; the survey opens it.
        RewardConfig::Learned { stage } if reward_folder(stage).is_none() => {
            found.push(Reference {
                key: format!("{key}.stage"),
                target: stage.clone(),
                wanted: Wanted::RewardModel,
            });
        }
        RewardConfig::Sum(terms) => {
            for (index, (_, term)) in terms.iter().enumerate() {
                collect_learned(&format!("{key}.{index}.1"), term, found);
            }
        }
        _ => {}
    }
}
