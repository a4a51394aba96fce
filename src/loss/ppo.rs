//! The losses of proximal policy optimisation.

use burn::tensor::{Tensor, TensorData, backend::Backend};

use super::response_sums;
use crate::rl::rollout::{Objective, RatioLevel};
use crate::rl::{self, KlEstimator};
use crate::tokens::Segments;

/// Largest `|logprob - old_logprob|` that enters the ratio. Beyond it `exp` would overflow, and the infinity would reach the
/// gradient as NaN even through the branch that is not taken.
const MAX_LOG_RATIO: f64 = 20.0;

/// The policy's [`Objective`], negated, at each response token.
///
/// With `rho = exp(logprob - old_logprob)` the clip is `max(-A rho, -A clip(rho, 1 - low, 1 + high))`; at `rho = 1` it is
/// `-A`. A change of log-probability beyond ±20 is cut there and has no gradient.
///
/// The N+ code averages over the tokens of each micro-batch and then over micro-batches, so that its result depends on the split.
/// Here losses are summed and divided by a count of the minibatch ([`crate::rl::rollout::LossMean`]).
///
/// # Shapes
/// - `logprobs` (with gradient), `old_logprobs`, `advantages`: `[response tokens]`
/// - returns: `[response tokens]`
///
/// # Panics
/// If the lengths differ.
///
/// # Source
/// Schulman et al. 2017, arXiv:1707.06347, eq. 7; arXiv:2403.17031; those of [`Objective`].
pub fn policy_loss<B: Backend>(
    logprobs: Tensor<B, 1>,
    old_logprobs: Tensor<B, 1>,
    advantages: Tensor<B, 1>,
    objective: Objective,
) -> Tensor<B, 1> {
    assert_eq!(logprobs.dims(), old_logprobs.dims(), "response tokens");
    let log_ratios = logprobs.clone() - old_logprobs;
    surrogate_loss(logprobs, log_ratios, advantages, objective)
}

/// [`policy_loss`] for log ratios of another level than tokens ([`log_ratios`]).
///
/// # Shapes
/// - `logprobs`, `log_ratios` (with gradient), `advantages`: `[response tokens]`
/// - returns: `[response tokens]`
///
/// # Panics
/// If the lengths differ.
///
/// # Source
/// Those of [`Objective`] and [`RatioLevel`].
pub fn surrogate_loss<B: Backend>(
    logprobs: Tensor<B, 1>,
    log_ratios: Tensor<B, 1>,
    advantages: Tensor<B, 1>,
    objective: Objective,
) -> Tensor<B, 1> {
    assert_eq!(logprobs.dims(), log_ratios.dims(), "response tokens");
    assert_eq!(logprobs.dims(), advantages.dims(), "response tokens");
    let ratio = ratios(log_ratios);
    let loss = advantages.neg();
    match objective {
        Objective::Clip { low, high } => {
            let clipped = ratio.clone().clamp(1.0 - low, 1.0 + high);
            (loss.clone() * ratio).max_pair(loss * clipped)
        }
        Objective::TwoSided {
            low,
            high,
            max_ratio,
        } => {
            let clipped = ratio.clone().clamp(1.0 - low, 1.0 + high);
            (loss.clone() * ratio.clamp_max(max_ratio)).max_pair(loss * clipped)
        }
        Objective::Cispo { max_ratio } => {
            let weight = ratio.clamp_max(max_ratio).detach();
            loss * weight * logprobs
        }
    }
}

/// Probability ratios; log ratios beyond ±20 are cut and have no gradient.
///
/// # Shapes
/// - `log_ratios`: any length, nats; returns the same
pub fn ratios<B: Backend>(log_ratios: Tensor<B, 1>) -> Tensor<B, 1> {
    log_ratios.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()
}

