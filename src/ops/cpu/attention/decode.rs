//! Attention over the cache, parallel over rows and key-value heads.

use burn::tensor::TensorMetadata;
use burn_flex::FlexTensor;
use rayon::prelude::*;

use crate::ops::cpu::{contiguous, slice, tensor};
use crate::ops::{HeadLayout, kernels};

/// `ModelBackend::decode_attention`, a task for each row and key-value head.
pub(in crate::ops::cpu) fn decode_attention(
    q: FlexTensor,
    keys: FlexTensor,
    values: FlexTensor,
    slots: &[usize],
    lens: &[usize],
    layout: HeadLayout,
) -> FlexTensor {
    let (q, keys, values) = (contiguous(q), contiguous(keys), contiguous(values));
    let (capacity, stride) = (keys.shape()[1], layout.kv_width());
    let group_width = layout.heads / layout.kv_heads * layout.head_dim;
    let mut out = vec![0f32; slots.len() * layout.q_width()];
    out.par_chunks_mut(group_width)
        .zip(slice(&q).par_chunks(group_width))
        .enumerate()
        .for_each(|(task, (out, q))| {
            let (row, head) = (task / layout.kv_heads, task % layout.kv_heads);
            let slot = slots[row] * capacity * stride..(slots[row] + 1) * capacity * stride;
            let (keys, values) = (&slice(&keys)[slot.clone()], &slice(&values)[slot]);
            let offset = head * layout.head_dim;
            kernels::decode_head(
                q,
                keys,
                values,
                lens[row],
                stride,
                offset,
                layout.head_dim,
                layout.scale(),
                out,
            );
        });
    tensor(out, [slots.len(), layout.q_width()])
}
