//! What a recipe may say of each stage. Plain values: nothing here loads, allocates or checks.
//!
//! Keys take TRL's names where TRL has one. Lengths are in tokens unless a key says characters.

mod ppo;

pub use ppo::{PpoConfig, PtxConfig, ValueInit, ValueTrunk};

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

pub use crate::data::DataConfig;
use crate::reward::RewardConfig;

pub use crate::generate::{SamplingConfig, Truncate};
pub use crate::loss::{DpoLoss, RewardLoss};
pub use crate::optim::{OptimConfig, Schedule};
pub use crate::peft::LoraConfig;
pub use crate::rl::{KlControl, KlEstimator, KlIn, MissingEos};

/// Where a stage's model comes from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, Default)]
#[serde(deny_unknown_fields)]
pub enum Init {
    /// The recipe's `model`.
    #[default]
    Base,
    /// The result of an earlier stage, by name.
    Stage(String),
    /// A model's folder (or weight file) in the layout of transformers, or an adapter's in PEFT's, whose base is the one it names.
    Folder(PathBuf),
    /// Fresh random weights from a `config.json`, with the tokenizer files beside it.
    Random(PathBuf),
}

/// Which weights are trained.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, Default)]
#[serde(deny_unknown_fields)]
pub enum Peft {
    /// Every parameter of the model.
    #[default]
    Full,
    /// Low-rank adapters on a frozen base.
    Lora(LoraConfig),
}

/// What happens every so many optimiser steps.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Cadence {
    /// Steps between evaluations (`None`: only before the first and after the last step).
    pub eval_steps: Option<usize>,
    /// Steps between checkpoints (`None`: none but at Ctrl-C).
    pub save_steps: Option<usize>,
    /// Checkpoints kept, the newest ones.
    pub save_total_limit: usize,
    /// Samples generated at each evaluation.
    pub num_samples: usize,
}

impl Default for Cadence {
    fn default() -> Self {
        Self {
            eval_steps: None,
            save_steps: None,
            save_total_limit: 2,
            num_samples: 4,
        }
    }
}

/// Plain language modelling on text.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PretrainConfig {
    /// The stage's name, unique in the recipe.
    pub name: String,
    /// Where the model comes from.
    #[serde(default)]
    pub init: Init,
    /// Training text.
    pub data: DataConfig,
    /// Held-out text.
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
    /// Rows per optimiser step.
    pub batch_size: usize,
    /// A new order of the rows in each epoch; without it always the order of the data.
    #[serde(default = "yes")]
    pub shuffle: bool,
    /// Tokens per forward pass at most; a step is split into as many passes as needed.
    #[serde(default = "default_micro_tokens")]
    pub micro_batch_tokens: usize,
    /// Keep only the states between layers and compute the rest again in the backward pass: less memory, more time.
    #[serde(default)]
    pub gradient_checkpointing: bool,
    /// Longer rows are cut.
    #[serde(default = "default_max_length")]
    pub max_length: usize,
    /// Evaluation and checkpoints.
    #[serde(default)]
    pub cadence: Cadence,
}

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
    /// Rows per optimiser step.
    pub batch_size: usize,
    /// A new order of the rows in each epoch; without it always the order of the data.
    #[serde(default = "yes")]
    pub shuffle: bool,
    /// Tokens per forward pass at most; a step is split into as many passes as needed.
    #[serde(default = "default_micro_tokens")]
    pub micro_batch_tokens: usize,
    /// Keep only the states between layers and compute the rest again in the backward pass: less memory, more time.
    #[serde(default)]
    pub gradient_checkpointing: bool,
    /// Longer rows are cut; a row whose completion is cut away is counted and dropped.
    #[serde(default = "default_max_length")]
    pub max_length: usize,
    /// Train on completions only (the default) or on prompts too.
    #[serde(default = "yes")]
    pub completion_only_loss: bool,
    /// Evaluation and checkpoints.
    #[serde(default)]
    pub cadence: Cadence,
}

