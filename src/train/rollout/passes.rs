//! Forward passes over generated responses: the reference's log-probabilities, values and, where needed, the policy's
//! log-probabilities.

use std::sync::Arc;

use burn::tensor::Tensor;

use super::Episodes;
use super::shared_queries::step_passes;
use super::value::FrozenValue;
use crate::collective::{self, Parts};
use crate::data::step_parts;
use crate::host::{indices, read};
use crate::model::{CausalLm, LanguageModel, SharedBaseModels};
use crate::ops::ModelBackend;
use crate::rl::rollout::Samples;
use crate::rl::{MissingEos, ResponseLayout, apply_missing_eos};
use crate::tokens::{Segments, TokenBatch};
use crate::train::forward::row_logprobs;

/// The models of the forward passes.
#[derive(Debug, Clone, Copy)]
pub struct Models<'a, B: ModelBackend> {
    /// The policy that generated them.
    pub policy: &'a LanguageModel<B>,
    /// The initial policy; `None` for a method without a KL term.
    pub reference: Option<&'a LanguageModel<B>>,
    /// The value function; `None` for a method without one.
    pub value: Option<&'a FrozenValue<B>>,
    /// Whether the old log-probabilities come from a forward pass as in the update instead of from generation.
    pub recompute_logprobs: bool,
    /// Whether the weights under adapters are frozen: models on one base can then share a pass.
    pub frozen_base: bool,
}

/// Settings of the forward passes over responses.
#[derive(Debug, Clone, Copy)]
pub struct SampleSettings {
    /// Most tokens of a response; a shorter one has one more value position after its last token.
    pub response_length: usize,
    /// Temperature of all log-probabilities.
    pub temperature: f64,
    /// Tokens of one pass at most.
    pub micro_batch_tokens: usize,
    /// Rule for scores of responses without EOS.
    pub missing_eos: MissingEos,
    /// Whether responses to one query share its tokens in the reference's pass.
    pub share_prompts: bool,
}

/// Rows of query and response, with the settings of their passes.
#[derive(Debug, Clone, Copy)]
struct Batch<'a> {
    rows: &'a [&'a [u32]],
    query_lens: &'a [usize],
    layout: &'a ResponseLayout,
    temperature: f64,
    micro_batch_tokens: usize,
    share_prompts: bool,
}

/// What to read off a model's states.
#[derive(Debug, Clone, Copy)]
struct Readout {
    logprobs: bool,
    values: bool,
}

const LOGPROBS: Readout = Readout {
    logprobs: true,
    values: false,
};
const VALUES: Readout = Readout {
    logprobs: false,
    values: true,
};
const BOTH: Readout = Readout {
    logprobs: true,
    values: true,
};

/// Results of one model, row by row; empty where nothing was read.
#[derive(Debug, Default)]
struct RowNumbers {
    logprobs: Vec<Vec<f32>>,
    values: Vec<Vec<f32>>,
}

/// Results of all models, packed; `None` for an absent model.
struct PassResult {
    logprobs: Option<Vec<f32>>,
    ref_logprobs: Option<Vec<f32>>,
    values: Option<Vec<f32>>,
}

