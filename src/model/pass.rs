//! A forward pass, layer by layer.

use burn::tensor::backend::Backend;
use burn::tensor::{Int, Tensor};

use super::rotary::Rotary;
use super::{KvCache, LanguageModel};
use crate::ops::{self, Attend, Head, HeadLayout, Insertion, ModelBackend};
use crate::peft::{VirtualTokens, dropped};
use crate::rng::Seed;
use crate::tokens::{Segments, TokenBatch};

/// A family's layers, one by one. States are `[tokens, width]`.
pub(super) trait Layers<B: ModelBackend> {
    /// Embeddings of tokens, as virtual tokens stand in their place.
    fn look_up(&self, ids: &Tensor<B, 1, Int>) -> Tensor<B, 2>;

    /// The states before the first layer: embeddings with the family's positions or projection.
    fn embed(&self, embeddings: Tensor<B, 2>, pass: &Pass<'_, B>) -> Tensor<B, 2> {
        let _ = pass;
        embeddings
    }

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
    /// Rows as attention sees them, virtual tokens included.
    pub(super) segments: Segments,
    /// Of the states that pass through the layers.
    pub(super) positions: Vec<usize>,
    /// Cosines and sines, `[tokens, head_dim / 2]`, of each of [`Layers::rotaries`].
    angles: Vec<[Tensor<B, 2>; 2]>,
    /// Positions among the states whose final states are needed; all if `None`.
    selected: Option<Tensor<B, 1, Int>>,
    /// What stands before rows of this batch, if anything does.
    virtual_tokens: Option<Inserted<'a, B>>,
    layout: HeadLayout,
    num_layers: usize,
    pub(super) cache: Option<&'a mut KvCache<B>>,
    pub(super) dropout: Option<Seed>,
    residual_dropout: f64,
}

/// Virtual tokens in a batch.
struct Inserted<'a, B: Backend> {
    tokens: &'a VirtualTokens<B>,
    insertion: Insertion<B>,
    /// Whether they stand in attention alone, as keys and values, and not among the states.
    in_attention: bool,
    /// Of [`VirtualTokens::encoded`], once a layer has asked.
    encoded: Option<Tensor<B, 2>>,
}

impl<'a, B: ModelBackend> Pass<'a, B> {
    pub(super) fn new(
        model: &'a LanguageModel<B>,
        batch: &TokenBatch<B>,
        selected: Option<Tensor<B, 1, Int>>,
        cache: Option<&'a mut KvCache<B>>,
        dropout: Option<Seed>,
    ) -> Self {
        let device = batch.input_ids.device();
        let layers = model.layers();
        let (segments, virtual_tokens) = insert(model, &batch.segments, cache.as_deref(), &device);
        let mut positions = match &cache {
            Some(cache) => cache.positions(&segments),
            None => segments.positions(),
        };
        let mut row_lens = row_lens(&segments, &positions);
        let mut selected = selected;
        match &virtual_tokens {
            Some(Inserted {
                in_attention: false,
                insertion,
                ..
            }) => {
                let old = insertion.old();
                selected = Some(match selected {
                    Some(selected) => old.select(0, selected),
                    None => old,
                });
            }
            Some(Inserted { tokens, .. }) => {
                let added = added(&batch.segments, &segments);
                let own = segments.iter().zip(added).flat_map(|(row, added)| {
                    let count = if added { tokens.count() } else { 0 };
                    row.start + count..row.end
                });
                let own: Vec<usize> = own.collect();
                positions = own.iter().map(|&place| positions[place]).collect();
                row_lens = own.iter().map(|&place| row_lens[place]).collect();
            }
            None => {}
        }
        let tables = |rotary: &Rotary| rotary.tables(&positions, &row_lens, &device);
        let angles = layers.rotaries().iter().map(tables).collect();
        Self {
            segments,
            positions,
            angles,
            selected,
            virtual_tokens,
            layout: layers.head_layout(),
            num_layers: layers.num_layers(),
            cache,
            dropout,
            residual_dropout: model.residual_dropout,
        }
    }

