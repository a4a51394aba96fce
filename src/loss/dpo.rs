//! Losses of direct preference optimisation, on differences of log ratios of policy to reference.

use burn::tensor::activation::{log_sigmoid, relu};
use burn::tensor::{Tensor, TensorData, backend::Backend};
use serde::{Deserialize, Serialize};

use super::Comparisons;

/// Loss as a function of a pair's margin; the names are TRL's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
pub enum DpoLoss {
    /// `-log sigmoid(beta * margin)`; with label smoothing conservative DPO.
    #[default]
    Sigmoid,
    /// `max(0, 1 - beta * margin)`.
    Hinge,
    /// `(margin per token - 1 / (2 beta))^2`.
    Ipo,
    /// `Sigmoid` without the bias that a known rate of flipped labels gives it.
    Robust,
}

/// A DPO loss with its parameters.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct DpoObjective {
    /// The loss.
    pub loss_type: DpoLoss,
    /// Scale of the implicit rewards: the strength of the implicit KL constraint (IPO's tau).
    pub beta: f64,
    /// Assumed probability that a label is wrong, `epsilon` below; `Hinge` and `Ipo` take none.
    pub label_smoothing: f64,
}

/// Sums a packed batch's values response by response.
///
/// # Shapes
/// - `values`: `[tokens]`, of all responses' tokens, concatenated
/// - `lens`: tokens of each response
/// - returns: `[responses]`; 0 for a response without tokens
///
/// # Panics
/// If the lengths do not add up to `tokens`.
pub fn response_sums<B: Backend>(values: Tensor<B, 1>, lens: &[usize]) -> Tensor<B, 1> {
    let [tokens] = values.dims();
    assert_eq!(lens.iter().sum::<usize>(), tokens, "response tokens");
    let mut belongs = vec![0f32; lens.len() * tokens];
    let mut first = 0;
    for (response, len) in lens.iter().enumerate() {
        belongs[response * tokens + first..response * tokens + first + len].fill(1.0);
        first += len;
    }
    // A product and a sum along a dimension: slices would cost a whole gradient each, and scattered additions have no
    // fixed order on GPUs.
    let belongs = TensorData::new(belongs, [lens.len(), tokens]);
    let belongs = Tensor::<B, 2>::from_data(belongs, &values.device());
    (belongs * values.unsqueeze::<2>())
        .sum_dim(1)
        .squeeze_dim::<1>(1)
}

