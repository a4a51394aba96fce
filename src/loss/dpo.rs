//! Losses of direct preference optimisation, on log ratios of policy to reference.

use burn::tensor::activation::{log_sigmoid, relu, sigmoid};
use burn::tensor::{Tensor, TensorData, backend::Backend};

use super::{Comparisons, DpoLoss, DpoLosses};
use crate::host::floats;

/// DPO losses with their parameters.
#[derive(Debug, Clone, PartialEq)]
pub struct DpoObjective {
    /// The losses, with weights.
    pub losses: DpoLosses,
    /// Scale of the implicit rewards: the strength of the implicit KL constraint (IPO's tau).
    pub beta: f64,
    /// Assumed probability that a label is wrong, `epsilon` below; other losses than those that name it take none.
    pub label_smoothing: f64,
    /// Temperature of the blend of `Discopop`, `tau` below.
    pub discopop_tau: f64,
}

/// What DPO losses read of the responses of a batch.
#[derive(Debug, Clone)]
pub struct ResponseValues<'a, B: Backend> {
    /// Sum over a response's tokens of `logprob - ref_logprob`, `[responses]`, nats.
    pub log_ratios: Tensor<B, 1>,
    /// Sum over a response's tokens of `ref_logprob`, `[responses]`, nats.
    pub ref_logps: Tensor<B, 1>,
    /// Length of each response in tokens.
    pub lens: &'a [usize],
    /// Prompts per token of chosen responses in the whole step, see [`chosen_tokens`]: `Sft` is a mean over the step's tokens.
    pub prompts_per_token: f64,
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

/// Mean number of tokens of a prompt's chosen responses, summed over prompts: the number of tokens of all chosen responses if every
/// prompt has one pair.
pub fn chosen_tokens(comparisons: &Comparisons, lens: &[usize]) -> f64 {
    let pairs = comparisons.pairs().zip(comparisons.pair_weights());
    pairs
        .map(|((chosen, _), weight)| f64::from(weight) * lens[chosen] as f64)
        .sum()
}

