//! Attention on packed rows and over the cache, row by row.

use std::ops::Range;

use burn::tensor::backend::Backend;
use burn::tensor::ops::FloatTensor;
use burn::tensor::{Bool, Int, Tensor, TensorData, activation};

use crate::ops::tensor::{unwrap, wrap};
use crate::ops::{Attend, CacheWrite, HeadLayout, Mask};
use crate::tokens::Span;

/// Heads of one row as `[num_heads, len, head_dim]`.
fn heads_of<B: Backend>(
    matrix: &Tensor<B, 2>,
    row: Range<usize>,
    column: usize,
    num_heads: usize,
    head_dim: usize,
) -> Tensor<B, 3> {
    let len = row.len();
    matrix
        .clone()
        .slice([row, column..column + num_heads * head_dim])
        .reshape([len, num_heads, head_dim])
        .swap_dims(0, 1)
}

/// Repeats each key or value head for its group of query heads.
fn repeat_heads<B: Backend>(x: Tensor<B, 3>, layout: HeadLayout) -> Tensor<B, 3> {
    let [kv_heads, len, head_dim] = x.dims();
    let group = layout.heads / kv_heads;
    x.reshape([kv_heads, 1, len, head_dim])
        .repeat_dim(1, group)
        .reshape([layout.heads, len, head_dim])
}

/// `[len, num_heads * head_dim]` of `[num_heads, len, head_dim]`.
fn rows_of<B: Backend>(x: Tensor<B, 3>) -> Tensor<B, 2> {
    let [heads, len, head_dim] = x.dims();
    x.swap_dims(0, 1).reshape([len, heads * head_dim])
}

/// Unmasked scores of one row's queries against the keys of its context and its own.
fn scores<B: Backend>(q: Tensor<B, 3>, k: Tensor<B, 3>, attend: &Attend) -> Tensor<B, 3> {
    let scores = q.matmul(k.swap_dims(1, 2)).mul_scalar(attend.scale);
    match attend.softcap {
        Some(cap) => scores.div_scalar(cap).tanh().mul_scalar(cap),
        None => scores,
    }
}

/// Adds ALiBi's bias to scores and masks them.
fn masked<B: Backend>(scores: Tensor<B, 3>, attend: &Attend) -> Tensor<B, 3> {
    let [heads, queries, keys] = scores.dims();
    let device = scores.device();
    let offset = (keys - queries) as i64;
    let scores = match &attend.alibi {
        Some(slopes) => {
            let places = |places: Range<i64>| Tensor::<B, 1, Int>::arange(places, &device).float();
            let keys = places(0..keys as i64).reshape([1, 1, keys]);
            let queries = places(offset..offset + queries as i64).reshape([1, queries, 1]);
            let slopes = Tensor::<B, 1>::from_floats(&**slopes, &device).reshape([heads, 1, 1]);
            scores + slopes * (keys - queries)
        }
        None => scores,
    };
    let hide = |scores: Tensor<B, 3>, hidden: Tensor<B, 2, Bool>| {
        let hidden = hidden.unsqueeze::<3>().expand([heads, queries, keys]);
        // Finite, so that 0 * masked is 0; exp(-1e30 - lse) is exactly 0 in f32.
        scores.mask_fill(hidden, -1e30)
    };
    let later = || Tensor::tril_mask([queries, keys], offset, &device);
    match attend.mask {
        Mask::Full => scores,
        Mask::Causal => hide(scores, later()),
        Mask::Window(n) => {
            let first = offset + 1 - n as i64;
            let earlier = Tensor::triu_mask([queries, keys], first, &device);
            hide(hide(scores, later()), earlier)
        }
    }
}

