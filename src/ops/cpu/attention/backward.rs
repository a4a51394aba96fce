//! The gradient of attention of packed rows.

use std::ops::Range;

use burn_flex::FlexTensor;
use rayon::prelude::*;

use super::task::{Task, Tasks, View, scatter};
use crate::ops::Attend;
use crate::ops::cpu::buffers::{buffer, give_back};
use crate::ops::cpu::{contiguous, dims2, slice, tensor};
use crate::ops::kernels::{self, Left, PackedRight, Right};
use crate::tokens::Span;

/// Buffers that a thread reuses from task to task.
#[derive(Default)]
struct Room {
    keys: PackedRight,
    transposed_keys: PackedRight,
    transposed_values: PackedRight,
    queries: PackedRight,
    grads: PackedRight,
    p: Vec<f32>,
    ds: Vec<f32>,
    /// Derivatives of capped scores.
    slopes: Vec<f32>,
}

/// Inputs and results of the forward pass, and the gradient of its output.
#[derive(Clone, Copy)]
struct Saved<'a> {
    qkv: View<'a>,
    output: View<'a>,
    grad: View<'a>,
    /// `[heads, tokens]`.
    lse: View<'a>,
}

/// Gradients of one task.
struct TaskGradient {
    /// Of the queries by block, `[heads, tokens, head_dim]`.
    queries: Vec<Vec<f32>>,
    /// Of keys and of values of context and row, `[keys, head_dim]`.
    keys: [Vec<f32>; 2],
}

/// `ModelBackend::packed_attention_backward`, by the same tasks.
pub(in crate::ops::cpu) fn packed_attention_backward(
    qkv: FlexTensor,
    output: FlexTensor,
    lse: FlexTensor,
    grad: FlexTensor,
    attend: &Attend,
) -> FlexTensor {
    let layout = attend.layout;
    let [qkv, output, grad, lse] = [qkv, output, grad, lse].map(contiguous);
    let [tokens, width] = dims2(&qkv);
    let head_dim = layout.head_dim;
    let view = |tensor| View {
        values: slice(tensor),
        width: dims2(tensor)[1],
    };
    let saved = Saved {
        qkv: view(&qkv),
        output: view(&output),
        grad: view(&grad),
        lse: view(&lse),
    };
    let tasks = Tasks::new(attend);
    let gradients: Vec<TaskGradient> = (tasks.all.par_iter())
        .map_init(Room::default, |room, task| {
            room.gradient(saved, attend, task)
        })
        .collect();
    let mut out = buffer(tokens * width);
    tasks.for_each_block(&mut out, width, |out, block, place, row| {
        for number in row {
            let (task, sums) = (&tasks.all[number], &gradients[number]);
            let heads = sums.queries[place].chunks_exact(block.len() * head_dim);
            for (query, head) in task.queries.clone().zip(heads) {
                let column = Task::query_column(query, layout);
                scatter(out, width, column, head_dim, head, false);
            }
            let Span { context, own } = &task.span;
            let first = context.len() + block.start - own.start;
            let own = first * head_dim..(first + block.len()) * head_dim;
            for (column, sum) in task.key_columns(layout).into_iter().zip(&sums.keys) {
                let added = !task.is_first(layout);
                scatter(out, width, column, head_dim, &sum[own.clone()], added);
            }
        }
    });
    // A parent sums the gradients of all rows that continue it.
    for (task, sums) in tasks.all.iter().zip(&gradients) {
        let context = task.span.context.clone();
        for (column, sum) in task.key_columns(layout).into_iter().zip(&sums.keys) {
            let sum = &sum[..context.len() * head_dim];
            let out = &mut out[context.start * width..context.end * width];
            scatter(out, width, column, head_dim, sum, true);
        }
    }
    give_back([qkv, output, grad]);
    tensor(out, [tokens, width])
}

