//! The loss of hindsight instruction relabelling.

use burn::tensor::{
    Int, Tensor, TensorData, activation, activation::log_sigmoid, backend::Backend,
};
use serde::{Deserialize, Serialize};

use super::response_sums;

/// Which likelihood of an output the contrast between instructions compares.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub enum InstructionContrast {
    /// Its mean log-probability per token, as in the authors' code.
    #[default]
    TokenMean,
    /// Its log-probability, as in the paper.
    Sum,
}

/// Weights and settings of the loss.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct HirObjective {
    /// Share of each label that is spread over all labels, in the cross-entropy and in the contrast.
    pub label_smoothing: f64,
    /// Weight alpha of the contrast.
    pub contrastive_coef: f64,
    /// Weight beta of the negative entropy.
    pub entropy_coef: f64,
    /// What the contrast compares.
    pub contrast: InstructionContrast,
}

/// The parts of the loss, each `[1]`.
#[derive(Debug, Clone)]
pub struct HirTerms<B: Backend> {
    /// Cross-entropy with smoothed labels, summed over tokens.
    pub supervised: Tensor<B, 1>,
    /// Contrast between instructions, summed over outputs.
    pub contrastive: Tensor<B, 1>,
    /// Negative entropy, summed over tokens.
    pub negative_entropy: Tensor<B, 1>,
}

/// Parts of the loss of outputs under their own instruction and under another one, in nats.
///
/// With `e` the label smoothing: `sum_t -(1 - e) log p(o_t) - e / V sum_v log p(v)`; per output
/// `-(1 - e) log sigmoid(l - l') - e log sigmoid(l' - l)` with `l` and `l'` the log-likelihoods of the output under its own and the
/// other instruction, which is `-(1 - e) log(p / (p + p')) - e log(p' / (p + p'))`; and `sum_t sum_v p(v) log p(v)`.
///
/// # Shapes
/// - `logits`: `[targets, vocab]`, those that predict each token of the outputs under their own instruction
/// - `others`: `[targets]`, log-probabilities of the same tokens under the other instruction
/// - `targets`, `lens`: the tokens of all outputs, and the length of each output
///
/// # Source
/// Zhang et al. 2023, arXiv:2302.05206, section 4.3 and eq. 4; smoothing and mean per token of the contrast as in the authors' code.
pub fn hir<B: Backend>(
    logits: Tensor<B, 2>,
    others: Tensor<B, 1>,
    targets: &[u32],
    lens: &[usize],
    objective: &HirObjective,
) -> HirTerms<B> {
    let [count, vocab] = logits.dims();
    assert_eq!((count, count), (targets.len(), others.dims()[0]), "targets");
    let device = logits.device();
    let ids: Vec<i32> = targets.iter().map(|&id| id as i32).collect();
    let ids = Tensor::<B, 2, Int>::from_data(TensorData::new(ids, [count, 1]), &device);
    let log_p = activation::log_softmax(logits, 1);
    let own = log_p.clone().gather(1, ids).squeeze_dim::<1>(1);
    let smoothing = objective.label_smoothing;
    let uniform = log_p.clone().sum() * (smoothing / vocab as f64);
    let supervised = (own.clone().sum() * (1.0 - smoothing) + uniform).neg();
    let negative_entropy = (log_p.clone().exp() * log_p).sum();

    let difference = response_sums(own - others, lens);
    let difference = match objective.contrast {
        InstructionContrast::Sum => difference,
        InstructionContrast::TokenMean => {
            let inverse: Vec<f32> = lens.iter().map(|&len| 1.0 / len.max(1) as f32).collect();
            difference * Tensor::from_data(TensorData::new(inverse, [lens.len()]), &device)
        }
    };
    let ahead = log_sigmoid(difference.clone()).sum() * (1.0 - smoothing);
    let behind = log_sigmoid(difference.neg()).sum() * smoothing;
    HirTerms {
        supervised,
        contrastive: (ahead + behind).neg(),
        negative_entropy,
    }
}

