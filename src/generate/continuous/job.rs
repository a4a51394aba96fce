//! A response that is to be generated, and whoever waits for it.

use std::sync::Arc;

use crate::generate::{Penalties, SamplingConfig, TokenLogprobs};
use crate::rng::Seed;

/// How a response is generated.
#[derive(Debug, Clone)]
pub struct JobOptions {
    /// Most tokens of the response; at least 1.
    pub max_new_tokens: usize,
    /// How tokens are sampled.
    pub sampling: SamplingConfig,
    /// What changes logits before.
    pub penalties: Penalties,
    /// The response ends with the first of these, which is part of it.
    pub stop_ids: Vec<u32>,
    /// The number of most probable tokens to report beside each token; `None` reports no log-probabilities.
    pub num_top: Option<usize>,
}

/// A response that is to be generated.
pub struct Job {
    /// Which of the scheduler's models.
    pub model: usize,
    /// The prompt; at least one token. Jobs with equal prompts that stand side by side share a prefill.
    pub prompt: Arc<[u32]>,
    /// How it is continued.
    pub options: JobOptions,
    /// Token `t` is sampled by number `t` of this stream.
    pub seed: Seed,
    /// Whoever waits.
    pub listener: Box<dyn Listener>,
}

/// A sampled token.
#[derive(Debug, Clone, PartialEq)]
pub struct GeneratedToken {
    /// Token id.
    pub id: u32,
    /// Log-probabilities, if they were asked for.
    pub logprobs: Option<TokenLogprobs>,
    /// Whether it is a stop token.
    pub is_stop: bool,
}

/// Why a response has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// A stop token, or the listener has ended it.
    Stop,
    /// It has as many tokens as it may have.
    Length,
    /// Nobody waits any more.
    Gone,
    /// The model gives numbers that are not finite.
    NotFinite,
}

/// Whoever waits for a response. Called on threads of the pool, one call after another.
pub trait Listener: Send {
    /// The response has a place and is being computed.
    fn begin(&mut self) {}

    /// A new token. Returns whether the response ends with it.
    fn token(&mut self, token: GeneratedToken) -> bool;

    /// Nothing more comes.
    fn end(&mut self, ending: Ending);

    /// Whether nobody waits any more.
    fn is_gone(&self) -> bool;
}
