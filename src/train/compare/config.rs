//! The configuration of a Compare stage.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::reward::RewardConfig;
use crate::train::config::{
    DataConfig, Init, SamplingConfig, Truncate, default_max_length, default_rollout_batch, four,
};

/// The closing table: stages side by side on held-out prompts.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CompareConfig {
    /// The stage's name, unique in the recipe.
    pub name: String,
    /// Policies to compare, the first one being the reference for KL: `Base` and `Stage(..)`.
    pub policies: Vec<Init>,
    /// The policy that KL is measured against; the first of `policies` if absent.
    #[serde(default)]
    pub reference: Option<Init>,
    /// Held-out prompts, with a `completion` column for ROUGE if there is one.
    pub data: DataConfig,
    /// Scores to show, by column title.
    pub rewards: BTreeMap<String, RewardConfig>,
    /// Most tokens of a response.
    pub response_length: usize,
    /// Longest prompt in tokens; longer rows are counted and dropped.
    #[serde(default = "default_max_length")]
    pub max_prompt_length: usize,
    /// How responses are generated.
    #[serde(default)]
    pub sampling: SamplingConfig,
    /// A token that ends a response beside EOS.
    #[serde(default)]
    pub truncate: Option<Truncate>,
    /// Responses generated at once.
    #[serde(default = "default_rollout_batch")]
    pub generation_batch_size: usize,
    /// Prompts whose responses are shown side by side.
    #[serde(default = "four")]
    pub num_samples: usize,
}
