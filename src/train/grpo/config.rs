//! The configuration of a GRPO stage.

use serde::{Deserialize, Serialize};

use crate::rl::rollout::ScaleRewards;
use crate::train::group::{fifth, group_config};

/// How token losses are weighted; names as in TRL.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum GrpoLoss {
    /// Mean over responses of the mean over their tokens (arXiv:2402.03300, eq. 3): short responses weigh more per token.
    Grpo,
    /// Mean over the tokens of a rollout's average minibatch (arXiv:2503.14476, section 3.3).
    #[default]
    Dapo,
    /// Sum over tokens, divided by responses times `response_length` (Dr. GRPO, arXiv:2503.20783).
    DrGrpo,
    /// Mean over the tokens of each minibatch.
    Bnpo,
    /// As `dapo`, with the clipped ratio as a constant weight of every token's log-probability (arXiv:2506.13585, eq. 4).
    Cispo,
}

/// Level of the probability ratio; names as in TRL.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
pub enum ImportanceLevel {
    /// One ratio per token.
    #[default]
    Token,
    /// One ratio per response, the geometric mean of its tokens' (GSPO, arXiv:2507.18071).
    Sequence,
}

group_config! {
    /// Group relative policy optimisation.
    pub struct GrpoConfig {
        /// Responses to each prompt.
        #[serde(default = "eight")]
        pub num_generations: usize,
        /// Coefficient of the KL to the initial policy, in the loss by the estimator k3. With 0 there is no pass of the reference.
        #[serde(default)]
        pub kl_coef: f64,
        /// Multiply the KL term by the probability ratio, so that its gradient is that of `KL(policy || reference)`.
        #[serde(default = "crate::train::config::yes")]
        pub use_bias_correction_kl: bool,
        /// How token losses are weighted.
        #[serde(default)]
        pub loss_type: GrpoLoss,
        /// Level of the probability ratio.
        #[serde(default)]
        pub importance_sampling_level: ImportanceLevel,
        /// Scale of the advantages.
        #[serde(default)]
        pub scale_rewards: ScaleRewards,
        /// How far the ratio may fall below 1, and rise above it without `epsilon_high`.
        #[serde(default = "fifth")]
        pub epsilon: f64,
        /// How far the ratio may rise above 1 (DAPO: 0.28); for `cispo` the largest ratio itself (ScaleRL: 5).
        #[serde(default)]
        pub epsilon_high: Option<f64>,
        /// Largest ratio of a token with a negative advantage; no bound if absent.
        #[serde(default)]
        pub delta: Option<f64>,
    }
}

fn eight() -> usize {
    8
}
