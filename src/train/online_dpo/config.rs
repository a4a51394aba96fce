//! The configuration of an OnlineDpo stage.

use serde::{Deserialize, Serialize};

use crate::loss::DpoLoss;
use crate::reward::RewardConfig;
use crate::train::config::{
    AlarmsConfig, Cadence, DataConfig, Init, MissingEos, OptimConfig, Peft, Truncate,
    default_max_length, default_micro_tokens, default_rollout_batch, tenth,
};

/// Loss of a pair; the names are TRL's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum OnlineDpoLoss {
    /// `-log sigmoid(beta * margin)`.
    #[default]
    Sigmoid,
    /// `(margin - 1 / (2 beta))^2`; log ratios are summed over tokens, not averaged as in Dpo.
    Ipo,
}

impl From<OnlineDpoLoss> for DpoLoss {
    fn from(loss: OnlineDpoLoss) -> Self {
        match loss {
            OnlineDpoLoss::Sigmoid => Self::Sigmoid,
            OnlineDpoLoss::Ipo => Self::Ipo,
        }
    }
}

/// Direct preference optimisation on responses of the policy itself, compared by a reward source.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OnlineDpoConfig {
    /// The stage's name, unique in the recipe.
    pub name: String,
    /// The initial policy, which is also the reference.
    pub init: Init,
    /// Prompts.
    pub data: DataConfig,
    /// Held-out prompts for evaluation.
    #[serde(default)]
    pub eval_data: Option<DataConfig>,
    /// The reward source that compares.
    pub reward: RewardConfig,
    /// A second source that is reported but not trained on; it reveals reward hacking.
    #[serde(default)]
    pub gold: Option<RewardConfig>,
    /// Which weights are trained.
    #[serde(default)]
    pub peft: Peft,
    /// Optimiser.
    #[serde(default)]
    pub optim: OptimConfig,
    /// Responses generated in the whole stage.
    pub total_episodes: usize,
    /// Responses per update; a multiple of `num_generations`.
    pub batch_size: usize,
    /// Responses to each prompt, of which the best and the worst are compared.
    #[serde(default = "two")]
    pub num_generations: usize,
    /// Tokens per forward pass at most; a prompt's pair is never split.
    #[serde(default = "default_micro_tokens")]
    pub micro_batch_tokens: usize,
    /// Recompute layers in the backward pass instead of storing their activations: less memory, more time.
    #[serde(default)]
    pub gradient_checkpointing: bool,
    /// Responses generated at once.
    #[serde(default = "default_rollout_batch")]
    pub generation_batch_size: usize,
    /// Most tokens of a response.
    pub response_length: usize,
    /// Longest prompt in tokens; longer rows are counted and dropped.
    #[serde(default = "default_max_length")]
    pub max_prompt_length: usize,
    /// Sampling temperature. The loss takes log-probabilities at temperature 1.
    #[serde(default = "default_temperature")]
    pub temperature: f64,
    /// A further token that ends a response.
    #[serde(default)]
    pub truncate: Option<Truncate>,
    /// Rule for scores of responses without EOS.
    #[serde(default)]
    pub missing_eos: MissingEos,
    /// Strength of the implicit KL constraint to the reference (IPO's tau).
    #[serde(default = "tenth")]
    pub beta: f64,
    /// The loss.
    #[serde(default)]
    pub loss_type: OnlineDpoLoss,
    /// Limits beyond which the run says that something goes wrong, or stops.
    #[serde(default)]
    pub alarms: AlarmsConfig,
    /// Evaluation and checkpoints, counted in updates.
    #[serde(default)]
    pub cadence: Cadence,
}

fn two() -> usize {
    2
}

fn default_temperature() -> f64 {
    0.9
}
