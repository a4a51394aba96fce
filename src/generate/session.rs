//! One conversation with a model: what earlier turns left in the KV cache is not computed again.

use super::batch::forward;
use super::{GenerateOptions, Response};
use crate::model::{CausalLm, KvCache};
use crate::ops::ModelBackend;
use crate::rng::Seed;

/// Tokens that a new cache has room for at least.
const FIRST_CAPACITY: usize = 1024;

/// The keys and values of the tokens that a model has read last.
#[derive(Debug)]
pub struct Session<B: ModelBackend> {
    cache: Option<KvCache<B>>,
    /// Tokens that the cache has room for, virtual ones not counted.
    capacity: usize,
    /// The tokens in the cache, virtual ones not counted.
    held: Vec<u32>,
}

impl<B: ModelBackend> Default for Session<B> {
    fn default() -> Self {
        Self {
            cache: None,
            capacity: 0,
            held: Vec::new(),
        }
    }
}

impl<B: ModelBackend> Session<B> {
    /// Tokens that the next prompt can begin with for free.
    pub fn held(&self) -> &[u32] {
        &self.held
    }

    /// Generates a response to `prompt`, as [`generate`](super::generate) with one prompt does; only what differs from the tokens before is
    /// computed. `token` sees the response after each token and returns whether it ends there.
    ///
    /// A session belongs to one model.
    ///
    /// # Panics
    /// If the prompt is empty.
    pub fn respond<M: CausalLm<B>>(
        &mut self,
        model: &M,
        prompt: &[u32],
        options: &GenerateOptions,
        seed: Seed,
        device: &B::Device,
        token: &mut dyn FnMut(&[u32]) -> bool,
    ) -> Response {
        let mut response = Response::default();
        if options.max_new_tokens == 0 {
            return response;
        }
        let mut next = self.begin(model, prompt, options.max_new_tokens, device);
        let cache = self.cache.as_mut().expect("begun above");
        let seed = seed.fork_index(0);
        loop {
            cache.select(&[0]);
            let logits = forward(model, None, &[&next], cache, device).logits;
            self.held.extend_from_slice(&next);
            let sampled = options.sample(&logits, prompt, &response.ids, seed);
            response.ids.push(sampled.id);
            response.logprobs.push(sampled.logprob);
            response.stopped =
                options.ends(sampled.id, response.ids.len() - 1) | token(&response.ids);
            if response.stopped || response.ids.len() == options.max_new_tokens {
                return response;
            }
            next = vec![sampled.id];
        }
    }

    /// Leaves in the cache what it shares with `prompt`; returns the rest, which is one token at least.
    fn begin<M: CausalLm<B>>(
        &mut self,
        model: &M,
        prompt: &[u32],
        max_new_tokens: usize,
        device: &B::Device,
    ) -> Vec<u32> {
        let needed = prompt.len() + max_new_tokens;
        if needed > self.capacity || self.cache.is_none() {
            self.capacity = needed.next_power_of_two().max(FIRST_CAPACITY);
            self.held.clear();
            let capacity = model.num_virtual_tokens() + self.capacity;
            let layout = model.head_layout();
            self.cache = Some(KvCache::new(
                model.num_layers(),
                1,
                capacity,
                layout,
                device,
            ));
        }
        let pairs = self.held.iter().zip(&prompt[..prompt.len() - 1]);
        let shared = pairs.take_while(|(held, new)| held == new).count();
        self.held.truncate(shared);
        let kept = match shared {
            0 => 0,
            _ => model.num_virtual_tokens() + shared,
        };
        let cache = self.cache.as_mut().expect("made above");
        cache.truncate(0, kept);
        prompt[shared..].to_vec()
    }
}
