//! Preference losses without a reference policy: CPO and SimPO.

use burn::tensor::activation::{log_sigmoid, relu};
use burn::tensor::{Tensor, backend::Backend};
use serde::{Deserialize, Serialize};

use super::Comparisons;
use crate::host::floats;

/// Loss of a pair's margin of log-probabilities; the names are TRL's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum CpoLoss {
    /// `-log sigmoid(beta * margin)` of summed log-probabilities.
    #[default]
    Sigmoid,
    /// `max(0, 1 - beta * margin)` of summed log-probabilities.
    Hinge,
    /// `(margin - 1 / (2 beta))^2` of mean log-probabilities.
    Ipo,
    /// `-log sigmoid(beta * margin - gamma)` of mean log-probabilities.
    Simpo,
}

impl CpoLoss {
    /// Whether it reads a response's mean log-probability per token, not the sum.
    pub fn averages(self) -> bool {
        matches!(self, Self::Ipo | Self::Simpo)
    }

    /// Whether label smoothing changes it.
    pub fn knows_wrong_labels(self) -> bool {
        matches!(self, Self::Sigmoid | Self::Simpo)
    }
}

/// A reference-free loss with its parameters.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct CpoObjective {
    /// The loss of a pair.
    pub loss_type: CpoLoss,
    /// Scale of the rewards (`Ipo`: its tau).
    pub beta: f64,
    /// Assumed probability that a label is wrong, `epsilon` below.
    pub label_smoothing: f64,
    /// Weight of the cross-entropy of chosen responses.
    pub cpo_alpha: f64,
    /// Margin that `Simpo` asks for.
    pub simpo_gamma: f64,
    /// Shape of AlphaPO's reward; at 0 the reward is the log-probability.
    pub alpha: f64,
}

impl CpoObjective {
    /// The implicit reward of a response of this log-probability (of its sum or mean, by the loss), without `beta`.
    pub fn reward(&self, logp: f64) -> f64 {
        match self.alpha {
            0.0 => logp,
            alpha => -(-alpha * logp).exp_m1() / alpha,
        }
    }
}

/// Reference-free preference loss: the mean over each prompt's pairs, summed over prompts, plus `cpo_alpha` times the cross-entropy of
/// chosen responses.
///
/// With `z` a response's log-probability (`Ipo`, `Simpo`: its mean per token), its reward is `z`, or `(1 - exp(-alpha * z)) / alpha` if
/// `alpha` is not 0. With `margin = reward_chosen - reward_rejected` and `L(x) = -log sigmoid(x)`:
///
/// | loss | of a pair |
/// |---|---|
/// | `Sigmoid` | `(1 - epsilon) L(beta * margin) + epsilon L(-beta * margin)` |
/// | `Simpo` | the same of `beta * margin - gamma` |
/// | `Hinge` | `max(0, 1 - beta * margin)` |
/// | `Ipo` | `(margin - 1 / (2 beta))^2` |
///
/// The cross-entropy is a mean over the tokens of chosen responses, times the number of prompts.
///
/// # Shapes
/// - `logps`: `[responses]`, sums over each response's tokens, nats
/// - `lens`: `[responses]`, tokens
/// - returns: `[1]`
///
/// # Panics
/// If there are not as many lengths as log-probabilities.
///
/// # Source
/// Xu et al. 2024, arXiv:2401.08417, eqs. 3 to 5. SimPO: Meng et al. 2024, arXiv:2405.14734, eq. 6. AlphaPO: Gupta et al. 2025,
/// arXiv:2501.03884. As in TRL 1.16's `CPOTrainer`.
pub fn cpo<B: Backend>(
    logps: Tensor<B, 1>,
    lens: &[usize],
    comparisons: &Comparisons,
    prompts_per_token: f64,
    objective: &CpoObjective,
) -> Tensor<B, 1> {
    assert_eq!(logps.dims(), [lens.len()], "responses");
    let &CpoObjective {
        loss_type,
        beta,
        label_smoothing,
        cpo_alpha,
        simpo_gamma,
        alpha,
    } = objective;
    let values = match loss_type.averages() {
        true => mean_logps(logps.clone(), lens),
        false => logps.clone(),
    };
    let rewards = match alpha {
        0.0 => values,
        alpha => ((values * -alpha).exp().neg() + 1.0) / alpha,
    };
    let (chosen, rejected) = comparisons.sides(rewards);
    let margin = chosen - rejected;
    let smoothed = |scaled: Tensor<B, 1>| {
        let loss = log_sigmoid(scaled.clone()) * -(1.0 - label_smoothing);
        match label_smoothing {
            0.0 => loss,
            _ => loss + log_sigmoid(scaled.neg()) * -label_smoothing,
        }
    };
    let losses = match loss_type {
        CpoLoss::Sigmoid => smoothed(margin * beta),
        CpoLoss::Simpo => smoothed(margin * beta - simpo_gamma),
        CpoLoss::Hinge => relu((margin * beta).neg() + 1.0),
        CpoLoss::Ipo => {
            let error = margin - 0.5 / beta;
            error.clone() * error
        }
    };
    let loss = comparisons.mean_per_prompt(losses);
    match cpo_alpha {
        0.0 => loss,
        weight => loss + chosen_cross_entropy(logps, comparisons, prompts_per_token) * weight,
    }
}

