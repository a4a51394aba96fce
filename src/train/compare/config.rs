//! The configuration of a Compare stage.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::reward::RewardConfig;
use crate::reward::judge::PairwiseConfig;
use crate::train::config::{
    DataConfig, Init, SamplingConfig, Truncate, default_max_length, default_rollout_batch, four,
    one,
};

/// Compares policies on held-out prompts, in a table.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CompareConfig {
    /// The stage's name, unique in the recipe.
    pub name: String,
    /// Policies to compare.
    pub policies: Vec<Init>,
    /// The reference of the KL; the first of `policies` if absent.
    #[serde(default)]
    pub reference: Option<Init>,
    /// Held-out prompts, with a `completion` column for ROUGE if there is one.
    pub data: DataConfig,
    /// Reward sources by column title.
    pub rewards: BTreeMap<String, RewardConfig>,
    /// A judge that compares each policy's responses with the reference's.
    #[serde(default)]
    pub judge: Option<PairwiseConfig>,
    /// Responses to each prompt; with more than one also best of n and pass@k.
    #[serde(default = "one")]
    pub num_responses: usize,
    /// Scores that differ by this or less are a tie.
    #[serde(default)]
    pub tie_margin: f64,
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
    /// Texts before which a response ends, blanks at its start aside; `"\n"` keeps the first line.
    #[serde(default)]
    pub stop: Vec<String>,
    /// Responses generated at once.
    #[serde(default = "default_rollout_batch")]
    pub generation_batch_size: usize,
    /// Number of prompts whose responses are shown side by side.
    #[serde(default = "four")]
    pub num_samples: usize,
}
