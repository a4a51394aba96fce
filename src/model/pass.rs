//! A forward pass, layer by layer.

use burn::tensor::backend::Backend;
use burn::tensor::{Int, Tensor};

use super::KvCache;
use super::rotary::Rotary;
use crate::ops::{self, Attend, Head, HeadLayout, ModelBackend};
use crate::rng::Seed;
use crate::tokens::{Segments, TokenBatch};

/// A family's layers, one by one. States are `[tokens, width]`.
pub(super) trait Layers<B: ModelBackend> {
    /// The states before the first layer: embeddings with the family's scaling, positions or projection.
    fn embed(&self, ids: &Tensor<B, 1, Int>, pass: &Pass<'_, B>) -> Tensor<B, 2>;

    /// Layer `index`.
    fn layer(&self, index: usize, x: Tensor<B, 2>, pass: &mut Pass<'_, B>) -> Tensor<B, 2>;

    /// The final states, given the states after the last layer.
    fn finish(&self, x: Tensor<B, 2>, pass: &Pass<'_, B>) -> Tensor<B, 2>;

    /// Rotary frequencies, one set per kind of layer; empty for families without rotary positions.
    fn rotaries(&self) -> &[Rotary] {
        &[]
    }

    /// Output head.
    fn head(&self) -> Head<B>;

    /// Attention heads.
    fn head_layout(&self) -> HeadLayout;

    /// Number of layers.
    fn num_layers(&self) -> usize;
}

/// The context of a forward pass.
pub(super) struct Pass<'a, B: Backend> {
    pub(super) segments: &'a Segments,
    pub(super) positions: Vec<usize>,
    /// Cosines and sines, `[tokens, head_dim / 2]`, of each of [`Layers::rotaries`].
    angles: Vec<[Tensor<B, 2>; 2]>,
    /// Positions in the batch whose final states are needed; all if `None`.
    selected: Option<Tensor<B, 1, Int>>,
    num_layers: usize,
    pub(super) cache: Option<&'a mut KvCache<B>>,
    pub(super) dropout: Option<Seed>,
}

impl<'a, B: ModelBackend> Pass<'a, B> {
    pub(super) fn new(
        model: &dyn Layers<B>,
        batch: &'a TokenBatch<B>,
        selected: Option<Tensor<B, 1, Int>>,
        cache: Option<&'a mut KvCache<B>>,
        dropout: Option<Seed>,
    ) -> Self {
        let segments = &batch.segments;
        let positions = match &cache {
            Some(cache) => cache.positions(segments),
            None => segments.positions(),
        };
        let device = batch.input_ids.device();
        let tables = |rotary: &Rotary| rotary.tables(&positions, &device);
        let angles = model.rotaries().iter().map(tables).collect();
        Self {
            segments,
            positions,
            angles,
            selected,
            num_layers: model.num_layers(),
            cache,
            dropout,
        }
    }

    /// The rows of `x` that layer `layer` needs after computing its keys and values: in the last layer only those at the chosen
    /// positions.
    pub(super) fn keep(&self, layer: usize, x: Tensor<B, 2>) -> Tensor<B, 2> {
        match &self.selected {
            Some(selected) if layer + 1 == self.num_layers => x.select(0, selected.clone()),
            _ => x,
        }
    }

    /// Rotates the first `num_heads` heads of each row by the angles of its position, with the model's rotary frequencies `kind`.
    pub(super) fn rotate(&self, x: Tensor<B, 2>, num_heads: usize, kind: usize) -> Tensor<B, 2> {
        let [cos, sin] = self.angles[kind].clone();
        ops::rope(x, cos, sin, num_heads)
    }

    /// Seed of one layer's dropout masks.
    pub(super) fn layer_dropout(&self, layer: usize) -> Option<Seed> {
        self.dropout.map(|seed| seed.fork_index(layer as u64))
    }

    /// Attention of one layer, at the positions that [`Pass::keep`] keeps. `attend` is of [`Pass::segments`].
    pub(super) fn attend(
        &mut self,
        layer: usize,
        qkv: Tensor<B, 2>,
        attend: &Attend,
    ) -> Tensor<B, 2> {
        let attended = match &mut self.cache {
            Some(cache) => cache.attend(layer, qkv, attend),
            None => ops::attention(qkv, attend),
        };
        self.keep(layer, attended)
    }

    /// Adds the batch to the cache's lengths.
    pub(super) fn end(self) {
        if let Some(cache) = self.cache {
            cache.advance(self.segments);
        }
    }
}
