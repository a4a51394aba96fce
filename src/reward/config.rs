//! The reward sources of a recipe.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::judge::{GradedConfig, row_columns};
use super::sum::part_names;
use crate::data::SourceColumn;
use crate::model::{Label, LabelOutput};

/// A source of scores.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub enum RewardConfig {
    /// The reward model of an earlier stage, or of a folder if `stage` names one (a path with a separator).
    Learned {
        /// Stage name or folder.
        stage: String,
    },
    /// The score of a label by an encoder that classifies texts.
    Classifier {
        /// Its folder, or `owner/name` of the hub.
        model: String,
        /// The label, by its name in `id2label` or by index; may be left out if there is only one.
        #[serde(default)]
        label: Option<Label>,
        /// Which number of the label; may be written `score`, too.
        #[serde(default, alias = "score")]
        output: LabelOutput,
        /// What the classifier reads.
        #[serde(default)]
        reads: ClassifierInput,
    },
    /// ROUGE F-measure against a reference column.
    Rouge {
        /// Which overlap.
        #[serde(default)]
        variant: RougeVariant,
        /// Column holding the reference text.
        #[serde(default = "completion")]
        reference: String,
        /// Compare only the first line of the response: fair to a base model that was not trained to stop.
        #[serde(default)]
        first_line: bool,
    },
    /// sacrebleu's sentence BLEU against a reference column, 0 to 100.
    Bleu {
        /// Column holding the reference text.
        #[serde(default = "completion")]
        reference: String,
        /// Compare only the first line of the response.
        #[serde(default)]
        first_line: bool,
    },
    /// sacrebleu's sentence chrF against a reference column, 0 to 100.
    Chrf {
        /// Column holding the reference text.
        #[serde(default = "completion")]
        reference: String,
        /// Longest n-grams of words beside those of characters: 0 is chrF, 2 is chrF++.
        #[serde(default)]
        word_order: usize,
        /// Compare only the first line of the response.
        #[serde(default)]
        first_line: bool,
    },
    /// Log-probability in nats that another language model gives the response after its prompt.
    LogProbability {
        /// A folder, a known model, or `owner/name` of the hub; in its place `stage` names the policy of an earlier stage.
        #[serde(default, skip_serializing_if = "String::is_empty")]
        model: String,
        /// An earlier stage whose policy it is.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        stage: Option<String>,
        /// Over which of its tokens.
        #[serde(default)]
        reduction: TokenReduction,
    },
    /// The known scorer of the embedded posts.
    Gold,
    /// Negative distance of the response's length from a target, in words, divided by the target.
    Length {
        /// Target number of words.
        target: usize,
    },
    /// 1 when the response matches, else 0.
    Pattern {
        /// A regular expression.
        regex: String,
    },
    /// A program that reads one JSON object a line, `{"prompt": .., "completion": .., "row": {the row's columns}}`, and writes
    /// `{"score": x}` for each.
    Command {
        /// Program and arguments.
        command: Vec<String>,
        /// Seconds without an output line after which the source counts as failed.
        #[serde(default = "minute")]
        timeout_s: f64,
        /// Among several ranks: whether each runs the program for its own rows. Otherwise rank 0 does for all.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        per_rank: bool,
        /// How often a program that ends or is silent is restarted before the source fails, in each batch of responses.
        #[serde(default = "two")]
        retries: usize,
    },
    /// 1 when the last number of the response is that of a column, else 0.
    Number {
        /// Column with the number, or with text whose last number counts.
        #[serde(default = "answer")]
        answer: String,
        /// Largest difference that counts as equal.
        #[serde(default = "millionth")]
        tolerance: f64,
    },
    /// 1 when the named groups of a regular expression hold the texts of columns, else 0.
    Groups {
        /// The expression, with groups `(?P<name>..)`; its last match counts.
        regex: String,
        /// Column by group.
        columns: BTreeMap<String, String>,
        /// Compare without regard to upper and lower case.
        #[serde(default)]
        ignore_case: bool,
    },
    /// 1 when the response is JSON that a schema allows, else 0.
    Schema {
        /// File with the JSON schema.
        file: PathBuf,
    },
    /// A program that is started for each response and ends with exit status 0 if it is right, or writes `{"score": x}` last.
    Program {
        /// Program and arguments.
        command: Vec<String>,
        /// Seconds after which it is ended; the response then scores 0.
        #[serde(default = "ten")]
        timeout_s: f64,
        /// Among several ranks: whether each runs the program for its own rows. Otherwise rank 0 does for all.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        per_rank: bool,
    },
    /// A source that a Rust program around this library has under this name ([`super::CustomRewards`]).
    Custom {
        /// Its name.
        name: String,
    },
    /// The expected grade of the response by a judge, scaled to -1 to 1.
    Graded(Box<GradedConfig>),
    /// A weighted sum of sources.
    Sum(Vec<(f64, RewardConfig)>),
    /// Several sources of one kind, such as reward models of several seeds, as one score.
    Ensemble {
        /// The sources, two or more.
        sources: Vec<RewardConfig>,
        /// What becomes of their scores.
        #[serde(default)]
        combine: Combine,
    },
    /// Llama 2's combination of a helpfulness and a safety reward: the safety score of what is unsafe, else the helpfulness score.
    Safest {
        /// Scores helpfulness, as a logit.
        helpful: Box<RewardConfig>,
        /// Scores safety, as the logit of the probability that the response is safe.
        safety: Box<RewardConfig>,
        /// Probability of being safe below which the safety score counts.
        #[serde(default = "safety_threshold")]
        threshold: f64,
        /// Column of the prompts (true or false, 1 or 0) that marks those for which the safety score always counts.
        #[serde(default)]
        tag: Option<String>,
        /// Shift and scale the scores of each batch to mean 0 and variance 1.
        #[serde(default = "yes")]
        whiten: bool,
    },
    /// Another source's score, less a penalty for each word or token beyond a length.
    LengthPenalty {
        /// The source.
        source: Box<RewardConfig>,
        /// What is counted.
        #[serde(default)]
        unit: LengthUnit,
        /// Length without penalty.
        #[serde(default)]
        beyond: usize,
        /// Penalty for each unit more; above 0.
        coef: f64,
    },
}

