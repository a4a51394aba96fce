//! Comparisons that pass through the model together.

use burn::tensor::Tensor;
use burn::tensor::backend::Backend;

use crate::data::Comparisons;
use crate::loss::{self, RewardLoss, best_of_k, bradley_terry};
use crate::train::config::RewardModelConfig;

/// The rows of one micro-batch by prompt, and what is preferred to what among them, counted over all rows.
pub(super) struct Micro<'a> {
    pub(super) groups: Vec<Vec<&'a [u32]>>,
    pub(super) pairs: loss::Comparisons,
    choices: loss::Choices,
    loss_type: RewardLoss,
}

impl<'a> Micro<'a> {
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

    /// The recipe's loss, summed over prompts, `[1]`.
    pub(super) fn loss<B: Backend>(&self, scores: Tensor<B, 1>) -> Tensor<B, 1> {
        match self.loss_type {
            RewardLoss::BradleyTerry => bradley_terry(scores, &self.pairs),
            RewardLoss::BestOfK => best_of_k(scores, &self.choices),
        }
    }
}
