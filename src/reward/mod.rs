//! Reward sources: one score per response.

mod bleu;
mod check;
mod checked;
mod chrf;
mod classifier;
mod command;
mod config;
mod custom;
mod ensemble;
mod gold;
pub mod judge;
mod learned;
mod length;
mod length_penalty;
mod log_probability;
mod of_ranks;
mod pattern;
mod reading;
mod reference;
pub mod rouge;
mod safest;
mod stem;
mod sum;
mod verify;

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Map, Value};

pub use check::check;
pub use classifier::{Classifier, ClassifierSettings};
pub use config::{
    ClassifierInput, Combine, LengthUnit, ReadBy, RewardConfig, RougeVariant, TokenReduction,
};
pub use custom::CustomRewards;
pub use learned::Learned;
pub use log_probability::LogProbability;
pub use reading::CompletionEncoder;

use check::own_problems;
use checked::Checked;
use config::{last_name, program_name};

use crate::data::Conversation;
use crate::error::{Error, Result};
use crate::model::Label;
use judge::GradedConfig;
use of_ranks::OfRanks;
use reference::Reference;

/// A response to be scored, with its context.
#[derive(Debug, Clone, Default)]
pub struct Completion {
    /// Prompt text as the model saw it.
    pub prompt: String,
    /// Response text without special tokens.
    pub response: String,
    /// Prompt token ids.
    pub prompt_ids: Vec<u32>,
    /// Response token ids, the EOS included if there is one.
    pub response_ids: Vec<u32>,
    /// The conversation that the prompt was rendered from, if any.
    pub conversation: Option<Arc<Conversation>>,
    /// The data row's columns (reference texts and the like).
    pub row: serde_json::Map<String, serde_json::Value>,
}

/// A source of scores. Object-safe; no backend in its type.
pub trait RewardSource {
    /// One score per completion, in order.
    ///
    /// # Errors
    /// When a column is missing, a program fails, or a score is not finite.
    fn score(&mut self, completions: &[Completion]) -> Result<Vec<f32>>;

    /// For a source of several parts: each part's name with its scores of the last call, before weights. Empty for a single source.
    fn parts(&self) -> Vec<(String, Vec<f32>)> {
        Vec::new()
    }

    /// What a user should know of the completions scored so far.
    fn warnings(&self) -> Vec<String> {
        Vec::new()
    }

    /// What happened since the last call of this, for the user to know at once: programs that were restarted.
    fn take_messages(&mut self) -> Vec<String> {
        Vec::new()
    }

    /// What it has done, for the user to know: requests and their cost.
    fn notes(&self) -> Vec<String> {
        Vec::new()
    }
}

