//! The recipe keys of the KL term and of the missing-EOS rule.

use serde::{Deserialize, Serialize};

/// The score of a response that does not end with EOS.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, Default)]
#[serde(deny_unknown_fields)]
pub enum MissingEos {
    /// The reward source's own score.
    #[default]
    Keep,
    /// This value (lm-human-preferences and N+: -1).
    Replace(f64),
    /// The source's score minus this penalty (TRL's `missing_eos_penalty`).
    Subtract(f64),
}

/// How the weight of the KL term changes over a run.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub enum KlControl {
    /// Not at all: always `kl_coef`.
    Fixed,
    /// Proportional controller on the KL per response (Ziegler et al. 2019, section 2.2).
    Adaptive {
        /// Target KL in nats per response.
        target: f64,
        /// Episodes over which a relative error of 1 doubles the weight; errors are clipped to 0.2.
        horizon: f64,
    },
}

/// Where the KL term enters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(deny_unknown_fields)]
pub enum KlIn {
    /// Subtracted from each token's reward, as a number (Ziegler et al. 2019, InstructGPT, TRL's PPO).
    #[default]
    Reward,
    /// Added to the policy loss, with its gradient (GRPO, arXiv:2402.03300; verl's `use_kl_loss`).
    Loss,
}

/// Estimator of the KL between policy and reference at a token, with `logr = logprob - ref_logprob`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
pub enum KlEstimator {
    /// `logr`.
    #[default]
    K1,
    /// `logr^2 / 2`.
    K2,
    /// `exp(-logr) - 1 + logr`.
    K3,
}