    /// The states before the first layer.
    pub(super) fn embed(&self, layers: &dyn Layers<B>, ids: &Tensor<B, 1, Int>) -> Tensor<B, 2> {
        let mut x = layers.look_up(ids);
        if let Some(Inserted {
            tokens, insertion, ..
        }) = &self.virtual_tokens
            && let Some(embeddings) = tokens.embeddings(self.dropout)
        {
            x = ops::insert_rows(x, embeddings, insertion);
        }
        layers.embed(x, self)
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

    /// What sublayer `part` of layer `layer` adds to the residual stream, with [`LanguageModel::residual_dropout`]. A recomputed layer
    /// has the same mask.
    pub(super) fn drop_residual(&self, layer: usize, part: &str, y: Tensor<B, 2>) -> Tensor<B, 2> {
        match self
            .layer_dropout(layer)
            .filter(|_| self.residual_dropout > 0.0)
        {
            Some(seed) => {
                let seed = seed.fork("residual").fork(part);
                dropped(&y, self.residual_dropout, Some(seed))
            }
            None => y,
        }
    }

    /// Attention of one layer, at the positions that [`Pass::keep`] keeps. `attend` is of [`Pass::segments`].
    pub(super) fn attend(
        &mut self,
        layer: usize,
        qkv: Tensor<B, 2>,
        attend: &Attend,
    ) -> Tensor<B, 2> {
        let qkv = self.with_prefix(layer, qkv);
        let attended = match &mut self.cache {
            Some(cache) => cache.attend(layer, qkv, attend),
            None => ops::attention(qkv, attend),
        };
        let attended = match &self.virtual_tokens {
            Some(Inserted {
                in_attention: true,
                insertion,
                ..
            }) => ops::remove_rows(attended, insertion),
            _ => attended,
        };
        self.keep(layer, attended)
    }

    /// Puts keys and values before those of each row that begins here. No one asks for what their own queries would see.
    fn with_prefix(&mut self, layer: usize, qkv: Tensor<B, 2>) -> Tensor<B, 2> {
        let q_width = self.layout.q_width();
        let Some(Inserted {
            tokens,
            insertion,
            in_attention: true,
            encoded,
        }) = &mut self.virtual_tokens
        else {
            return qkv;
        };
        if encoded.is_none() {
            *encoded = tokens.encoded();
        }
        let Some(keys_values) = tokens.keys_values(encoded.as_ref(), layer) else {
            return qkv;
        };
        let queries = Tensor::zeros([tokens.count(), q_width], &qkv.device());
        let rows = Tensor::cat(vec![queries, keys_values], 1);
        ops::insert_rows(qkv, rows, insertion)
    }

    /// Adds the batch to the cache's lengths.
    pub(super) fn end(self) {
        if let Some(cache) = self.cache {
            cache.advance(&self.segments);
        }
    }
}

/// The rows with virtual tokens before those that begin in this batch, and what is put there: before a row's continuation it
/// stands already, in the cache or before the row that is continued.
fn insert<'a, B: ModelBackend>(
    model: &'a LanguageModel<B>,
    segments: &Segments,
    cache: Option<&KvCache<B>>,
    device: &B::Device,
) -> (Segments, Option<Inserted<'a, B>>) {
    let Some(tokens) = &model.virtual_tokens else {
        return (segments.clone(), None);
    };
    let begins: Vec<bool> = match cache {
        Some(cache) => cache.begins().collect(),
        None => (0..segments.num_rows())
            .map(|row| segments.parent(row).is_none())
            .collect(),
    };
    if !begins.contains(&true) {
        return (segments.clone(), None);
    }
    let rows = segments.iter().zip(&begins);
    let rows: Vec<(usize, bool)> = rows.map(|(row, begins)| (row.len(), *begins)).collect();
    let inserted = Inserted {
        tokens,
        insertion: Insertion::new(&rows, tokens.count(), device),
        in_attention: tokens.in_attention(),
        encoded: None,
    };
    (segments.lengthened(tokens.count(), &begins), Some(inserted))
}

/// Whether each row was lengthened.
fn added(before: &Segments, after: &Segments) -> Vec<bool> {
    let rows = 0..before.num_rows();
    rows.map(|row| before.row_len(row) < after.row_len(row))
        .collect()
}

/// The length of each token's row, in tokens with those of the cache and of virtual tokens. A row that others continue, and these,
/// count as long as the longest of them: they share keys, which are rotated once.
fn row_lens(segments: &Segments, positions: &[usize]) -> Vec<usize> {
    let first = |row: usize| segments.parent(row).unwrap_or(row);
    let mut longest = vec![0; segments.num_rows()];
    for (row, range) in segments.iter().enumerate() {
        let len = positions[range].last().map_or(0, |last| last + 1);
        longest[first(row)] = len.max(longest[first(row)]);
    }
    let rows = segments.iter().enumerate();
    rows.flat_map(|(row, range)| range.map(move |_| row))
        .map(|row| longest[first(row)])
        .collect()
}
