//! The configuration of a Dpo stage.

use serde::{Deserialize, Serialize};

use crate::train::config::{
    Cadence, DataConfig, DpoLosses, Init, OptimConfig, Peft, default_max_length,
    default_micro_tokens, one, tenth, yes,
};

/// Direct preference optimisation: the policy learns from comparisons, without a reward model and without sampling.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DpoConfig {
    /// The stage's name, unique in the recipe.
    pub name: String,
    /// The initial policy, which is also the reference.
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
    /// Strength of the implicit KL constraint to the reference (IPO: its tau).
    #[serde(default = "tenth")]
    pub beta: f64,
    /// The loss, or a sum of losses: `[(sigmoid, 0.8), (sft, 0.2)]`.
    #[serde(default)]
    pub loss_type: DpoLosses,
    /// Weights of the losses, where `loss_type` lists them without.
    #[serde(default)]
    pub loss_weights: Option<Vec<f64>>,
    /// Assumed fraction of wrong labels; makes `sigmoid` conservative DPO.
    #[serde(default)]
    pub label_smoothing: f64,
    /// Temperature of `discopop`'s blend of logistic and exponential loss; 0.05 if absent.
    #[serde(default)]
    pub discopop_tau: Option<f64>,
    /// Compute the reference's log-probabilities of all comparisons before training, then free the reference.
    #[serde(default)]
    pub precompute_ref_log_probs: bool,
    /// Evaluation and checkpoints.
    #[serde(default)]
    pub cadence: Cadence,
}

impl DpoConfig {
    /// The losses with their weights.
    pub(super) fn losses(&self) -> DpoLosses {
        match &self.loss_weights {
            Some(weights) => self.loss_type.with_weights(weights),
            None => self.loss_type.clone(),
        }
    }
}
