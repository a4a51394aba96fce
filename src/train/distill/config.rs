//! The configuration of a Distill stage.

use serde::{Deserialize, Serialize};

use crate::train::config::{
    Cadence, DataConfig, Init, OptimConfig, Peft, Truncate, default_max_length,
    default_micro_tokens, default_rollout_batch, one, yes,
};

/// Knowledge distillation: a student learns a frozen teacher's distribution of every response token, on responses of the data, of the
/// teacher, or of its own.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DistillConfig {
    /// The stage's name, unique in the recipe.
    pub name: String,
    /// The student before training.
    #[serde(default)]
    pub init: Init,
    /// The frozen teacher, with the student's tokenizer.
    pub teacher: Init,
    /// Prompts with completions; prompts alone will do if every response is generated.
    pub data: DataConfig,
    /// Held-out rows of the same kind.
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
    /// Rows per optimiser step.
    pub batch_size: usize,
    /// Shuffle the rows anew in each epoch; otherwise they come in the order of the data.
    #[serde(default = "yes")]
    pub shuffle: bool,
    /// Tokens per forward pass at most; a step is split into as many passes as needed.
    #[serde(default = "default_micro_tokens")]
    pub micro_batch_tokens: usize,
    /// Recompute layers in the backward pass instead of storing their activations: less memory, more time.
    #[serde(default)]
    pub gradient_checkpointing: bool,
    /// Longer rows of the data are truncated, as in Sft; longer prompts alone are counted and dropped.
    #[serde(default = "default_max_length")]
    pub max_length: usize,
    /// The divergence: 0 is the forward KL, 1 the reverse KL, and between them the generalised Jensen-Shannon divergence.
    #[serde(default = "half")]
    pub beta: f64,
    /// Probability that a step trains on responses that the student generates.
    #[serde(default = "half")]
    pub lmbda: f64,
    /// The other steps train on responses that the teacher generates in place of those of the data.
    #[serde(default)]
    pub seq_kd: bool,
    /// Sampling temperature of generated responses.
    #[serde(default = "default_temperature")]
    pub temperature: f64,
    /// Both models' logits are divided by this in the loss.
    #[serde(default = "unity")]
    pub loss_temperature: f64,
    /// Most tokens of a generated response.
    #[serde(default = "default_response_length")]
    pub response_length: usize,
    /// A further token that ends a generated response.
    #[serde(default)]
    pub truncate: Option<Truncate>,
    /// Responses generated at once.
    #[serde(default = "default_rollout_batch")]
    pub generation_batch_size: usize,
    /// Evaluation and checkpoints.
    #[serde(default)]
    pub cadence: Cadence,
}

fn half() -> f64 {
    0.5
}

fn unity() -> f64 {
    1.0
}

fn default_temperature() -> f64 {
    0.9
}

fn default_response_length() -> usize {
    128
}