impl<B: Backend> HirTerms<B> {
    /// The loss `[1]`: means over the `tokens` and `outputs` of the whole batch, weighted.
    pub fn loss(self, objective: &HirObjective, tokens: usize, outputs: usize) -> Tensor<B, 1> {
        let (tokens, outputs) = (tokens as f64, outputs as f64);
        self.supervised / tokens
            + self.contrastive * (objective.contrastive_coef / outputs)
            + self.negative_entropy * (objective.entropy_coef / tokens)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::loss::test_support::{check_gradient, gradient, on_each_backend, tensor, value};

    /// Two outputs of 2 and 1 tokens of a vocabulary of 4.
    const LOGITS: [f32; 12] = [
        0.5, -1.0, 2.0, 0.0, 1.0, 0.25, -0.5, 0.75, -2.0, 1.5, 0.5, 0.0,
    ];
    const OTHERS: [f32; 3] = [-1.2, -0.3, -0.9];

    fn objective(contrast: InstructionContrast) -> HirObjective {
        HirObjective {
            label_smoothing: 0.2,
            contrastive_coef: 1.0,
            entropy_coef: 0.001,
            contrast,
        }
    }

    fn terms<B: Backend>(
        logits: Tensor<B, 1>,
        others: Tensor<B, 1>,
        contrast: InstructionContrast,
    ) -> HirTerms<B> {
        let logits = logits.reshape([3, 4]);
        hir(logits, others, &[2, 0, 3], &[2, 1], &objective(contrast))
    }

    fn near(got: f32, want: f32) {
        assert!(
            (got - want).abs() < 2e-6 * want.abs().max(1.0),
            "{got}, expected {want}"
        );
    }

    /// torch 2.15 in f64: `F.cross_entropy(logits, targets, label_smoothing=0.2, reduction="sum")`; with `a`, `b` the mean (or sum) over
    /// an output's tokens of `log_softmax(logits)[target]` and of `others`: `-.8 * log(e^a / (e^a + e^b)) - .2 * log(e^b / (e^a + e^b))`;
    /// `(p * log(p)).sum()`.
    fn the_parts_are_torchs<B: Backend>() {
        let of = |contrast| terms(tensor::<B>(&LOGITS), tensor(&OTHERS), contrast);
        let mean = of(InstructionContrast::TokenMean);
        near(value(mean.supervised.clone()), 3.681_477);
        near(value(mean.contrastive.clone()), 1.815_473);
        near(value(mean.negative_entropy.clone()), -3.123_106_4);
        let loss = mean.loss(&objective(InstructionContrast::TokenMean), 3, 2);
        near(value(loss), 2.133_854_5);
        let sum = of(InstructionContrast::Sum);
        near(value(sum.contrastive.clone()), 1.783_638_5);
        let loss = sum.loss(&objective(InstructionContrast::Sum), 3, 2);
        near(value(loss), 2.117_937);
    }

    /// `torch.autograd.grad` of the same loss.
    fn gradients_are_torchs<B: Backend>() {
        let kind = InstructionContrast::TokenMean;
        let got = gradient::<B>(&LOGITS, |logits| {
            terms(logits, tensor(&OTHERS), kind).loss(&objective(kind), 3, 2)
        });
        let want = [
            0.046_736_08,
            -0.002_537_279,
            -0.065_971_82,
            0.021_773_025,
            -0.188_574_8,
            0.059_763_38,
            0.019_413_787,
            0.109_397_64,
            -0.005_381_26,
            0.357_774_3,
            0.121_006_83,
            -0.473_399_87,
        ];
        for (got, want) in got.into_iter().zip(want) {
            near(got, want);
        }
        let got = gradient::<B>(&OTHERS, |others| {
            terms(tensor(&LOGITS), others, kind).loss(&objective(kind), 3, 2)
        });
        for (got, want) in got
            .into_iter()
            .zip([0.067_144_93, 0.067_144_93, 0.273_546_8])
        {
            near(got, want);
        }
        let kind = InstructionContrast::Sum;
        let got = gradient::<B>(&OTHERS, |others| {
            terms(tensor(&LOGITS), others, kind).loss(&objective(kind), 3, 2)
        });
        for (got, want) in got
            .into_iter()
            .zip([0.118_703_31, 0.118_703_31, 0.273_546_8])
        {
            near(got, want);
        }
        check_gradient::<B>(&LOGITS, |logits| {
            terms(logits, tensor(&OTHERS), kind).loss(&objective(kind), 3, 2)
        });
    }

    fn outputs_far_apart_stay_finite<B: Backend>() {
        let kind = InstructionContrast::Sum;
        for other in [-2000.0, 0.0] {
            let others = [other, other, -0.9];
            let loss = terms(tensor::<B>(&LOGITS), tensor(&others), kind);
            assert!(value(loss.loss(&objective(kind), 3, 2)).is_finite());
        }
    }

    on_each_backend!(
        the_parts_are_torchs,
        gradients_are_torchs,
        outputs_far_apart_stay_finite
    );
}