/// Preference loss: the mean over each prompt's pairs, summed over prompts and over losses with their weights.
///
/// With `c` and `r` the log ratios of the chosen and the rejected response, `margin = c - r`, `L(x) = -log sigmoid(beta * x)` and
/// `S(x) = sigmoid(beta * x)`:
///
/// | loss | of a pair |
/// |---|---|
/// | `Sigmoid` | `(1 - epsilon) L(margin) + epsilon L(-margin)` |
/// | `Robust` | `((1 - epsilon) L(margin) - epsilon L(-margin)) / (1 - 2 epsilon)` |
/// | `Hinge` | `max(0, 1 - beta * margin)` |
/// | `Ipo` | `(c / len_chosen - r / len_rejected - 1 / (2 beta))^2` |
/// | `SigmoidNorm` | `L(c / len_chosen - r / len_rejected)` |
/// | `ExoPair` | `S(margin) (-L(margin) - log(1 - epsilon)) + S(-margin) (-L(-margin) - log epsilon)` |
/// | `NcaPair` | `L(c) + L(-c) / 2 + L(-r) / 2` |
/// | `BcoPair` | `L(c) + L(-r)` |
/// | `SppoHard` | `(c - 1 / (2 beta))^2 + (r + 1 / (2 beta))^2` |
/// | `ApoZero` | `S(-c) + S(r)` |
/// | `ApoDown` | `S(c) + S(-margin)` |
/// | `Discopop` | `L(margin) (1 - m) + exp(-beta * margin) m`, `m = sigmoid(beta * margin / tau)` |
/// | `Aot` | `Sigmoid` of the k-th smallest margin of the policy minus the k-th smallest of the reference, over all pairs |
/// | `AotUnpaired` | `Sigmoid` of the k-th smallest `c` minus the k-th smallest `r`, over all pairs |
/// | `Sft` | minus the policy's mean log-probability of the tokens of chosen responses |
///
/// `Aot` and `AotUnpaired` are means over all pairs, times the number of prompts. If the policy equals its reference the loss per prompt
/// is `ln 2` with `Sigmoid`, 1 with `Hinge` and `1 / (4 beta^2)` with `Ipo`.
///
/// # Shapes
/// - returns: `[1]`
///
/// # Panics
/// If there are not as many lengths as log ratios.
///
/// # Source
/// Rafailov et al. 2023, arXiv:2305.18290, eq. 7. Conservative: Mitchell 2023, "A note on DPO with noisy preferences and
/// relationship to IPO", eq. 3. Robust: Chowdhury et al. 2024, arXiv:2403.00409, eq. 7. Hinge: Zhao et al. 2023,
/// arXiv:2305.10425, as TRL has it. IPO: Azar et al. 2023, arXiv:2310.12036, eq. 17; the division by the number of tokens is
/// TRL's, confirmed by its authors. EXO: Ji et al. 2024, arXiv:2402.00856, eq. 16. NCA: Chen et al. 2024, arXiv:2402.05369. BCO: Jung et
/// al. 2024, arXiv:2404.04656. SPPO: Wu et al. 2024, arXiv:2405.00675, eq. 4.7 with probabilities 1 and 0. AOT: Melnyk et al. 2024,
/// arXiv:2406.05882. APO: D'Oosterlinck et al. 2024, arXiv:2408.06266, eqs. 7 and 8. DiscoPOP: Lu et al. 2024, arXiv:2406.08414, eq. 5.
/// All as in TRL 1.16, which uses `label_smoothing` for `robust`, `exo_pair` and `aot` and ignores it for `sigmoid`.
pub fn dpo<B: Backend>(
    values: &ResponseValues<'_, B>,
    comparisons: &Comparisons,
    objective: &DpoObjective,
) -> Tensor<B, 1> {
    assert_eq!(values.log_ratios.dims(), [values.lens.len()], "responses");
    let losses = objective.losses.weighted().iter();
    losses
        .map(|&(loss, weight)| {
            let loss = one_loss(loss, values, comparisons, objective);
            if weight == 1.0 { loss } else { loss * weight }
        })
        .reduce(|sum, loss| sum + loss)
        .unwrap_or_else(|| Tensor::zeros([1], &values.log_ratios.device()))
}

