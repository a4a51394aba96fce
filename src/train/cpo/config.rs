//! The configuration of a Cpo stage.

use crate::train::config::{CpoLoss, tenth};
use crate::train::preference::{preference_config, whole};

preference_config! {
    /// Contrastive preference optimisation and SimPO: the policy learns from comparisons without a reference.
    pub struct CpoConfig {
        /// Scale of the implicit rewards (`ipo`: its tau).
        #[serde(default = "tenth")]
        pub beta: f64,
        /// The loss.
        #[serde(default)]
        pub loss_type: CpoLoss,
        /// Assumed fraction of wrong labels.
        #[serde(default)]
        pub label_smoothing: f64,
        /// Weight of the cross-entropy of chosen responses.
        #[serde(default = "whole")]
        pub cpo_alpha: f64,
        /// Margin that `simpo` asks for; 0.5 if absent.
        #[serde(default)]
        pub simpo_gamma: Option<f64>,
        /// Shape of AlphaPO's reward `(1 - p^-alpha) / alpha`; at 0 the reward is the log-probability.
        #[serde(default)]
        pub alpha: f64,
    }
}
