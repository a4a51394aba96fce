//! KL between policy and reference, per token, and the controllers of its coefficient.

use serde::{Deserialize, Serialize};

use super::{KlControl, KlEstimator, KlIn};

/// Largest `|logr|` that [`KlEstimator::K3`] exponentiates, so that one outlier does not make the whole batch infinite.
pub(crate) const MAX_LOG_RATIO: f64 = 20.0;

/// Estimates `KL(policy || ref)` at each sampled token, in nats, from `logr = logprob - ref_logprob`.
///
/// | estimator | formula | |
/// |---|---|---|
/// | `K1` | `logr` | unbiased, may be negative at a token |
/// | `K2` | `logr^2 / 2` | biased, never negative |
/// | `K3` | `exp(-logr) - 1 + logr` | unbiased, never negative; `logr` is cut to ±20 |
///
/// These numbers enter the *reward* ([`super::token_rewards`]), where no gradient flows through them;
/// [`crate::loss::kl_loss`] is the term in the loss.
///
/// # Shapes
/// - `logprobs`, `ref_logprobs`: `[response tokens]`
/// - returns: `[response tokens]`
///
/// # Panics
/// If the lengths differ.
///
/// # Source
/// Schulman 2020, "Approximating KL divergence".
pub fn kl_per_token(estimator: KlEstimator, logprobs: &[f32], ref_logprobs: &[f32]) -> Vec<f32> {
    assert_eq!(logprobs.len(), ref_logprobs.len(), "response tokens");
    (logprobs.iter().zip(ref_logprobs))
        .map(|(&logprob, &ref_logprob)| {
            let logr = f64::from(logprob) - f64::from(ref_logprob);
            let kl = match estimator {
                KlEstimator::K1 => logr,
                KlEstimator::K2 => 0.5 * logr * logr,
                KlEstimator::K3 => {
                    let logr = logr.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO);
                    (-logr).exp_m1() + logr
                }
            };
            kl as f32
        })
        .collect()
}

/// The KL term of a rollout: its coefficient, its estimator, and where it enters.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct KlTerm {
    /// Coefficient in this rollout.
    pub coef: f64,
    /// Estimator at each token.
    pub estimator: KlEstimator,
    /// Reward or loss.
    pub place: KlIn,
}

impl KlTerm {
    /// Coefficient in the rewards: 0 if the term is in the loss.
    pub fn reward_coef(&self) -> f64 {
        match self.place {
            KlIn::Reward => self.coef,
            KlIn::Loss => 0.0,
        }
    }

    /// Coefficient in the loss; `None` if the term is in the rewards.
    pub fn loss_coef(&self) -> Option<f64> {
        match self.place {
            KlIn::Reward => None,
            KlIn::Loss => Some(self.coef),
        }
    }
}

/// The coefficient of the KL term over a run. Plain data: a checkpoint stores it whole.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub enum KlController {
    /// Constant.
    Fixed {
        /// The coefficient.
        coef: f64,
    },
    /// Adapts to a target KL.
    Adaptive(AdaptiveKl),
}

impl KlController {
    /// The controller that a recipe names, starting at `kl_coef`.
    pub fn new(control: KlControl, kl_coef: f64) -> Self {
        match control {
            KlControl::Fixed => Self::Fixed { coef: kl_coef },
            KlControl::Adaptive { target, horizon } => Self::Adaptive(AdaptiveKl {
                coef: kl_coef,
                target,
                horizon,
            }),
        }
    }

    /// The coefficient for the next rollout.
    pub fn coef(&self) -> f64 {
        match self {
            Self::Fixed { coef } => *coef,
            Self::Adaptive(adaptive) => adaptive.coef,
        }
    }

    /// Takes note of a rollout: its mean KL per response in nats, and its number of responses.
    pub fn update(&mut self, kl: f64, num_episodes: usize) {
        if let Self::Adaptive(adaptive) = self {
            adaptive.update(kl, num_episodes);
        }
    }
}

