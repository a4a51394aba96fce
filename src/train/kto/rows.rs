//! Labelled responses that pass through a model at once.

use std::sync::Arc;

use burn::tensor::{Int, Tensor};

use crate::data::Labelled;
use crate::host::indices;
use crate::model::{CausalLm, LanguageModel};
use crate::ops::ModelBackend;
use crate::tokens::TokenBatch;

/// Responses with their prompts, by group: those of a group may share their prompt's tokens in the pass.
pub(super) struct ResponseRows<'a> {
    groups: Vec<Vec<&'a [u32]>>,
    /// Length of each prompt in tokens; at least 1, because nothing predicts a row's first token.
    prompt_lens: Vec<usize>,
    /// Length of each response in tokens.
    pub(super) lens: Vec<usize>,
    /// Whether each response is desirable.
    pub(super) labels: Vec<bool>,
}

impl<'a> ResponseRows<'a> {
    /// Each row on its own.
    pub(super) fn new(items: impl Iterator<Item = &'a Labelled>) -> Self {
        Self::of_groups(items.map(|item| vec![item]))
    }

    /// Groups of rows with one prompt.
    pub(super) fn of_groups(groups: impl Iterator<Item = Vec<&'a Labelled>>) -> Self {
        let mut rows = Self {
            groups: Vec::new(),
            prompt_lens: Vec::new(),
            lens: Vec::new(),
            labels: Vec::new(),
        };
        for group in groups {
            for item in &group {
                let prompt_len = item.prompt_len.max(1);
                rows.prompt_lens.push(prompt_len);
                rows.lens.push(item.ids.len().saturating_sub(prompt_len));
                rows.labels.push(item.label);
            }
            let ids = group.into_iter().map(|item| item.ids.as_slice());
            rows.groups.push(ids.collect());
        }
        rows
    }

    /// Log-probabilities of the responses' tokens, concatenated.
    pub(super) fn logprobs<B: ModelBackend>(
        &self,
        model: &LanguageModel<B>,
        device: &B::Device,
    ) -> Tensor<B, 1> {
        let (batch, at, targets) = self.packed(device);
        let hidden = model.states_at(&batch, Some(at), None, None);
        model.logprobs(hidden, &targets, 1.0).0
    }

    /// The packed rows, the positions of the states that predict response tokens, and these tokens.
    pub(super) fn packed<B: ModelBackend>(
        &self,
        device: &B::Device,
    ) -> (TokenBatch<B>, Tensor<B, 1, Int>, Arc<Vec<u32>>) {
        let (batch, spans) = TokenBatch::from_groups(&self.groups, device);
        let rows = self.groups.iter().flatten().zip(&self.prompt_lens);
        let (mut positions, mut targets) = (Vec::new(), Vec::new());
        for ((row, &prompt_len), span) in rows.zip(&spans) {
            positions.extend((prompt_len..row.len()).map(|token| span.token(token - 1)));
            targets.extend(row.iter().skip(prompt_len));
        }
        (batch, indices(&positions, device), Arc::new(targets))
    }

    /// Sums over each response of its tokens' `values`.
    pub(super) fn sums(&self, values: impl Iterator<Item = f32>) -> Vec<f64> {
        let mut values = values.map(f64::from);
        let sum = |&len: &usize| values.by_ref().take(len).sum();
        self.lens.iter().map(sum).collect()
    }
}