impl RewardConfig {
    /// A program with its arguments as a source, which has a minute for an answer.
    pub fn command(command: Vec<String>) -> Self {
        Self::Command {
            command,
            timeout_s: minute(),
            per_rank: false,
            retries: two(),
        }
    }

    /// Program and arguments with the seconds that they may take, for a source that runs one.
    pub fn program(&self) -> Option<(&[String], f64)> {
        match self {
            Self::Command {
                command, timeout_s, ..
            }
            | Self::Program {
                command, timeout_s, ..
            } => Some((command, *timeout_s)),
            _ => None,
        }
    }

    /// The stage or folder of the reward model, for a `Learned` source.
    pub fn learned(&self) -> Option<&str> {
        match self {
            Self::Learned { stage } => Some(stage),
            _ => None,
        }
    }

    /// The reward models in it, each once, in their order.
    pub fn all_learned(&self) -> Vec<&str> {
        let own = self.learned().into_iter();
        let parts = self.parts();
        let mut found: Vec<&str> = Vec::new();
        for name in own.chain(parts.into_iter().flat_map(|(_, part)| part.all_learned())) {
            if !found.contains(&name) {
                found.push(name);
            }
        }
        found
    }

    /// The language model of a `LogProbability` source.
    pub fn language_model(&self) -> Option<ReadBy<'_>> {
        match self {
            Self::LogProbability {
                stage: Some(stage), ..
            } => Some(ReadBy::Stage(stage)),
            Self::LogProbability { model, .. } => Some(ReadBy::Model(model)),
            _ => None,
        }
    }

    /// The sources that it is made of, each with its key below this one as recipes write it; empty for sources of their own.
    pub fn parts(&self) -> Vec<(String, &RewardConfig)> {
        match self {
            Self::Sum(terms) => (terms.iter().enumerate())
                .map(|(at, (_, term))| (format!("{at}.1"), term))
                .collect(),
            Self::Ensemble { sources, .. } => (sources.iter().enumerate())
                .map(|(at, source)| (format!("sources.{at}"), source))
                .collect(),
            Self::Safest {
                helpful, safety, ..
            } => {
                let part = |key: &str, source| (key.to_owned(), source);
                vec![part("helpful", helpful.as_ref()), part("safety", safety)]
            }
            Self::LengthPenalty { source, .. } => vec![("source".to_owned(), source)],
            _ => Vec::new(),
        }
    }

    /// Number of reward models in it.
    pub fn num_learned(&self) -> usize {
        let parts = self.parts();
        let nested = parts.iter().map(|(_, part)| part.num_learned());
        usize::from(self.learned().is_some()) + nested.sum::<usize>()
    }

    /// Names in metrics of the terms of a sum; none for other sources.
    pub fn term_names(&self) -> Vec<String> {
        match self {
            Self::Sum(terms) => part_names(terms),
            _ => Vec::new(),
        }
    }

    /// Columns that the source needs in every row.
    pub fn columns(&self) -> Vec<SourceColumn> {
        let own = match self {
            Self::Rouge { reference, .. }
            | Self::Bleu { reference, .. }
            | Self::Chrf { reference, .. } => vec![SourceColumn::Text(reference.clone())],
            Self::Safest { tag, .. } => tag.clone().map(SourceColumn::Flag).into_iter().collect(),
            Self::Number { answer, .. } => vec![SourceColumn::Number(answer.clone())],
            Self::Groups { columns, .. } => {
                columns.values().cloned().map(SourceColumn::Value).collect()
            }
            Self::Graded(graded) => row_columns(graded).into_iter().collect(),
            _ => Vec::new(),
        };
        let parts = self.parts();
        let nested = parts.iter().flat_map(|(_, part)| part.columns());
        own.into_iter().chain(nested).collect()
    }
}