/// Proportional controller in log space: the coefficient changes by at most 20 % per `horizon` episodes.
///
/// `coef <- coef * (1 + clip(kl / target - 1, -0.2, 0.2) * num_episodes / horizon)`
///
/// # Source
/// Ziegler et al. 2019, arXiv:1909.08593, section 2.2.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AdaptiveKl {
    /// The coefficient.
    pub coef: f64,
    /// Target KL in nats per response.
    pub target: f64,
    /// Episodes over which a relative error of 1 doubles the coefficient; errors are clipped to 0.2.
    pub horizon: f64,
}

impl AdaptiveKl {
    /// Takes note of a rollout: its mean KL per response in nats, and its number of responses.
    pub fn update(&mut self, kl: f64, num_episodes: usize) {
        let error = (kl / self.target - 1.0).clamp(-0.2, 0.2);
        self.coef *= 1.0 + error * num_episodes as f64 / self.horizon;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn assert_close(got: &[f32], want: &[f32]) {
        assert_eq!(got.len(), want.len());
        for (g, w) in got.iter().zip(want) {
            assert!((g - w).abs() < 1e-6, "{got:?}, expected {want:?}");
        }
    }

    #[test]
    fn kl_estimators_at_half_minus_fifth_and_two() {
        // logr = 0.5, -0.2, 2.
        let (logprobs, refs) = ([-1.0, -2.0, -1.0], [-1.5, -1.8, -3.0]);
        let kl = |estimator| kl_per_token(estimator, &logprobs, &refs);
        assert_close(&kl(KlEstimator::K1), &[0.5, -0.2, 2.0]);
        assert_close(&kl(KlEstimator::K2), &[0.125, 0.02, 2.0]);
        assert_close(&kl(KlEstimator::K3), &[0.106_531, 0.021_403, 1.135_335]);
    }

    #[test]
    fn equal_policies_have_no_kl_and_outliers_stay_finite() {
        for estimator in [KlEstimator::K1, KlEstimator::K2, KlEstimator::K3] {
            assert_eq!(kl_per_token(estimator, &[-3.25], &[-3.25]), [0.0]);
            let far = kl_per_token(estimator, &[-200.0, 0.0], &[0.0, -200.0]);
            assert!(far.iter().all(|kl| kl.is_finite()), "{estimator:?} {far:?}");
        }
    }

    #[test]
    fn adaptive_kl_moves_by_the_clipped_error() {
        // beta 0.15, target 6, horizon 10,000, 512 episodes.
        for (kl, want) in [(10.0, 0.151_536), (6.6, 0.150_768), (3.0, 0.148_464)] {
            let control = KlControl::Adaptive {
                target: 6.0,
                horizon: 10_000.0,
            };
            let mut controller = KlController::new(control, 0.15);
            controller.update(kl, 512);
            let got = controller.coef();
            assert!((got - want).abs() < 1e-9, "{got}, expected {want}");
        }
    }

    #[test]
    fn fixed_kl_stays_and_at_target_so_does_adaptive() {
        let mut fixed = KlController::new(KlControl::Fixed, 0.05);
        fixed.update(100.0, 512);
        assert_eq!(fixed.coef(), 0.05);
        let mut adaptive = AdaptiveKl {
            coef: 0.15,
            target: 6.0,
            horizon: 10_000.0,
        };
        adaptive.update(6.0, 512);
        assert_eq!(adaptive.coef, 0.15);
    }

    #[test]
    fn a_controller_survives_a_checkpoint() {
        let mut controller = KlController::Adaptive(AdaptiveKl {
            coef: 0.15,
            target: 6.0,
            horizon: 10_000.0,
        });
        controller.update(10.0, 512);
        let text = serde_json::to_string(&controller).unwrap();
        assert_eq!(
            serde_json::from_str::<KlController>(&text).unwrap(),
            controller
        );
    }
}
