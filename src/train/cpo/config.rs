//! The configuration of a Cpo stage.

use serde::{Deserialize, Serialize};

use crate::train::config::{
    Cadence, CpoLoss, DataConfig, Init, OptimConfig, Peft, default_max_length,
    default_micro_tokens, one, tenth, yes,
};

/// Contrastive preference optimisation and SimPO: the policy learns from comparisons without a reference.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CpoConfig {
    /// The stage's name, unique in the recipe.
    pub name: String,
    /// The initial policy.
    pub init: Init,
    /// Comparisons: preference rows, or `Stage("..")` for all pairs of a `Rank` stage.
    pub data: DataConfig,
    /// Held-out comparisons.
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
    /// Prompts (with all their comparisons) per optimiser step.
    pub batch_size: usize,
    /// Shuffle the rows anew in each epoch; otherwise they come in the order of the data.
    #[serde(default = "yes")]
    pub shuffle: bool,
    /// Tokens per forward pass at most; a prompt's responses are never split.
    #[serde(default = "default_micro_tokens")]
    pub micro_batch_tokens: usize,
    /// Recompute layers in the backward pass instead of storing their activations: less memory, more time.
    #[serde(default)]
    pub gradient_checkpointing: bool,
    /// Rows with more tokens are counted and dropped.
    #[serde(default = "default_max_length")]
    pub max_length: usize,
    /// Scale of the implicit rewards (`ipo`: its tau).
    #[serde(default = "tenth")]
    pub beta: f64,
    /// The loss.
    #[serde(default)]
    pub loss_type: CpoLoss,
    /// Assumed fraction of wrong labels.
    #[serde(default)]
    pub label_smoothing: f64,
    /// Weight of the cross-entropy of chosen responses.
    #[serde(default = "whole")]
    pub cpo_alpha: f64,
    /// Margin that `simpo` asks for; 0.5 if absent.
    #[serde(default)]
    pub simpo_gamma: Option<f64>,
    /// Shape of AlphaPO's reward `(1 - p^-alpha) / alpha`; at 0 the reward is the log-probability.
    #[serde(default)]
    pub alpha: f64,
    /// Evaluation and checkpoints.
    #[serde(default)]
    pub cadence: Cadence,
}

fn whole() -> f64 {
    1.0
}
