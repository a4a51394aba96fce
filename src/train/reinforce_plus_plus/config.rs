//! The configuration of a REINFORCE++ stage.

use crate::rl::{KlEstimator, KlIn};
use crate::train::group::{fifth, group_config, unit};

group_config! {
    /// REINFORCE++: returns of tokens with the KL term in their rewards, normalised over the whole update.
    pub struct ReinforcePlusPlusConfig {
        /// Responses to each prompt.
        #[serde(default = "crate::train::config::one")]
        pub num_generations: usize,
        /// Subtract the mean score of the prompt's responses (REINFORCE++-baseline); `num_generations` is then at least 2.
        #[serde(default)]
        pub baseline: bool,
        /// Coefficient of the KL to the initial policy.
        #[serde(default = "hundredth")]
        pub kl_coef: f64,
        /// Where the KL term enters: the reward without `baseline`, the loss with it, if absent.
        #[serde(default)]
        pub kl_in: Option<KlIn>,
        /// KL estimator: k1 in the reward, k2 in the loss, if absent.
        #[serde(default)]
        pub kl_estimator: Option<KlEstimator>,
        /// Discount per token.
        #[serde(default = "unit")]
        pub gamma: f64,
        /// How far the ratio may fall below 1, and rise above it without `epsilon_high`.
        #[serde(default = "fifth")]
        pub epsilon: f64,
        /// How far it may rise above 1.
        #[serde(default)]
        pub epsilon_high: Option<f64>,
    }
}

fn hundredth() -> f64 {
    0.01
}