/// A source that needs a model on a device.
#[derive(Debug, Clone, Copy)]
pub enum ModelReward<'a> {
    /// The reward model of a stage or a folder.
    Learned(&'a str),
    /// A classifier, by its folder or `owner/name`.
    Classifier(&'a str, ClassifierSettings<'a>),
    /// A language model.
    LogProbability(ReadBy<'a>, TokenReduction),
    /// A judge that grades.
    Graded(&'a GradedConfig),
}

/// The source that `config` names: `custom` has those of [`RewardConfig::Custom`], `with_model` makes those that need a model. Its scores
/// are one finite number for each response, or an error that names the source which gave another.
///
/// # Errors
/// What [`check`] finds too (a regular expression that does not parse, an empty command), and what `with_model` returns.
pub fn build(
    config: &RewardConfig,
    custom: &CustomRewards,
    with_model: &mut dyn FnMut(ModelReward<'_>) -> Result<Box<dyn RewardSource>>,
) -> Result<Box<dyn RewardSource>> {
    if let Some(problem) = own_problems(config, custom, "reward").into_iter().next() {
        return Err(Error::Reward {
            name: name(config),
            message: problem.message,
        });
    }
    let reference = |column: &String, first_line: &bool| Reference {
        column: column.clone(),
        first_line: *first_line,
    };
    let source: Box<dyn RewardSource> = match config {
        RewardConfig::Learned { stage } => with_model(ModelReward::Learned(stage))?,
        RewardConfig::LogProbability {
            model,
            stage,
            reduction,
        } => {
            let by = (stage.as_deref()).map_or(ReadBy::Model(model), ReadBy::Stage);
            with_model(ModelReward::LogProbability(by, *reduction))?
        }
        RewardConfig::Classifier {
            model,
            label,
            output,
            reads,
        } => {
            let settings = ClassifierSettings {
                label: label.as_ref(),
                output: *output,
                reads: *reads,
            };
            with_model(ModelReward::Classifier(model, settings))?
        }
        RewardConfig::Rouge {
            variant,
            reference: column,
            first_line,
        } => Box::new(rouge::Rouge {
            variant: *variant,
            reference: reference(column, first_line),
        }),
        RewardConfig::Bleu {
            reference: column,
            first_line,
        } => Box::new(bleu::Bleu::new(reference(column, first_line))?),
        RewardConfig::Chrf {
            reference: column,
            word_order,
            first_line,
        } => Box::new(chrf::Chrf {
            reference: reference(column, first_line),
            word_order: *word_order,
        }),
        RewardConfig::Gold => Box::new(gold::Gold),
        RewardConfig::Length { target } => Box::new(length::Length { target: *target }),
        RewardConfig::Pattern { regex } => Box::new(pattern::Pattern {
            regex: verify::parsed(regex, name(config))?,
        }),
        RewardConfig::Number { .. } | RewardConfig::Groups { .. } | RewardConfig::Schema { .. } => {
            verify::build(config, name(config))?
        }
        RewardConfig::Program { per_rank, .. } => {
            let source = verify::build(config, name(config))?;
            Box::new(OfRanks::new(name(config), source, *per_rank))
        }
        RewardConfig::Command {
            command,
            timeout_s,
            per_rank,
            retries,
        } => {
            let timeout = Duration::from_secs_f64(*timeout_s);
            let source = command::External::new(name(config), command.clone(), timeout, *retries);
            Box::new(OfRanks::new(name(config), Box::new(source), *per_rank))
        }
        // The check above found it.
        RewardConfig::Custom { name: source } => {
            let source = custom.make(source).ok_or_else(|| Error::Reward {
                name: name(config),
                message: "the program has no such source".into(),
            })?;
            Box::new(OfRanks::new(name(config), source, false))
        }
        RewardConfig::Graded(graded) => with_model(ModelReward::Graded(graded))?,
        RewardConfig::Sum(terms) => {
            let names = sum::part_names(terms);
            let terms = (terms.iter().zip(names))
                .map(|((weight, term), name)| {
                    Ok(sum::Term::new(
                        name,
                        *weight,
                        build(term, custom, with_model)?,
                    ))
                })
                .collect::<Result<Vec<_>>>()?;
            Box::new(sum::Sum { terms })
        }
        RewardConfig::Ensemble { sources, combine } => {
            let sources = (sources.iter())
                .map(|source| build(source, custom, with_model))
                .collect::<Result<_>>()?;
            let combine = *combine;
            Box::new(ensemble::Ensemble { sources, combine })
        }
        RewardConfig::Safest {
            helpful,
            safety,
            threshold,
            tag,
            whiten,
        } => Box::new(safest::Safest {
            helpful: build(helpful, custom, with_model)?,
            safety: build(safety, custom, with_model)?,
            threshold: *threshold,
            tag: tag.clone(),
            whiten: *whiten,
            alone: 0,
        }),
        RewardConfig::LengthPenalty {
            source,
            unit,
            beyond,
            coef,
        } => Box::new(length_penalty::LengthPenalty {
            source: build(source, custom, with_model)?,
            unit: *unit,
            beyond: *beyond,
            coef: *coef,
        }),
    };
    Ok(Box::new(Checked::new(config, source)))
}

/// A short name for messages and titles: `rougeL`, `length(12)`, `learned(rm)`, `0.5*gold + 1*length(12)`.
pub fn name(config: &RewardConfig) -> String {
    match config {
        RewardConfig::Learned { stage } => format!("learned({stage})"),
        RewardConfig::LogProbability { model, stage, .. } => {
            let name = stage.as_deref().unwrap_or_else(|| last_name(model));
            format!("log_probability({name})")
        }
        RewardConfig::Classifier { model, label, .. } => {
            let model = last_name(model);
            match label {
                Some(Label::Name(label)) => format!("classifier({model}, {label})"),
                Some(Label::Index(index)) => format!("classifier({model}, {index})"),
                None => format!("classifier({model})"),
            }
        }
        RewardConfig::Rouge { variant, .. } => variant.name().into(),
        RewardConfig::Bleu { .. } => "bleu".into(),
        RewardConfig::Chrf { word_order, .. } => format!("chrf{}", "+".repeat(*word_order)),
        RewardConfig::Gold => "gold".into(),
        RewardConfig::Length { target } => format!("length({target})"),
        RewardConfig::Pattern { regex } => format!("pattern({regex})"),
        RewardConfig::Number { answer, .. } => format!("number({answer})"),
        RewardConfig::Groups { columns, .. } => {
            let columns: Vec<&str> = columns.values().map(String::as_str).collect();
            format!("groups({})", columns.join(", "))
        }
        RewardConfig::Schema { file } => {
            let name = file.file_name().unwrap_or_default();
            format!("schema({})", name.to_string_lossy())
        }
        RewardConfig::Program { command, .. } => format!("program({})", program_name(command)),
        RewardConfig::Command { command, .. } => format!("command({})", program_name(command)),
        RewardConfig::Custom { name } => name.clone(),
        RewardConfig::Graded(graded) => format!("graded({})", graded.judge.name()),
        RewardConfig::Sum(terms) => terms
            .iter()
            .map(|(weight, term)| format!("{weight}*{}", name(term)))
            .collect::<Vec<_>>()
            .join(" + "),
        RewardConfig::Ensemble { sources, combine } => {
            let names: Vec<String> = sources.iter().map(name).collect();
            let names = names.join(", ");
            match combine {
                Combine::Mean => format!("mean({names})"),
                Combine::Worst => format!("worst({names})"),
                Combine::MeanMinusStd(coef) => format!("mean - {coef}*std({names})"),
            }
        }
        RewardConfig::Safest {
            helpful, safety, ..
        } => format!("safest({}, {})", name(helpful), name(safety)),
        RewardConfig::LengthPenalty { source, .. } => {
            format!("length_penalty({})", name(source))
        }
    }
}

/// The row's column names, for messages.
fn columns(row: &Map<String, Value>) -> String {
    let names: Vec<String> = row.keys().map(|key| format!("{key:?}")).collect();
    if names.is_empty() {
        "no columns".into()
    } else {
        names.join(", ")
    }
}

#[cfg(test)]
mod testing {
    use super::Completion;

    /// Completions with these responses.
    pub(super) fn completions(responses: &[&str]) -> Vec<Completion> {
        let completion = |response: &&str| Completion {
            response: (*response).to_owned(),
            ..Completion::default()
        };
        responses.iter().map(completion).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::SourceColumn;

    fn parse(text: &str) -> RewardConfig {
        ron::from_str(text).unwrap()
    }

    fn polite() -> CustomRewards {
        CustomRewards::default().with("polite", || Constant(0.125))
    }

    struct Constant(f32);
    impl RewardSource for Constant {
        fn score(&mut self, completions: &[Completion]) -> Result<Vec<f32>> {
            Ok(vec![self.0; completions.len()])
        }
    }

    #[test]
    fn builds_every_source_and_delegates_the_learned_one() {
        let config = parse(
            "Sum([(2.0, Learned(stage: \"rm\")), (0.5, Length(target: 2)), (1.0, Pattern(regex: \"^ ok\")),
            (4.0, Classifier(model: \"me/sst2\", label: Some(\"POSITIVE\"), output: LogProb, reads: Response)), (3.0, Custom(name: \"polite\"))])",
        );
        let mut asked = Vec::new();
        let mut source = build(&config, &polite(), &mut |source| {
            asked.push(format!("{source:?}"));
            Ok(Box::new(Constant(0.25)))
        })
        .unwrap();
        let completion = Completion {
            response: " ok".into(),
            ..Completion::default()
        };
        // 2 * 0.25 + 0.5 * -1/2 + 1 + 4 * 0.25 + 3 * 0.125.
        assert_eq!(source.score(&[completion]).unwrap(), [2.625]);
        assert_eq!(
            asked,
            [
                "Learned(\"rm\")",
                "Classifier(\"me/sst2\", ClassifierSettings { label: Some(Name(\"POSITIVE\")), output: LogProb, reads: Response })"
            ]
        );
        assert_eq!(
            name(&config),
            "2*learned(rm) + 0.5*length(2) + 1*pattern(^ ok) + 4*classifier(sst2, POSITIVE) + 3*polite"
        );
        assert_eq!(name(&parse("Rouge()")), "rougeL");
        assert_eq!(
            name(&parse("Command(command: [\"bin/score.py\", \"-v\"])")),
            "command(score.py)"
        );
    }

    #[test]
    fn check_reports_every_problem_with_its_place() {
        let config = RewardConfig::Sum(vec![
            (f64::NAN, parse("Pattern(regex: \"(\")")),
            (
                1.0,
                parse("Command(command: [\"no-such-scorer\"], timeout_s: 0.0)"),
            ),
            (1.0, parse("Length(target: 0)")),
            (
                1.0,
                RewardConfig::Sum(vec![(1.0, parse("Command(command: [])"))]),
            ),
            (1.0, RewardConfig::Sum(vec![])),
            (1.0, parse("Custom(name: \"rude\")")),
        ]);
        let found: Vec<String> = check(&config, &polite(), "r")
            .iter()
            .map(|p| format!("{} {}", p.place, p.message.replace('\n', " ")))
            .collect();
        let expected = [
            "r.0 the weight of pattern(() is NaN",
            "r.0.1.regex regex parse error",
            "r.1.1.command the program \"no-such-scorer\" was not found",
            "r.1.1.timeout_s timeout_s is 0;",
            "r.2.1.target target is 0 words",
            "r.3.1.0.1.command the command is empty",
            "r.4.1 a sum of no sources",
            "r.5.1 no reward source named \"rude\" is in this program",
        ];
        assert_eq!(found.len(), expected.len(), "{found:#?}");
        for (found, expected) in found.iter().zip(expected) {
            assert!(
                found.starts_with(expected),
                "{found:?}, expected {expected:?}"
            );
        }
        assert_eq!(
            check(
                &parse(
                    "Sum([(1.0, Gold), (1.0, Rouge(variant: Rouge2)), (1.0, Custom(name: \"polite\"))])"
                ),
                &polite(),
                "r"
            ),
            []
        );
    }

    #[test]
    fn sources_of_sources_are_built_checked_and_named() {
        let config = parse(
            "Safest(helpful: Ensemble(sources: [Learned(stage: \"a\"), Learned(stage: \"b\")], combine: MeanMinusStd(2.0)),
                safety: Sum([(1.0, Learned(stage: \"s\"))]), tag: Some(\"risky\"), whiten: false)",
        );
        assert_eq!(
            name(&config),
            "safest(mean - 2*std(learned(a), learned(b)), 1*learned(s))"
        );
        assert_eq!(
            (config.num_learned(), config.columns()),
            (3, vec![SourceColumn::Flag("risky".to_owned())])
        );
        assert_eq!(check(&config, &polite(), "r"), []);
        let mut scores = [1.0, 3.0, -9.0].into_iter();
        let mut source = build(&config, &polite(), &mut |_| {
            Ok(Box::new(Constant(scores.next().unwrap())))
        })
        .unwrap();
        let mut completion = testing::completions(&["a"]);
        let mut of = |risky: bool| {
            completion[0].row.insert("risky".into(), risky.into());
            source.score(&completion).unwrap()
        };
        // Mean 2 and deviation 1: 0; safety of -9 is below the threshold either way.
        assert_eq!((of(false), of(true)), (vec![-9.0], vec![-9.0]));
        let config = parse(
            "LengthPenalty(source: Ensemble(sources: [Bleu(), Rouge(reference: \"r\")]), coef: 0.5)",
        );
        let columns = config.columns();
        let names: Vec<&String> = columns.iter().flat_map(SourceColumn::names).collect();
        assert_eq!(names, ["completion", "r"]);
        let bad = parse(
            "Sum([(1.0, Ensemble(sources: [])), (1.0, Ensemble(sources: [Gold, Gold], combine: MeanMinusStd(-1.0))),
                (1.0, Safest(threshold: 1.5, tag: Some(\"\"), helpful: LengthPenalty(coef: 0.0, source: Gold),
                    safety: Classifier(model: \"m\", score: LogProbability))), (1.0, Chrf(reference: \"\")),
                (1.0, LogProbability()), (1.0, LogProbability(model: \"m\", stage: Some(\"s\")))])",
        );
        let found: Vec<String> = check(&bad, &polite(), "r")
            .iter()
            .map(|p| format!("{} {}", p.place, p.message))
            .collect();
        let expected = [
            "r.0.1.sources an ensemble of no sources; expected at least two",
            "r.1.1.combine MeanMinusStd(-1): expected a coefficient above 0",
            "r.2.1.threshold threshold is 1.5; expected a probability, from 0 to 1",
            "r.2.1.tag the name of the tag's column is empty",
            "r.2.1.safety the classifier gives probabilities; Safest takes their logits, as reward models give them",
            "r.2.1.helpful.coef coef is 0; expected a penalty for each unit of length, above 0",
            "r.3.1.reference the name of the reference column is empty",
            "r.4.1 neither `model` nor `stage` is given",
            "r.5.1 both `model` and `stage` are given",
        ];
        assert_eq!(found, expected);
    }

    #[test]
    fn a_bad_config_does_not_build() {
        let message = build(
            &parse("Length(target: 0)"),
            &polite(),
            &mut |_| unreachable!(),
        )
        .err()
        .unwrap()
        .to_string();
        assert_eq!(
            message,
            "reward source length(0): target is 0 words; expected at least 1"
        );
    }
}
