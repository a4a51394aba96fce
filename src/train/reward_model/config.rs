//! The configuration of a RewardModel stage.

use serde::{Deserialize, Serialize};

use crate::train::config::{
    Cadence, DataConfig, Init, OptimConfig, Peft, RewardLoss, default_max_length,
    default_micro_tokens, one, yes,
};

/// Reward model trained on comparisons.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RewardModelConfig {
    /// The stage's name, unique in the recipe.
    pub name: String,
    /// Initial backbone.
    pub init: Init,
    /// Comparisons: preference rows, or `Stage("..")` for all pairs of a `Rank` stage. With `loss_type: regression` rated rows.
    pub data: DataConfig,
    /// Held-out comparisons.
    #[serde(default)]
    pub eval_data: Option<DataConfig>,
    /// Which weights are trained (the score head always is).
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
    /// The loss.
    #[serde(default)]
    pub loss_type: RewardLoss,
    /// Subtract the row's `margin` inside the loss (Llama 2, arXiv:2307.09288, eq. 2).
    #[serde(default)]
    pub use_margin: bool,
    /// Train on the rows' `chosen_probability` by cross-entropy, as AI labels and shares of votes give it; otherwise the chosen response
    /// is taken as the better one for certain.
    #[serde(default)]
    pub soft_labels: bool,
    /// Weight of the mean of `(score_chosen + score_rejected)^2`, which keeps scores around zero (TRL's).
    #[serde(default)]
    pub center_rewards_coefficient: Option<f64>,
    /// Weight of the binary cross-entropy of the labels `chosen_safe` and `rejected_safe`, with the score as the logit of being safe (Llama 2,
    /// A.3.4).
    #[serde(default)]
    pub safety_coef: Option<f64>,
    /// After training, shift scores so that their mean over these reference responses (prompts with completions) is zero.
    #[serde(default)]
    pub center_on: Option<DataConfig>,
    /// Divide scores by their standard deviation over the responses of `center_on`, before and after training
    /// (lm-human-preferences).
    #[serde(default)]
    pub standardize: bool,
    /// Columns of the held-out comparisons: accuracy is also reported by their values, e.g. the annotators' confidence. A dot
    /// addresses a key of a nested object.
    #[serde(default)]
    pub accuracy_by: Vec<String>,
    /// Evaluation and checkpoints.
    #[serde(default)]
    pub cadence: Cadence,
}