/// One loss, summed over prompts.
fn one_loss<B: Backend>(
    loss: DpoLoss,
    values: &ResponseValues<'_, B>,
    comparisons: &Comparisons,
    objective: &DpoObjective,
) -> Tensor<B, 1> {
    let &DpoObjective {
        beta,
        label_smoothing,
        discopop_tau,
        ..
    } = objective;
    // log_sigmoid, not sigmoid().log(): the latter is -inf for margins below about -88.
    let log_loss = |x: Tensor<B, 1>| log_sigmoid(x * beta).neg();
    let share = |x: Tensor<B, 1>| sigmoid(x * beta);
    let square = |x: Tensor<B, 1>| x.clone() * x;
    let smoothed = |margin: Tensor<B, 1>, of_flipped: f64| {
        let loss = log_loss(margin.clone()) * (1.0 - label_smoothing);
        match label_smoothing {
            0.0 => loss,
            _ => loss + log_loss(margin.neg()) * of_flipped,
        }
    };
    let sides = || comparisons.sides(values.log_ratios.clone());
    let margin = || {
        let (chosen, rejected) = sides();
        chosen - rejected
    };
    let margin_per_token = || {
        let inverse: Vec<f32> = (values.lens.iter())
            .map(|&len| 1.0 / len.max(1) as f32)
            .collect();
        let inverse = floats(&inverse, &values.log_ratios.device());
        let (chosen, rejected) = comparisons.sides(values.log_ratios.clone() * inverse);
        chosen - rejected
    };
    let losses = match loss {
        DpoLoss::Sigmoid => smoothed(margin(), label_smoothing),
        DpoLoss::Robust => smoothed(margin(), -label_smoothing) / (1.0 - 2.0 * label_smoothing),
        DpoLoss::Hinge => relu((margin() * beta).neg() + 1.0),
        DpoLoss::Ipo => square(margin_per_token() - 0.5 / beta),
        DpoLoss::SigmoidNorm => log_loss(margin_per_token()),
        DpoLoss::ExoPair => {
            let margin = margin();
            let chosen = log_loss(margin.clone()).neg() - (1.0 - label_smoothing).ln();
            let rejected = log_loss(margin.clone().neg()).neg() - label_smoothing.ln();
            share(margin.clone()) * chosen + share(margin.neg()) * rejected
        }
        DpoLoss::NcaPair => {
            let (chosen, rejected) = sides();
            let away = log_loss(chosen.clone().neg()) + log_loss(rejected.neg());
            log_loss(chosen) + away * 0.5
        }
        DpoLoss::BcoPair => {
            let (chosen, rejected) = sides();
            log_loss(chosen) + log_loss(rejected.neg())
        }
        DpoLoss::SppoHard => {
            let (chosen, rejected) = sides();
            square(chosen - 0.5 / beta) + square(rejected + 0.5 / beta)
        }
        DpoLoss::ApoZero => {
            let (chosen, rejected) = sides();
            share(chosen.neg()) + share(rejected)
        }
        DpoLoss::ApoDown => {
            let (chosen, rejected) = sides();
            share(chosen.clone()) + share(rejected - chosen)
        }
        DpoLoss::Discopop => {
            let scaled = margin() * beta;
            let towards = scaled.clone() / discopop_tau;
            let logistic = log_sigmoid(scaled.clone()).neg() * sigmoid(towards.clone().neg());
            // One exponential: of its two factors one may overflow where the other one vanishes.
            logistic + (log_sigmoid(towards) - scaled).exp()
        }
        DpoLoss::Aot => {
            let (chosen, rejected) = comparisons.sides(values.ref_logps.clone());
            let reference = chosen - rejected;
            let policy = margin() + reference.clone();
            let loss = smoothed(sorted(policy) - sorted(reference), label_smoothing);
            return mean_over_pairs(loss, comparisons);
        }
        DpoLoss::AotUnpaired => {
            let (chosen, rejected) = sides();
            let loss = smoothed(sorted(chosen) - sorted(rejected), label_smoothing);
            return mean_over_pairs(loss, comparisons);
        }
        DpoLoss::Sft => {
            let logps = values.log_ratios.clone() + values.ref_logps.clone();
            comparisons.sides(logps).0 * -values.prompts_per_token
        }
    };
    comparisons.mean_per_prompt(losses)
}

/// The mean of `losses`, `[pairs]`, times the number of prompts.
fn mean_over_pairs<B: Backend>(losses: Tensor<B, 1>, comparisons: &Comparisons) -> Tensor<B, 1> {
    losses.sum() * (comparisons.num_prompts() as f64 / comparisons.num_pairs() as f64)
}

