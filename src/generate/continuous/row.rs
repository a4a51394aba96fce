//! A response in progress.

use std::sync::Arc;

use super::job::{Ending, GeneratedToken, Job, JobOptions, Listener};
use crate::generate::TokenLogprobs;
use crate::rng::Seed;

/// A response in progress.
pub(super) struct Row {
    pub(super) model: usize,
    pub(super) slot: usize,
    pub(super) prompt: Arc<[u32]>,
    /// Tokens of the cache that it may need.
    pub(super) needed: usize,
    pub(super) listener: Box<dyn Listener>,
    options: JobOptions,
    seed: Seed,
    response: Vec<u32>,
}

impl Row {
    /// Begins a job in a slot.
    pub(super) fn new(job: Job, slot: usize, needed: usize) -> Self {
        let Job {
            model,
            prompt,
            options,
            seed,
            mut listener,
        } = job;
        listener.begin();
        Self {
            model,
            slot,
            prompt,
            needed,
            listener,
            options,
            seed,
            response: Vec::new(),
        }
    }

    /// The token whose successor is sampled next.
    pub(super) fn last(&self) -> u32 {
        let last = self.response.last().or(self.prompt.last());
        last.copied().expect("a prompt has a token")
    }

    /// Samples a token. Returns whether the response has ended.
    pub(super) fn sample(&mut self, logits: &[f32]) -> bool {
        let JobOptions {
            max_new_tokens,
            sampling,
            penalties,
            stop_ids,
            num_top,
        } = &self.options;
        let uniform = self.seed.uniform(self.response.len() as u64);
        let sampled = penalties.sample(logits, &self.prompt, &self.response, sampling, uniform);
        let ending = if !sampled.logprob.is_finite() {
            Some(Ending::NotFinite)
        } else {
            self.response.push(sampled.id);
            let is_stop = stop_ids.contains(&sampled.id);
            let token = GeneratedToken {
                id: sampled.id,
                logprobs: num_top.map(|top| TokenLogprobs::of(logits, sampled.id, top)),
                is_stop,
            };
            let ends = self.listener.token(token);
            if is_stop || ends {
                Some(Ending::Stop)
            } else if self.response.len() == *max_new_tokens {
                Some(Ending::Length)
            } else {
                self.listener.is_gone().then_some(Ending::Gone)
            }
        };
        if let Some(ending) = ending {
            self.listener.end(ending);
        }
        ending.is_some()
    }
}

/// Responses to one prompt, which passes through the model once.
pub(super) struct Prefill {
    /// At least one.
    pub(super) rows: Vec<Row>,
    /// Tokens of the prompt that the model has read.
    pub(super) fed: usize,
}

impl Prefill {
    pub(super) fn of(row: Row) -> Self {
        Self {
            rows: vec![row],
            fed: 0,
        }
    }

    /// Whether a row that has just been admitted can share this prompt.
    pub(super) fn takes(&self, row: &Row) -> bool {
        let first = &self.rows[0];
        self.fed == 0 && first.model == row.model && first.prompt == row.prompt
    }

    pub(super) fn is_complete(&self) -> bool {
        self.fed == self.rows[0].prompt.len()
    }
}
