//! Comparisons that pass through a model at once.

use std::sync::Arc;

use burn::tensor::{Int, Tensor};

use crate::data::Comparisons;
use crate::host::indices;
use crate::loss;
use crate::model::{CausalLm, LanguageModel};
use crate::ops::ModelBackend;
use crate::tokens::TokenBatch;

/// Responses to some prompts and the pairs among them, as indices into all responses.
pub(in crate::train) struct MicroBatch<'a> {
    /// Token ids of prompt and response, by prompt.
    pub(super) groups: Vec<Vec<&'a [u32]>>,
    /// Length of each prompt in tokens; at least 1, because nothing predicts a row's first token.
    pub(super) prompt_lens: Vec<usize>,
    /// Length of each response in tokens.
    pub(super) lens: Vec<usize>,
    pub(super) pairs: loss::Comparisons,
    /// Whether the prompts' tokens are read, too.
    with_prompts: bool,
}

impl<'a> MicroBatch<'a> {
    pub(super) fn new(items: impl Iterator<Item = &'a Comparisons>, with_prompts: bool) -> Self {
        let mut micro = Self {
            groups: Vec::new(),
            prompt_lens: Vec::new(),
            lens: Vec::new(),
            pairs: loss::Comparisons::new(),
            with_prompts,
        };
        for item in items {
            let first = micro.lens.len();
            let pairs = item.pairs.iter();
            micro.pairs.push_prompt(
                pairs.map(|&(chosen, rejected, _)| (first + chosen, first + rejected, 0.0)),
            );
            let prompt_len = item.prompt_len.max(1);
            micro.prompt_lens.push(prompt_len);
            let lens = item.responses.iter().map(|row| row.len() - prompt_len);
            micro.lens.extend(lens);
            let group = item.responses.iter().map(Vec::as_slice).collect();
            micro.groups.push(group);
        }
        micro
    }

    /// Tokens of all rows, prompts counted with each response.
    pub(super) fn num_tokens(&self) -> u64 {
        self.groups
            .iter()
            .flatten()
            .map(|row| row.len() as u64)
            .sum()
    }

    /// Tokens of all responses.
    pub(super) fn num_response_tokens(&self) -> usize {
        self.lens.iter().sum()
    }

    /// Tokens of each prompt that are predicted and read.
    pub(super) fn prompt_targets(&self) -> Vec<usize> {
        let read = |len: &usize| if self.with_prompts { len - 1 } else { 0 };
        self.prompt_lens.iter().map(read).collect()
    }

    /// The prompt of each response.
    pub(super) fn owners(&self) -> Vec<usize> {
        let groups = self.groups.iter().enumerate();
        groups
            .flat_map(|(prompt, group)| std::iter::repeat_n(prompt, group.len()))
            .collect()
    }

    /// Tokens of each row that are read, prompt included.
    pub(super) fn row_lens(&self) -> Vec<usize> {
        let prompts = self.prompt_targets();
        let owners = self.owners();
        let rows = self.lens.iter().zip(owners);
        rows.map(|(len, prompt)| len + prompts[prompt]).collect()
    }

    /// Log-probabilities of the tokens of [`MicroBatch::packed`]. The common prefix of the responses to a prompt passes through the model
    /// once.
    pub(in crate::train) fn logprobs<B: ModelBackend>(
        &self,
        model: &LanguageModel<B>,
        device: &B::Device,
    ) -> Tensor<B, 1> {
        let (batch, at, targets) = self.packed(device);
        let hidden = model.states_at(&batch, Some(at), None, None);
        model.logprobs(hidden, &targets, 1.0).0
    }

    /// The packed rows, the positions of the states that predict tokens, and these tokens: those of all responses, concatenated, then, if
    /// they are read, those of all prompts.
    pub(super) fn packed<B: ModelBackend>(
        &self,
        device: &B::Device,
    ) -> (TokenBatch<B>, Tensor<B, 1, Int>, Arc<Vec<u32>>) {
        let (batch, spans) = TokenBatch::from_groups(&self.groups, device);
        let prompt_lens = self.groups.iter().zip(&self.prompt_lens);
        let rows = prompt_lens.flat_map(|(group, &len)| group.iter().map(move |row| (row, len)));
        let (mut positions, mut targets) = (Vec::new(), Vec::new());
        for ((row, prompt_len), span) in rows.zip(&spans) {
            positions.extend((prompt_len..row.len()).map(|token| span.token(token - 1)));
            targets.extend(&row[prompt_len..]);
        }
        let mut first = 0;
        for (group, len) in self.groups.iter().zip(self.prompt_targets()) {
            let span = &spans[first];
            positions.extend((0..len).map(|token| span.token(token)));
            targets.extend(&group[0][1..=len]);
            first += group.len();
        }
        (batch, indices(&positions, device), Arc::new(targets))
    }

    /// Sums over each response of its tokens' `values`.
    pub(super) fn sums(&self, values: impl Iterator<Item = f32>) -> Vec<f64> {
        let mut values = values.map(f64::from);
        let sum = |&len: &usize| values.by_ref().take(len).sum();
        self.lens.iter().map(sum).collect()
    }

    /// Sums over each row of the tokens' `values`: of its response and, if they are read, of its prompt.
    pub(super) fn row_sums(&self, values: &[f32]) -> Vec<f64> {
        let responses = self.sums(values.iter().copied());
        let mut rest = values[self.num_response_tokens()..].iter();
        let prompts: Vec<f64> = (self.prompt_targets().into_iter())
            .map(|len| rest.by_ref().take(len).map(|&x| f64::from(x)).sum())
            .collect();
        let rows = responses.iter().zip(self.owners());
        rows.map(|(sum, prompt)| sum + prompts[prompt]).collect()
    }
}
