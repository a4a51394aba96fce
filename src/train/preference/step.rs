//! One optimiser step on comparisons.

use burn::backend::Autodiff;
use burn::module::AutodiffModule;
use burn::tensor::Tensor;

use super::sorted::loss_gradient;
use super::{MicroBatch, Objective, PairSums};
use crate::data::{Comparisons, step_parts};
use crate::error::Result;
use crate::model::{CausalLm, LanguageModel, Tape};
use crate::ops::ModelBackend;
use crate::train::shared::{Accumulator, Training};

/// The settings of a step.
pub(in crate::train) struct Step<'a, B: ModelBackend> {
    /// The loss.
    pub(in crate::train) objective: &'a Objective,
    /// Tokens per forward pass at most.
    pub(in crate::train) micro_batch_tokens: usize,
    /// Recompute layers in the backward pass.
    pub(in crate::train) gradient_checkpointing: bool,
    pub(in crate::train) device: &'a B::Device,
}

/// What a step reports.
pub(in crate::train) struct StepTaken {
    /// Of the pairs and of the optimiser.
    pub(in crate::train) metrics: Vec<(&'static str, f64)>,
    /// Tokens of all rows.
    pub(in crate::train) tokens: u64,
}

impl<B: ModelBackend> Step<'_, B> {
    /// Updates `policy` on `items`. `reference` gives the reference's log-probabilities of a micro-batch, which holds the items of these
    /// indices, or `None` for a loss without a reference.
    ///
    /// # Errors
    /// `Error::NonFinite`.
    pub(in crate::train) fn take(
        &self,
        training: &mut Training<B>,
        policy: &mut LanguageModel<Autodiff<B>>,
        items: &[&Comparisons],
        reference: impl Fn(&MicroBatch<'_>, &[usize]) -> Option<Tensor<B, 1>>,
    ) -> Result<StepTaken> {
        let objective = self.objective;
        let lens: Vec<usize> = items.iter().map(|item| item.packed_len()).collect();
        let parts = step_parts(&lens, self.micro_batch_tokens);
        let with_prompts = objective.reads_prompts();
        let micros: Vec<MicroBatch<'_>> = (parts.all().iter())
            .map(|part| MicroBatch::new(part.iter().map(|&i| items[i]), with_prompts))
            .collect();
        // Of this rank's micro-batches, with their places among all.
        let ref_logprobs: Vec<(usize, Option<Tensor<B, 1>>)> = (micros.iter().zip(parts.all()))
            .enumerate()
            .filter(|(place, _)| parts.has(*place))
            .map(|(place, (micro, part))| (place, reference(micro, part)))
            .collect();
        let tokens: f64 = (micros.iter())
            .map(|micro| objective.chosen_tokens(micro))
            .sum();
        let prompts = items.len() as f64;
        let pass = Pass {
            objective,
            prompts_per_token: prompts / tokens,
            checkpointing: self.gradient_checkpointing,
            device: self.device,
        };
        let mut sum = Accumulator::default();
        if objective.sorts() && micros.len() > 1 {
            // The loss of a pair depends on all pairs of the step: its gradient is taken first, on the numbers of a pass without one.
            let gradient = loss_gradient(&pass, &micros, &ref_logprobs, &policy.valid());
            for (part, ref_logprobs) in ref_logprobs {
                gradient.backward(&pass, part, &micros[part], ref_logprobs, policy, &mut sum);
            }
        } else {
            for (part, ref_logprobs) in ref_logprobs {
                pass.backward(&micros[part], ref_logprobs, policy, &mut sum);
            }
        }
        let mut sums = PairSums::new(objective);
        let mut numbers = sum.read_numbers();
        for micro in &micros {
            sums.add_reported(micro, &mut numbers)
                .map_err(|problem| training.non_finite(problem, &micro.groups.concat()))?;
        }
        let rows: Vec<&[u32]> = micros
            .iter()
            .flat_map(|micro| micro.groups.concat())
            .collect();
        let taken = training.optimise(policy, sum.gradients, prompts, &rows)?;
        let mut metrics = sums.means(false);
        metrics.extend(taken);
        Ok(StepTaken {
            metrics,
            tokens: micros.iter().map(MicroBatch::num_tokens).sum(),
        })
    }
}

/// What the backward passes of a step share.
pub(super) struct Pass<'a, B: ModelBackend> {
    pub(super) objective: &'a Objective,
    /// Prompts of the step by the tokens of its chosen responses.
    pub(super) prompts_per_token: f64,
    checkpointing: bool,
    pub(super) device: &'a B::Device,
}

impl<B: ModelBackend> Pass<'_, B> {
    /// Adds the gradient of a micro-batch's loss, summed over prompts, to `sum`, with the numbers that [`PairSums::add_reported`] reads.
    fn backward(
        &self,
        micro: &MicroBatch<'_>,
        ref_logprobs: Option<Tensor<B, 1>>,
        policy: &mut LanguageModel<Autodiff<B>>,
        sum: &mut Accumulator<B>,
    ) {
        let (logprobs, tape) = self.logprobs(micro, policy);
        sum.report(logprobs.clone());
        if let Some(ref_logprobs) = &ref_logprobs {
            sum.numbers.push(ref_logprobs.clone());
        }
        let reference = ref_logprobs.map(Tensor::from_inner);
        let loss = (self.objective).loss(logprobs, reference, micro, self.prompts_per_token);
        sum.report(loss.clone());
        sum.backward(&loss, tape, policy);
    }

    /// The policy's log-probabilities, for a backward pass.
    pub(super) fn logprobs(
        &self,
        micro: &MicroBatch<'_>,
        policy: &LanguageModel<Autodiff<B>>,
    ) -> (Tensor<Autodiff<B>, 1>, Tape<B>) {
        let (packed, at, targets) = micro.packed(self.device);
        let (states, tape) = Tape::states_at(policy, packed, Some(at), None, self.checkpointing);
        (policy.logprobs(states, &targets, 1.0).0, tape)
    }
}