/// Queries of a row `[heads, queries, head_dim]`, and keys and values of its context and its own, repeated for their
/// groups of queries, `[heads, keys, head_dim]`.
fn row_heads<B: Backend>(qkv: &Tensor<B, 2>, span: &Span, layout: HeadLayout) -> [Tensor<B, 3>; 3] {
    let (q_width, kv_width) = (layout.q_width(), layout.kv_width());
    let q = heads_of(qkv, span.own.clone(), 0, layout.heads, layout.head_dim);
    let shared = |column: usize| {
        let of = |rows| heads_of(qkv, rows, column, layout.kv_heads, layout.head_dim);
        let own = of(span.own.clone());
        let all = if span.context.is_empty() {
            own
        } else {
            Tensor::cat(vec![of(span.context.clone()), own], 1)
        };
        repeat_heads(all, layout)
    };
    [q, shared(q_width), shared(q_width + kv_width)]
}

pub(in crate::ops) fn attention<B: Backend>(
    qkv: FloatTensor<B>,
    attend: &Attend,
) -> (FloatTensor<B>, FloatTensor<B>) {
    let (qkv, layout) = (wrap::<B, 2>(qkv), attend.layout);
    let (mut outputs, mut lses) = (Vec::new(), Vec::new());
    for span in (attend.segments.spans()).filter(|span| !span.own.is_empty()) {
        let [q, k, v] = row_heads(&qkv, &span, layout);
        let scores = masked(scores(q, k, attend), attend);
        let max = scores.clone().max_dim(2);
        let exp = (scores - max.clone()).exp();
        let sum = exp.clone().sum_dim(2);
        outputs.push(rows_of((exp / sum.clone()).matmul(v)));
        lses.push((sum.log() + max).reshape([layout.heads, span.own.len()]));
    }
    (
        unwrap(Tensor::cat(outputs, 0)),
        unwrap(Tensor::cat(lses, 1)),
    )
}

pub(in crate::ops) fn attention_backward<B: Backend>(
    qkv: FloatTensor<B>,
    output: FloatTensor<B>,
    lse: FloatTensor<B>,
    grad: FloatTensor<B>,
    attend: &Attend,
) -> FloatTensor<B> {
    let (layout, segments) = (attend.layout, &attend.segments);
    let (qkv, output, lse, grad) = (
        wrap::<B, 2>(qkv),
        wrap::<B, 2>(output),
        wrap::<B, 2>(lse),
        wrap::<B, 2>(grad),
    );
    let group = layout.heads / layout.kv_heads;
    let mut rows: Vec<Option<Tensor<B, 2>>> = vec![None; segments.num_rows()];
    for (row, span) in segments.spans().enumerate() {
        let (before, len) = (span.context.len(), span.own.len());
        if len == 0 {
            continue;
        }
        let [q, k, v] = row_heads(&qkv, &span, layout);
        let own =
            |x: &Tensor<B, 2>| heads_of(x, span.own.clone(), 0, layout.heads, layout.head_dim);
        let (o, go) = (own(&output), own(&grad));
        let lse = lse
            .clone()
            .narrow(1, span.own.start, len)
            .reshape([layout.heads, len, 1]);
        let scores = scores(q.clone(), k.clone(), attend);
        let p = (masked(scores.clone(), attend) - lse).exp();
        let delta = (o * go.clone()).sum_dim(2);
        let dv = p.clone().swap_dims(1, 2).matmul(go.clone());
        let mut ds = p * (go.matmul(v.swap_dims(1, 2)) - delta) * attend.scale;
        if let Some(cap) = attend.softcap {
            // d cap tanh(s / cap) / ds = 1 - tanh^2
            ds = ds * (scores / cap).square().neg().add_scalar(1.0);
        }
        let dq = ds.clone().matmul(k);
        let dk = ds.swap_dims(1, 2).matmul(q);
        // Queries of one group share a key and value head: their gradients add up. [before + len, kv_width]
        let shared = |x: Tensor<B, 3>| {
            let summed: Tensor<B, 3> = x
                .reshape([layout.kv_heads, group, before + len, layout.head_dim])
                .sum_dim(1)
                .squeeze_dim(1);
            rows_of(summed)
        };
        let (dk, dv) = (shared(dk), shared(dv));
        if let Some(parent) = segments.parent(row).filter(|_| before > 0) {
            let zeros = Tensor::zeros([before, layout.q_width()], &qkv.device());
            let part = |x: &Tensor<B, 2>| x.clone().narrow(0, 0, before);
            let seen = Tensor::cat(vec![zeros, part(&dk), part(&dv)], 1);
            rows[parent] = rows[parent].take().map(|own| own + seen);
        }
        let part = |x: Tensor<B, 2>| x.narrow(0, before, len);
        rows[row] = Some(Tensor::cat(vec![rows_of(dq), part(dk), part(dv)], 1));
    }
    unwrap(Tensor::cat(rows.into_iter().flatten().collect(), 0))
}

