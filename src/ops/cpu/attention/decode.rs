//! Attention over the cache, parallel over tokens and key-value heads.

use burn::tensor::TensorMetadata;
use burn_flex::FlexTensor;
use rayon::prelude::*;

use crate::ops::cpu::{contiguous, slice, tensor};
use crate::ops::{Attend, kernels};

/// `ModelBackend::decode_attention`, a task for each token and key-value head.
pub(in crate::ops::cpu) fn decode_attention(
    q: FlexTensor,
    keys: FlexTensor,
    values: FlexTensor,
    slots: &[usize],
    held: &[usize],
    attend: &Attend,
) -> FlexTensor {
    let (q, keys, values) = (contiguous(q), contiguous(keys), contiguous(values));
    let layout = attend.layout;
    let (capacity, stride) = (keys.shape()[1], layout.kv_width());
    let group = layout.heads / layout.kv_heads;
    let group_width = group * layout.head_dim;
    let queries = attend.cached(slots, held);
    let mut out = vec![0f32; queries.len() * layout.q_width()];
    out.par_chunks_mut(group_width)
        .zip(slice(&q).par_chunks(group_width))
        .enumerate()
        .for_each(|(task, (out, q))| {
            let (slot, seen) = &queries[task / layout.kv_heads];
            let head = task % layout.kv_heads;
            let first = slot * capacity;
            let seen = (first + seen.start) * stride..(first + seen.end) * stride;
            let len = seen.len() / stride;
            let (keys, values) = (&slice(&keys)[seen.clone()], &slice(&values)[seen]);
            let offset = head * layout.head_dim;
            kernels::decode_head(
                q,
                keys,
                values,
                len,
                stride,
                offset,
                layout.head_dim,
                attend.scale,
                attend.softcap,
                (attend.alibi.as_deref()).map(|slopes| &slopes[head * group..][..group]),
                out,
            );
        });
    tensor(out, [queries.len(), layout.q_width()])
}
