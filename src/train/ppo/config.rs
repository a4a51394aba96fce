//! The configuration of a PPO stage.

use crate::reward::RewardConfig;
use serde::{Deserialize, Serialize};

use crate::train::config::{
    AlarmsConfig, Cadence, DataConfig, Init, KlControl, KlEstimator, KlIn, MissingEos, OptimConfig,
    Peft, Truncate, default_max_length, default_micro_tokens, default_rollout_batch, four, one,
    tenth, yes,
};

/// Initial weights of the value network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(deny_unknown_fields)]
pub enum ValueInit {
    /// The reward model's, if the reward source has one; else the policy's.
    #[default]
    Reward,
    /// Those of this reward model (a stage or a folder), one of several in the reward source.
    Learned(String),
    /// The policy's, with a zero head.
    Policy,
}

/// The backbone of the value function.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(deny_unknown_fields)]
pub enum ValueTrunk {
    /// A separate network.
    #[default]
    Own,
    /// The policy: a head on its states that starts at zero and is trained with it by its optimiser. An update takes about 0.6 of
    /// the time.
    Policy,
}

/// Pre-training text mixed into the updates: InstructGPT's PPO-ptx.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PtxConfig {
    /// Text rows.
    pub data: DataConfig,
    /// Coefficient of their cross-entropy (nats per token).
    #[serde(default = "default_ptx_coef")]
    pub coef: f64,
    /// Rows per optimiser step.
    pub batch_size: usize,
    /// Longer rows are truncated.
    #[serde(default = "default_max_length")]
    pub max_length: usize,
}

/// Proximal policy optimisation against a reward source, with a KL penalty to the initial policy.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PpoConfig {
    /// The stage's name, unique in the recipe.
    pub name: String,
    /// The initial policy.
    pub init: Init,
    /// The policy that the KL is measured from; the initial one if absent. Rounds that go on from each other's policy name the first
    /// one here.
    #[serde(default)]
    pub reference: Option<Init>,
    /// Prompts.
    pub data: DataConfig,
    /// Held-out prompts for evaluation.
    #[serde(default)]
    pub eval_data: Option<DataConfig>,
    /// The reward source that is maximised.
    pub reward: RewardConfig,
    /// A second source that is reported but not trained on; it reveals reward hacking.
    #[serde(default)]
    pub gold: Option<RewardConfig>,
    /// Which weights of policy and value network are trained.
    #[serde(default)]
    pub peft: Peft,
    /// Policy optimiser.
    #[serde(default)]
    pub optim: OptimConfig,
    /// Optimiser of a separate value network; that of the policy if absent.
    #[serde(default)]
    pub value_optim: Option<OptimConfig>,
    /// The backbone of the value function.
    #[serde(default)]
    pub value_trunk: ValueTrunk,
    /// Method of a separate value network, on the policy's frozen weights; `peft` if absent.
    #[serde(default)]
    pub value_peft: Option<Peft>,
    /// Initial weights of a separate value network. If absent, those of the reward model where that is the whole source, else those of
    /// the policy.
    #[serde(default)]
    pub value_init: Option<ValueInit>,
    /// Responses generated in the whole stage.
    pub total_episodes: usize,
    /// Responses per update.
    pub batch_size: usize,
    /// Minibatches per epoch; must divide `batch_size`.
    #[serde(default = "one")]
    pub num_mini_batches: usize,
    /// Passes over each rollout.
    #[serde(default = "four")]
    pub num_ppo_epochs: usize,
    /// Tokens per forward pass at most.
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
    /// Sampling temperature; every log-probability of the stage is taken at this temperature.
    #[serde(default = "default_temperature")]
    pub temperature: f64,
    /// A further token that ends a response.
    #[serde(default)]
    pub truncate: Option<Truncate>,
    /// Initial KL coefficient.
    #[serde(default = "default_kl_coef")]
    pub kl_coef: f64,
    /// Fixed or adaptive KL coefficient.
    #[serde(default = "fixed")]
    pub kl_control: KlControl,
    /// KL estimator.
    #[serde(default)]
    pub kl_estimator: KlEstimator,
    /// Where the KL term enters.
    #[serde(default)]
    pub kl_in: KlIn,
    /// Policy ratio clip.
    #[serde(default = "fifth")]
    pub cliprange: f64,
    /// Value clip.
    #[serde(default = "fifth")]
    pub cliprange_value: f64,
    /// Coefficient of the value loss.
    #[serde(default = "tenth")]
    pub vf_coef: f64,
    /// Discount per token.
    #[serde(default = "unit")]
    pub gamma: f64,
    /// GAE decay.
    #[serde(default = "default_lam")]
    pub lam: f64,
    /// Divide rewards by their standard deviation over the rollout.
    #[serde(default)]
    pub whiten_rewards: bool,
    /// Shift and scale advantages to mean 0 and variance 1 over the rollout.
    #[serde(default = "yes")]
    pub whiten_advantages: bool,
    /// Rule for scores of responses without EOS.
    #[serde(default)]
    pub missing_eos: MissingEos,
    /// Pre-training text mixed into the policy's updates.
    #[serde(default)]
    pub ptx: Option<PtxConfig>,
    /// Decay per update of an exponential moving average of the policy's weights. The average is evaluated and saved; the policy
    /// itself generates the responses.
    #[serde(default)]
    pub ema_decay: Option<f64>,
    /// Limits beyond which the run says that something goes wrong, or stops.
    #[serde(default)]
    pub alarms: AlarmsConfig,
    /// Evaluation and checkpoints, counted in PPO updates.
    #[serde(default)]
    pub cadence: Cadence,
}

fn unit() -> f64 {
    1.0
}

fn fifth() -> f64 {
    0.2
}

fn fixed() -> KlControl {
    KlControl::Fixed
}

fn default_temperature() -> f64 {
    0.7
}

fn default_kl_coef() -> f64 {
    0.05
}

fn default_ptx_coef() -> f64 {
    27.8
}

fn default_lam() -> f64 {
    0.95
}
