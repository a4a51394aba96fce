//! Gradients of every loss on a backend against those on ndarray, whose gradients the losses' own tests hold against central
//! differences.

use burn::backend::{Autodiff, NdArray};
use burn::tensor::backend::Backend;
use burn::tensor::{Tensor, TensorData};

use super::parity::{Comparison, backend_name};
use tempering::guard;
use tempering::loss::{
    Choices, Comparisons, CpoLoss, CpoObjective, DpoLoss, DpoObjective, ResponseValues, best_of_k,
    bradley_terry, cpo, cross_entropy, dpo, orpo, policy_loss, response_sums, value_loss,
};
use tempering::ops::ModelBackend;
use tempering::rl::rollout::Objective;

/// A loss of one vector; what else it takes is fixed.
#[derive(Debug, Clone, Copy)]
enum Loss {
    CrossEntropy,
    BradleyTerry,
    BestOfK,
    Dpo(DpoLoss, f64),
    DpoOfTokens,
    Cpo(CpoLoss, f64),
    Orpo,
    Policy,
    Value,
}

const LOSSES: [Loss; 29] = [
    Loss::CrossEntropy,
    Loss::BradleyTerry,
    Loss::BestOfK,
    Loss::Dpo(DpoLoss::Sigmoid, 0.0),
    Loss::Dpo(DpoLoss::Sigmoid, 0.1),
    Loss::Dpo(DpoLoss::Hinge, 0.0),
    Loss::Dpo(DpoLoss::Ipo, 0.0),
    Loss::Dpo(DpoLoss::Robust, 0.2),
    Loss::Dpo(DpoLoss::ExoPair, 0.1),
    Loss::Dpo(DpoLoss::NcaPair, 0.0),
    Loss::Dpo(DpoLoss::BcoPair, 0.0),
    Loss::Dpo(DpoLoss::SppoHard, 0.0),
    Loss::Dpo(DpoLoss::Aot, 0.0),
    Loss::Dpo(DpoLoss::Aot, 0.1),
    Loss::Dpo(DpoLoss::AotUnpaired, 0.0),
    Loss::Dpo(DpoLoss::ApoZero, 0.0),
    Loss::Dpo(DpoLoss::ApoDown, 0.0),
    Loss::Dpo(DpoLoss::Discopop, 0.0),
    Loss::Dpo(DpoLoss::Sft, 0.0),
    Loss::Dpo(DpoLoss::SigmoidNorm, 0.0),
    Loss::DpoOfTokens,
    Loss::Cpo(CpoLoss::Sigmoid, 0.0),
    Loss::Cpo(CpoLoss::Hinge, 0.0),
    Loss::Cpo(CpoLoss::Ipo, 0.0),
    Loss::Cpo(CpoLoss::Simpo, 0.0),
    Loss::Cpo(CpoLoss::Simpo, 0.1),
    Loss::Orpo,
    Loss::Policy,
    Loss::Value,
];

/// Largest difference, as a part of the largest entry. f32 keeps seven digits; `exp` and `log` of a GPU lose one.
const TOLERANCE: f64 = 1e-5;

fn vector<B: Backend>(values: &[f64], device: &B::Device) -> Tensor<B, 1> {
    Tensor::from_data(TensorData::new(values.to_vec(), [values.len()]), device)
}

/// Three responses to a prompt, a pair with a margin, and leads of 160 both ways, far beyond where `exp` ends.
fn comparisons() -> Comparisons {
    let mut comparisons = Comparisons::new();
    comparisons.push_prompt([(0, 1, 0.0), (0, 2, 0.0), (1, 2, 0.0)]);
    comparisons.push_prompt([(4, 3, 0.5)]);
    comparisons.push_prompt([(5, 6, 0.0)]);
    comparisons.push_prompt([(6, 5, 0.0)]);
    comparisons
}

impl Loss {
    /// Untrained positions do not exist here; lengths of zero and one, large leads and log-probabilities do.
    fn at(self) -> Vec<f64> {
        match self {
            Self::CrossEntropy => vec![-0.5, -80.0, 0.0, -1.25],
            Self::BradleyTerry | Self::BestOfK | Self::Dpo(..) => {
                vec![0.5, -1.0, 0.25, 2.0, 1.0, 80.0, -80.0]
            }
            // Log-probabilities; of AlphaPO's reward the exponential has to stay finite.
            Self::Cpo(..) | Self::Orpo => vec![-0.5, -1.0, -0.25, -2.0, -1.0, -80.0, -3.0],
            // Responses of 3, 0, 1 and 2 tokens.
            Self::DpoOfTokens => vec![0.25, -0.5, 1.0, 0.75, -80.0, 80.0],
            // Ratios inside, above and below the clipping range, for gains and losses; one response of one token.
            Self::Policy => vec![-1.0, -0.5, -2.0, -0.25, -3.0, -80.0],
            Self::Value => vec![0.1, 0.9, -0.7, 2.0, -80.0],
        }
    }

