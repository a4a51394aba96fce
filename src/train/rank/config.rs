//! The configuration of a Rank stage.

use serde::{Deserialize, Serialize};

use crate::reward::RewardConfig;
use crate::train::config::{
    DataConfig, Init, SamplingConfig, Truncate, default_max_length, default_rollout_batch, four,
    tenth,
};

/// Generates K responses per prompt and ranks them by a reward source.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RankConfig {
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
    /// The reward source that ranks.
    pub reward: RewardConfig,
    /// Two responses whose scores differ by no more than this are a tie and make no comparison.
    #[serde(default)]
    pub tie_margin: f64,
    /// Responses generated at once.
    #[serde(default = "default_rollout_batch")]
    pub generation_batch_size: usize,
    /// Fraction of prompts whose comparisons are held out (`<stage>/valid.jsonl`).
    #[serde(default = "tenth")]
    pub valid_fraction: f64,
}
