//! Virtual tokens, whatever their method.

use burn::tensor::Tensor;
use burn::tensor::backend::Backend;

use super::{PromptTokens, VirtualTokens};
use crate::ops::ModelBackend;
use crate::params::{ParamMeta, ParamSlot};
use crate::rng::Seed;

impl<B: Backend> VirtualTokens<B> {
    /// As [`PromptTokens::count`].
    pub fn count(&self) -> usize {
        by_tokens!(self, tokens => tokens.count())
    }

    /// Walks the trained parameters.
    pub fn walk(&mut self, visit: &mut dyn FnMut(&ParamMeta, ParamSlot<'_, B>)) {
        by_tokens!(self, tokens => tokens.walk(visit));
    }
}

impl<B: ModelBackend> VirtualTokens<B> {
    /// Whether they stand in attention alone, as keys and values, and not among the states.
    pub fn in_attention(&self) -> bool {
        fn of<B: Backend, T: PromptTokens<B>>(_: &T) -> bool {
            T::IN_ATTENTION
        }
        by_tokens!(self, tokens => of::<B, _>(tokens))
    }

    /// As [`PromptTokens::embeddings`].
    pub fn embeddings(&self, dropout: Option<Seed>) -> Option<Tensor<B, 2>> {
        by_tokens!(self, tokens => tokens.embeddings(dropout))
    }

    /// As [`PromptTokens::encoded`].
    pub fn encoded(&self) -> Option<Tensor<B, 2>> {
        by_tokens!(self, tokens => tokens.encoded())
    }

    /// As [`PromptTokens::keys_values`].
    pub fn keys_values(
        &self,
        encoded: Option<&Tensor<B, 2>>,
        layer: usize,
    ) -> Option<Tensor<B, 2>> {
        by_tokens!(self, tokens => tokens.keys_values(encoded, layer))
    }

    pub(super) fn to_stored(&self) -> Tensor<B, 2> {
        by_tokens!(self, tokens => tokens.to_stored())
    }
}
