//! A micro-batch of comparisons.

use burn::backend::Autodiff;
use burn::tensor::Tensor;
use burn::tensor::backend::Backend;

use crate::data::Comparisons;
use crate::host::indices;
use crate::loss::{self, RewardLoss, best_of_k, bradley_terry};
use crate::model::{ScalarModel, Tape};
use crate::ops::ModelBackend;
use crate::rng::Seed;
use crate::tokens::TokenBatch;
use crate::train::config::RewardModelConfig;
use crate::train::shared::Accumulator;

/// The rows of one micro-batch by prompt, and the preferences among them as indices into all rows.
pub(super) struct MicroBatch<'a> {
    pub(super) groups: Vec<Vec<&'a [u32]>>,
    pub(super) pairs: loss::Comparisons,
    choices: loss::Choices,
    loss_type: RewardLoss,
}

impl<'a> MicroBatch<'a> {
    /// # Panics
    /// If `loss_type` is `best_of_k` and a prompt has no best response.
    pub(super) fn new(
        items: impl Iterator<Item = &'a Comparisons>,
        config: &RewardModelConfig,
    ) -> Self {
        let mut micro = Self {
            groups: Vec::new(),
            pairs: loss::Comparisons::new(),
            choices: loss::Choices::new(),
            loss_type: config.loss_type,
        };
        let mut first = 0;
        for item in items {
            let responses = item.responses.iter().map(Vec::as_slice);
            micro.groups.push(responses.collect());
            let margin = |margin| if config.use_margin { margin } else { 0.0 };
            let pairs = item.pairs.iter();
            micro.pairs.push_prompt(
                pairs.map(|&(chosen, rejected, by)| (first + chosen, first + rejected, margin(by))),
            );
            let count = item.responses.len();
            if config.loss_type == RewardLoss::BestOfK {
                let best = item
                    .best()
                    .expect("prompts without a best response were left out");
                let others = (0..count).filter(|&i| i != best);
                micro
                    .choices
                    .push_prompt(first + best, others.map(|i| first + i));
            }
            first += count;
        }
        micro
    }

    /// Adds the gradient of the loss to `sum`; reports the scores of all rows and the loss.
    pub(super) fn backward<B: ModelBackend>(
        &self,
        model: &mut ScalarModel<Autodiff<B>>,
        config: &RewardModelConfig,
        dropout: Seed,
        sum: &mut Accumulator<B>,
        device: &B::Device,
    ) {
        let (batch, spans) = TokenBatch::<Autodiff<B>>::from_groups(&self.groups, device);
        let last: Vec<usize> = spans
            .iter()
            .map(|span| span.token(span.len() - 1))
            .collect();
        let last = Some(indices(&last, device));
        let checkpointing = config.gradient_checkpointing;
        let (states, tape) = Tape::states_at(model, batch, last, Some(dropout), checkpointing);
        let scores = model.scores_of(states);
        sum.report(scores.clone());
        let loss = self.loss(scores);
        sum.report(loss.clone());
        sum.backward(&loss, tape, model);
    }

    /// The recipe's loss, summed over prompts, `[1]`.
    pub(super) fn loss<B: Backend>(&self, scores: Tensor<B, 1>) -> Tensor<B, 1> {
        match self.loss_type {
            RewardLoss::BradleyTerry => bradley_terry(scores, &self.pairs),
            RewardLoss::BestOfK => best_of_k(scores, &self.choices),
        }
    }
}
