//! The configuration of an Sft stage.

use serde::{Deserialize, Serialize};

use crate::reward::RewardConfig;
use crate::train::config::{
    Cadence, DataConfig, Init, OptimConfig, Peft, SamplingConfig, default_max_length,
    default_micro_tokens, default_rollout_batch, one, yes,
};

/// Supervised fine-tuning on prompt and completion.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SftConfig {
    /// The stage's name, unique in the recipe.
    pub name: String,
    /// Where the model comes from.
    #[serde(default)]
    pub init: Init,
    /// Prompts with completions.
    pub data: DataConfig,
    /// Held-out prompts with completions.
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
    /// Longer rows are truncated; a row that loses its whole completion is counted and dropped.
    #[serde(default = "default_max_length")]
    pub max_length: usize,
    /// Train on completions only, not on prompts.
    #[serde(default = "yes")]
    pub completion_only_loss: bool,
    /// Residual dropout in training: the probability with which an entry of what attention or MLP adds to the states is dropped.
    /// InstructGPT's is 0.2 (arXiv:2203.02155, appendix C.1).
    #[serde(default)]
    pub dropout: f64,
    /// A reward source for responses to held-out prompts, at each evaluation: `eval/reward`.
    #[serde(default)]
    pub eval_reward: Option<EvalReward>,
    /// Evaluation and checkpoints.
    #[serde(default)]
    pub cadence: Cadence,
}

/// How held-out responses are generated and scored.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EvalReward {
    /// The reward source.
    pub reward: RewardConfig,
    /// Most tokens of a response. Prompts longer than what is left of `max_length` are counted and left out.
    pub response_length: usize,
    /// Prompts, the first ones of `eval_data`.
    #[serde(default = "default_num_prompts")]
    pub num_prompts: usize,
    /// How responses are generated; greedily if absent.
    #[serde(default)]
    pub sampling: Option<SamplingConfig>,
    /// Responses generated at once.
    #[serde(default = "default_rollout_batch")]
    pub generation_batch_size: usize,
}

fn default_num_prompts() -> usize {
    64
}
