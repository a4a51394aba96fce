//! Pre-training text mixed into the updates of the policy.

use std::sync::Arc;

use burn::backend::Autodiff;

use super::PassSettings;
use crate::collective;
use crate::data::{Example, own_micro_batches};
use crate::host::{DeferredReads, indices};
use crate::loss::cross_entropy;
use crate::model::{CausalLm, LanguageModel, Tape};
use crate::ops::ModelBackend;
use crate::optim::GradientSum;
use crate::tokens::TokenBatch;
use crate::train::forward::trained_positions;
use crate::train::shared::{NonFinite, finite};

/// Pre-training text for the optimiser steps of one update.
///
/// The policy minimises `policy loss + coef * cross-entropy`, the latter averaged over the text's tokens: text like that of the
/// base's training counteracts forgetting.
///
/// # Source
/// Ouyang et al. 2022, arXiv:2203.02155, eq. 2 (PPO-ptx, with a weight of 27.8).
#[derive(Debug, Clone, Copy)]
pub struct Ptx<'a> {
    /// Coefficient of the text's cross-entropy.
    pub coef: f64,
    /// Rows of each optimiser step of the update, in order.
    pub batches: &'a [Vec<&'a Example>],
}

impl Ptx<'_> {
    /// Adds the gradient of `coef * cross-entropy` of the rows of step `step` to `sum`, scaled for a later division of `sum` by
    /// `divisor`. Returns the cross-entropy in nats per token.
    ///
    /// # Panics
    /// If the update has more steps than batches.
    pub(super) fn add<B: ModelBackend>(
        &self,
        step: usize,
        policy: &mut LanguageModel<Autodiff<B>>,
        sum: &mut GradientSum<B>,
        divisor: f64,
        passes: PassSettings,
        device: &B::Device,
    ) -> Result<f64, NonFinite> {
        let rows = &self.batches[step];
        let lens: Vec<usize> = rows.iter().map(|row| row.ids.len()).collect();
        let trained = |row: &&Example| row.trained.iter().filter(|&&t| t).count();
        let targets = rows.iter().map(trained).sum::<usize>() as f64;
        let mut losses = DeferredReads::default();
        for part in own_micro_batches(&lens, passes.micro_batch_tokens) {
            let part: Vec<&Example> = part.into_iter().map(|i| rows[i]).collect();
            let ids: Vec<&[u32]> = part.iter().map(|row| row.ids.as_slice()).collect();
            let batch = TokenBatch::<Autodiff<B>>::from_rows(&ids, device);
            let (positions, targets_of) = trained_positions(&part, &batch.segments);
            let positions = Some(indices(&positions, device));
            let checkpointing = passes.gradient_checkpointing;
            let (hidden, tape) = Tape::states_at(policy, batch, positions, None, checkpointing);
            // The text was not generated: its log-probabilities are the model's own, at temperature 1.
            let (logprobs, _) = policy.logprobs(hidden, &Arc::new(targets_of), 1.0);
            let loss = cross_entropy(logprobs);
            losses.push(loss.clone().inner());
            let weighted = loss.mul_scalar(self.coef * divisor / targets);
            tape.backward(&weighted, policy, sum);
        }
        let total: f64 = collective::numbers(losses.read())
            .map(|value| f64::from(value[0]))
            .sum();
        Ok(finite("loss of the pre-training text", total)? / targets)
    }
}