impl<B: ModelBackend> Models<'_, B> {
    /// Adds the results of forward passes to `episodes`: the reference's log-probabilities and, with a value function, the values at
    /// the value positions.
    ///
    /// # Panics
    /// If a query or a response is empty, a response is longer than `response_length`, or the lengths of `episodes` differ.
    pub fn samples(
        &self,
        episodes: &Episodes,
        settings: SampleSettings,
        device: &B::Device,
    ) -> (Samples, Option<Vec<f32>>) {
        let Episodes {
            queries, responses, ..
        } = episodes;
        assert_eq!(queries.len(), responses.len(), "a response to each query");
        let rows = episodes.rows();
        let query_lens: Vec<usize> = queries.iter().map(Vec::len).collect();
        let slices: Vec<&[u32]> = rows.iter().map(Vec::as_slice).collect();
        let lens = Segments::from_lens(responses.iter().map(|r| r.ids.len()));
        let layout = match self.value {
            Some(_) => ResponseLayout::after_eos(lens, settings.response_length),
            None => ResponseLayout::on_last_token(lens),
        };
        let batch = Batch {
            rows: &slices,
            query_lens: &query_lens,
            layout: &layout,
            temperature: settings.temperature,
            micro_batch_tokens: settings.micro_batch_tokens,
            share_prompts: settings.share_prompts,
        };
        let PassResult {
            logprobs,
            ref_logprobs,
            values,
        } = self.pass(batch, episodes.values.as_deref(), device);
        let generated = || responses.iter().flat_map(|r| r.logprobs.clone()).collect();
        let has_eos: Vec<bool> = responses.iter().map(|r| r.stopped).collect();
        let mut scores = episodes.scores.clone();
        apply_missing_eos(&mut scores, &has_eos, settings.missing_eos);
        let samples = Samples {
            logprobs: logprobs.unwrap_or_else(generated),
            ref_logprobs,
            rows,
            query_lens,
            layout,
            has_eos,
            scores,
        };
        (samples, values)
    }

    /// All passes over `batch`. Values read during `generation` are used together with its log-probabilities.
    fn pass(
        &self,
        batch: Batch<'_>,
        generation: Option<&[Vec<f32>]>,
        device: &B::Device,
    ) -> PassResult {
        if self.recompute_logprobs {
            return self.pass_again(batch, device);
        }
        let (ref_logprobs, values) = match generation {
            Some(values) => (self.ref_logprobs(batch, device), Some(values.concat())),
            None => self.reference_and_values(batch, device),
        };
        PassResult {
            logprobs: None,
            ref_logprobs,
            values,
        }
    }

    /// The same with the policy's log-probabilities. The policy has a pass of its own, as in the update: sharing one would change
    /// the last bits.
    fn pass_again(&self, batch: Batch<'_>, device: &B::Device) -> PassResult {
        if let Some(FrozenValue::Head(_)) = self.value {
            let policy = self.alone(self.policy, BOTH, batch, device);
            return PassResult {
                logprobs: Some(policy.logprobs.concat()),
                ref_logprobs: self.ref_logprobs(batch, device),
                values: Some(policy.values.concat()),
            };
        }
        let logprobs = row_logprobs(
            self.policy,
            batch.rows,
            batch.query_lens,
            batch.temperature,
            batch.micro_batch_tokens,
            device,
        );
        let (ref_logprobs, values) = self.reference_and_values(batch, device);
        PassResult {
            logprobs: Some(logprobs.concat()),
            ref_logprobs,
            values,
        }
    }

    fn ref_logprobs(&self, batch: Batch<'_>, device: &B::Device) -> Option<Vec<f32>> {
        let numbers = self.alone(self.reference?, LOGPROBS, batch, device);
        Some(numbers.logprobs.concat())
    }

    /// The reference's log-probabilities and the values, where these models exist.
    fn reference_and_values(
        &self,
        batch: Batch<'_>,
        device: &B::Device,
    ) -> (Option<Vec<f32>>, Option<Vec<f32>>) {
        // The decoder that the values are read from.
        let decoder = match self.value {
            Some(FrozenValue::Network(model)) => &model.backbone,
            Some(FrozenValue::Head(_)) => self.policy,
            None => return (self.ref_logprobs(batch, device), None),
        };
        let Some(reference) = self.reference else {
            let numbers = self.alone(decoder, VALUES, batch, device);
            return (None, Some(numbers.values.concat()));
        };
        let models = [(reference, LOGPROBS), (decoder, VALUES)];
        let [reference, value] = self.pair(models, batch, device);
        let ref_logprobs = reference.logprobs.concat();
        (Some(ref_logprobs), Some(value.values.concat()))
    }

    /// Two models, in one pass if they share a base.
    fn pair(
        &self,
        models: [(&LanguageModel<B>, Readout); 2],
        batch: Batch<'_>,
        device: &B::Device,
    ) -> [RowNumbers; 2] {
        let together = match self.frozen_base {
            true => SharedBaseModels::new(&models.map(|(model, _)| model)),
            false => None,
        };
        let Some(together) = together else {
            return models.map(|(model, readout)| self.alone(model, readout, batch, device));
        };
        let mut out = [RowNumbers::new(batch), RowNumbers::new(batch)];
        // Both models' rows together fill a pass.
        let most = batch.micro_batch_tokens / together.count();
        let parts = batch.parts(most);
        for part in parts.own() {
            let (packed, positions) = batch.packed(part);
            let states = together.states_at(&packed, &positions, device);
            for ((states, out), model) in states.into_iter().zip(&mut out).zip(models) {
                self.read_out(states, model, batch, part, out, device);
            }
        }
        for out in &mut out {
            out.share(parts.own().concat());
        }
        out
    }

    /// One model.
    fn alone(
        &self,
        model: &LanguageModel<B>,
        readout: Readout,
        batch: Batch<'_>,
        device: &B::Device,
    ) -> RowNumbers {
        let mut out = RowNumbers::new(batch);
        let passes = batch.passes();
        for groups in passes.own() {
            let part = groups.concat();
            let packed: Vec<Vec<&[u32]>> = (groups.iter())
                .map(|group| group.iter().map(|&row| batch.rows[row]).collect())
                .collect();
            let (tokens, spans) = TokenBatch::from_groups(&packed, device);
            let positions = batch.layout.select(&part).value_positions_of(&spans);
            let at = Some(indices(&positions, device));
            let states = model.states_at(&tokens, at, None, None);
            self.read_out(states, (model, readout), batch, &part, &mut out, device);
        }
        out.share(passes.own().concat().concat());
        out
    }

    /// Reads log-probabilities and values off a model's states at the value positions of some rows.
    fn read_out(
        &self,
        states: Tensor<B, 2>,
        (model, readout): (&LanguageModel<B>, Readout),
        batch: Batch<'_>,
        part: &[usize],
        out: &mut RowNumbers,
        device: &B::Device,
    ) {
        if let (true, Some(value)) = (readout.values, self.value) {
            let values = match value {
                FrozenValue::Network(model) => model.scores_of(states.clone()),
                FrozenValue::Head(head) => head.values(states.clone()),
            };
            let mut values = read(values).into_iter();
            for &row in part {
                let len = batch.layout.values().row_len(row);
                out.values[row] = values.by_ref().take(len).collect();
            }
        }
        if readout.logprobs {
            let positions = batch.layout.select(part).responses_among_values();
            let states = states.select(0, indices(&positions, device));
            let targets = Arc::new(batch.response_tokens(part));
            let (logprobs, _) = model.logprobs(states, &targets, batch.temperature);
            let mut logprobs = read(logprobs).into_iter();
            for &row in part {
                let len = batch.layout.responses().row_len(row);
                out.logprobs[row] = logprobs.by_ref().take(len).collect();
            }
        }
    }
}

