//! The recipe keys that group methods share.

use serde::{Deserialize, Serialize};

use crate::reward::RewardConfig;
use crate::train::config::{
    AlarmsConfig, Cadence, DataConfig, Init, MissingEos, OptimConfig, Peft, Truncate,
};

/// A penalty on responses that come close to the length limit: 0 up to `response_length - cache` tokens, from there it grows linearly
/// to `penalty` at `response_length`.
///
/// # Source
/// Yu et al. 2025, arXiv:2503.14476, eq. 13 (DAPO, soft overlong punishment).
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Overlong {
    /// Tokens before the limit over which the penalty grows.
    pub cache: usize,
    /// Penalty of a response of full length; it is subtracted from the score.
    #[serde(default = "unit")]
    pub penalty: f64,
}

impl Overlong {
    /// The penalty of a response of `len` tokens where at most `response_length` are generated.
    pub fn of(&self, len: usize, response_length: usize) -> f64 {
        let free = response_length.saturating_sub(self.cache);
        let over = len.saturating_sub(free).min(self.cache);
        self.penalty * over as f64 / self.cache.max(1) as f64
    }
}

/// Draws further prompts in place of groups whose responses have equal rewards: these would not train the policy.
///
/// # Source
/// Yu et al. 2025, arXiv:2503.14476, section 3.2 (DAPO, dynamic sampling).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DynamicSampling {
    /// Rounds of generation of an update at most; what is missing then is filled with the last groups of equal rewards.
    #[serde(default = "three")]
    pub max_rounds: usize,
}

/// The keys of a group method's configuration that are common to all of them.
#[derive(Debug, Clone, Copy)]
pub struct GroupKeys<'a> {
    /// The stage's name.
    pub name: &'a str,
    /// The initial policy.
    pub init: &'a Init,
    /// Prompts.
    pub data: &'a DataConfig,
    /// Held-out prompts.
    pub eval_data: Option<&'a DataConfig>,
    /// The reward source that is maximised.
    pub reward: &'a RewardConfig,
    /// A source that is reported only.
    pub gold: Option<&'a RewardConfig>,
    /// Which weights are trained.
    pub peft: &'a Peft,
    /// The optimiser.
    pub optim: &'a OptimConfig,
    /// Responses generated in the whole stage.
    pub total_episodes: usize,
    /// Responses per update.
    pub batch_size: usize,
    /// Responses to each prompt.
    pub num_generations: usize,
    /// Minibatches per pass over a rollout.
    pub num_mini_batches: usize,
    /// Passes over each rollout.
    pub num_iterations: usize,
    /// Tokens per forward pass at most.
    pub micro_batch_tokens: usize,
    /// Whether the backward pass recomputes layers.
    pub gradient_checkpointing: bool,
    /// Responses generated at once.
    pub generation_batch_size: usize,
    /// Most tokens of a response.
    pub response_length: usize,
    /// Longest prompt in tokens.
    pub max_prompt_length: usize,
    /// Temperature of all log-probabilities.
    pub temperature: f64,
    /// A further token that ends a response.
    pub truncate: Option<&'a Truncate>,
    /// Coefficient of the KL to the initial policy.
    pub kl_coef: f64,
    /// Rule for scores of responses without EOS.
    pub missing_eos: MissingEos,
    /// Whether responses without EOS are left out of the loss.
    pub mask_truncated_completions: bool,
    /// Penalty on long responses.
    pub overlong: Option<Overlong>,
    /// Whether groups of equal rewards are drawn again.
    pub dynamic_sampling: Option<DynamicSampling>,
    /// Decay of the moving average of the policy's weights.
    pub ema_decay: Option<f64>,
    /// Limits of its alarms.
    pub alarms: &'a AlarmsConfig,
    /// Evaluation and checkpoints.
    pub cadence: &'a Cadence,
}

