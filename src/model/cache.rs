//! Keys and values of the tokens seen so far.

use burn::tensor::Tensor;
use burn::tensor::backend::Backend;

use crate::ops::{self, Attend, CacheWrite, HeadLayout, ModelBackend};
use crate::tokens::Segments;

/// Preallocated keys and values, `[slots, capacity, kv_width]` per layer, and how much of each slot is filled.
#[derive(Debug)]
pub struct KvCache<B: Backend> {
    /// Keys and values; taken out while they are written, so that a sole owner is written in place.
    layers: Vec<Option<[Tensor<B, 3>; 2]>>,
    /// Tokens held by each slot.
    lens: Vec<usize>,
    /// Slots of each row of the batch at hand.
    slots: Vec<Vec<usize>>,
}

impl<B: ModelBackend> KvCache<B> {
    /// Room for `slots` rows of `capacity` tokens.
    pub fn new(
        num_layers: usize,
        slots: usize,
        capacity: usize,
        layout: HeadLayout,
        device: &B::Device,
    ) -> Self {
        let empty = || Tensor::zeros([slots, capacity, layout.kv_width()], device);
        Self {
            layers: (0..num_layers).map(|_| Some([empty(), empty()])).collect(),
            lens: vec![0; slots],
            slots: Vec::new(),
        }
    }

    /// Names the slot of each row of the next batch: no slot twice, rows of any length. A row continues what its slot
    /// holds, so that a prompt may come whole, in chunks or token by token.
    pub fn select(&mut self, slots: &[usize]) {
        self.slots = slots.iter().map(|&slot| vec![slot]).collect();
    }

    /// As [`KvCache::select`] before a prefill, with several empty slots for a row: each gets a copy of what the row
    /// leaves, as several responses to one prompt need it.
    ///
    /// # Panics
    /// If a row has no slot.
    pub fn select_copies(&mut self, slots: Vec<Vec<usize>>) {
        assert!(slots.iter().all(|row| !row.is_empty()), "a slot per row");
        self.slots = slots;
    }

    /// Empties a slot for another row.
    pub fn clear(&mut self, slot: usize) {
        self.lens[slot] = 0;
    }

    /// Position of each token of the batch in its row.
    pub fn positions(&self, segments: &Segments) -> Vec<usize> {
        let starts = self.slots.iter().map(|slots| self.lens[slots[0]]);
        segments
            .iter()
            .zip(starts)
            .flat_map(|(row, start)| start..start + row.len())
            .collect()
    }

    /// Counts the batch's tokens as held; called once after the last layer.
    pub fn advance(&mut self, segments: &Segments) {
        for (row, slots) in segments.iter().zip(&self.slots) {
            slots.iter().for_each(|&slot| self.lens[slot] += row.len());
        }
    }

    /// Writes the batch's keys and values of `layer` and attends over what the slots hold.
    ///
    /// # Panics
    /// If the batch does not bring one row for each that [`KvCache::select`] gave a slot.
    pub fn attend(&mut self, layer: usize, qkv: Tensor<B, 2>, attend: &Attend) -> Tensor<B, 2> {
        let (layout, segments) = (attend.layout, &attend.segments);
        assert_eq!(self.slots.len(), segments.num_rows(), "a slot per row");
        let lens = &self.lens;
        let writes: Vec<CacheWrite> = segments
            .iter()
            .zip(&self.slots)
            .flat_map(|(tokens, slots)| {
                slots.iter().map(move |&slot| CacheWrite {
                    tokens: tokens.clone(),
                    slot,
                    start: lens[slot],
                })
            })
            .collect();
        let (q_width, kv_width) = (layout.q_width(), layout.kv_width());
        let [keys, values] = self.layers[layer]
            .take()
            .expect("the cache is put back after each write");
        let write = |cache: Tensor<B, 3>, column: usize| -> Tensor<B, 3> {
            let rows = qkv.clone().narrow(1, column, kv_width);
            ops::wrap(B::cache_write(
                ops::unwrap(cache),
                ops::unwrap(rows),
                &writes,
            ))
        };
        let (keys, values) = (write(keys, q_width), write(values, q_width + kv_width));
        let output = if writes.iter().all(|write| write.start == 0) {
            ops::attention(qkv, attend)
        } else {
            let slots: Vec<usize> = self.slots.iter().map(|copies| copies[0]).collect();
            let held: Vec<usize> = slots.iter().map(|&slot| lens[slot]).collect();
            let q = qkv.narrow(1, 0, q_width);
            ops::wrap(B::decode_attention(
                ops::unwrap(q),
                ops::unwrap(keys.clone()),
                ops::unwrap(values.clone()),
                &slots,
                &held,
                attend,
            ))
        };
        self.layers[layer] = Some([keys, values]);
        output
    }
}
