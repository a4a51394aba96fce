//! The configuration of a Dpo stage.

use crate::train::config::{DpoLosses, tenth};
use crate::train::preference::preference_config;

preference_config! {
    /// Direct preference optimisation: the policy learns from comparisons, without a reward model and without sampling.
    pub struct DpoConfig {
        /// Strength of the implicit KL constraint to the reference (IPO: its tau).
        #[serde(default = "tenth")]
        pub beta: f64,
        /// The loss, or a sum of losses: `[(sigmoid, 0.8), (sft, 0.2)]`.
        #[serde(default)]
        pub loss_type: DpoLosses,
        /// Weights of the losses, where `loss_type` lists them without.
        #[serde(default)]
        pub loss_weights: Option<Vec<f64>>,
        /// Assumed fraction of wrong labels; makes `sigmoid` conservative DPO.
        #[serde(default)]
        pub label_smoothing: f64,
        /// Temperature of `discopop`'s blend of logistic and exponential loss; 0.05 if absent.
        #[serde(default)]
        pub discopop_tau: Option<f64>,
        /// Compute the reference's log-probabilities of all comparisons before training, then free the reference.
        #[serde(default)]
        pub precompute_ref_log_probs: bool,
    }
}

impl DpoConfig {
    /// The losses with their weights.
    pub(super) fn losses(&self) -> DpoLosses {
        match &self.loss_weights {
            Some(weights) => self.loss_type.with_weights(weights),
            None => self.loss_type.clone(),
        }
    }
}