impl Room {
    fn gradient(&mut self, saved: Saved<'_>, attend: &Attend, task: &Task) -> TaskGradient {
        let layout = attend.layout;
        let (head_dim, len) = (layout.head_dim, task.span.len());
        let [keys, values] =
            (task.key_columns(layout)).map(|column| task.keys(saved.qkv, column, head_dim));
        let (keys, values) = (keys.view(), values.view());
        keys.pack(&mut self.keys, Right::Plain, len, head_dim);
        keys.pack(&mut self.transposed_keys, Right::Transposed, len, head_dim);
        values.pack(
            &mut self.transposed_values,
            Right::Transposed,
            len,
            head_dim,
        );
        let mut of_keys = [(); 2].map(|()| vec![0f32; len * head_dim]);
        let queries = (task.blocks())
            .map(|block| {
                let mut dq = vec![0f32; task.queries.len() * block.len() * head_dim];
                let heads = dq.chunks_exact_mut(block.len() * head_dim);
                for (query, dq) in task.queries.clone().zip(heads) {
                    self.head(saved, attend, task, &block, query, dq, &mut of_keys);
                }
                dq
            })
            .collect();
        TaskGradient {
            queries,
            keys: of_keys,
        }
    }

    /// The gradient of one head's queries, `[queries, head_dim]`; adds to those of keys and values.
    #[allow(clippy::too_many_arguments)]
    fn head(
        &mut self,
        saved: Saved<'_>,
        attend: &Attend,
        task: &Task,
        block: &Range<usize>,
        query: usize,
        dq: &mut [f32],
        [dk, dv]: &mut [Vec<f32>; 2],
    ) {
        let (len, layout, scale) = (block.len(), attend.layout, attend.scale);
        let head_dim = layout.head_dim;
        let column = Task::query_column(query, layout);
        let [q, output, grad] =
            [saved.qkv, saved.output, saved.grad].map(|view| view.from(block.start, column));
        q.pack(&mut self.queries, Right::Plain, len, head_dim);
        grad.pack(&mut self.grads, Right::Plain, len, head_dim);
        let lse = &saved.lse.from(query, block.start).values[..len];
        let deltas = kernels::row_dots(output.values, grad.values, output.width, head_dim, len);
        for part in task.key_blocks(block, attend.mask) {
            let keys = part.keys.len();
            let stride = kernels::score_stride(keys);
            let of_scores = part.keys.start..part.keys.start + stride;
            let p = kernels::room(&mut self.p, len * stride);
            self.transposed_keys
                .product(p, q.left(), 0..head_dim, of_scores.clone(), false);
            let mut slopes = None;
            if let Some(cap) = attend.softcap {
                kernels::soft_cap(p, scale, cap);
                let room = kernels::room(&mut self.slopes, len * stride);
                kernels::soft_cap_slopes(p, cap, room);
                slopes = Some(room);
            }
            let mut factor = if slopes.is_some() { 1.0 } else { scale };
            if let Some(alibi) = &attend.alibi {
                kernels::add_alibi(p, stride, factor, alibi[query], part.distance);
                factor = 1.0;
            }
            kernels::masked_exp(p, part.visible, factor, lse);
            let ds = kernels::room(&mut self.ds, len * stride);
            self.transposed_values
                .product(ds, grad.left(), 0..head_dim, of_scores, false);
            kernels::softmax_backward(ds, p, &deltas, scale);
            if let Some(slopes) = slopes {
                kernels::multiply(ds, slopes);
            }
            let left = |values, transposed| Left {
                values,
                stride,
                transposed,
            };
            let places = part.keys.start * head_dim..part.keys.end * head_dim;
            self.grads.product(
                &mut dv[places.clone()],
                left(p, true),
                0..len,
                0..head_dim,
                true,
            );
            self.queries
                .product(&mut dk[places], left(ds, true), 0..len, 0..head_dim, true);
            self.keys
                .product(dq, left(ds, false), part.keys, 0..head_dim, true);
        }
    }
}
