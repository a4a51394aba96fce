//! What is wrong with a reward source before it runs.

use std::path::PathBuf;

use super::{CustomRewards, RewardConfig, ensemble, judge, name, verify};
use crate::error::Problem;
use crate::model::LabelOutput;

/// All problems of `config` that show before it runs, by their keys; `place` is its own key in the recipe.
///
/// Whether models exist, and classifiers have their label, is checked with the recipe.
pub fn check(config: &RewardConfig, custom: &CustomRewards, place: &str) -> Vec<Problem> {
    let mut problems = own_problems(config, custom, place);
    for (key, part) in config.parts() {
        problems.extend(check(part, custom, &format!("{place}.{key}")));
    }
    problems
}

/// Problems of `config` itself, without those of the sources that it is made of.
pub(super) fn own_problems(
    config: &RewardConfig,
    custom: &CustomRewards,
    place: &str,
) -> Vec<Problem> {
    let below = |key: &str| format!("{place}.{key}");
    match config {
        RewardConfig::Learned { .. } | RewardConfig::Classifier { .. } | RewardConfig::Gold => {
            vec![]
        }
        RewardConfig::Rouge { reference, .. }
        | RewardConfig::Bleu { reference, .. }
        | RewardConfig::Chrf { reference, .. }
            if reference.is_empty() =>
        {
            vec![
                Problem::new(
                    below("reference"),
                    "the name of the reference column is empty",
                )
                .with_help("name the column that holds the reference text, e.g. \"completion\""),
            ]
        }
        RewardConfig::Rouge { .. } | RewardConfig::Bleu { .. } | RewardConfig::Chrf { .. } => {
            vec![]
        }
        RewardConfig::LogProbability { model, stage, .. }
            if model.is_empty() == stage.is_none() =>
        {
            let found = match stage {
                None => "neither `model` nor `stage` is given",
                Some(_) => "both `model` and `stage` are given",
            };
            vec![Problem::new(place, found).with_help(
                "`model: ..` is a folder, a known model or `owner/name` of the hub, `stage: ..` the policy of an earlier stage",
            )]
        }
        RewardConfig::LogProbability { .. } => vec![],
        RewardConfig::Ensemble { sources, combine } => ensemble::problems(sources, *combine, place),
        RewardConfig::Safest {
            helpful,
            safety,
            threshold,
            tag,
            ..
        } => {
            let mut problems = Vec::new();
            if !(*threshold >= 0.0 && *threshold <= 1.0) {
                problems.push(Problem::new(
                    below("threshold"),
                    format!("threshold is {threshold}; expected a probability, from 0 to 1"),
                ));
            }
            if tag.as_ref().is_some_and(String::is_empty) {
                problems.push(
                    Problem::new(below("tag"), "the name of the tag's column is empty")
                        .with_help("name the column, or leave `tag` out"),
                );
            }
            for (key, part) in [("helpful", helpful), ("safety", safety)] {
                if let RewardConfig::Classifier { output, .. } = part.as_ref()
                    && *output != LabelOutput::Logit
                {
                    problems.push(
                        Problem::new(
                            below(key),
                            "the classifier gives probabilities; Safest takes their logits, as reward models give them",
                        )
                        .with_help("leave out `score`, or set `score: Logit`"),
                    );
                }
            }
            problems
        }
        RewardConfig::LengthPenalty { coef, .. } if !(coef.is_finite() && *coef > 0.0) => {
            vec![
                Problem::new(
                    below("coef"),
                    format!("coef is {coef}; expected a penalty for each unit of length, above 0"),
                )
                .with_help("for example coef: 0.01"),
            ]
        }
        RewardConfig::LengthPenalty { .. } => vec![],
        RewardConfig::Length { target: 0 } => vec![
            Problem::new(below("target"), "target is 0 words; expected at least 1")
                .with_help("set `target` to the number of words of a good response"),
        ],
        RewardConfig::Length { .. } => vec![],
        RewardConfig::Pattern { regex } => regex::Regex::new(regex)
            .err()
            .map(|error| Problem::new(below("regex"), error.to_string()))
            .into_iter()
            .collect(),
        RewardConfig::Number { .. } | RewardConfig::Groups { .. } | RewardConfig::Schema { .. } => {
            verify::problems(config, place)
        }
        RewardConfig::Command { .. } | RewardConfig::Program { .. } => {
            let (command, timeout_s) = config.program().unwrap_or_default();
            let mut problems = Vec::new();
            match command.first().map(String::as_str) {
                None | Some("") => problems.push(
                    Problem::new(
                        below("command"),
                        "the command is empty; expected a program and its arguments",
                    )
                    .with_help("for example command: [\"python3\", \"score.py\"]"),
                ),
                Some(program) if find_program(program).is_none() => problems.push(
                    Problem::new(
                        below("command"),
                        format!("the program {program:?} was not found"),
                    )
                    .with_help(
                        "give a program on PATH, or a path with a separator such as ./score",
                    ),
                ),
                Some(_) => {}
            }
            // A Duration holds 2^64 seconds; a year is long enough.
            if !(timeout_s > 0.0 && timeout_s <= 31_536_000.0) {
                problems.push(Problem::new(
                    below("timeout_s"),
                    format!("timeout_s is {timeout_s}; expected a positive number of seconds, at most a year"),
                ));
            }
            problems
        }
        RewardConfig::Custom { name } => custom.problem(name, place).into_iter().collect(),
        RewardConfig::Graded(graded) => {
            let problems = judge::graded_problems(graded).into_iter();
            problems.map(|problem| problem.below(place)).collect()
        }
        RewardConfig::Sum(terms) if terms.is_empty() => {
            vec![Problem::new(
                place,
                "a sum of no sources; expected at least one",
            )]
        }
        RewardConfig::Sum(terms) => terms
            .iter()
            .enumerate()
            .filter(|(_, (weight, _))| !weight.is_finite())
            .map(|(at, (weight, term))| {
                let message = format!(
                    "the weight of {} is {weight}; expected a finite number",
                    name(term)
                );
                Problem::new(below(&at.to_string()), message)
            })
            .collect(),
    }
}

/// The executable file that `program` names.
fn find_program(program: &str) -> Option<PathBuf> {
    if program.contains(std::path::is_separator) {
        return Some(PathBuf::from(program)).filter(|path| path.is_file());
    }
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path)
        .map(|folder| folder.join(format!("{program}{}", std::env::consts::EXE_SUFFIX)))
        .find(|file| file.is_file())
}
