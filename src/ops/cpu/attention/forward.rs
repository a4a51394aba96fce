//! Attention of packed rows.

use std::ops::Range;

use burn_flex::FlexTensor;
use rayon::prelude::*;

use super::task::{Task, Tasks, View, scatter};
use crate::ops::Attend;
use crate::ops::cpu::buffers::buffer;
use crate::ops::cpu::{contiguous, dims2, slice, tensor};
use crate::ops::kernels::{self, Left, PackedRight, Right};

/// Buffers that a thread reuses from task to task.
#[derive(Default)]
struct Room {
    /// Transposed.
    keys: PackedRight,
    values: PackedRight,
    scores: Vec<f32>,
    later: Vec<f32>,
}

/// Output and log-sum-exp of a block of queries, one head after another: `[heads, queries, head_dim]` and `[heads, queries]`.
struct AttentionOutput {
    output: Vec<f32>,
    lse: Vec<f32>,
}

/// `ModelBackend::packed_attention`.
pub(in crate::ops::cpu) fn packed_attention(
    qkv: FlexTensor,
    attend: &Attend,
) -> (FlexTensor, FlexTensor) {
    let (qkv, layout) = (contiguous(qkv), attend.layout);
    let [tokens, width] = dims2(&qkv);
    let (values, head_dim) = (slice(&qkv), layout.head_dim);
    let view = View { values, width };
    let tasks = Tasks::new(attend);
    let blocks: Vec<Vec<AttentionOutput>> = (tasks.all.par_iter())
        .map_init(Room::default, |room, task| {
            let [keys, values] =
                (task.key_columns(layout)).map(|column| task.keys(view, column, head_dim));
            let len = task.span.len();
            (keys.view()).pack(&mut room.keys, Right::Transposed, len, head_dim);
            (values.view()).pack(&mut room.values, Right::Plain, len, head_dim);
            let of_block = |block| room.attend(view, attend, task, block);
            task.blocks().map(of_block).collect()
        })
        .collect();
    let q_width = layout.q_width();
    let mut output = buffer(tokens * q_width);
    tasks.for_each_block(&mut output, q_width, |out, block, place, row| {
        for number in row {
            let heads = blocks[number][place]
                .output
                .chunks_exact(block.len() * head_dim);
            for (query, head) in tasks.all[number].queries.clone().zip(heads) {
                let column = Task::query_column(query, layout);
                scatter(out, q_width, column, head_dim, head, false);
            }
        }
    });
    let mut lse = vec![0f32; layout.heads * tokens];
    for (task, blocks) in tasks.all.iter().zip(&blocks) {
        for (rows, block) in task.blocks().zip(blocks) {
            for (query, values) in task.queries.clone().zip(block.lse.chunks_exact(rows.len())) {
                let from = query * tokens + rows.start;
                lse[from..from + rows.len()].copy_from_slice(values);
            }
        }
    }
    (
        tensor(output, [tokens, q_width]),
        tensor(lse, [layout.heads, tokens]),
    )
}

impl Room {
    /// Attention of a block of queries over the packed keys and values.
    fn attend(
        &mut self,
        qkv: View<'_>,
        attend: &Attend,
        task: &Task,
        block: Range<usize>,
    ) -> AttentionOutput {
        let (len, layout) = (block.len(), attend.layout);
        let head_dim = layout.head_dim;
        let mut output = vec![0f32; task.queries.len() * len * head_dim];
        let mut lse = Vec::with_capacity(task.queries.len() * len);
        for (query, output) in task
            .queries
            .clone()
            .zip(output.chunks_exact_mut(len * head_dim))
        {
            let q = qkv.from(block.start, Task::query_column(query, layout));
            let mut so_far: Option<Vec<f32>> = None;
            for part in task.key_blocks(&block, attend.mask) {
                let keys = part.keys.len();
                let stride = kernels::score_stride(keys);
                let scores = kernels::room(&mut self.scores, len * stride);
                self.keys.product(
                    scores,
                    q.left(),
                    0..head_dim,
                    part.keys.start..part.keys.start + stride,
                    false,
                );
                let mut scale = attend.scale;
                if let Some(cap) = attend.softcap {
                    kernels::soft_cap(scores, scale, cap);
                    scale = 1.0;
                }
                if let Some(slopes) = &attend.alibi {
                    kernels::add_alibi(scores, stride, scale, slopes[query], part.distance);
                    scale = 1.0;
                }
                let lse = kernels::masked_softmax(scores, part.visible, scale);
                let p = Left {
                    values: scores,
                    stride,
                    transposed: false,
                };
                so_far = Some(match so_far {
                    None => {
                        self.values
                            .product(output, p, part.keys, 0..head_dim, false);
                        lse
                    }
                    Some(before) => {
                        let later = kernels::room(&mut self.later, len * head_dim);
                        self.values.product(later, p, part.keys, 0..head_dim, false);
                        joined(output, before, later, &lse)
                    }
                });
            }
            lse.extend(so_far.into_iter().flatten());
        }
        AttentionOutput { output, lse }
    }
}

/// Combines the outputs over two blocks of keys in `output` and returns the log-sum-exp. Outputs: `[queries, head_dim]`.
fn joined(output: &mut [f32], mut lse: Vec<f32>, later: &[f32], later_lse: &[f32]) -> Vec<f32> {
    let head_dim = output.len() / lse.len();
    let rows = output
        .chunks_exact_mut(head_dim)
        .zip(later.chunks_exact(head_dim));
    for ((row, later), (lse, later_lse)) in rows.zip(lse.iter_mut().zip(later_lse)) {
        if *later_lse == f32::NEG_INFINITY {
            // The query attends to none of the later keys, and possibly to none before.
            continue;
        }
        let top = lse.max(*later_lse);
        let both = top + ((*lse - top).exp() + (later_lse - top).exp()).ln();
        let (old, new) = ((*lse - both).exp(), (later_lse - both).exp());
        for (x, later) in row.iter_mut().zip(later) {
            *x = *x * old + later * new;
        }
        *lse = both;
    }
    lse
}
