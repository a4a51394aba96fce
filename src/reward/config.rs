//! Reward sources as a recipe names them.

use serde::{Deserialize, Serialize};

/// What gives a response its score.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub enum RewardConfig {
    /// The reward model of an earlier stage, or of a folder if `stage` names one (a path with a separator).
    Learned {
        /// Stage name or folder.
        stage: String,
    },
    /// ROUGE F-measure against a reference column.
    Rouge {
        /// Which overlap.
        #[serde(default)]
        variant: RougeVariant,
        /// Column holding the reference text.
        #[serde(default = "completion")]
        reference: String,
        /// Compare the first line of the response alone: fair to a base model, which was never taught to stop.
        #[serde(default)]
        first_line: bool,
    },
    /// The known scorer of the embedded posts.
    Gold,
    /// Negative distance of the response's length from a wish, in words, divided by the wish.
    Length {
        /// Wished number of words.
        target: usize,
    },
    /// 1 when the response matches, else 0.
    Pattern {
        /// A regular expression.
        regex: String,
    },
    /// A program that reads one JSON object a line, `{"prompt": .., "completion": .., "row": {the row's columns}}`, and
    /// answers each with `{"score": x}`.
    Command {
        /// Program and arguments.
        command: Vec<String>,
        /// Seconds without an answer after which the source counts as failed.
        #[serde(default = "minute")]
        timeout_s: f64,
    },
    /// A weighted sum of sources.
    Sum(Vec<(f64, RewardConfig)>),
}

impl RewardConfig {
    /// The stage or folder of the reward model, if the source is one.
    pub fn learned(&self) -> Option<&str> {
        match self {
            Self::Learned { stage } => Some(stage),
            _ => None,
        }
    }

    /// Text columns that every row must have for the source to score a response to it.
    pub fn columns(&self) -> Vec<String> {
        match self {
            Self::Rouge { reference, .. } => vec![reference.clone()],
            Self::Sum(terms) => terms.iter().flat_map(|(_, term)| term.columns()).collect(),
            _ => Vec::new(),
        }
    }
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