pub(in crate::ops) fn cache_write<B: Backend>(
    cache: FloatTensor<B>,
    packed: FloatTensor<B>,
    writes: &[CacheWrite],
) -> FloatTensor<B> {
    let (mut cache, packed) = (wrap::<B, 3>(cache), wrap::<B, 2>(packed));
    let width = packed.dims()[1];
    for write in writes {
        let (len, slot, start) = (write.tokens.len(), write.slot, write.start);
        let values = packed
            .clone()
            .slice([write.tokens.clone(), 0..width])
            .reshape([1, len, width]);
        cache = cache.slice_assign([slot..slot + 1, start..start + len, 0..width], values);
    }
    unwrap(cache)
}

pub(in crate::ops) fn decode_attention<B: Backend>(
    q: FloatTensor<B>,
    keys: FloatTensor<B>,
    values: FloatTensor<B>,
    slots: &[usize],
    held: &[usize],
    attend: &Attend,
) -> FloatTensor<B> {
    let (q, keys, values) = (wrap::<B, 2>(q), wrap::<B, 3>(keys), wrap::<B, 3>(values));
    let (device, layout) = (q.device(), attend.layout);
    let queries = attend.cached(slots, held);
    let rows = queries.len();
    let longest = queries.iter().map(|(_, seen)| seen.end).max().unwrap_or(0);
    let group = layout.heads / layout.kv_heads;
    let slots: Vec<i32> = queries.iter().map(|(slot, _)| *slot as i32).collect();
    let slots = Tensor::<B, 1, Int>::from_data(TensorData::new(slots, [rows]), &device);
    // [rows, kv_heads, longest, head_dim]
    let gather = |cache: Tensor<B, 3>| {
        cache
            .narrow(1, 0, longest)
            .select(0, slots.clone())
            .reshape([rows, longest, layout.kv_heads, layout.head_dim])
            .swap_dims(1, 2)
    };
    let hidden: Vec<bool> = (queries.iter())
        .flat_map(|(_, seen)| (0..longest).map(move |t| !seen.contains(&t)))
        .collect();
    let hidden =
        Tensor::<B, 4, Bool>::from_data(TensorData::new(hidden, [rows, 1, 1, longest]), &device);
    let q = q.reshape([rows, layout.kv_heads, group, layout.head_dim]);
    let mut scores = q
        .matmul(gather(keys).swap_dims(2, 3))
        .mul_scalar(attend.scale);
    if let Some(cap) = attend.softcap {
        scores = scores.div_scalar(cap).tanh().mul_scalar(cap);
    }
    if let Some(slopes) = &attend.alibi {
        let slopes = Tensor::<B, 1>::from_floats(&**slopes, &device);
        // A query that attends to all keys is one at their end: a bias common to all keys changes nothing.
        let distances: Vec<f32> = (queries.iter())
            .flat_map(|(_, seen)| (0..longest).map(move |t| t as f32 + 1.0 - seen.end as f32))
            .collect();
        let shape = [rows, 1, 1, longest];
        let distances = Tensor::<B, 4>::from_data(TensorData::new(distances, shape), &device);
        scores = scores + slopes.reshape([1, layout.kv_heads, group, 1]) * distances;
    }
    let dims = scores.dims();
    let p = activation::softmax(scores.mask_fill(hidden.expand(dims), -1e30), 3);
    unwrap(p.matmul(gather(values)).reshape([rows, layout.q_width()]))
}