/// Means over each response's tokens; 0 for a response without tokens.
///
/// # Shapes
/// - `sums`, returns: `[responses]`
pub(super) fn mean_logps<B: Backend>(sums: Tensor<B, 1>, lens: &[usize]) -> Tensor<B, 1> {
    let inverse: Vec<f32> = lens.iter().map(|&len| 1.0 / len.max(1) as f32).collect();
    let inverse = floats(&inverse, &sums.device());
    sums * inverse
}

/// Minus the log-probability of chosen responses, the mean over each prompt's pairs, summed over prompts, times `prompts_per_token`.
pub(super) fn chosen_cross_entropy<B: Backend>(
    logps: Tensor<B, 1>,
    comparisons: &Comparisons,
    prompts_per_token: f64,
) -> Tensor<B, 1> {
    comparisons.mean_per_prompt(comparisons.sides(logps).0 * -prompts_per_token)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::loss::test_support::{check_gradient, on_each_backend, tensor, value};

    const PLAIN: CpoObjective = CpoObjective {
        loss_type: CpoLoss::Sigmoid,
        beta: 0.5,
        label_smoothing: 0.0,
        cpo_alpha: 0.0,
        simpo_gamma: 0.5,
        alpha: 0.0,
    };

    /// A pair of responses of 4 and 2 tokens with log-probabilities -2 and -4.
    fn pair<B: Backend>(objective: &CpoObjective) -> f32 {
        let mut comparisons = Comparisons::new();
        comparisons.push_prompt([(0, 1, 0.0)]);
        value(cpo(
            tensor::<B>(&[-2.0, -4.0]),
            &[4, 2],
            &comparisons,
            0.25,
            objective,
        ))
    }

    fn assert_close(got: f32, want: f32) {
        assert!(
            (got - want).abs() < 1e-5 * want.abs().max(1.0),
            "{got}, expected {want}"
        );
    }

    fn known_margins<B: Backend>() {
        let of = |loss_type| pair::<B>(&CpoObjective { loss_type, ..PLAIN });
        // Margin 2, scaled 1: ln(1 + e^-1).
        assert_close(of(CpoLoss::Sigmoid), 0.313_262);
        assert_close(of(CpoLoss::Hinge), 0.0);
        // Means -.5 and -2: (1.5 - 1)^2.
        assert_close(of(CpoLoss::Ipo), 0.25);
        // .75 - .5 = .25: ln(1 + e^-.25).
        assert_close(of(CpoLoss::Simpo), 0.575_939);
        // .9 * .313262 + .1 * 1.313262.
        let smoothed = CpoObjective {
            label_smoothing: 0.1,
            ..PLAIN
        };
        assert_close(pair::<B>(&smoothed), 0.413_262);
        // Four chosen tokens: 2 / 4.
        let with_cross_entropy = CpoObjective {
            cpo_alpha: 2.0,
            ..PLAIN
        };
        assert_close(pair::<B>(&with_cross_entropy), 0.313_262 + 2.0 * 0.5);
        // Rewards (1 - e^.05) / .1 = -.512711 and (1 - e^.2) / .1 = -2.214028; margin 1.701317, scaled .850658, less gamma .350658.
        let shaped = CpoObjective {
            loss_type: CpoLoss::Simpo,
            alpha: 0.1,
            ..PLAIN
        };
        assert_close(pair::<B>(&shaped), 0.533_110);
        assert!((shaped.reward(-2.0) + 2.214_028).abs() < 1e-6);
        assert_eq!(PLAIN.reward(-2.0), -2.0);
    }

    fn gradients_match_central_differences<B: Backend>() {
        let mut comparisons = Comparisons::new();
        comparisons.push_prompt([(0, 1, 0.0), (0, 2, 0.0)]);
        comparisons.push_prompt([(4, 3, 0.0)]);
        for loss_type in [
            CpoLoss::Sigmoid,
            CpoLoss::Hinge,
            CpoLoss::Ipo,
            CpoLoss::Simpo,
        ] {
            for (cpo_alpha, alpha) in [(0.0, 0.0), (1.0, 0.0), (1.0, 0.25)] {
                let objective = CpoObjective {
                    loss_type,
                    cpo_alpha,
                    alpha,
                    label_smoothing: 0.1,
                    ..PLAIN
                };
                check_gradient::<B>(&[-3.0, -1.0, -0.25, -2.0, -1.0], |x| {
                    cpo(x, &[3, 1, 4, 1, 5], &comparisons, 0.5, &objective)
                });
            }
        }
    }

    on_each_backend!(known_margins, gradients_match_central_differences);
}
