//! Odds ratio preference optimisation.

use burn::tensor::activation::log_sigmoid;
use burn::tensor::{Tensor, backend::Backend};

use super::Comparisons;
use super::cpo::{chosen_cross_entropy, mean_logps};

/// Largest mean log-probability that odds are taken of: at 0 they are infinite.
const LARGEST_LOGP: f32 = -f32::EPSILON;

/// Log odds of a response, `p / (1 - p)` with `p = exp(logp)`, of its mean log-probability per token.
pub fn log_odds(logp: f64) -> f64 {
    let logp = logp.min(f64::from(LARGEST_LOGP));
    logp - (-logp.exp_m1()).ln()
}

/// ORPO's loss: cross-entropy of chosen rows plus `beta` times `-log sigmoid` of the log odds ratio of chosen to rejected responses, the
/// mean over each prompt's pairs, summed over prompts.
///
/// `log_odds(z) = z - log(1 - exp(z))` of a response's mean log-probability per token `z`. The cross-entropy is a mean over all tokens of
/// chosen rows, prompts included, times the number of prompts.
///
/// # Shapes
/// - `logps`: `[responses]`, sums over each response's tokens, nats
/// - `row_logps`: `[responses]`, the same with the prompt's tokens
/// - `lens`: `[responses]`, tokens of each response
/// - returns: `[1]`
///
/// # Source
/// Hong et al. 2024, arXiv:2403.07691, eqs. 4 to 7, whose lambda is `beta`; that prompts count in the cross-entropy is the authors'
/// code and TRL 1.16's `ORPOTrainer`.
pub fn orpo<B: Backend>(
    logps: Tensor<B, 1>,
    row_logps: Tensor<B, 1>,
    lens: &[usize],
    comparisons: &Comparisons,
    prompts_per_token: f64,
    beta: f64,
) -> Tensor<B, 1> {
    let means = mean_logps(logps, lens).clamp_max(LARGEST_LOGP);
    // log(1 - e^z) = log(-tanh(z / 2)) + log(1 + e^z), which keeps its digits near 0.
    let rest = (means.clone() * -0.5).tanh().log() + means.clone().exp().log1p();
    let (chosen, rejected) = comparisons.sides(means - rest);
    let ratio = comparisons.mean_per_prompt(log_sigmoid(chosen - rejected).neg());
    chosen_cross_entropy(row_logps, comparisons, prompts_per_token) + ratio * beta
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::loss::test_support::{check_gradient, gradient, on_each_backend, tensor, value};

    fn pair() -> Comparisons {
        let mut comparisons = Comparisons::new();
        comparisons.push_prompt([(0, 1, 0.0)]);
        comparisons
    }

    fn a_known_pair<B: Backend>() {
        // Means -.5 and -2: log odds -.5 - ln(1 - e^-.5) = .432752 and -2 - ln(1 - e^-2) = -1.854586; ratio 2.287339,
        // ln(1 + e^-2.287339) = .096706. Chosen rows have 8 tokens with prompts: 6 / 8.
        let loss = orpo(
            tensor::<B>(&[-2.0, -4.0]),
            tensor::<B>(&[-6.0, -8.0]),
            &[4, 2],
            &pair(),
            1.0 / 8.0,
            0.5,
        );
        let got = value(loss);
        assert!((got - (0.75 + 0.5 * 0.096_706)).abs() < 1e-5, "{got}");
        assert!((log_odds(-0.5) - 0.432_752).abs() < 1e-6);
        assert!((log_odds(-2.0) + 1.854_586).abs() < 1e-6);
    }

    fn certain_responses_stay_finite<B: Backend>() {
        for at in [[0.0, -4.0], [-4.0, 0.0], [-1e-6, -200.0], [-200.0, -1e-6]] {
            let of = |x: Tensor<burn::backend::Autodiff<B>, 1>| {
                orpo(x.clone(), x, &[1, 1], &pair(), 1.0, 1.0)
            };
            let slope = gradient::<B>(&at, of);
            assert!(slope.iter().all(|x| x.is_finite()), "{at:?}: {slope:?}");
        }
    }

    fn gradients_match_central_differences<B: Backend>() {
        let mut comparisons = Comparisons::new();
        comparisons.push_prompt([(0, 1, 0.0), (0, 2, 0.0)]);
        comparisons.push_prompt([(4, 3, 0.0)]);
        check_gradient::<B>(&[-3.0, -1.0, -0.75, -2.0, -1.0], |x| {
            let rows = x.clone() * 1.5;
            orpo(x, rows, &[3, 1, 4, 1, 5], &comparisons, 0.25, 0.5)
        });
    }

    on_each_backend!(
        a_known_pair,
        certain_responses_stay_finite,
        gradients_match_central_differences,
    );
}