    fn loss<B: Backend>(self, x: Tensor<B, 1>, device: &B::Device) -> Tensor<B, 1> {
        let fixed = |values: &[f64]| vector::<B>(values, device);
        let dpo_of = |log_ratios, lens: &[usize], pairs: &Comparisons, loss: DpoLoss, smoothing| {
            let values = ResponseValues {
                log_ratios,
                ref_logps: fixed(&[-3.0, -1.5, -2.0, -4.0, -1.0, -2.5, -5.0][..lens.len()]),
                lens,
                prompts_per_token: 0.25,
            };
            let objective = DpoObjective {
                losses: loss.into(),
                beta: 0.3,
                label_smoothing: smoothing,
                discopop_tau: 0.05,
            };
            dpo(&values, pairs, &objective)
        };
        match self {
            Self::CrossEntropy => cross_entropy(x),
            Self::BradleyTerry => bradley_terry(x, &comparisons()),
            Self::BestOfK => {
                let mut choices = Choices::new();
                choices.push_prompt(1, [0, 2, 3]);
                choices.push_prompt(4, [5]);
                choices.push_prompt(6, [5, 4]);
                best_of_k(x, &choices)
            }
            Self::Dpo(loss, smoothing) => {
                let lens = [3, 1, 2, 7, 1, 4, 5];
                dpo_of(x, &lens, &comparisons(), loss, smoothing)
            }
            Self::DpoOfTokens => {
                let mut pairs = Comparisons::new();
                pairs.push_prompt([(0, 2, 0.0), (0, 1, 0.0)]);
                pairs.push_prompt([(3, 2, 0.0)]);
                let lens = [3, 0, 1, 2];
                let sums = response_sums(x, &lens);
                dpo_of(sums, &lens, &pairs, DpoLoss::Sigmoid, 0.1)
            }
            Self::Cpo(loss_type, alpha) => {
                let objective = CpoObjective {
                    loss_type,
                    beta: 0.3,
                    label_smoothing: 0.1,
                    cpo_alpha: 1.0,
                    simpo_gamma: 0.5,
                    alpha,
                };
                let lens = [3, 1, 2, 7, 1, 4, 5];
                cpo(x, &lens, &comparisons(), 0.25, &objective)
            }
            Self::Orpo => {
                let rows = x.clone() - 2.0;
                orpo(x, rows, &[3, 1, 2, 7, 1, 4, 5], &comparisons(), 0.25, 0.3)
            }
            Self::Policy => policy_loss(
                x,
                fixed(&[-1.05, -0.9, -1.5, -0.6, -2.5, -80.05]),
                fixed(&[1.0, 0.5, -2.0, -0.5, 1.5, -1.0]),
                Objective::clip(0.2),
            )
            .sum(),
            Self::Value => value_loss(
                x,
                fixed(&[0.15, 0.5, -0.75, 1.5, -79.9]),
                fixed(&[0.5, 0.2, -1.0, 3.0, -75.0]),
                0.2,
            ),
        }
    }
}

fn gradient<B: Backend>(loss: Loss, device: &B::Device) -> Vec<f64> {
    let _lock = guard::lock_gradients();
    let x = vector::<Autodiff<B>>(&loss.at(), device).require_grad();
    let grads = loss.loss(x.clone(), device).backward();
    let gradient = x
        .grad(&grads)
        .unwrap_or_else(|| panic!("{loss:?} has no backward pass"));
    gradient.into_data().convert::<f64>().into_vec().unwrap()
}

/// Every loss's gradient is there, is finite, and is ndarray's.
pub(crate) fn gradients<B: ModelBackend>(device: B::Device) {
    for loss in LOSSES {
        let got = gradient::<B>(loss, &device);
        let expected = gradient::<NdArray>(loss, &Default::default());
        let largest = expected.iter().fold(0f64, |most, x| most.max(x.abs()));
        assert!(
            largest > 0.0 && largest.is_finite(),
            "{loss:?}: {expected:?}"
        );
        let difference = got
            .iter()
            .zip(&expected)
            .map(|(got, expected)| (got - expected).abs() / largest)
            .fold(0.0, |a: f64, b| if b <= a { a } else { b }); // keeps what is no number
        Comparison {
            reference: "Gradients of losses on ndarray",
            subject: &format!("{loss:?}"),
            what: "gradient",
            backend: backend_name::<B>(),
            difference,
            tolerance: TOLERANCE,
            relative: true,
        }
        .check();
    }
}
