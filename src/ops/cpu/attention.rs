//! Attention on packed rows and over the cache, parallel over rows and key-value heads.

use std::ops::Range;

use burn::tensor::TensorMetadata;
use burn_flex::FlexTensor;
use rayon::prelude::*;

use super::{contiguous, dims2, matmul, slice, tensor};
use crate::ops::{HeadLayout, kernels};
use crate::tokens::Segments;

/// Heads as a `[1, heads, len, head_dim]` tensor.
fn heads(
    matrix: &FlexTensor,
    rows: Range<usize>,
    column: usize,
    heads: usize,
    head_dim: usize,
) -> FlexTensor {
    let len = rows.len();
    let width = dims2(matrix)[1];
    let values = kernels::gather_heads(slice(matrix), width, rows, column, heads, head_dim);
    tensor(values, [1, heads, len, head_dim])
}

/// Writes `[heads, len, head_dim]` blocks back into the columns they came from.
fn scatter(
    out: &mut [f32],
    width: usize,
    rows: Range<usize>,
    column: usize,
    head_dim: usize,
    block: &[f32],
) {
    let len = rows.len();
    for (i, values) in block.chunks_exact(head_dim).enumerate() {
        let from = (rows.start + i % len) * width + column + i / len * head_dim;
        out[from..from + head_dim].copy_from_slice(values);
    }
}

/// One task of attention: a row of the batch and a key-value head with its group of query heads.
fn attention_tasks(layout: HeadLayout, segments: &Segments) -> Vec<(Range<usize>, usize)> {
    segments
        .iter()
        .filter(|rows| !rows.is_empty())
        .flat_map(|rows| (0..layout.kv_heads).map(move |head| (rows.clone(), head)))
        .collect()
}

/// `ModelBackend::packed_attention`, a task for each row and key-value head.
pub(super) fn packed_attention(
    qkv: FlexTensor,
    layout: HeadLayout,
    segments: &Segments,
) -> (FlexTensor, FlexTensor) {
    let qkv = contiguous(qkv);
    let tokens = dims2(&qkv)[0];
    let HeadLayout {
        heads: num_heads,
        kv_heads,
        head_dim,
    } = layout;
    let group = num_heads / kv_heads;
    let (q_width, kv_width) = (layout.q_width(), layout.kv_width());
    let tasks = attention_tasks(layout, segments);
    let blocks: Vec<(FlexTensor, Vec<f32>)> = tasks
        .par_iter()
        .map(|(rows, head)| {
            let len = rows.len();
            let q = heads(&qkv, rows.clone(), head * group * head_dim, group, head_dim);
            let k = heads(&qkv, rows.clone(), q_width + head * head_dim, 1, head_dim);
            let v = heads(
                &qkv,
                rows.clone(),
                q_width + kv_width + head * head_dim,
                1,
                head_dim,
            );
            let mut p = contiguous(matmul(q, k.transpose(2, 3)));
            let lse = kernels::causal_softmax(p.storage_mut(), len, layout.scale());
            (contiguous(matmul(p, v)), lse)
        })
        .collect();
    let mut output = vec![0f32; tokens * q_width];
    let mut lse = vec![0f32; num_heads * tokens];
    for ((rows, head), (block, block_lse)) in tasks.iter().zip(&blocks) {
        scatter(
            &mut output,
            q_width,
            rows.clone(),
            head * group * head_dim,
            head_dim,
            slice(block),
        );
        for (j, values) in block_lse.chunks_exact(rows.len()).enumerate() {
            let from = (head * group + j) * tokens + rows.start;
            lse[from..from + rows.len()].copy_from_slice(values);
        }
    }
    (
        tensor(output, [tokens, q_width]),
        tensor(lse, [num_heads, tokens]),
    )
}

/// `ModelBackend::packed_attention_backward`, by the same tasks.
pub(super) fn packed_attention_backward(
    qkv: FlexTensor,
    output: FlexTensor,
    lse: FlexTensor,
    grad: FlexTensor,
    layout: HeadLayout,
    segments: &Segments,
) -> FlexTensor {
    let (qkv, output, lse, grad) = (
        contiguous(qkv),
        contiguous(output),
        contiguous(lse),
        contiguous(grad),
    );
    let [tokens, width] = dims2(&qkv);
    let HeadLayout {
        heads: num_heads,
        kv_heads,
        head_dim,
    } = layout;
    let group = num_heads / kv_heads;
    let (q_width, kv_width) = (layout.q_width(), layout.kv_width());
    let tasks = attention_tasks(layout, segments);
    let blocks: Vec<[FlexTensor; 3]> = tasks
        .par_iter()
        .map(|(rows, head)| {
            let len = rows.len();
            let first = head * group * head_dim;
            let q = heads(&qkv, rows.clone(), first, group, head_dim);
            let k = heads(&qkv, rows.clone(), q_width + head * head_dim, 1, head_dim);
            let v = heads(
                &qkv,
                rows.clone(),
                q_width + kv_width + head * head_dim,
                1,
                head_dim,
            );
            let o = heads(&output, rows.clone(), first, group, head_dim);
            let go = heads(&grad, rows.clone(), first, group, head_dim);
            let lse: Vec<f32> = (0..group)
                .flat_map(|j| {
                    let from = (head * group + j) * tokens + rows.start;
                    slice(&lse)[from..from + len].iter().copied()
                })
                .collect();
            let mut p = contiguous(matmul(q.clone(), k.transpose(2, 3)));
            kernels::causal_exp(p.storage_mut(), len, layout.scale(), &lse);
            // The group's queries as one tall matrix: their shared key and value gradients add up in the product.
            let tall =
                |x: FlexTensor, columns: usize| x.reshape([1, 1, group * len, columns].into());
            let dv = matmul(
                tall(p.clone(), len).transpose(2, 3),
                tall(go.clone(), head_dim),
            );
            let mut ds = contiguous(matmul(go.clone(), v.transpose(2, 3)));
            kernels::softmax_backward(
                ds.storage_mut(),
                slice(&p),
                slice(&o),
                slice(&go),
                len,
                head_dim,
                layout.scale(),
            );
            let dq = matmul(ds.clone(), k);
            let dk = matmul(tall(ds, len).transpose(2, 3), tall(q, head_dim));
            [dq, dk, dv].map(contiguous)
        })
        .collect();
    let mut out = vec![0f32; tokens * width];
    for ((rows, head), [dq, dk, dv]) in tasks.iter().zip(&blocks) {
        let kv = q_width + head * head_dim;
        scatter(
            &mut out,
            width,
            rows.clone(),
            head * group * head_dim,
            head_dim,
            slice(dq),
        );
        scatter(&mut out, width, rows.clone(), kv, head_dim, slice(dk));
        scatter(
            &mut out,
            width,
            rows.clone(),
            kv + kv_width,
            head_dim,
            slice(dv),
        );
    }
    tensor(out, [tokens, width])
}

/// `ModelBackend::decode_attention`, a task for each row and key-value head.
pub(super) fn decode_attention(
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