/// Log ratios of a `level` at each response token.
///
/// # Shapes
/// - `logprobs` (with gradient), `old_logprobs`: `[response tokens]`, packed as in `responses`
/// - returns: `[response tokens]`, nats
///
/// # Panics
/// If the lengths differ.
///
/// # Source
/// Zheng et al. 2025, arXiv:2507.18071, eq. 7, for `SequenceMean`.
pub fn log_ratios<B: Backend>(
    logprobs: Tensor<B, 1>,
    old_logprobs: Tensor<B, 1>,
    responses: &Segments,
    level: RatioLevel,
) -> Tensor<B, 1> {
    let changes = logprobs - old_logprobs;
    if level == RatioLevel::Token {
        return changes;
    }
    let device = changes.device();
    let lens: Vec<usize> = responses.iter().map(|row| row.len()).collect();
    let mut sums = response_sums(changes, &lens);
    if level == RatioLevel::SequenceMean {
        let shares: Vec<f32> = lens.iter().map(|&len| 1.0 / len.max(1) as f32).collect();
        sums = sums * Tensor::from_floats(shares.as_slice(), &device);
    }
    at_tokens(sums, &lens)
}

/// Repeats a number per response at each of its tokens: `[responses] -> [response tokens]`.
fn at_tokens<B: Backend>(per_response: Tensor<B, 1>, lens: &[usize]) -> Tensor<B, 1> {
    let tokens = lens.iter().sum();
    let mut belongs = vec![0f32; lens.len() * tokens];
    let mut first = 0;
    for (response, len) in lens.iter().enumerate() {
        belongs[response * tokens + first..response * tokens + first + len].fill(1.0);
        first += len;
    }
    // As in `response_sums`: the gradient of a selection is a scattered addition, which has no fixed order on GPUs.
    let belongs = TensorData::new(belongs, [lens.len(), tokens]);
    let belongs = Tensor::<B, 2>::from_data(belongs, &per_response.device());
    (belongs * per_response.unsqueeze_dim::<2>(1))
        .sum_dim(0)
        .squeeze_dim::<1>(0)
}

/// KL of the policy from the reference as a loss term at each response token: `estimator` with its gradient.
///
/// On tokens that the policy itself generated, the expected gradient of `K2` is that of `KL(policy || reference)` and `K3`'s that
/// of `KL(reference || policy)`; `K1`'s is zero, so that recipes may not ask for it. `logr` is cut to ±20 in `K3` and has no
/// gradient beyond.
///
/// # Shapes
/// - `logprobs` (with gradient), `ref_logprobs`: `[response tokens]`
/// - returns: `[response tokens]`, nats
///
/// # Panics
/// If the lengths differ.
///
/// # Source
/// Shao et al. 2024, arXiv:2402.03300, eq. 4 (`K3`); Schulman 2020, "Approximating KL divergence".
pub fn kl_loss<B: Backend>(
    logprobs: Tensor<B, 1>,
    ref_logprobs: Tensor<B, 1>,
    estimator: KlEstimator,
) -> Tensor<B, 1> {
    assert_eq!(logprobs.dims(), ref_logprobs.dims(), "response tokens");
    let logr = logprobs - ref_logprobs;
    match estimator {
        KlEstimator::K1 => logr,
        KlEstimator::K2 => logr.clone() * logr * 0.5,
        KlEstimator::K3 => {
            let logr = logr.clamp(-rl::MAX_LOG_RATIO, rl::MAX_LOG_RATIO);
            logr.clone().neg().exp() - 1.0 + logr
        }
    }
}

