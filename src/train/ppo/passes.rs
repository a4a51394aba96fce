//! The forward passes over a rollout: log-probabilities of the reference, values, and where needed the policy's own.

use std::sync::Arc;

use burn::tensor::Tensor;

use super::value::FrozenValue;
use crate::data::micro_batches;
use crate::host::{indices, read};
use crate::model::{CausalLm, LanguageModel, Together};
use crate::ops::ModelBackend;
use crate::rl::ResponseLayout;
use crate::tokens::TokenBatch;
use crate::train::forward::row_logprobs;

/// The models that a rollout is evaluated with.
#[derive(Debug, Clone, Copy)]
pub struct Models<'a, B: ModelBackend> {
    /// The initial policy.
    pub reference: &'a LanguageModel<B>,
    /// The policy that drew.
    pub policy: &'a LanguageModel<B>,
    /// The value function.
    pub value: &'a FrozenValue<B>,
    /// Whether the old log-probabilities are to come from a pass like the update's, and not from sampling.
    pub retake: bool,
    /// Whether the weights that adapters stand on are frozen: then models over one base pass together.
    pub frozen_base: bool,
}

/// Rows of query and response, and how they are to be passed.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rows<'a> {
    pub(super) rows: &'a [&'a [u32]],
    pub(super) query_lens: &'a [usize],
    pub(super) layout: &'a ResponseLayout,
    pub(super) temperature: f64,
    /// Tokens of one pass.
    pub(super) micro_batch_tokens: usize,
}

/// Numbers on the host.
#[derive(Debug, Default)]
pub(super) struct Passed {
    /// `[response tokens]`; `None` if those of sampling stand.
    pub(super) logprobs: Option<Vec<f32>>,
    /// `[response tokens]`.
    pub(super) ref_logprobs: Vec<f32>,
    /// `[value positions]`.
    pub(super) values: Vec<f32>,
}

/// What a model's states are read for.
#[derive(Debug, Clone, Copy, Default)]
struct Wanted {
    logprobs: bool,
    values: bool,
}

/// What was read, row by row.
#[derive(Debug, Default)]
struct Read {
    logprobs: Vec<Vec<f32>>,
    values: Vec<Vec<f32>>,
}

