//! Attention on packed rows and over the cache, parallel over rows and key-value heads.

use std::ops::Range;

use burn::tensor::TensorMetadata;
use burn_flex::FlexTensor;
use rayon::prelude::*;

use super::buffers::{buffer, give_back};
use super::{contiguous, dims2, matmul, slice, tensor};
use crate::ops::{HeadLayout, kernels};
use crate::tokens::{Segments, Span};

/// Queries of a row that are scored at once: memory stays linear in the row's length, and keys that none of them sees
/// are not multiplied. In a long row few keys are between those, and larger products are faster.
const QUERY_BLOCK: usize = 128;
/// The same in a row of at most [`SHORT`] tokens.
const SHORT_QUERY_BLOCK: usize = 64;
const SHORT: usize = 256;
/// Keys that they are scored against at once: scores of long rows stay in the second-level cache.
const KEY_BLOCK: usize = 512;

/// One task of attention: a row of the batch and a key-value head with its group of query heads.
struct Task {
    span: Span,
    head: usize,
}

impl Task {
    fn all(layout: HeadLayout, segments: &Segments) -> Vec<Self> {
        segments
            .spans()
            .filter(|span| !span.own.is_empty())
            .flat_map(|span| {
                (0..layout.kv_heads).map(move |head| Self {
                    span: span.clone(),
                    head,
                })
            })
            .collect()
    }

    /// Column of the group's first query head.
    fn query_column(&self, layout: HeadLayout) -> usize {
        self.head * (layout.heads / layout.kv_heads) * layout.head_dim
    }

    /// Columns of the key and of the value head.
    fn key_columns(&self, layout: HeadLayout) -> [usize; 2] {
        let key = layout.q_width() + self.head * layout.head_dim;
        [key, key + layout.kv_width()]
    }

    /// Keys or values of context and row, `[1, 1, keys, head_dim]`.
    fn keys(&self, qkv: &FlexTensor, column: usize, head_dim: usize) -> FlexTensor {
        let width = dims2(qkv)[1];
        let gather = |rows: Range<usize>| {
            kernels::gather_heads(slice(qkv), width, rows, column, 1, head_dim)
        };
        let mut values = gather(self.span.context.clone());
        values.extend(gather(self.span.own.clone()));
        tensor(values, [1, 1, self.span.len(), head_dim])
    }

    /// The row's tokens in blocks.
    fn blocks(&self) -> impl Iterator<Item = Range<usize>> + use<> {
        let own = self.span.own.clone();
        let block = match own.len() {
            ..=SHORT => SHORT_QUERY_BLOCK,
            _ => QUERY_BLOCK,
        };
        own.clone()
            .step_by(block)
            .map(move |start| start..(start + block).min(own.end))
    }

    /// The keys that a block of queries sees, in blocks. All but the last are seen by every query.
    fn key_blocks(&self, block: &Range<usize>) -> impl Iterator<Item = KeyBlock> + use<> {
        let queries = block.len();
        let visible = self.span.context.len() + block.end - self.span.own.start;
        let whole = (visible - queries) / KEY_BLOCK;
        (0..=whole).map(move |i| {
            let last = i == whole;
            let first = i * KEY_BLOCK;
            KeyBlock {
                keys: first..if last { visible } else { first + KEY_BLOCK },
                // Where one query sees all keys, each does.
                queries: if last { queries } else { 1 },
            }
        })
    }
}

/// Some keys of a row.
struct KeyBlock {
    keys: Range<usize>,
    /// Of so many queries the last one sees all of these keys, each one before it one less.
    queries: usize,
}

impl KeyBlock {
    /// These of all keys or values.
    fn of(&self, all: &FlexTensor) -> FlexTensor {
        all.narrow(2, self.keys.start, self.keys.len())
    }
}

/// Output and log-sum-exp of queries over several blocks of keys.
#[derive(Default)]
struct Attended {
    output: Vec<f32>,
    lse: Vec<f32>,
}

