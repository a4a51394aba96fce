//! A micro-batch of comparisons.

use burn::backend::Autodiff;
use burn::tensor::Tensor;
use burn::tensor::backend::Backend;

use crate::data::Comparisons;
use crate::host::indices;
use crate::loss::{
    self, RewardLoss, best_of_k, bradley_terry, centring, classification, squared_error,
};
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
    pub(super) ratings: loss::Targets,
    /// 1 of responses labelled as safe, 0 of those labelled as unsafe.
    safe: loss::Targets,
    loss_type: RewardLoss,
    center_rewards_coefficient: Option<f64>,
    safety_coef: Option<f64>,
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
            ratings: loss::Targets::default(),
            safe: loss::Targets::default(),
            loss_type: config.loss_type,
            center_rewards_coefficient: config.center_rewards_coefficient,
            safety_coef: config.safety_coef,
        };
        let mut first = 0;
        for item in items {
            let responses = item.responses.iter().map(Vec::as_slice);
            micro.groups.push(responses.collect());
            micro.push_judgements(item, first, config);
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

    /// Adds the preferences, ratings and labels of a prompt whose first response has the index `first`.
    fn push_judgements(&mut self, item: &Comparisons, first: usize, config: &RewardModelConfig) {
        let safe = item.judgements.safe.iter().enumerate();
        let safe = safe.filter_map(|(i, safe)| Some((first + i, f32::from(u8::from((*safe)?)))));
        self.safe.push_prompt(&safe.collect::<Vec<_>>());
        if config.loss_type == RewardLoss::Regression {
            let ratings = item.judgements.ratings.iter().enumerate();
            let ratings = ratings.map(|(i, &rating)| (first + i, rating));
            self.ratings.push_prompt(&ratings.collect::<Vec<_>>());
            return;
        }
        if let (true, Some(probability), &[(chosen, rejected, _)]) = (
            config.soft_labels,
            item.judgements.chosen_probability,
            item.pairs.as_slice(),
        ) {
            let pair = (first + chosen, first + rejected);
            self.pairs.push_soft_pair(pair.0, pair.1, probability);
            return;
        }
        let pairs = item.pairs.iter();
        self.pairs
            .push_prompt(pairs.map(|&(chosen, rejected, margin)| {
                let margin = config.margin_in_loss(margin);
                (first + chosen, first + rejected, margin)
            }));
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
        let mut loss = match self.loss_type {
            RewardLoss::BradleyTerry => bradley_terry(scores.clone(), &self.pairs),
            RewardLoss::BestOfK => best_of_k(scores.clone(), &self.choices),
            RewardLoss::Regression => squared_error(scores.clone(), &self.ratings),
        };
        if let Some(coef) = self.center_rewards_coefficient {
            loss = loss + centring(scores.clone(), &self.pairs) * coef;
        }
        if let Some(coef) = self.safety_coef
            && !self.safe.is_empty()
        {
            loss = loss + classification(scores, &self.safe) * coef;
        }
        loss
    }
}
