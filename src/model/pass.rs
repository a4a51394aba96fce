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
    /// The states before the first layer: embeddings, and what the family makes of them.
    fn embed(&self, ids: &Tensor<B, 1, Int>, pass: &Pass<'_, B>) -> Tensor<B, 2>;

    /// Layer `index`.
    fn layer(&self, index: usize, x: Tensor<B, 2>, pass: &mut Pass<'_, B>) -> Tensor<B, 2>;

    /// What a head reads of the states after the last layer.
    fn finish(&self, x: Tensor<B, 2>, pass: &Pass<'_, B>) -> Tensor<B, 2>;

    /// Where positions enter as rotations: one for each kind of layer.
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

/// What a forward pass needs beside the tokens.
pub(super) struct Pass<'a, B: Backend> {
    pub(super) segments: &'a Segments,
    pub(super) positions: Vec<usize>,
    /// Cosines and sines, `[tokens, head_dim / 2]`, of each of [`Layers::rotaries`].
    angles: Vec<[Tensor<B, 2>; 2]>,
    /// Positions in the batch whose states are asked for; all if `None`.
    wanted: Option<Tensor<B, 1, Int>>,
    num_layers: usize,
    pub(super) cache: Option<&'a mut KvCache<B>>,
    pub(super) dropout: Option<Seed>,
}

impl<'a, B: ModelBackend> Pass<'a, B> {
    pub(super) fn new(
        model: &dyn Layers<B>,
        batch: &'a TokenBatch<B>,
        wanted: Option<Tensor<B, 1, Int>>,
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
            wanted,
            num_layers: model.num_layers(),
            cache,
            dropout,
        }
    }

    /// The rows of `x` that layer `layer` still needs once its keys and values are formed: in the last one those whose
    /// states are asked for.
    pub(super) fn keep(&self, layer: usize, x: Tensor<B, 2>) -> Tensor<B, 2> {
        match &self.wanted {
            Some(wanted) if layer + 1 == self.num_layers => x.select(0, wanted.clone()),
            _ => x,
        }
    }

    /// Rotates the first `num_heads` heads of each row by its position's angles, those of the model's rotation `kind`.
    pub(super) fn rotate(&self, x: Tensor<B, 2>, num_heads: usize, kind: usize) -> Tensor<B, 2> {
        let [cos, sin] = self.angles[kind].clone();
        ops::rope(x, cos, sin, num_heads)
    }

    /// Dropout masks of one layer.
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

    /// Marks the batch as held by the cache.
    pub(super) fn end(self) {
        if let Some(cache) = self.cache {
            cache.advance(self.segments);
        }
    }
}
