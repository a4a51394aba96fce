//! The configuration of an RLOO stage.

use crate::train::group::{fifth, group_config};

group_config! {
    /// REINFORCE leave-one-out: the baseline of a response is the mean reward of the others to its prompt.
    pub struct RlooConfig {
        /// Responses to each prompt.
        #[serde(default = "two")]
        pub num_generations: usize,
        /// Coefficient of the KL to the initial policy (k1, summed over the response), in the reward.
        #[serde(default = "twentieth")]
        pub kl_coef: f64,
        /// How far the ratio of a response may fall below 1, and rise above it without `epsilon_high`.
        #[serde(default = "fifth")]
        pub epsilon: f64,
        /// How far it may rise above 1.
        #[serde(default)]
        pub epsilon_high: Option<f64>,
        /// Shift and scale advantages to mean 0 and deviation 1 over the update's responses.
        #[serde(default)]
        pub normalize_advantages: bool,
        /// Scores are cut to this range, before the KL term.
        #[serde(default)]
        pub reward_clip_range: Option<(f64, f64)>,
    }
}

fn two() -> usize {
    2
}

fn twentieth() -> f64 {
    0.05
}
