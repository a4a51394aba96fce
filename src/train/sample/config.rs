//! The configuration of a Sample stage.

use serde::{Deserialize, Serialize};

use crate::reward::RewardConfig;
use crate::train::config::{
    DataConfig, Init, SamplingConfig, Truncate, default_max_length, default_rollout_batch, four,
    tenth,
};

/// Generates K responses per prompt, scored by a reward source if there is one: the rows of rejection sampling, and of rounds in which
/// a labeller judges the policy's responses.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SampleConfig {
    /// The stage's name, unique in the recipe.
    pub name: String,
    /// The policy that generates the responses.
    pub init: Init,
    /// Prompts.
    pub data: DataConfig,
    /// Responses per prompt.
    #[serde(default = "four")]
    pub num_responses: usize,
    /// Most tokens of a response.
    pub response_length: usize,
    /// Longest prompt in tokens; longer rows are counted and dropped.
    #[serde(default = "default_max_length")]
    pub max_prompt_length: usize,
    /// How responses are generated.
    #[serde(default)]
    pub sampling: SamplingConfig,
    /// A further token that ends a response.
    #[serde(default)]
    pub truncate: Option<Truncate>,
    /// The reward source that scores the responses; without one the rows have no scores, and all responses are taken.
    #[serde(default)]
    pub reward: Option<RewardConfig>,
    /// Each row's own `completion` is one more response to its prompt, scored as the others are: ReST's union of samples and data.
    #[serde(default)]
    pub include_completions: bool,
    /// Two responses whose scores differ by no more than this are a tie and make no comparison.
    #[serde(default)]
    pub tie_margin: f64,
    /// Responses generated at once.
    #[serde(default = "default_rollout_batch")]
    pub generation_batch_size: usize,
    /// Fraction of prompts whose rows are held out (`<stage>/valid.jsonl`).
    #[serde(default = "tenth")]
    pub valid_fraction: f64,
}
