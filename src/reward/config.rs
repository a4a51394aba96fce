//! The reward sources of a recipe.

use serde::{Deserialize, Serialize};

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
        /// Which number of the label.
        #[serde(default)]
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
    },
    /// A source that a Rust program around this library has under this name ([`super::CustomRewards`]).
    Custom {
        /// Its name.
        name: String,
    },
    /// A weighted sum of sources.
    Sum(Vec<(f64, RewardConfig)>),
}

impl RewardConfig {
    /// The stage or folder of the reward model, for a `Learned` source.
    pub fn learned(&self) -> Option<&str> {
        match self {
            Self::Learned { stage } => Some(stage),
            _ => None,
        }
    }

    /// Text columns that the source needs in every row.
    pub fn columns(&self) -> Vec<String> {
        match self {
            Self::Rouge { reference, .. } => vec![reference.clone()],
            Self::Sum(terms) => terms.iter().flat_map(|(_, term)| term.columns()).collect(),
            _ => Vec::new(),
        }
    }
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

fn completion() -> String {
    "completion".into()
}
fn minute() -> f64 {
    60.0
}
