//! Losses that sort the pairs of a step (AOT), when the step is split into micro-batches.
//!
//! A pass without gradients gives the log-probabilities of all responses. The gradient of the loss with respect to each response's sum is
//! taken on these, and in the micro-batches' backward passes each response is weighted by it. The result is that of one large pass.

use burn::backend::Autodiff;
use burn::tensor::Tensor;

use super::step::Pass;
use super::{MicroBatch, Objective};
use crate::collective;
use crate::loss::{Comparisons, ResponseValues, dpo, response_sums};
use crate::model::LanguageModel;
use crate::ops::ModelBackend;
use crate::train::shared::Accumulator;

/// The loss of a step and its gradient.
pub(super) struct LossGradient<B: ModelBackend> {
    /// `[1]`, summed over prompts.
    loss: Tensor<B, 1>,
    /// With respect to the log ratios of each micro-batch's responses, `[responses]`.
    by_response: Vec<Tensor<B, 1>>,
}

/// The loss of all micro-batches together and its gradient with respect to the responses' log ratios. `ref_logprobs` are those of this
/// rank's micro-batches, with their places among all.
///
/// # Panics
/// If the objective has no reference: only DPO's losses sort.
pub(super) fn loss_gradient<B: ModelBackend>(
    pass: &Pass<'_, B>,
    micros: &[MicroBatch<'_>],
    ref_logprobs: &[(usize, Option<Tensor<B, 1>>)],
    policy: &LanguageModel<B>,
) -> LossGradient<B> {
    let Objective::Dpo(objective) = pass.objective else {
        panic!("only DPO's losses sort")
    };
    let (mut ratios, mut references, mut lens) = (Vec::new(), Vec::new(), Vec::new());
    let mut pairs = Comparisons::new();
    for (part, reference) in ref_logprobs {
        let micro = &micros[*part];
        let reference = reference.clone().expect("DPO has a reference");
        let ratio = micro.logprobs(policy, pass.device) - reference.clone();
        ratios.push(response_sums(ratio, &micro.lens));
        references.push(response_sums(reference, &micro.lens));
    }
    let ratios = collective::tensors(ratios, pass.device);
    let references = collective::tensors(references, pass.device);
    for micro in micros {
        let first = lens.len();
        lens.extend(&micro.lens);
        pairs.extend(&micro.pairs, first);
    }
    let ratios: Tensor<Autodiff<B>, 1> = Tensor::from_inner(Tensor::cat(ratios, 0)).require_grad();
    let values = ResponseValues {
        log_ratios: ratios.clone(),
        ref_logps: Tensor::from_inner(Tensor::cat(references, 0)),
        lens: &lens,
        prompts_per_token: pass.prompts_per_token,
    };
    let loss = dpo(&values, &pairs, objective);
    let gradients = loss.backward();
    let gradient =
        (ratios.grad(&gradients)).unwrap_or_else(|| Tensor::zeros([lens.len()], pass.device));
    let mut first = 0;
    let by_response = micros.iter().map(|micro| {
        let len = micro.lens.len();
        first += len;
        gradient.clone().narrow(0, first - len, len)
    });
    LossGradient {
        by_response: by_response.collect(),
        loss: loss.inner(),
    }
}

impl<B: ModelBackend> LossGradient<B> {
    /// As [`Pass::backward`], for the micro-batch of index `part`. The loss is reported with the first one.
    pub(super) fn backward(
        &self,
        pass: &Pass<'_, B>,
        part: usize,
        micro: &MicroBatch<'_>,
        ref_logprobs: Option<Tensor<B, 1>>,
        policy: &mut LanguageModel<Autodiff<B>>,
        sum: &mut Accumulator<B>,
    ) {
        let (logprobs, tape) = pass.logprobs(micro, policy);
        sum.report(logprobs.clone());
        if let Some(ref_logprobs) = ref_logprobs {
            sum.numbers.push(ref_logprobs);
        }
        sum.numbers.push(match part {
            0 => self.loss.clone(),
            _ => self.loss.zeros_like(),
        });
        let weights = Tensor::from_inner(self.by_response[part].clone());
        let weighted = (response_sums(logprobs, &micro.lens) * weights).sum();
        sum.backward(&weighted, tape, policy);
    }
}