/// Samples K responses per prompt and ranks them by a reward source: comparisons without people.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RankConfig {
    /// The stage's name, unique in the recipe.
    pub name: String,
    /// The model that answers.
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
    /// How responses are drawn.
    #[serde(default)]
    pub sampling: SamplingConfig,
    /// A token that ends a response beside EOS.
    #[serde(default)]
    pub truncate: Option<Truncate>,
    /// Who ranks.
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

/// Bradley-Terry reward model on comparisons.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RewardModelConfig {
    /// The stage's name, unique in the recipe.
    pub name: String,
    /// Where the backbone comes from.
    pub init: Init,
    /// Comparisons: preference rows, or `Ranked(stage: "..")` for all pairs of a `Rank` stage.
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
    /// Prompts (with all their comparisons) per optimiser step.
    pub batch_size: usize,
    /// A new order of the rows in each epoch; without it always the order of the data.
    #[serde(default = "yes")]
    pub shuffle: bool,
    /// Tokens per forward pass at most; a prompt's responses are never split.
    #[serde(default = "default_micro_tokens")]
    pub micro_batch_tokens: usize,
    /// Keep only the states between layers and compute the rest again in the backward pass: less memory, more time.
    #[serde(default)]
    pub gradient_checkpointing: bool,
    /// Rows with more tokens are counted and dropped.
    #[serde(default = "default_max_length")]
    pub max_length: usize,
    /// What is minimised.
    #[serde(default)]
    pub loss_type: RewardLoss,
    /// Subtract the row's `margin` inside the loss (Llama 2, arXiv:2307.09288, eq. 2).
    #[serde(default)]
    pub use_margin: bool,
    /// After training shift scores so that the mean over these SFT responses is zero: prompts with completions.
    #[serde(default)]
    pub center_on: Option<DataConfig>,
    /// Divide scores by their standard deviation over these responses, before training and after (lm-human-preferences).
    #[serde(default)]
    pub standardize: bool,
    /// Columns of the held-out comparisons by whose values accuracy is told apart, e.g. the annotators' confidence; a
    /// dot goes into an object.
    #[serde(default)]
    pub accuracy_by: Vec<String>,
    /// Evaluation and checkpoints.
    #[serde(default)]
    pub cadence: Cadence,
}

/// Direct preference optimisation: the policy learns from comparisons, without a reward model and without sampling.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DpoConfig {
    /// The stage's name, unique in the recipe.
    pub name: String,
    /// The initial policy, which is also the reference.
    pub init: Init,
    /// Comparisons: preference rows, or `Ranked(stage: "..")` for all pairs of a `Rank` stage.
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
    /// Prompts (with all their comparisons) per optimiser step.
    pub batch_size: usize,
    /// A new order of the rows in each epoch; without it always the order of the data.
    #[serde(default = "yes")]
    pub shuffle: bool,
    /// Tokens per forward pass at most; a prompt's responses are never split.
    #[serde(default = "default_micro_tokens")]
    pub micro_batch_tokens: usize,
    /// Keep only the states between layers and compute the rest again in the backward pass: less memory, more time.
    #[serde(default)]
    pub gradient_checkpointing: bool,
    /// Rows with more tokens are counted and dropped.
    #[serde(default = "default_max_length")]
    pub max_length: usize,
    /// How strongly the policy is held to the reference (IPO: its tau).
    #[serde(default = "tenth")]
    pub beta: f64,
    /// What is minimised.
    #[serde(default)]
    pub loss_type: DpoLoss,
    /// Assumed fraction of comparisons whose label is wrong; `sigmoid` becomes conservative DPO by it.
    #[serde(default)]
    pub label_smoothing: f64,
    /// Take the reference's log-probabilities of all comparisons before training, and free the reference.
    #[serde(default)]
    pub precompute_ref_log_probs: bool,
    /// Evaluation and checkpoints.
    #[serde(default)]
    pub cadence: Cadence,
}

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
    /// How responses are drawn.
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

fn one() -> usize {
    1
}
fn four() -> usize {
    4
}
fn tenth() -> f64 {
    0.1
}
fn yes() -> bool {
    true
}
fn default_micro_tokens() -> usize {
    2048
}
fn default_max_length() -> usize {
    512
}
fn default_rollout_batch() -> usize {
    32
}
