//! The configuration of a RewardModel stage.

use serde::{Deserialize, Serialize};

use crate::train::config::{
    Cadence, DataConfig, Init, OptimConfig, Peft, RewardLoss, default_max_length,
    default_micro_tokens, one, yes,
};

/// Bradley-Terry reward model on comparisons.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RewardModelConfig {
    /// The stage's name, unique in the recipe.
    pub name: String,
    /// Where the backbone comes from.
    pub init: Init,
    /// Comparisons: preference rows, or `Stage("..")` for all pairs of a `Rank` stage.
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