impl Attended {
    /// Adds another block's, `[queries, head_dim]` and `[queries]`.
    fn add(&mut self, output: FlexTensor, lse: Vec<f32>, head_dim: usize) {
        if self.lse.is_empty() {
            self.output = slice(&output).to_vec();
            self.lse = lse;
            return;
        }
        let rows = self.output.chunks_exact_mut(head_dim);
        let others = slice(&output).chunks_exact(head_dim).zip(lse);
        for ((row, lse), (other, other_lse)) in rows.zip(&mut self.lse).zip(others) {
            let top = lse.max(other_lse);
            let both = top + ((*lse - top).exp() + (other_lse - top).exp()).ln();
            let (old, new) = ((*lse - both).exp(), (other_lse - both).exp());
            for (x, other) in row.iter_mut().zip(other) {
                *x = *x * old + other * new;
            }
            *lse = both;
        }
    }
}

/// The group's heads of a block of tokens, one below the other: `[1, 1, group * tokens, head_dim]`.
fn tall(
    matrix: &FlexTensor,
    block: Range<usize>,
    column: usize,
    group: usize,
    head_dim: usize,
) -> FlexTensor {
    let (len, width) = (block.len(), dims2(matrix)[1]);
    let values = kernels::gather_heads(slice(matrix), width, block, column, group, head_dim);
    tensor(values, [1, 1, group * len, head_dim])
}

/// Writes `[heads, len, head_dim]` into the columns of `out`, `len` rows, from `column` on.
fn scatter(out: &mut [f32], width: usize, column: usize, head_dim: usize, block: &[f32]) {
    let len = out.len() / width;
    for (i, values) in block.chunks_exact(head_dim).enumerate() {
        let from = i % len * width + column + i / len * head_dim;
        out[from..from + head_dim].copy_from_slice(values);
    }
}

/// Fills `out`, `[tokens, width]`, by blocks of queries in parallel: `write` gets the rows of one block, the block, its place among
/// those of its row, and the tasks of the row, by number.
fn for_each_block(
    out: &mut [f32],
    width: usize,
    tasks: &[Task],
    kv_heads: usize,
    write: impl Fn(&mut [f32], Range<usize>, usize, Range<usize>) + Sync,
) {
    let (mut parts, mut rest) = (Vec::new(), out);
    // The tasks of a row stand together, and rows in the order of their tokens.
    for (row, task) in tasks.iter().step_by(kv_heads).enumerate() {
        for (place, block) in task.blocks().enumerate() {
            let (part, after) = rest.split_at_mut(block.len() * width);
            parts.push((part, block, place, row * kv_heads..(row + 1) * kv_heads));
            rest = after;
        }
    }
    assert!(rest.is_empty(), "a row for every token");
    parts
        .into_par_iter()
        .for_each(|(part, block, place, tasks)| write(part, block, place, tasks));
}

/// Adds `[rows, head_dim]` to the columns they came from.
fn scatter_add(
    out: &mut [f32],
    width: usize,
    rows: Range<usize>,
    column: usize,
    head_dim: usize,
    block: &[f32],
) {
    for (row, values) in rows.zip(block.chunks_exact(head_dim)) {
        let from = row * width + column;
        add(&mut out[from..from + head_dim], values);
    }
}

fn add(sum: &mut [f32], values: &[f32]) {
    sum.iter_mut().zip(values).for_each(|(s, v)| *s += v);
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
    let q_width = layout.q_width();
    let tasks = Task::all(layout, segments);
    let blocks: Vec<Vec<Attended>> = tasks
        .par_iter()
        .map(|task| {
            let [k, v] = task
                .key_columns(layout)
                .map(|column| task.keys(&qkv, column, head_dim));
            task.blocks()
                .map(|block| {
                    let column = task.query_column(layout);
                    let q = tall(&qkv, block.clone(), column, group, head_dim);
                    let mut sum = Attended::default();
                    for part in task.key_blocks(&block) {
                        let (k, v) = (part.of(&k), part.of(&v));
                        let mut p = contiguous(matmul(q.clone(), k.transpose(2, 3)));
                        let lse = kernels::causal_softmax(
                            p.storage_mut(),
                            part.queries,
                            part.keys.len(),
                            layout.scale(),
                        );
                        sum.add(contiguous(matmul(p, v)), lse, head_dim);
                    }
                    sum
                })
                .collect()
        })
        .collect();
    let mut output = buffer(tokens * q_width);
    for_each_block(
        &mut output,
        q_width,
        &tasks,
        kv_heads,
        |out, _, place, row| {
            for task in row {
                let column = tasks[task].query_column(layout);
                scatter(out, q_width, column, head_dim, &blocks[task][place].output);
            }
        },
    );
    let mut lse = vec![0f32; num_heads * tokens];
    for (task, blocks) in tasks.iter().zip(&blocks) {
        for (rows, block) in task.blocks().zip(blocks) {
            for (j, values) in block.lse.chunks_exact(rows.len()).enumerate() {
                let from = (task.head * group + j) * tokens + rows.start;
                lse[from..from + rows.len()].copy_from_slice(values);
            }
        }
    }
    (
        tensor(output, [tokens, q_width]),
        tensor(lse, [num_heads, tokens]),
    )
}