/// The values in ascending order.
fn sorted<B: Backend>(values: Tensor<B, 1>) -> Tensor<B, 1> {
    let order = values.clone().detach().argsort(0);
    values.select(0, order)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::loss::test_support::{
        check_gradient, gradient, on_each_backend, tensor, value, values,
    };
    use std::f32::consts::LN_2;

    fn objective(loss: DpoLoss, beta: f64, label_smoothing: f64) -> DpoObjective {
        DpoObjective {
            losses: loss.into(),
            beta,
            label_smoothing,
            discopop_tau: 0.05,
        }
    }

    /// The loss against a reference that gives each response a log-probability of zero.
    fn of_ratios<B: Backend>(
        log_ratios: Tensor<B, 1>,
        lens: &[usize],
        comparisons: &Comparisons,
        objective: &DpoObjective,
    ) -> Tensor<B, 1> {
        let values = ResponseValues {
            ref_logps: log_ratios.zeros_like(),
            log_ratios,
            lens,
            prompts_per_token: comparisons.num_prompts() as f64 / chosen_tokens(comparisons, lens),
        };
        dpo(&values, comparisons, objective)
    }

    fn one_pair() -> Comparisons {
        let mut comparisons = Comparisons::new();
        comparisons.push_prompt([(0, 1, 0.0)]);
        comparisons
    }

    /// The loss of one pair of responses of 4 and 2 tokens at beta 0.5.
    fn pair<B: Backend>(loss_type: DpoLoss, label_smoothing: f64, ratios: [f32; 2]) -> f32 {
        let objective = objective(loss_type, 0.5, label_smoothing);
        value(of_ratios(
            tensor::<B>(&ratios),
            &[4, 2],
            &one_pair(),
            &objective,
        ))
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
        let loss = of_ratios(ratios, &[1; 5], &comparisons, &objective);
        assert_close(value(loss), 2.378_079);
    }

    /// Every loss without label smoothing, if it has none to ask for, and with it.
    fn with_smoothing() -> impl Iterator<Item = (DpoLoss, f64)> {
        DpoLoss::ALL.into_iter().flat_map(|loss| {
            let plain = (loss != DpoLoss::ExoPair).then_some((loss, 0.0));
            let smoothed = loss.knows_wrong_labels().then_some((loss, 0.1));
            plain.into_iter().chain(smoothed)
        })
    }

    /// Beta is 0.5; chosen 1.5, rejected -0.5; scaled .75, -.25, and 1 for the margin.
    fn losses_of_both_responses<B: Backend>() {
        let ahead = [1.5, -0.5];
        let of = |loss: DpoLoss| pair::<B>(loss, 0.0, ahead);
        // sigmoid(1) = .731059 and log sigmoid(1) = -.313262, log sigmoid(-1) = -1.313262:
        // .731059 * (-.313262 - ln .9) + .268941 * (-1.313262 - ln .1) = -.151990 + .266072.
        assert_close(pair::<B>(DpoLoss::ExoPair, 0.1, ahead), 0.114_082);
        // ln(1 + e^-.75) = .386871, ln(1 + e^.75) = 1.136871, ln(1 + e^-.25) = .575939.
        assert_close(
            of(DpoLoss::NcaPair),
            0.386_871 + (1.136_871 + 0.575_939) / 2.0,
        );
        assert_close(of(DpoLoss::BcoPair), 0.386_871 + 0.575_939);
        // (1.5 - 1)^2 + (-.5 + 1)^2.
        assert_close(of(DpoLoss::SppoHard), 0.5);
        // sigmoid(-.75) = .320821, sigmoid(-.25) = .437823.
        assert_close(of(DpoLoss::ApoZero), 0.320_821 + 0.437_823);
        // sigmoid(.75) = .679179, sigmoid(-1) = .268941.
        assert_close(of(DpoLoss::ApoDown), 0.679_179 + 0.268_941);
        // sigmoid(1 / .05) = 1 - 2.06e-9: e^-1.
        assert_close(of(DpoLoss::Discopop), 0.367_879);
        // A scaled margin of .05: m = sigmoid(1) = .731059, ln(1 + e^-.05) = .668460, e^-.05 = .951229.
        let near = pair::<B>(DpoLoss::Discopop, 0.0, [0.1, 0.0]);
        assert_close(near, 0.268_941 * 0.668_460 + 0.731_059 * 0.951_229);
        // 1.5 / 4 + .5 / 2 = .625, scaled .3125: ln(1 + e^-.3125).
        assert_close(of(DpoLoss::SigmoidNorm), 0.549_055);
        // Four tokens of the chosen response, whose log-probabilities add up to 1.5.
        assert_close(of(DpoLoss::Sft), -0.375);
    }

    /// Two pairs at beta 1: margins of the policy 3 and 1, of the reference -2 and 1.
    fn sorted_losses_match_quantiles<B: Backend>() {
        let mut comparisons = Comparisons::new();
        comparisons.push_prompt([(0, 1, 0.0)]);
        comparisons.push_prompt([(2, 3, 0.0)]);
        let of = |loss: DpoLoss, smoothing: f64| {
            let values = ResponseValues {
                log_ratios: tensor::<B>(&[4.0, -1.0, -0.5, -0.5]),
                ref_logps: tensor::<B>(&[-4.0, -2.0, -1.0, -2.0]),
                lens: &[1; 4],
                prompts_per_token: 1.0,
            };
            let objective = objective(loss, 1.0, smoothing);
            value(dpo(&values, &comparisons, &objective))
        };
        // Policy 0 - -3 = 3 and -1.5 - -2.5 = 1, sorted 1, 3; reference -2, 1: differences 3 and 2.
        assert_close(of(DpoLoss::Aot, 0.0), 0.048_587 + 0.126_928);
        // The other way round each loss is larger by the difference.
        assert_close(of(DpoLoss::Aot, 0.1), 0.048_587 + 0.126_928 + 0.1 * 5.0);
        // Chosen -.5, 4; rejected -1, -.5: differences .5 and 4.5.
        assert_close(of(DpoLoss::AotUnpaired, 0.0), 0.474_077 + 0.011_048);
    }

    fn losses_add_up_by_weight<B: Backend>() {
        let losses = DpoLosses::new([(DpoLoss::Sigmoid, 0.75), (DpoLoss::Sft, 0.25)]);
        let objective = DpoObjective {
            losses,
            ..objective(DpoLoss::Sigmoid, 0.5, 0.0)
        };
        let got = value(of_ratios(
            tensor::<B>(&[1.5, -0.5]),
            &[4, 2],
            &one_pair(),
            &objective,
        ));
        assert_close(got, 0.75 * 0.313_262 + 0.25 * -0.375);
    }

    /// A prompt's pairs share its weight: chosen responses of 3 and 1 tokens count as one of 2.
    fn chosen_tokens_are_means_per_prompt<B: Backend>() {
        let mut comparisons = Comparisons::new();
        comparisons.push_prompt([(0, 1, 0.0), (2, 1, 0.0)]);
        comparisons.push_prompt([(3, 4, 0.0)]);
        assert_eq!(chosen_tokens(&comparisons, &[3, 9, 1, 6, 9]), 8.0);
        let objective = objective(DpoLoss::Sft, 0.5, 0.0);
        let got = of_ratios(
            tensor::<B>(&[-3.0, 9.0, -1.0, -6.0, 9.0]),
            &[3, 9, 1, 6, 9],
            &comparisons,
            &objective,
        );
        // Two prompts times a mean of (2 + 6) / 8 over tokens.
        assert_close(value(got), 2.0);
    }

    fn margins_of_hundreds_stay_finite<B: Backend>() {
        for far in [80.0f32, 200.0, 2000.0] {
            for (loss_type, smoothing) in with_smoothing() {
                for at in [[far, -far], [-far, far]] {
                    let objective = objective(loss_type, 0.5, smoothing);
                    let loss = pair::<B>(loss_type, smoothing, at);
                    let slope =
                        gradient::<B>(&at, |x| of_ratios(x, &[4, 2], &one_pair(), &objective));
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
        let slope = gradient::<B>(&[-80.0, 80.0], |x| {
            of_ratios(x, &[4, 2], &one_pair(), &sure)
        });
        assert_eq!(slope, [-0.5, 0.5]);
    }

    fn gradients_match_central_differences<B: Backend>() {
        let ratios = [0.5, -1.0, 0.25, 2.0, 1.0];
        let mut comparisons = Comparisons::new();
        comparisons.push_prompt([(0, 1, 0.0), (0, 2, 0.0), (1, 2, 0.0)]);
        comparisons.push_prompt([(4, 3, 0.0)]);
        for (loss_type, smoothing) in with_smoothing() {
            // At the usual temperature a central difference is too coarse for `Discopop`.
            let objective = DpoObjective {
                discopop_tau: 1.0,
                ..objective(loss_type, 0.4, smoothing)
            };
            check_gradient::<B>(&ratios, |x| {
                of_ratios(x, &[3, 1, 4, 1, 5], &comparisons, &objective)
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
        losses_of_both_responses,
        sorted_losses_match_quantiles,
        losses_add_up_by_weight,
        chosen_tokens_are_means_per_prompt,
        a_prompts_pairs_are_averaged_and_prompts_summed,
        margins_of_hundreds_stay_finite,
        gradients_match_central_differences,
        sums_go_by_response,
    );
}
