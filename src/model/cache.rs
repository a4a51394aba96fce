//! The KV cache.

use burn::tensor::Tensor;
use burn::tensor::backend::Backend;

use crate::host::indices;
use crate::ops::{self, Attend, CacheWrite, HeadLayout, ModelBackend};
use crate::tokens::Segments;

/// Preallocated keys and values, `[slots, capacity, kv_width]` per layer, with the length of each slot.
#[derive(Debug)]
pub struct KvCache<B: Backend> {
    /// Keys and values; taken out during writes, so that their sole owner can be written in place.
    layers: Vec<Option<[Tensor<B, 3>; 2]>>,
    /// Tokens held by each slot.
    lens: Vec<usize>,
    /// Slots of each row of the current batch.
    slots: Vec<Vec<usize>>,
}

impl<B: ModelBackend> KvCache<B> {
    /// An empty cache for `slots` rows of `capacity` tokens.
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

    /// Sets the slot of each row of the next batch; slots must differ. A row continues the tokens in its slot, so that a prompt may
    /// be fed whole, in chunks or token by token.
    pub fn select(&mut self, slots: &[usize]) {
        self.slots = slots.iter().map(|&slot| vec![slot]).collect();
    }

    /// As [`KvCache::select`], with several slots per row, which hold the same tokens: each gets a copy of the row's keys and values,
    /// for several responses to one prompt.
    ///
    /// # Panics
    /// If a row has no slot.
    pub fn select_copies(&mut self, slots: Vec<Vec<usize>>) {
        assert!(slots.iter().all(|row| !row.is_empty()), "a slot per row");
        self.slots = slots;
    }

    /// Empties a slot.
    pub fn clear(&mut self, slot: usize) {
        self.lens[slot] = 0;
    }

    /// Forgets all but the first `len` tokens of a slot, virtual tokens counted.
    ///
    /// # Panics
    /// If it holds fewer.
    pub fn truncate(&mut self, slot: usize, len: usize) {
        assert!(len <= self.lens[slot], "a cache can only be shortened");
        self.lens[slot] = len;
    }

    /// Moves the tokens of the slots `kept`, in this order, to the first slots of a cache of `slots` rows of `capacity` tokens; the
    /// other slots are empty.
    ///
    /// # Panics
    /// If there are more `kept` than `slots`, or one of them holds more than `capacity`.
    pub fn resize(&mut self, kept: &[usize], slots: usize, capacity: usize, device: &B::Device) {
        let mut lens: Vec<usize> = kept.iter().map(|&slot| self.lens[slot]).collect();
        let longest = lens.iter().copied().max().unwrap_or(0);
        assert!(kept.len() <= slots, "{} rows in {slots} slots", kept.len());
        assert!(longest <= capacity, "{longest} tokens in {capacity}");
        lens.resize(slots, 0);
        // One tensor at a time: the old one is freed before the next new one is made.
        for layer in &mut self.layers {
            let tables = layer
                .take()
                .expect("the cache is put back after each write");
            *layer = Some(tables.map(|old| {
                let width = old.dims()[2];
                let held = (longest > 0).then(|| {
                    let rows = old.clone().narrow(1, 0, longest);
                    rows.select(0, indices(kept, device))
                });
                drop(old);
                let new = Tensor::zeros([slots, capacity, width], device);
                match held {
                    Some(held) => new.slice_assign([0..kept.len(), 0..longest, 0..width], held),
                    None => new,
                }
            }));
        }
        self.lens = lens;
        self.slots.clear();
    }

    /// Whether each row of the next batch begins in an empty slot.
    pub fn begins(&self) -> impl Iterator<Item = bool> + '_ {
        self.slots.iter().map(|slots| self.lens[slots[0]] == 0)
    }

    /// Position of each token of the batch within its row.
    pub fn positions(&self, segments: &Segments) -> Vec<usize> {
        let starts = self.slots.iter().map(|slots| self.lens[slots[0]]);
        segments
            .iter()
            .zip(starts)
            .flat_map(|(row, start)| start..start + row.len())
            .collect()
    }

    /// Adds the batch's tokens to the lengths of their slots; called once after the last layer.
    pub fn advance(&mut self, segments: &Segments) {
        for (row, slots) in segments.iter().zip(&self.slots) {
            slots.iter().for_each(|&slot| self.lens[slot] += row.len());
        }
    }

    /// Writes the batch's keys and values of `layer` and attends over the contents of the slots.
    ///
    /// # Panics
    /// If the number of rows differs from that given to [`KvCache::select`].
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