/// Gradients of one task: of the queries by block, `[group * tokens, head_dim]`, of keys and values of context and row.
struct TaskGradient {
    queries: Vec<Vec<f32>>,
    keys: Vec<f32>,
    values: Vec<f32>,
}

impl TaskGradient {
    /// The gradients of keys and values, with the column of each.
    fn by_column(&self, task: &Task, layout: HeadLayout) -> [(usize, &[f32]); 2] {
        let [key, value] = task.key_columns(layout);
        [(key, &self.keys), (value, &self.values)]
    }
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
    let tasks = Task::all(layout, segments);
    let gradients: Vec<TaskGradient> = tasks
        .par_iter()
        .map(|task| {
            let [k, v] = task
                .key_columns(layout)
                .map(|column| task.keys(&qkv, column, head_dim));
            let column = task.query_column(layout);
            let mut sums = TaskGradient {
                queries: Vec::new(),
                keys: vec![0.0; task.span.len() * head_dim],
                values: vec![0.0; task.span.len() * head_dim],
            };
            for block in task.blocks() {
                let len = block.len();
                let [q, o, go] =
                    [&qkv, &output, &grad].map(|x| tall(x, block.clone(), column, group, head_dim));
                let lse: Vec<f32> = (0..group)
                    .flat_map(|j| {
                        let from = (task.head * group + j) * tokens + block.start;
                        slice(&lse)[from..from + len].iter().copied()
                    })
                    .collect();
                let mut dq = vec![0.0; group * len * head_dim];
                for part in task.key_blocks(&block) {
                    let (k, v) = (part.of(&k), part.of(&v));
                    let (keys, scale) = (part.keys.len(), layout.scale());
                    let mut p = contiguous(matmul(q.clone(), k.clone().transpose(2, 3)));
                    kernels::causal_exp(p.storage_mut(), part.queries, keys, scale, &lse);
                    let mut ds = contiguous(matmul(go.clone(), v.transpose(2, 3)));
                    kernels::softmax_backward(
                        ds.storage_mut(),
                        slice(&p),
                        slice(&o),
                        slice(&go),
                        keys,
                        head_dim,
                        scale,
                    );
                    let dv = contiguous(matmul(p.transpose(2, 3), go.clone()));
                    let dk = contiguous(matmul(ds.transpose(2, 3), q.clone()));
                    add(&mut dq, slice(&contiguous(matmul(ds, k))));
                    let places = part.keys.start * head_dim..part.keys.end * head_dim;
                    add(&mut sums.keys[places.clone()], slice(&dk));
                    add(&mut sums.values[places], slice(&dv));
                }
                sums.queries.push(dq);
            }
            sums
        })
        .collect();
    let mut out = buffer(tokens * width);
    for_each_block(
        &mut out,
        width,
        &tasks,
        kv_heads,
        |out, block, place, row| {
            for number in row {
                let (task, sums) = (&tasks[number], &gradients[number]);
                let column = task.query_column(layout);
                scatter(out, width, column, head_dim, &sums.queries[place]);
                let Span { context, own } = &task.span;
                let first = context.len() + block.start - own.start;
                let own = first * head_dim..(first + block.len()) * head_dim;
                for (column, sum) in sums.by_column(task, layout) {
                    scatter(out, width, column, head_dim, &sum[own.clone()]);
                }
            }
        },
    );
    // What several rows continue gathers the gradients of all of them.
    for (task, sums) in tasks.iter().zip(&gradients) {
        let context = task.span.context.clone();
        for (column, sum) in sums.by_column(task, layout) {
            let sum = &sum[..context.len() * head_dim];
            scatter_add(&mut out, width, context.clone(), column, head_dim, sum);
        }
    }
    give_back([qkv, output, grad]);
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