impl RowNumbers {
    fn new(batch: Batch<'_>) -> Self {
        Self {
            logprobs: vec![Vec::new(); batch.rows.len()],
            values: vec![Vec::new(); batch.rows.len()],
        }
    }

    /// Completes the numbers by those of the other ranks; this one has computed `rows`.
    fn share(&mut self, rows: Vec<usize>) {
        collective::share(&mut self.logprobs, rows.iter().copied());
        collective::share(&mut self.values, rows);
    }
}

impl<'a> Batch<'a> {
    /// Groups of rows of at most `tokens` tokens each, where the rows' lengths allow it.
    fn parts(&self, tokens: usize) -> Parts {
        let lens: Vec<usize> = self.rows.iter().map(|row| row.len()).collect();
        step_parts(&lens, tokens)
    }

    /// Micro-batches of groups of rows.
    fn passes(&self) -> Parts<Vec<Vec<usize>>> {
        let order: Vec<usize> = (0..self.rows.len()).collect();
        step_passes(
            self.rows,
            self.query_lens,
            &order,
            self.micro_batch_tokens,
            self.share_prompts,
        )
    }

    /// The chosen rows, and their value positions in the packed batch.
    fn packed(&self, part: &[usize]) -> (Vec<&'a [u32]>, Vec<usize>) {
        let packed: Vec<&[u32]> = part.iter().map(|&row| self.rows[row]).collect();
        let segments = Segments::from_lens(packed.iter().map(|row| row.len()));
        let positions = self.layout.select(part).value_positions(&segments);
        (packed, positions)
    }

    /// The response tokens of the chosen rows.
    fn response_tokens(&self, part: &[usize]) -> Vec<u32> {
        (part.iter())
            .flat_map(|&row| &self.rows[row][self.query_lens[row]..])
            .copied()
            .collect()
    }
}
