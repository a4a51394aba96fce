//! Kahneman-Tversky optimisation: losses of single responses that are labelled as desirable or not.

use burn::tensor::activation::sigmoid;
use burn::tensor::{Tensor, backend::Backend};
use serde::{Deserialize, Serialize};

use crate::host::floats;

/// Loss of a labelled response; the names are TRL's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum KtoLoss {
    /// Against the KL divergence from the reference.
    #[default]
    Kto,
    /// Against zero.
    ApoZeroUnpaired,
}

/// A KTO loss with its parameters.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct KtoObjective {
    /// The loss.
    pub loss_type: KtoLoss,
    /// Scale of the implicit rewards.
    pub beta: f64,
    /// Weight of desirable responses.
    pub desirable_weight: f64,
    /// Weight of undesirable responses.
    pub undesirable_weight: f64,
}

/// Loss of labelled responses, summed.
///
/// With `r` the log ratio of a response and `z` the KL estimate (0 for `ApoZeroUnpaired`), a desirable response has
/// `desirable_weight * (1 - sigmoid(beta * (r - z)))`, an undesirable one `undesirable_weight * (1 - sigmoid(beta * (z - r)))`. If the
/// policy equals its reference each is half its weight.
///
/// # Shapes
/// - `log_ratios`: `[responses]`, sums over a response's tokens of `logprob - ref_logprob`, nats
/// - `kl`: `[1]`, nats; no gradient is taken of it
/// - returns: `[1]`
///
/// # Panics
/// If there are not as many labels as log ratios.
///
/// # Source
/// Ethayarajh et al. 2024, arXiv:2402.01306, eqs. 7 and 8; the unpaired APO-zero as TRL 1.16 has it, after D'Oosterlinck et al. 2024,
/// arXiv:2408.06266, eq. 7.
pub fn kto<B: Backend>(
    log_ratios: Tensor<B, 1>,
    labels: &[bool],
    kl: Tensor<B, 1>,
    objective: &KtoObjective,
) -> Tensor<B, 1> {
    assert_eq!(
        log_ratios.dims(),
        [labels.len()],
        "a label for each response"
    );
    let device = log_ratios.device();
    let by_label = |desirable: f64, undesirable: f64| {
        let values = labels
            .iter()
            .map(|&label| if label { desirable } else { undesirable });
        let values: Vec<f32> = values.map(|value| value as f32).collect();
        floats::<B>(&values, &device)
    };
    let lead = match objective.loss_type {
        KtoLoss::Kto => log_ratios - kl.detach(),
        KtoLoss::ApoZeroUnpaired => log_ratios,
    };
    // 1 - sigmoid(x) = sigmoid(-x).
    let against = by_label(-objective.beta, objective.beta);
    let weights = by_label(objective.desirable_weight, objective.undesirable_weight);
    (sigmoid(lead * against) * weights).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::loss::test_support::{check_gradient, gradient, on_each_backend, tensor, value};

    fn objective(loss_type: KtoLoss) -> KtoObjective {
        KtoObjective {
            loss_type,
            beta: 0.5,
            desirable_weight: 2.0,
            undesirable_weight: 0.5,
        }
    }

    const LABELS: [bool; 3] = [true, false, false];

    fn of<B: Backend>(loss_type: KtoLoss, ratios: [f32; 3], kl: f32) -> f32 {
        let kl = tensor::<B>(&[kl]);
        value(kto(tensor(&ratios), &LABELS, kl, &objective(loss_type)))
    }

    fn known_responses<B: Backend>() {
        let close = |got: f32, want: f32| assert!((got - want).abs() < 1e-5, "{got}, {want}");
        // At the reference: 2 / 2 + .5 / 2 + .5 / 2.
        close(of::<B>(KtoLoss::Kto, [0.0; 3], 0.0), 1.5);
        // sigmoid(-.5 (3 - 1)) = .268941, sigmoid(.5 (0 - 1)) = .377541, sigmoid(.5 (2 - 1)) = .622459.
        let want = 2.0 * 0.268_941 + 0.5 * (0.377_541 + 0.622_459);
        close(of::<B>(KtoLoss::Kto, [3.0, 0.0, 2.0], 1.0), want);
        // sigmoid(-1.5) = .182426, sigmoid(0) = .5, sigmoid(1) = .731059, whatever the KL.
        let want = 2.0 * 0.182_426 + 0.5 * (0.5 + 0.731_059);
        close(
            of::<B>(KtoLoss::ApoZeroUnpaired, [3.0, 0.0, 2.0], 1.0),
            want,
        );
    }

    fn gradients_match_central_differences<B: Backend>() {
        for loss_type in [KtoLoss::Kto, KtoLoss::ApoZeroUnpaired] {
            check_gradient::<B>(&[0.5, -1.0, 2.0], |x| {
                kto(x, &LABELS, tensor(&[0.75]), &objective(loss_type))
            });
        }
    }

    /// Far leads have a loss of their weight or none, and no slope.
    fn leads_of_hundreds_stay_finite<B: Backend>() {
        for far in [200.0, -200.0, 5000.0, -5000.0] {
            let slope = gradient::<B>(&[far; 3], |x| {
                kto(x, &LABELS, tensor(&[0.0]), &objective(KtoLoss::Kto))
            });
            assert!(slope.iter().all(|x| x.abs() < 1e-30), "{slope:?}");
        }
    }

    on_each_backend!(
        known_responses,
        gradients_match_central_differences,
        leads_of_hundreds_stay_finite,
    );
}