/// Defines the configuration of a group method: the keys common to all of them, then its own. Its own include `num_generations` and
/// `kl_coef`, whose defaults differ.
macro_rules! group_config {
    (
        $(#[$about:meta])*
        pub struct $name:ident { $($(#[$own_about:meta])* pub $own:ident: $own_type:ty,)* }
    ) => {
        $(#[$about])*
        #[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
        #[serde(deny_unknown_fields)]
        pub struct $name {
            /// The stage's name, unique in the recipe.
            pub name: String,
            /// The initial policy, which is also the reference, if there is a KL term.
            pub init: $crate::train::config::Init,
            /// Prompts.
            pub data: $crate::train::config::DataConfig,
            /// Held-out prompts for evaluation.
            #[serde(default)]
            pub eval_data: Option<$crate::train::config::DataConfig>,
            /// The reward source that is maximised; several with weights are a `Sum`.
            pub reward: $crate::reward::RewardConfig,
            /// A second source that is reported but not trained on; it reveals reward hacking.
            #[serde(default)]
            pub gold: Option<$crate::reward::RewardConfig>,
            /// Which weights are trained.
            #[serde(default)]
            pub peft: $crate::train::config::Peft,
            /// The optimiser.
            #[serde(default)]
            pub optim: $crate::train::config::OptimConfig,
            /// Responses generated in the whole stage; those that dynamic sampling discards are not counted.
            pub total_episodes: usize,
            /// Responses per update: a multiple of `num_generations`.
            pub batch_size: usize,
            /// Minibatches per pass over a rollout; must divide `batch_size`.
            #[serde(default = "crate::train::config::one")]
            pub num_mini_batches: usize,
            /// Passes over each rollout.
            #[serde(default = "crate::train::config::one")]
            pub num_iterations: usize,
            /// Tokens per forward pass at most.
            #[serde(default = "crate::train::config::default_micro_tokens")]
            pub micro_batch_tokens: usize,
            /// Recompute layers in the backward pass instead of storing their activations: less memory, more time.
            #[serde(default)]
            pub gradient_checkpointing: bool,
            /// Responses generated at once.
            #[serde(default = "crate::train::config::default_rollout_batch")]
            pub generation_batch_size: usize,
            /// Most tokens of a response.
            pub response_length: usize,
            /// Longest prompt in tokens; longer rows are counted and dropped.
            #[serde(default = "crate::train::config::default_max_length")]
            pub max_prompt_length: usize,
            /// Sampling temperature; every log-probability of the stage is taken at this temperature.
            #[serde(default = "crate::train::group::unit")]
            pub temperature: f64,
            /// A further token that ends a response.
            #[serde(default)]
            pub truncate: Option<$crate::train::config::Truncate>,
            /// Rule for scores of responses without EOS.
            #[serde(default)]
            pub missing_eos: $crate::train::config::MissingEos,
            /// Leave responses without EOS out of the loss; their scores still count in their group.
            #[serde(default)]
            pub mask_truncated_completions: bool,
            /// Penalty on responses close to the length limit.
            #[serde(default)]
            pub overlong: Option<$crate::train::group::Overlong>,
            /// Draw further prompts in place of groups of equal rewards.
            #[serde(default)]
            pub dynamic_sampling: Option<$crate::train::group::DynamicSampling>,
            /// Decay per update of an exponential moving average of the policy's weights. The average is evaluated and saved; the
            /// policy itself generates the responses.
            #[serde(default)]
            pub ema_decay: Option<f64>,
            /// Limits beyond which the run says that something goes wrong, or stops.
            #[serde(default)]
            pub alarms: $crate::train::config::AlarmsConfig,
            /// Evaluation and checkpoints, counted in updates.
            #[serde(default)]
            pub cadence: $crate::train::config::Cadence,
            $($(#[$own_about])* pub $own: $own_type,)*
        }

        impl $name {
            pub(in crate::train) fn group_keys(&self) -> $crate::train::group::GroupKeys<'_> {
                $crate::train::group::GroupKeys {
                    name: &self.name,
                    init: &self.init,
                    data: &self.data,
                    eval_data: self.eval_data.as_ref(),
                    reward: &self.reward,
                    gold: self.gold.as_ref(),
                    peft: &self.peft,
                    optim: &self.optim,
                    total_episodes: self.total_episodes,
                    batch_size: self.batch_size,
                    num_generations: self.num_generations,
                    num_mini_batches: self.num_mini_batches,
                    num_iterations: self.num_iterations,
                    micro_batch_tokens: self.micro_batch_tokens,
                    gradient_checkpointing: self.gradient_checkpointing,
                    generation_batch_size: self.generation_batch_size,
                    response_length: self.response_length,
                    max_prompt_length: self.max_prompt_length,
                    temperature: self.temperature,
                    truncate: self.truncate.as_ref(),
                    kl_coef: self.kl_coef,
                    missing_eos: self.missing_eos,
                    mask_truncated_completions: self.mask_truncated_completions,
                    overlong: self.overlong,
                    dynamic_sampling: self.dynamic_sampling,
                    ema_decay: self.ema_decay,
                    alarms: &self.alarms,
                    cadence: &self.cadence,
                }
            }

            pub(in crate::train) fn group_data(&mut self) -> Vec<&mut $crate::train::config::DataConfig> {
                std::iter::once(&mut self.data).chain(&mut self.eval_data).collect()
            }
        }
    };
}
pub(in crate::train) use group_config;

pub(in crate::train) fn unit() -> f64 {
    1.0
}

pub(in crate::train) fn fifth() -> f64 {
    0.2
}

fn three() -> usize {
    3
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_overlong_penalty_grows_linearly_to_the_limit() {
        // At most 10 tokens, a cache of 4: 6 are free, 8 cost half, 10 all of it.
        let overlong = Overlong {
            cache: 4,
            penalty: 2.0,
        };
        let penalties = [1, 6, 7, 8, 10].map(|len| overlong.of(len, 10));
        assert_eq!(penalties, [0.0, 0.0, 0.5, 1.0, 2.0]);
    }
}