/// Preference loss: the mean over each prompt's pairs, summed over prompts.
///
/// With `margin = log_ratio_chosen - log_ratio_rejected`, where a response's log ratio is the sum over its tokens of
/// `logprob - ref_logprob`, and `L(x) = -log sigmoid(beta * x)`:
///
/// | loss | of a pair |
/// |---|---|
/// | `Sigmoid` | `(1 - epsilon) L(margin) + epsilon L(-margin)` |
/// | `Robust` | `((1 - epsilon) L(margin) - epsilon L(-margin)) / (1 - 2 epsilon)` |
/// | `Hinge` | `max(0, 1 - beta * margin)` |
/// | `Ipo` | `(log_ratio_chosen / len_chosen - log_ratio_rejected / len_rejected - 1 / (2 beta))^2` |
///
/// If the policy equals its reference the loss per prompt is `ln 2`, `ln 2`, 1 and `1 / (4 beta^2)`.
///
/// # Shapes
/// - `log_ratios`: `[responses]`, nats
/// - `lens`: `[responses]`, tokens
/// - returns: `[1]`
///
/// # Panics
/// If there are not as many lengths as log ratios.
///
/// # Source
/// Rafailov et al. 2023, arXiv:2305.18290, eq. 7. Conservative: Mitchell 2023, "A note on DPO with noisy preferences and
/// relationship to IPO", eq. 3. Robust: Chowdhury et al. 2024, arXiv:2403.00409, eq. 7. Hinge: Zhao et al. 2023,
/// arXiv:2305.10425, as TRL has it. IPO: Azar et al. 2023, arXiv:2310.12036, eq. 17; the division by the number of tokens is
/// TRL's, confirmed by its authors. TRL 1.16 uses `label_smoothing` for `robust` and ignores it for `sigmoid`.
pub fn dpo<B: Backend>(
    log_ratios: Tensor<B, 1>,
    lens: &[usize],
    comparisons: &Comparisons,
    objective: DpoObjective,
) -> Tensor<B, 1> {
    assert_eq!(log_ratios.dims(), [lens.len()], "responses");
    let DpoObjective {
        loss_type,
        beta,
        label_smoothing,
    } = objective;
    let log_ratios = match loss_type {
        DpoLoss::Ipo => {
            let inverse: Vec<f32> = lens.iter().map(|&len| 1.0 / len.max(1) as f32).collect();
            let inverse = TensorData::new(inverse, [lens.len()]);
            let device = log_ratios.device();
            log_ratios * Tensor::from_data(inverse, &device)
        }
        _ => log_ratios,
    };
    let (chosen, rejected) = comparisons.sides(log_ratios);
    let margin = chosen - rejected;
    // log_sigmoid, not sigmoid().log(): the latter is -inf for margins below about -88.
    let smoothed = |margin: Tensor<B, 1>, of_flipped: f64| {
        let scaled = margin * beta;
        let loss = log_sigmoid(scaled.clone()) * -(1.0 - label_smoothing);
        match label_smoothing {
            0.0 => loss,
            _ => loss + log_sigmoid(scaled.neg()) * -of_flipped,
        }
    };
    let loss = match loss_type {
        DpoLoss::Sigmoid => smoothed(margin, label_smoothing),
        DpoLoss::Robust => smoothed(margin, -label_smoothing) / (1.0 - 2.0 * label_smoothing),
        DpoLoss::Hinge => relu((margin * beta).neg() + 1.0),
        DpoLoss::Ipo => {
            let error = margin - 0.5 / beta;
            error.clone() * error
        }
    };
    comparisons.mean_per_prompt(loss)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::loss::test_support::{
        check_gradient, gradient, on_each_backend, tensor, value, values,
    };
    use std::f32::consts::LN_2;

    fn objective(loss_type: DpoLoss, beta: f64, label_smoothing: f64) -> DpoObjective {
        DpoObjective {
            loss_type,
            beta,
            label_smoothing,
        }
    }

    fn one_pair() -> Comparisons {
        let mut comparisons = Comparisons::new();
        comparisons.push_prompt([(0, 1, 0.0)]);
        comparisons
    }

    /// The loss of one pair of responses of 4 and 2 tokens at beta 0.5.
    fn pair<B: Backend>(loss_type: DpoLoss, label_smoothing: f64, ratios: [f32; 2]) -> f32 {
        let objective = objective(loss_type, 0.5, label_smoothing);
        value(dpo(tensor::<B>(&ratios), &[4, 2], &one_pair(), objective))
    }

    fn assert_close(got: f32, want: f32) {
        let allowed = 1e-5 * want.abs().max(1.0);
        assert!((got - want).abs() < allowed, "{got}, expected {want}");
    }

    fn a_policy_that_is_its_reference<B: Backend>() {
        assert_close(pair::<B>(DpoLoss::Sigmoid, 0.0, [0.0, 0.0]), LN_2);
        assert_close(pair::<B>(DpoLoss::Sigmoid, 0.1, [0.0, 0.0]), LN_2);
        assert_close(pair::<B>(DpoLoss::Robust, 0.1, [0.0, 0.0]), LN_2);
        assert_close(pair::<B>(DpoLoss::Hinge, 0.0, [0.0, 0.0]), 1.0);
        // (1 / (2 * 0.5))^2 = 1.
        assert_close(pair::<B>(DpoLoss::Ipo, 0.0, [0.0, 0.0]), 1.0);
    }

    fn known_margins<B: Backend>() {
        // Margin 1.5 + 0.5 = 2, scaled 1: ln(1 + e^-1) = .313262; the other way ln(1 + e) = 1.313262.
        let ahead = [1.5, -0.5];
        assert_close(pair::<B>(DpoLoss::Sigmoid, 0.0, ahead), 0.313_262);
        assert_close(pair::<B>(DpoLoss::Sigmoid, 0.0, [-0.5, 1.5]), 1.313_262);
        // .9 * .313262 + .1 * 1.313262 = .413262.
        assert_close(pair::<B>(DpoLoss::Sigmoid, 0.1, ahead), 0.413_262);
        // (.9 * .313262 - .1 * 1.313262) / .8 = .188262.
        assert_close(pair::<B>(DpoLoss::Robust, 0.1, ahead), 0.188_262);
        assert_close(pair::<B>(DpoLoss::Robust, 0.0, ahead), 0.313_262);
        // 1 - .5 * 1.2 = .4; beyond a scaled margin of 1 nothing is left.
        assert_close(pair::<B>(DpoLoss::Hinge, 0.0, [1.0, -0.2]), 0.4);
        assert_close(pair::<B>(DpoLoss::Hinge, 0.0, [3.0, 0.5]), 0.0);
        // 1.5 / 4 + .5 / 2 - 1 = -.375, squared .140625.
        assert_close(pair::<B>(DpoLoss::Ipo, 0.0, ahead), 0.140_625);
    }

    fn a_prompts_pairs_are_averaged_and_prompts_summed<B: Backend>() {
        let mut comparisons = Comparisons::new();
        comparisons.push_prompt([(0, 1, 0.0), (0, 2, 0.0), (1, 2, 0.0)]);
        comparisons.push_prompt([(4, 3, 0.0)]);
        let ratios = tensor::<B>(&[3.0, 2.0, 1.0, 2.0, 0.0]);
        let objective = objective(DpoLoss::Sigmoid, 1.0, 0.0);
        // Margins 1, 2, 1: (2 * .313262 + .126928) / 3 = .251151; margin -2: 2.126928.
        let loss = dpo(ratios, &[1; 5], &comparisons, objective);
        assert_close(value(loss), 2.378_079);
    }

    fn margins_of_hundreds_stay_finite<B: Backend>() {
        for far in [80.0f32, 200.0, 2000.0] {
            for (loss_type, smoothing) in [
                (DpoLoss::Sigmoid, 0.0),
                (DpoLoss::Sigmoid, 0.1),
                (DpoLoss::Robust, 0.1),
                (DpoLoss::Hinge, 0.0),
                (DpoLoss::Ipo, 0.0),
            ] {
                for at in [[far, -far], [-far, far]] {
                    let objective = objective(loss_type, 0.5, smoothing);
                    let loss = pair::<B>(loss_type, smoothing, at);
                    let slope = gradient::<B>(&at, |x| dpo(x, &[4, 2], &one_pair(), objective));
                    let finite = slope.iter().all(|x| x.is_finite());
                    assert!(loss.is_finite() && finite, "{loss_type:?} {loss} {slope:?}");
                }
            }
        }
        // Scaled margin -80: the loss is 80 and its slope -beta; scaled margin 80: both vanish.
        assert_close(pair::<B>(DpoLoss::Sigmoid, 0.0, [-80.0, 80.0]), 80.0);
        assert_close(pair::<B>(DpoLoss::Sigmoid, 0.0, [80.0, -80.0]), 0.0);
        // A tenth of the labels speaks against what the policy is sure of: .1 * 80.
        assert_close(pair::<B>(DpoLoss::Sigmoid, 0.1, [80.0, -80.0]), 8.0);
        let sure = objective(DpoLoss::Sigmoid, 0.5, 0.0);
        let slope = gradient::<B>(&[-80.0, 80.0], |x| dpo(x, &[4, 2], &one_pair(), sure));
        assert_eq!(slope, [-0.5, 0.5]);
    }

    fn gradients_match_central_differences<B: Backend>() {
        let ratios = [0.5, -1.0, 0.25, 2.0, 1.0];
        let mut comparisons = Comparisons::new();
        comparisons.push_prompt([(0, 1, 0.0), (0, 2, 0.0), (1, 2, 0.0)]);
        comparisons.push_prompt([(4, 3, 0.0)]);
        for (loss_type, smoothing) in [
            (DpoLoss::Sigmoid, 0.0),
            (DpoLoss::Sigmoid, 0.1),
            (DpoLoss::Robust, 0.2),
            (DpoLoss::Hinge, 0.0),
            (DpoLoss::Ipo, 0.0),
        ] {
            let objective = objective(loss_type, 0.4, smoothing);
            check_gradient::<B>(&ratios, |x| {
                dpo(x, &[3, 1, 4, 1, 5], &comparisons, objective)
            });
        }
    }

    fn sums_go_by_response<B: Backend>() {
        let at = [1.0, 2.0, 4.0, 8.0];
        assert_eq!(
            values(response_sums(tensor::<B>(&at), &[1, 0, 3])),
            [1.0, 0.0, 14.0]
        );
        // d/dx of 3 * (first) + 5 * (second sum).
        let got = gradient::<B>(&at, |x| {
            (response_sums(x, &[1, 3]) * tensor(&[3.0, 5.0])).sum()
        });
        assert_eq!(got, [3.0, 5.0, 5.0, 5.0]);
    }

    on_each_backend!(
        a_policy_that_is_its_reference,
        known_margins,
        a_prompts_pairs_are_averaged_and_prompts_summed,
        margins_of_hundreds_stay_finite,
        gradients_match_central_differences,
        sums_go_by_response,
    );

    #[test]
    fn names_are_trls() {
        for (loss, name) in [
            (DpoLoss::Sigmoid, "sigmoid"),
            (DpoLoss::Hinge, "hinge"),
            (DpoLoss::Ipo, "ipo"),
            (DpoLoss::Robust, "robust"),
        ] {
            assert_eq!(serde_json::to_value(loss).unwrap(), name);
        }
    }
}