impl<'a, B: ModelBackend> Models<'a, B> {
    /// The decoder whose states the values are read from.
    fn value_decoder(&self) -> &'a LanguageModel<B> {
        match self.value {
            FrozenValue::Network(model) => &model.backbone,
            FrozenValue::Head(_) => self.policy,
        }
    }

    fn values(&self, states: Tensor<B, 2>) -> Tensor<B, 1> {
        match self.value {
            FrozenValue::Network(model) => model.scores_of(states),
            FrozenValue::Head(head) => head.values(states),
        }
    }

    /// All passes over `rows`. What was `read` of the value head when they were drawn stands where the log-probabilities of
    /// sampling do.
    pub(super) fn pass(
        &self,
        rows: Rows<'_>,
        read: Option<&[Vec<f32>]>,
        device: &B::Device,
    ) -> Passed {
        let logprobs = Wanted {
            logprobs: true,
            values: false,
        };
        let values = Wanted {
            logprobs: false,
            values: true,
        };
        let by_head = matches!(self.value, FrozenValue::Head(_));
        if !self.retake {
            if let Some(values) = read {
                let reference = self.alone(self.reference, logprobs, rows, device);
                return Passed {
                    logprobs: None,
                    ref_logprobs: reference.logprobs.concat(),
                    values: values.concat(),
                };
            }
            let [reference, value] = self.pair(
                [(self.reference, logprobs), (self.value_decoder(), values)],
                rows,
                device,
            );
            return Passed {
                logprobs: None,
                ref_logprobs: reference.logprobs.concat(),
                values: value.values.concat(),
            };
        }
        // The policy by itself, as in the update: in a batch of another kind its numbers would be others in the last bits.
        if by_head {
            let both = Wanted {
                logprobs: true,
                values: true,
            };
            let policy = self.alone(self.policy, both, rows, device);
            let reference = self.alone(self.reference, logprobs, rows, device);
            return Passed {
                logprobs: Some(policy.logprobs.concat()),
                ref_logprobs: reference.logprobs.concat(),
                values: policy.values.concat(),
            };
        }
        let taken = row_logprobs(
            self.policy,
            rows.rows,
            rows.query_lens,
            rows.temperature,
            rows.micro_batch_tokens,
            device,
        );
        let without = Self {
            retake: false,
            ..*self
        };
        Passed {
            logprobs: Some(taken.concat()),
            ..without.pass(rows, None, device)
        }
    }

    /// Two models, together if they have one base.
    fn pair(
        &self,
        models: [(&LanguageModel<B>, Wanted); 2],
        rows: Rows<'_>,
        device: &B::Device,
    ) -> [Read; 2] {
        let together = match self.frozen_base {
            true => Together::new(&models.map(|(model, _)| model)),
            false => None,
        };
        let Some(together) = together else {
            return models.map(|(model, wanted)| self.alone(model, wanted, rows, device));
        };
        let mut read = [Read::new(rows), Read::new(rows)];
        // As many tokens in a pass as without.
        let most = rows.micro_batch_tokens / together.count();
        for part in rows.parts(most) {
            let (packed, places) = rows.packed(&part);
            let states = together.states_at(&packed, &places, device);
            for ((states, read), model) in states.into_iter().zip(&mut read).zip(models) {
                self.read(states, model, rows, &part, read, device);
            }
        }
        read
    }

    /// One model.
    fn alone(
        &self,
        model: &LanguageModel<B>,
        wanted: Wanted,
        rows: Rows<'_>,
        device: &B::Device,
    ) -> Read {
        let mut out = Read::new(rows);
        for part in rows.parts(rows.micro_batch_tokens) {
            let (packed, places) = rows.packed(&part);
            let batch = TokenBatch::from_rows(&packed, device);
            let at = Some(indices(&places, device));
            let states = model.states_at(&batch, at, None, None);
            self.read(states, (model, wanted), rows, &part, &mut out, device);
        }
        out
    }

    /// What is wanted of a model's states at the value positions of some rows.
    fn read(
        &self,
        states: Tensor<B, 2>,
        (model, wanted): (&LanguageModel<B>, Wanted),
        rows: Rows<'_>,
        part: &[usize],
        out: &mut Read,
        device: &B::Device,
    ) {
        let (all, responses) = (rows.layout.values(), rows.layout.responses());
        if wanted.values {
            let mut values = read(self.values(states.clone())).into_iter();
            for &row in part {
                out.values[row] = values.by_ref().take(all.row_len(row)).collect();
            }
        }
        if wanted.logprobs {
            let (places, targets) = rows.responses_of(part);
            let states = states.select(0, indices(&places, device));
            let (logprobs, _) = model.logprobs(states, &Arc::new(targets), rows.temperature);
            let mut logprobs = read(logprobs).into_iter();
            for &row in part {
                out.logprobs[row] = logprobs.by_ref().take(responses.row_len(row)).collect();
            }
        }
    }
}

impl Read {
    fn new(rows: Rows<'_>) -> Self {
        Self {
            logprobs: vec![Vec::new(); rows.rows.len()],
            values: vec![Vec::new(); rows.rows.len()],
        }
    }
}

impl<'a> Rows<'a> {
    /// Rows that pass together, at most `tokens` tokens where rows allow.
    fn parts(&self, tokens: usize) -> Vec<Vec<usize>> {
        let lens: Vec<usize> = self.rows.iter().map(|row| row.len()).collect();
        micro_batches(&lens, tokens)
    }

    /// Some rows, and the places of their value positions when they are packed.
    fn packed(&self, part: &[usize]) -> (Vec<&'a [u32]>, Vec<usize>) {
        let packed: Vec<&[u32]> = part.iter().map(|&row| self.rows[row]).collect();
        let mut start = 0;
        let mut places = Vec::new();
        for &row in part {
            let first = start + self.query_lens[row] - 1;
            places.extend(first..first + self.layout.values().row_len(row));
            start += self.rows[row].len();
        }
        (packed, places)
    }

    /// Among the value positions of some rows those that predict response tokens, and these.
    fn responses_of(&self, part: &[usize]) -> (Vec<usize>, Vec<u32>) {
        let (mut places, mut targets, mut start) = (Vec::new(), Vec::new(), 0);
        for &row in part {
            let len = self.layout.responses().row_len(row);
            places.extend(start..start + len);
            targets.extend(&self.rows[row][self.query_lens[row]..][..len]);
            start += self.layout.values().row_len(row);
        }
        (places, targets)
    }
}