/// Clipped value loss, summed over value positions.
///
/// `sum of max((V - R)^2, (clip(V, V_old - cliprange_value, V_old + cliprange_value) - R)^2) / 2`.
///
/// The N+ code takes means of micro-batch means here too; see [`policy_loss`]. Its positions are those of
/// [`ResponseLayout::after_eos`](crate::rl::ResponseLayout::after_eos), one more than the policy's for responses that stopped early.
///
/// # Shapes
/// - `values` (with gradient), `old_values`, `returns`: `[value positions]`
/// - returns: `[1]`
///
/// # Panics
/// If the lengths differ.
///
/// # Source
/// Schulman et al. 2017's code (openai/baselines, ppo2); arXiv:2403.17031.
pub fn value_loss<B: Backend>(
    values: Tensor<B, 1>,
    old_values: Tensor<B, 1>,
    returns: Tensor<B, 1>,
    cliprange_value: f64,
) -> Tensor<B, 1> {
    assert_eq!(values.dims(), old_values.dims(), "value positions");
    assert_eq!(values.dims(), returns.dims(), "value positions");
    let change = values.clone() - old_values.clone();
    let clipped = old_values + change.clamp(-cliprange_value, cliprange_value);
    let error = values - returns.clone();
    let clipped_error = clipped - returns;
    let square = error.clone() * error;
    let clipped_square = clipped_error.clone() * clipped_error;
    square.max_pair(clipped_square).sum() * 0.5
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::loss::test_support::{
        check_gradient, gradient, on_each_backend, tensor, value, values,
    };

    fn policy<B: Backend>(logprobs: &[f32], old: &[f32], advantages: &[f32]) -> f32 {
        let advantages = tensor(advantages);
        value(
            policy_loss::<B>(
                tensor(logprobs),
                tensor(old),
                advantages,
                Objective::clip(0.2),
            )
            .sum(),
        )
    }

    fn critic<B: Backend>(values: &[f32], old: &[f32], returns: &[f32]) -> f32 {
        value(value_loss::<B>(
            tensor(values),
            tensor(old),
            tensor(returns),
            0.2,
        ))
    }

    fn policy_gradient<B: Backend>(logprobs: &[f32], old: &[f32], advantages: &[f32]) -> Vec<f32> {
        gradient::<B>(logprobs, |logprobs| {
            policy_loss(
                logprobs,
                tensor(old),
                tensor(advantages),
                Objective::clip(0.2),
            )
            .sum()
        })
    }

    fn assert_close(got: f32, want: f32) {
        assert!((got - want).abs() < 1e-5, "{got}, expected {want}");
    }

    fn at_ratio_one_the_loss_is_minus_the_advantages<B: Backend>() {
        let (logprobs, advantages) = ([-0.5, -2.0, -7.0], [1.0, -0.25, 0.5]);
        assert_eq!(policy::<B>(&logprobs, &logprobs, &advantages), -1.25);
        // And its gradient is -A: the plain policy gradient.
        let got = policy_gradient::<B>(&logprobs, &logprobs, &advantages);
        assert_eq!(got, [-1.0, 0.25, -0.5]);
    }

    fn the_policy_ratio_is_clipped_on_the_pessimistic_side<B: Backend>() {
        let (up, down) = (1.5f32.ln(), 0.5f32.ln());
        // A = 2: ratio 1.5 is clipped to 1.2; ratio 0.5 is not. A = -2: the mirror.
        assert_close(policy::<B>(&[up], &[0.0], &[2.0]), -2.4);
        assert_close(policy::<B>(&[down], &[0.0], &[2.0]), -1.0);
        assert_close(policy::<B>(&[up], &[0.0], &[-2.0]), 3.0);
        assert_close(policy::<B>(&[down], &[0.0], &[-2.0]), 1.6);
        // A clipped token has no gradient: d/dlogp of -A rho is -A rho where it is not.
        let got = policy_gradient::<B>(&[up, down, up, down], &[0.0; 4], &[2.0, 2.0, -2.0, -2.0]);
        for (got, want) in got.into_iter().zip([0.0, -1.0, 3.0, 0.0]) {
            assert_close(got, want);
        }
    }

    fn clip_higher_leaves_more_room_upwards<B: Backend>() {
        let objective = Objective::Clip {
            low: 0.2,
            high: 0.28,
        };
        let (up, down) = (1.5f32.ln(), 0.5f32.ln());
        // A = 2 at ratio 1.5: 1.28 * 2; A = -2 at ratio 0.5: 0.8 * 2.
        let loss = |logprob: f32, advantage: f32| {
            let (old, advantage) = (tensor(&[0.0]), tensor(&[advantage]));
            value(policy_loss::<B>(tensor(&[logprob]), old, advantage, objective).sum())
        };
        assert_close(loss(up, 2.0), -2.56);
        assert_close(loss(down, -2.0), 1.6);
    }

    fn cispo_weighs_every_token_by_its_clipped_ratio<B: Backend>() {
        let objective = Objective::Cispo { max_ratio: 1.2 };
        let (up, down) = (1.5f32.ln(), 0.5f32.ln());
        // -A min(rho, 1.2): the gradient is a constant times A, and never zero.
        let got = gradient::<B>(&[up, down, up], |logprobs| {
            let advantages = tensor(&[2.0, 2.0, -2.0]);
            policy_loss(logprobs, tensor(&[0.0; 3]), advantages, objective).sum()
        });
        for (got, want) in got.into_iter().zip([-2.4, -1.0, 2.4]) {
            assert_close(got, want);
        }
    }

    fn a_second_bound_limits_negative_advantages<B: Backend>() {
        let objective = Objective::TwoSided {
            low: 0.2,
            high: 0.2,
            max_ratio: 4.0,
        };
        // A = -2 at ratio 8: 4 * 2 and no gradient; at ratio 3: 6, as without the bound.
        let at = [8f32.ln(), 3f32.ln()];
        let (old, advantages) = (tensor::<B>(&[0.0; 2]), tensor(&[-2.0; 2]));
        let loss = policy_loss(tensor(&at), old, advantages, objective).sum();
        assert_close(value(loss), 14.0);
        let got = gradient::<B>(&at, |logprobs| {
            policy_loss(logprobs, tensor(&[0.0; 2]), tensor(&[-2.0; 2]), objective).sum()
        });
        assert_close(got[0], 0.0);
        assert_close(got[1], 6.0);
    }

    fn a_ratio_of_responses_has_the_gradient_of_all_their_tokens<B: Backend>() {
        // Responses of 2 and 1 tokens with changes 0.2, 0.1 and -0.3; weights 1, 3 and 5 at the tokens.
        let responses = Segments::from_lens([2, 1]);
        let (new, old) = ([-1.0, -2.0, -0.5], [-1.2, -2.1, -0.2]);
        for (level, ratios, grads) in [
            (RatioLevel::Token, [0.2, 0.1, -0.3], [1.0, 3.0, 5.0]),
            (
                RatioLevel::SequenceMean,
                [0.15, 0.15, -0.3],
                [2.0, 2.0, 5.0],
            ),
            (RatioLevel::Sequence, [0.3, 0.3, -0.3], [4.0, 4.0, 5.0]),
        ] {
            let of = |logprobs| log_ratios(logprobs, tensor(&old), &responses, level);
            for (got, want) in values(of(tensor::<B>(&new))).into_iter().zip(ratios) {
                assert_close(got, want);
            }
            let got = gradient::<B>(&new, |logprobs| {
                (log_ratios(logprobs, tensor(&old), &responses, level) * tensor(&[1.0, 3.0, 5.0]))
                    .sum()
            });
            for (got, want) in got.into_iter().zip(grads) {
                assert_close(got, want);
            }
        }
    }

    fn huge_changes_of_logprob_stay_finite<B: Backend>() {
        for change in [80.0, -80.0, 200.0, -200.0] {
            for advantage in [1.0, -1.0] {
                let loss = policy::<B>(&[change], &[0.0], &[advantage]);
                let grad = policy_gradient::<B>(&[change], &[0.0], &[advantage]);
                assert!(loss.is_finite() && grad[0].is_finite(), "{loss} {grad:?}");
            }
        }
        assert_close(policy::<B>(&[200.0], &[0.0], &[1.0]), -1.2);
    }

    fn the_value_loss_is_the_larger_square<B: Backend>() {
        // V = 1 from V_old = 0, clipped to 0.2: R = 1 gives .8^2, R = 0 gives 1, R = 0.1 gives .9^2.
        assert_close(critic::<B>(&[1.0], &[0.0], &[1.0]), 0.32);
        assert_close(critic::<B>(&[1.0], &[0.0], &[0.0]), 0.5);
        assert_close(critic::<B>(&[1.0], &[0.0], &[0.1]), 0.405);
        // Within the range nothing is clipped: (0.1 - 0.6)^2 / 2; downwards it mirrors: (-.2 + 1)^2 / 2.
        assert_close(critic::<B>(&[0.1], &[0.0], &[0.6]), 0.125);
        assert_close(critic::<B>(&[-1.0], &[0.0], &[-1.0]), 0.32);
    }

    fn sums_do_not_depend_on_the_micro_batch_split<B: Backend>() {
        let (new, old) = ([-1.0, -2.0, -0.5, -3.0], [-1.5, -1.75, -0.5, -2.0]);
        let targets = [1.0, -1.0, 0.5, 2.0];
        let split = |f: fn(&[f32], &[f32], &[f32]) -> f32| {
            f(&new[..1], &old[..1], &targets[..1]) + f(&new[1..], &old[1..], &targets[1..])
        };
        assert_close(policy::<B>(&new, &old, &targets), split(policy::<B>));
        assert_close(critic::<B>(&new, &old, &targets), split(critic::<B>));
    }

    fn the_kl_term_is_the_estimator_with_its_gradient<B: Backend>() {
        let (new, reference) = ([-1.0, -2.0, -0.5, -30.0], [-1.5, -1.9, -0.6, -2.0]);
        for estimator in [KlEstimator::K1, KlEstimator::K2, KlEstimator::K3] {
            let want = rl::kl_per_token(estimator, &new[..3], &reference[..3]);
            let got =
                value(kl_loss::<B>(tensor(&new[..3]), tensor(&reference[..3]), estimator).sum());
            assert_close(got, want.iter().sum());
            check_gradient::<B>(&new[..3], |new| {
                kl_loss(new, tensor(&reference[..3]), estimator).sum()
            });
        }
        // Beyond the cut there is no gradient, and no infinity.
        let got = gradient::<B>(&new, |new| {
            kl_loss(new, tensor(&reference), KlEstimator::K3).sum()
        });
        assert_eq!(got[3], 0.0);
    }

    fn gradients_match_central_differences<B: Backend>() {
        // Clipped and unclipped tokens on both sides, none within 0.05 of a kink.
        let (new, old) = ([-1.0, -2.0, -0.5, -3.0], [-1.5, -1.9, -0.6, -2.0]);
        let targets = [1.0, -1.0, 0.5, -2.0];
        check_gradient::<B>(&new, |new| {
            policy_loss(new, tensor(&old), tensor(&targets), Objective::clip(0.2)).sum()
        });
        check_gradient::<B>(&new, |new| {
            value_loss(new, tensor(&old), tensor(&targets), 0.2)
        });
    }

    on_each_backend!(
        at_ratio_one_the_loss_is_minus_the_advantages,
        the_policy_ratio_is_clipped_on_the_pessimistic_side,
        clip_higher_leaves_more_room_upwards,
        cispo_weighs_every_token_by_its_clipped_ratio,
        a_second_bound_limits_negative_advantages,
        a_ratio_of_responses_has_the_gradient_of_all_their_tokens,
        huge_changes_of_logprob_stay_finite,
        the_value_loss_is_the_larger_square,
        sums_do_not_depend_on_the_micro_batch_split,
        the_kl_term_is_the_estimator_with_its_gradient,
        gradients_match_central_differences,
    );
}
