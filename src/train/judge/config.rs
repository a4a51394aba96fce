//! The configuration of a Judge stage.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::reward::judge::{JudgeModel, Reasoning, default_labels};
use crate::train::config::{DataConfig, tenth, yes};

/// Labels pairs of responses by a judge: comparisons with the probability that the chosen response is the better one.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JudgeConfig {
    /// The stage's name, unique in the recipe.
    pub name: String,
    /// Who judges.
    pub judge: JudgeModel,
    /// Pairs: responses to each prompt, as stages write them, or preference rows.
    pub data: DataConfig,
    /// A file of principles, one a line: each pair is asked about by one of them, drawn at random.
    #[serde(default)]
    pub principles: Option<PathBuf>,
    /// A JSONL file of pairs with answers, which stand before every question.
    #[serde(default)]
    pub examples: Option<PathBuf>,
    /// The beginning of every question.
    #[serde(default)]
    pub instructions: Option<String>,
    /// The question, a jinja template over `prompt`, `principle`, `first`, `second` and `labels`.
    #[serde(default)]
    pub template: Option<String>,
    /// The labels of the response shown first and second.
    #[serde(default = "default_labels")]
    pub labels: (String, String),
    /// Ask by the model's chat template.
    #[serde(default)]
    pub chat: bool,
    /// Ask about each pair in both orders, and average; otherwise in one, drawn at random.
    #[serde(default = "yes")]
    pub both_orders: bool,
    /// Let the judge think before it answers.
    #[serde(default)]
    pub chain_of_thought: Option<Reasoning>,
    /// Most pairs of a prompt, drawn at random from all pairs of its responses.
    #[serde(default)]
    pub max_pairs: Option<usize>,
    /// Largest fraction of pairs that the judge may leave unanswered; they are left out.
    #[serde(default = "tenth")]
    pub max_unanswered: f64,
    /// Fraction of prompts whose comparisons are held out (`<stage>/valid.jsonl`).
    #[serde(default = "tenth")]
    pub valid_fraction: f64,
}
