//! The configuration of a Kto stage.

use crate::train::config::{KtoLoss, tenth};
use crate::train::preference::{preference_config, whole};

preference_config! {
    /// Kahneman-Tversky optimisation: the policy learns from single responses that are labelled as desirable or not.
    pub struct KtoConfig {
        /// Strength of the implicit KL constraint to the reference.
        #[serde(default = "tenth")]
        pub beta: f64,
        /// The loss.
        #[serde(default)]
        pub loss_type: KtoLoss,
        /// Weight of desirable responses.
        #[serde(default = "whole")]
        pub desirable_weight: f64,
        /// Weight of undesirable responses.
        #[serde(default = "whole")]
        pub undesirable_weight: f64,
        /// Compute the reference's log-probabilities before training, then free the reference.
        #[serde(default)]
        pub precompute_ref_log_probs: bool,
    }
}
