//! Checks references among stages: the target must exist, come earlier and be of the right kind.

use std::collections::{BTreeMap, VecDeque};

use crate::data::{DataSource, RowKind, Take};
use crate::recipe::Recipe;
use crate::recipe::known::{judges_of, learned, readers};
use crate::recipe::places::Places;
use crate::reward::ReadBy;
use crate::suggest::{did_you_mean, quoted};
use crate::train::checks::Checks;
use crate::train::config::Init;
use crate::train::{Stage, StageOutput, reward_folder};

/// Names that stages cannot have.
const RESERVED: [&str; 1] = ["base"];

/// The kind of result that a reference needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ReferenceTarget {
    Policy,
    RewardModel,
    /// Rows that can be used as rows of this kind.
    Rows(RowKind),
}

impl ReferenceTarget {
    fn accepts(self, output: StageOutput) -> bool {
        match (self, output) {
            (Self::Policy, StageOutput::Policy) | (Self::RewardModel, StageOutput::RewardModel) => {
                true
            }
            (Self::Rows(needed), StageOutput::Rows(given)) => needed.takes(given),
            _ => false,
        }
    }

    /// What flows from one stage to another, in a picture.
    fn flow(self) -> &'static str {
        match self {
            Self::Policy => "policy",
            Self::RewardModel => "reward model",
            Self::Rows(_) => "rows",
        }
    }

    /// For messages, with the matching kinds of stages: "a policy (`Pretrain`, `Sft`, `Dpo` or `Ppo`)".
    fn words(self) -> String {
        let kinds: Vec<&str> = Stage::KINDS
            .iter()
            .filter(|(_, output)| self.accepts(*output))
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

/// A reference to a stage in another one.
struct Reference {
    /// Key path below the stage.
    key: String,
    target: String,
    expected: ReferenceTarget,
}

/// Checks names, references and models of all stages.
pub(super) fn check(checks: &mut Checks, recipe: &Recipe, places: &Places) {
    let stages = &recipe.stages;
    for (index, stage) in stages.iter().enumerate() {
        let path = places.stage_path(index, stage.name());
        let name = stage.name();
        if RESERVED.contains(&name) {
            checks.problem(
                format!("{path}.name"),
                format!("`{name}` is reserved for the recipe's model"),
            );
        }
        if let Some(first) = stages[..index]
            .iter()
            .position(|other| other.name() == name)
        {
            checks.problem(
                format!("{path}.name"),
                format!(
                    "the name `{name}` is already taken by stage {} ({})",
                    first + 1,
                    stages[first].kind()
                ),
            );
            checks.help("stage names must be unique: later stages and `--set` refer to them");
        }
        for (key, init) in stage.inputs().models {
            if *init == Init::Base && recipe.model.is_none() {
                checks.problem(
                    format!("{path}.{key}"),
                    "starts from `Base`, but the recipe names no `model`",
                );
                checks.help("add `model: \"..\"` to the recipe, or an `init` to the stage");
            }
        }
        for judge in judges_of(&path, &stage.inputs()) {
            if judge.model.model() == Some(&Init::Base) && recipe.model.is_none() {
                checks.problem(
                    judge.place,
                    "the judge is `Base`, but the recipe names no `model`",
                );
                checks.help("add `model: \"..\"` to the recipe, or name another judge");
            }
        }
        for reference in references(stage) {
            if checks.has_enough() {
                return;
            }
            check_reference(checks, stages, index, &path, &reference);
        }
        check_rows(checks, &path, stage);
        check_scores(checks, stages, &path, stage);
        check_held_out(checks, stages, &path, stage);
    }
}

/// Refuses to select by score, or to compare, where the rows of a stage have no scores.
fn check_scores(checks: &mut Checks, stages: &[Stage], path: &str, stage: &Stage) {
    for data in stage.inputs().data {
        // A judge compares by itself, and so do people.
        let selects = match data.kind {
            RowKind::Responses => stage.compares_by_scores(),
            RowKind::Preference => true,
            _ => data.config.format.take != Some(Take::All),
        };
        for rows in data.config.source.stages() {
            let source = stages.iter().find(|stage| stage.name() == rows.stage);
            if selects && source.is_some_and(|source| !source.leaves_scores()) {
                let message = format!(
                    "the stage `{}` has no `reward`: its rows have no scores to select or compare by",
                    rows.stage
                );
                checks.problem(format!("{path}.{}.source", data.key), message);
                checks.help(match data.kind {
                    RowKind::Preference => format!("give `{}` a `reward`", rows.stage),
                    RowKind::Responses => format!(
                        "give `{}` a `reward`, or let people compare: leave out `by`",
                        rows.stage
                    ),
                    _ => format!(
                        "give `{}` a `reward`, or take all: `format: (take: All)`",
                        rows.stage
                    ),
                });
            }
        }
    }
}

/// Refuses the held-out rows of a stage that holds none out: the file would be empty.
fn check_held_out(checks: &mut Checks, stages: &[Stage], path: &str, stage: &Stage) {
    for data in stage.inputs().data {
        for rows in data.config.source.stages() {
            let source = stages.iter().find(|stage| stage.name() == rows.stage);
            let fraction = source.and_then(Stage::valid_fraction);
            if rows.valid && fraction == Some(0.0) {
                let name = rows.stage;
                checks.problem(
                    format!("{path}.{}.source", data.key),
                    format!("the stage `{name}` has `valid_fraction: 0.0`: it holds out no rows"),
                );
                checks.help(format!(
                    "give `{name}` a `valid_fraction` such as 0.1, or read its `Stage(\"{name}\")`"
                ));
            }
        }
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
        return checks.problem(key, format!("stage `{own}` names itself"));
    }
    if let Some(stage) = stages[..index].iter().find(|stage| stage.name() == target) {
        if !reference.expected.accepts(stage.output()) {
            checks.problem(
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
                checks.problem(key, format!("cycle: {own} -> {}", cycle.join(" -> ")));
                checks.help("stages run in the order of the file and can use earlier ones only");
            }
            None => {
                checks.problem(
                    key,
                    format!("stage `{target}` comes later; a stage can use earlier ones only"),
                );
                checks.help(format!("move `{target}` before `{own}`"));
            }
        }
        return;
    }
    checks.problem(key, format!("there is no stage `{target}`"));
    let names = || stages[..index].iter().map(Stage::name);
    match did_you_mean(target, names()) {
        Some(help) => checks.help(help),
        None if index == 0 => checks.help("this is the first stage; start it from `Base`"),
        None => checks.help(format!("earlier stages: {}", quoted(names()))),
    }
}

/// Whether any kind of stage writes rows that can be used as this kind.
fn some_stage_leaves(rows: RowKind) -> bool {
    let expected = ReferenceTarget::Rows(rows);
    (Stage::KINDS.iter()).any(|(_, output)| expected.accepts(*output))
}

/// Refuses stages as sources of rows that no stage writes.
fn check_rows(checks: &mut Checks, path: &str, stage: &Stage) {
    for data in stage.inputs().data {
        if data.config.source.is_of_stages() && !some_stage_leaves(data.kind) {
            checks.problem(
                format!("{path}.{}.source", data.key),
                format!(
                    "the rows that stages write are scored responses, comparisons or completions, expected {}",
                    data.kind.columns()
                ),
            );
        }
    }
}

/// Names of the stages on the shortest path of references from `from` to `to`, both included.
fn path_between(stages: &[Stage], from: &str, to: &str) -> Option<Vec<String>> {
    // Each stage with the one that it was reached from.
    let mut reached: BTreeMap<String, String> = BTreeMap::new();
    let mut queue = VecDeque::from([from.to_owned()]);
    while let Some(name) = queue.pop_front() {
        if name == to {
            let mut path = vec![name];
            while let Some(before) = path.last().and_then(|name| reached.get(name)) {
                path.push(before.clone());
            }
            path.reverse();
            return Some(path);
        }
        let stage = stages.iter().find(|stage| stage.name() == name);
        for Reference { target, .. } in stage.map(references).unwrap_or_default() {
            if target != from && !reached.contains_key(&target) {
                reached.insert(target.clone(), name.clone());
                queue.push_back(target);
            }
        }
    }
    None
}

fn fitting(stages: &[Stage], expected: ReferenceTarget) -> Vec<&str> {
    stages
        .iter()
        .filter(|stage| expected.accepts(stage.output()))
        .map(Stage::name)
        .collect()
}

/// What `stage` takes from the recipe's model (`None`) and from other stages, by name: "policy", "rows", "reward model".
pub(super) fn flows(stage: &Stage) -> Vec<(Option<String>, &'static str)> {
    let inputs = stage.inputs();
    let judges = judges_of("", &inputs);
    let of_base = (inputs.models.iter()).any(|(_, init)| **init == Init::Base)
        || (judges.iter()).any(|judge| judge.model.model() == Some(&Init::Base));
    let base = of_base.then_some((None, "model"));
    let others = references(stage).into_iter();
    let others = others.map(|reference| (Some(reference.target), reference.expected.flow()));
    base.into_iter().chain(others).collect()
}

/// All references to other stages.
fn references(stage: &Stage) -> Vec<Reference> {
    let mut found = Vec::new();
    let inputs = stage.inputs();
    for judge in judges_of("", &inputs) {
        if let Some(Init::Stage(target)) = judge.model.model() {
            found.push(Reference {
                key: judge.place,
                target: target.clone(),
                expected: ReferenceTarget::Policy,
            });
        }
    }
    for (key, init) in inputs.models {
        if let Init::Stage(target) = init {
            found.push(Reference {
                key,
                target: target.clone(),
                expected: ReferenceTarget::Policy,
            });
        }
    }
    for data in inputs.data {
        let rows = data.config.source.stages();
        let several = rows.len() > 1;
        for (index, rows) in rows.into_iter().enumerate() {
            if !some_stage_leaves(data.kind) {
                break;
            }
            found.push(Reference {
                key: match several {
                    _ if matches!(data.config.source, DataSource::Mix(_)) => {
                        format!("{}.source", data.key)
                    }
                    true => format!("{}.source.{index}", data.key),
                    false => format!("{}.source.stage", data.key),
                },
                target: rows.stage.to_owned(),
                expected: ReferenceTarget::Rows(data.kind),
            });
        }
    }
    for (key, reward) in inputs.rewards {
        // Folders are checked by the survey.
        let stages = learned(&key, reward).into_iter();
        let stages = stages.filter(|(_, name)| reward_folder(name).is_none());
        found.extend(stages.map(|(key, target)| Reference {
            key,
            target,
            expected: ReferenceTarget::RewardModel,
        }));
        found.extend(readers(&key, reward).into_iter().filter_map(|(key, by)| {
            let ReadBy::Stage(target) = by else {
                return None;
            };
            Some(Reference {
                key,
                target: target.to_owned(),
                expected: ReferenceTarget::Policy,
            })
        }));
    }
    found
}
