//! The configuration of a Hir stage.

use serde::{Deserialize, Serialize};

use crate::loss::InstructionContrast;
use crate::reward::RewardConfig;
use crate::train::config::{
    Cadence, DataConfig, Init, OptimConfig, Peft, default_max_length, default_micro_tokens,
    default_rollout_batch, four,
};

/// Hindsight instruction relabelling: what the policy wrote is learned under the instruction that it fits.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HirConfig {
    /// The stage's name, unique in the recipe.
    pub name: String,
    /// The initial policy.
    pub init: Init,
    /// Prompts.
    pub data: DataConfig,
    /// Held-out prompts.
    #[serde(default)]
    pub eval_data: Option<DataConfig>,
    /// The reward source that says whether a response fits the instruction.
    pub reward: RewardConfig,
    /// A response with a score above this fits.
    #[serde(default = "half")]
    pub threshold: f64,
    /// The two instructions.
    #[serde(default)]
    pub instructions: Instructions,
    /// Rounds of sampling and training.
    pub iterations: usize,
    /// Prompts of a round.
    pub prompts_per_iteration: usize,
    /// Responses per prompt.
    #[serde(default = "four")]
    pub num_responses: usize,
    /// Places in each response, evenly spread, from which on the rest is relabelled by its own score, too; 0 for whole responses alone.
    #[serde(default)]
    pub sub_outputs: usize,
    /// Passes over the relabelled responses of a round.
    #[serde(default = "ten")]
    pub epochs: usize,
    /// Responses per optimiser step.
    pub batch_size: usize,
    /// Share of each label that is spread over all labels.
    #[serde(default = "fifth")]
    pub label_smoothing: f64,
    /// Weight of the contrast between the two instructions.
    #[serde(default = "one")]
    pub contrastive_coef: f64,
    /// What the contrast compares.
    #[serde(default)]
    pub contrast: InstructionContrast,
    /// Weight of the entropy bonus.
    #[serde(default = "thousandth")]
    pub entropy_coef: f64,
    /// Sampling temperature.
    #[serde(default = "one")]
    pub temperature: f64,
    /// Most tokens of a response.
    pub response_length: usize,
    /// Longest prompt in tokens, without instruction; longer rows are counted and dropped.
    #[serde(default = "default_max_length")]
    pub max_prompt_length: usize,
    /// Which weights are trained.
    #[serde(default)]
    pub peft: Peft,
    /// Optimiser; its schedule moves by rounds.
    #[serde(default)]
    pub optim: OptimConfig,
    /// Tokens per forward pass at most; a response is there twice, once under each instruction.
    #[serde(default = "default_micro_tokens")]
    pub micro_batch_tokens: usize,
    /// Recompute layers in the backward pass instead of storing their activations: less memory, more time.
    #[serde(default)]
    pub gradient_checkpointing: bool,
    /// Responses generated at once.
    #[serde(default = "default_rollout_batch")]
    pub generation_batch_size: usize,
    /// Evaluation and checkpoints, in rounds.
    #[serde(default)]
    pub cadence: Cadence,
}

/// The instruction under which responses are generated, and the one of those that do not fit it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Instructions {
    /// Of responses that fit.
    pub correct: String,
    /// Of the others.
    pub wrong: String,
}

impl Default for Instructions {
    fn default() -> Self {
        Self {
            correct: "Generate a correct answer to this problem.".into(),
            wrong: "Generate a wrong answer to this problem.".into(),
        }
    }
}

fn half() -> f64 {
    0.5
}
fn ten() -> usize {
    10
}
fn fifth() -> f64 {
    0.2
}
fn one() -> f64 {
    1.0
}
fn thousandth() -> f64 {
    0.001
}