/// The language model that a `LogProbability` source reads responses by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReadBy<'a> {
    /// A folder, a known model, or `owner/name` of the hub.
    Model(&'a str),
    /// The policy of an earlier stage.
    Stage(&'a str),
}

/// How the scores of an ensemble become one.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, Default)]
#[serde(deny_unknown_fields)]
pub enum Combine {
    /// Their mean.
    #[default]
    Mean,
    /// The lowest one.
    Worst,
    /// Their mean, less this many standard deviations among them: what they disagree on counts for less.
    MeanMinusStd(f64),
}

/// Over which tokens of a response a log-probability is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(deny_unknown_fields)]
pub enum TokenReduction {
    /// The mean over its tokens: the logarithm of 1 / perplexity.
    #[default]
    Mean,
    /// The sum: the log-probability of the whole response.
    Sum,
}

/// What a length is counted in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(deny_unknown_fields)]
pub enum LengthUnit {
    /// Words, separated by white space.
    #[default]
    Words,
    /// The policy's tokens, the EOS included.
    Tokens,
}

/// What of a prompt and its response a classifier reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default, clap::ValueEnum)]
#[serde(deny_unknown_fields)]
pub enum ClassifierInput {
    /// Both as one text, as reward models do.
    #[default]
    PromptAndResponse,
    /// The response alone.
    Response,
    /// Both as a pair of texts, for classifiers that were tuned on pairs (question and answer).
    Pair,
}

/// Which ROUGE.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(deny_unknown_fields)]
pub enum RougeVariant {
    /// Unigrams.
    Rouge1,
    /// Bigrams.
    Rouge2,
    /// Longest common subsequence.
    #[default]
    RougeL,
}

fn safety_threshold() -> f64 {
    0.15
}
fn yes() -> bool {
    true
}
fn completion() -> String {
    "completion".into()
}
fn answer() -> String {
    "answer".into()
}
fn millionth() -> f64 {
    1e-6
}
fn ten() -> f64 {
    10.0
}
/// The last component of a folder or of `owner/name`.
pub(super) fn last_name(model: &str) -> &str {
    let model = model.trim_end_matches(['/', '\\']);
    model.rsplit(['/', '\\']).next().unwrap_or_default()
}

/// The name of a program's file.
pub(super) fn program_name(command: &[String]) -> String {
    let program = command.first().map_or("", String::as_str);
    let file = Path::new(program).file_name().unwrap_or_default();
    file.to_string_lossy().into_owned()
}

fn two() -> usize {
    2
}
fn minute() -> f64 {
    60.0
}
