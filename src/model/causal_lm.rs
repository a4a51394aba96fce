//! The interface of decoders that predict the next token.

use std::sync::Arc;

use burn::tensor::{Int, Tensor};

use super::pass::Pass;
use super::{KvCache, LanguageModel};
use crate::ops::{self, Head, HeadLayout, ModelBackend};
use crate::params::Parameters;
use crate::peft::{Adaptable, VirtualTokens};
use crate::rng::Seed;
use crate::tokens::TokenBatch;

/// A decoder that predicts the next token.
pub trait CausalLm<B: ModelBackend>: Adaptable<B> + Parameters<B> {
    /// Final states at the chosen `positions` of the packed batch, `[positions, hidden]`: after the final norm and OPT's output
    /// projection. All positions if `None`.
    ///
    /// For other positions the last layer computes keys and values only. With a cache, the batch's rows continue the slots set by
    /// [`KvCache::select`]. `dropout` seeds the adapters' dropout masks; `None`: no dropout.
    fn states_at(
        &self,
        batch: &TokenBatch<B>,
        positions: Option<Tensor<B, 1, Int>>,
        cache: Option<&mut KvCache<B>>,
        dropout: Option<Seed>,
    ) -> Tensor<B, 2>;

    /// [`CausalLm::states_at`] all positions, `[tokens, hidden]`.
    fn hidden_states(
        &self,
        batch: &TokenBatch<B>,
        cache: Option<&mut KvCache<B>>,
        dropout: Option<Seed>,
    ) -> Tensor<B, 2> {
        self.states_at(batch, None, cache, dropout)
    }

    /// Output head.
    fn head(&self) -> Head<B>;

    /// Attention heads.
    fn head_layout(&self) -> HeadLayout;

    /// Number of layers.
    fn num_layers(&self) -> usize;

    /// Virtual tokens before every row: a cache needs room for them.
    fn num_virtual_tokens(&self) -> usize;

    /// Logits, `[positions, vocab]`.
    fn logits(&self, hidden: Tensor<B, 2>) -> Tensor<B, 2> {
        ops::logits(hidden, &self.head())
    }

    /// Log-probabilities (differentiable) and entropies for `targets`, given the states that predict them; both `[positions]`.
    fn logprobs(
        &self,
        hidden: Tensor<B, 2>,
        targets: &Arc<Vec<u32>>,
        temperature: f64,
    ) -> (Tensor<B, 1>, Tensor<B, 1>) {
        ops::head_logprob(hidden, self.head(), targets, temperature)
    }
}

impl<B: ModelBackend> CausalLm<B> for LanguageModel<B> {
    fn states_at(
        &self,
        batch: &TokenBatch<B>,
        positions: Option<Tensor<B, 1, Int>>,
        cache: Option<&mut KvCache<B>>,
        dropout: Option<Seed>,
    ) -> Tensor<B, 2> {
        match positions {
            // Kernels need not support empty batches.
            Some(none) if none.dims()[0] == 0 => {
                let states = self.states_at(batch, None, cache, dropout);
                states.select(0, none)
            }
            positions => {
                let layers = self.layers();
                let mut pass = Pass::new(self, batch, positions, cache, dropout);
                let mut x = pass.embed(layers, &batch.input_ids);
                for index in 0..layers.num_layers() {
                    x = layers.layer(index, x, &mut pass);
                }
                let x = layers.finish(x, &pass);
                pass.end();
                x
            }
        }
    }

    fn head(&self) -> Head<B> {
        self.layers().head()
    }

    fn head_layout(&self) -> HeadLayout {
        self.layers().head_layout()
    }

    fn num_layers(&self) -> usize {
        self.layers().num_layers()
    }

    fn num_virtual_tokens(&self) -> usize {
        (self.virtual_tokens.as_ref()).map_or(0, VirtualTokens::count)
    }
}
