//! The configuration of a Kto stage.

use serde::{Deserialize, Serialize};

use crate::train::config::{
    Cadence, DataConfig, Init, KtoLoss, OptimConfig, Peft, default_max_length,
    default_micro_tokens, one, tenth, yes,
};

/// Kahneman-Tversky optimisation: the policy learns from single responses that are labelled as desirable or not.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KtoConfig {
    /// The stage's name, unique in the recipe.
    pub name: String,
    /// The initial policy, which is also the reference.
    pub init: Init,
    /// Responses with a `label`, or preference rows, each of which is a desirable and an undesirable response.
    pub data: DataConfig,
    /// Held-out responses.
    #[serde(default)]
    pub eval_data: Option<DataConfig>,
    /// Which weights are trained.
    #[serde(default)]
    pub peft: Peft,
    /// Optimiser.
    #[serde(default)]
    pub optim: OptimConfig,
    /// Passes over the data.
    #[serde(default = "one")]
    pub epochs: usize,
    /// Optimiser steps in place of `epochs`: fewer than an epoch has, or more.
    #[serde(default)]
    pub max_steps: Option<usize>,
    /// Responses per optimiser step; the KL divergence is estimated over them.
    pub batch_size: usize,
    /// Shuffle the rows anew in each epoch; otherwise they come in the order of the data.
    #[serde(default = "yes")]
    pub shuffle: bool,
    /// Tokens per forward pass at most.
    #[serde(default = "default_micro_tokens")]
    pub micro_batch_tokens: usize,
    /// Recompute layers in the backward pass instead of storing their activations: less memory, more time.
    #[serde(default)]
    pub gradient_checkpointing: bool,
    /// Rows with more tokens are counted and dropped.
    #[serde(default = "default_max_length")]
    pub max_length: usize,
    /// Strength of the implicit KL constraint to the reference.
    #[serde(default = "tenth")]
    pub beta: f64,
    /// The loss.
    #[serde(default)]
    pub loss_type: KtoLoss,
    /// Weight of desirable responses.
    #[serde(default = "whole")]
    pub desirable_weight: f64,
    /// Weight of undesirable responses.
    #[serde(default = "whole")]
    pub undesirable_weight: f64,
    /// Compute the reference's log-probabilities before training, then free the reference.
    #[serde(default)]
    pub precompute_ref_log_probs: bool,
    /// Evaluation and checkpoints.
    #[serde(default)]
    pub cadence: Cadence,
}

fn whole() -> f64 {
    1.0
}
