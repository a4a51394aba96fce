//! The operations in plain burn ops: right on every backend, and the reference for the kernels.

use burn::tensor::backend::Backend;
use burn::tensor::ops::FloatTensor;
use burn::tensor::{Int, Tensor, TensorData, activation};

use super::tensor::{unwrap, wrap};
use super::{HeadLayout, LogprobOutput, LowRankPart, logit_chunk_rows};
use crate::tokens::Segments;

pub(super) fn rms_norm<B: Backend>(
    x: FloatTensor<B>,
    weight: FloatTensor<B>,
    eps: f32,
) -> FloatTensor<B> {
    let (x, weight) = (wrap::<B, 2>(x), wrap::<B, 1>(weight));
    let rms = x.clone().square().mean_dim(1).add_scalar(eps).sqrt();
    unwrap(x / rms * weight.unsqueeze::<2>())
}

pub(super) fn rms_norm_backward<B: Backend>(
    x: FloatTensor<B>,
    weight: FloatTensor<B>,
    grad: FloatTensor<B>,
    eps: f32,
    with_weight: bool,
) -> (FloatTensor<B>, Option<FloatTensor<B>>) {
    let (x, weight, grad) = (wrap::<B, 2>(x), wrap::<B, 1>(weight), wrap::<B, 2>(grad));
    let rms = x.clone().square().mean_dim(1).add_scalar(eps).sqrt();
    let normed = x / rms.clone();
    let dweight = with_weight.then(|| {
        unwrap(
            (grad.clone() * normed.clone())
                .sum_dim(0)
                .squeeze_dim::<1>(0),
        )
    });
    // With n = x / rms: dx = (w g - n mean(w g n)) / rms.
    let wg = grad * weight.unsqueeze::<2>();
    let mean = (wg.clone() * normed.clone()).mean_dim(1);
    (unwrap((wg - normed * mean) / rms), dweight)
}

pub(super) fn rope<B: Backend>(
    x: FloatTensor<B>,
    cos: FloatTensor<B>,
    sin: FloatTensor<B>,
    num_heads: usize,
    inverse: bool,
) -> FloatTensor<B> {
    let (x, cos, sin) = (wrap::<B, 2>(x), wrap::<B, 2>(cos), wrap::<B, 2>(sin));
    let [tokens, width] = x.dims();
    let half = cos.dims()[1];
    let rotated = num_heads * 2 * half;
    let sin = if inverse { sin.neg() } else { sin };
    // burn 0.21 reshapes a transposed matrix of one column wrongly on GPUs; a result of arithmetic has plain rows.
    let rows = |table: Tensor<B, 2>| table.mul_scalar(1.0).reshape([tokens, 1, half]);
    let (cos, sin) = (rows(cos), rows(sin));
    let heads = x
        .clone()
        .slice([0..tokens, 0..rotated])
        .reshape([tokens, num_heads, 2 * half]);
    let (first, second) = (
        heads.clone().narrow(2, 0, half),
        heads.narrow(2, half, half),
    );
    let turned = Tensor::cat(
        vec![
            first.clone() * cos.clone() - second.clone() * sin.clone(),
            second * cos + first * sin,
        ],
        2,
    )
    .reshape([tokens, rotated]);
    if rotated == width {
        return unwrap(turned);
    }
    unwrap(Tensor::cat(
        vec![turned, x.slice([0..tokens, rotated..width])],
        1,
    ))
}

pub(super) fn swiglu<B: Backend>(gate_up: FloatTensor<B>) -> FloatTensor<B> {
    let gate_up = wrap::<B, 2>(gate_up);
    let half = gate_up.dims()[1] / 2;
    unwrap(activation::silu(gate_up.clone().narrow(1, 0, half)) * gate_up.narrow(1, half, half))
}

pub(super) fn swiglu_backward<B: Backend>(
    gate_up: FloatTensor<B>,
    grad: FloatTensor<B>,
) -> FloatTensor<B> {
    let (gate_up, grad) = (wrap::<B, 2>(gate_up), wrap::<B, 2>(grad));
    let half = gate_up.dims()[1] / 2;
    let (gate, up) = (
        gate_up.clone().narrow(1, 0, half),
        gate_up.narrow(1, half, half),
    );
    let sigmoid = activation::sigmoid(gate.clone());
    let silu = gate.clone() * sigmoid.clone();
    // silu'(g) = s + g s (1 - s) = s + silu (1 - s)
    let slope = sigmoid.clone() + silu.clone() * (sigmoid.neg().add_scalar(1.0));
    unwrap(Tensor::cat(vec![grad.clone() * up * slope, grad * silu], 1))
}

/// Heads of one row as `[num_heads, len, head_dim]`.
fn heads_of<B: Backend>(
    matrix: &Tensor<B, 2>,
    row: std::ops::Range<usize>,
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

fn causal_scores<B: Backend>(q: Tensor<B, 3>, k: Tensor<B, 3>, layout: HeadLayout) -> Tensor<B, 3> {
    let [_, len, _] = q.dims();
    let device = q.device();
    let mask =
        Tensor::<B, 2, burn::tensor::Bool>::tril_mask([len, len], 0, &device).unsqueeze::<3>();
    let scores = q.matmul(k.swap_dims(1, 2)).mul_scalar(layout.scale());
    let dims = scores.dims();
    // Finite, so that 0 * masked stays 0; exp(-1e30 - lse) is exactly 0 in f32.
    scores.mask_fill(mask.expand(dims), -1e30)
}

pub(super) fn attention<B: Backend>(
    qkv: FloatTensor<B>,
    layout: HeadLayout,
    segments: &Segments,
) -> (FloatTensor<B>, FloatTensor<B>) {
    let qkv = wrap::<B, 2>(qkv);
    let (mut outputs, mut lses) = (Vec::new(), Vec::new());
    for row in segments.iter().filter(|row| !row.is_empty()) {
        let len = row.len();
        let (q_width, kv_width) = (layout.q_width(), layout.kv_width());
        let q = heads_of(&qkv, row.clone(), 0, layout.heads, layout.head_dim);
        let k = repeat_heads(
            heads_of(&qkv, row.clone(), q_width, layout.kv_heads, layout.head_dim),
            layout,
        );
        let v = repeat_heads(
            heads_of(
                &qkv,
                row,
                q_width + kv_width,
                layout.kv_heads,
                layout.head_dim,
            ),
            layout,
        );
        let scores = causal_scores(q, k, layout);
        let max = scores.clone().max_dim(2);
        let exp = (scores - max.clone()).exp();
        let sum = exp.clone().sum_dim(2);
        outputs.push(rows_of((exp / sum.clone()).matmul(v)));
        lses.push((sum.log() + max).reshape([layout.heads, len]));
    }
    (
        unwrap(Tensor::cat(outputs, 0)),
        unwrap(Tensor::cat(lses, 1)),
    )
}

pub(super) fn attention_backward<B: Backend>(
    qkv: FloatTensor<B>,
    output: FloatTensor<B>,
    lse: FloatTensor<B>,
    grad: FloatTensor<B>,
    layout: HeadLayout,
    segments: &Segments,
) -> FloatTensor<B> {
    let (qkv, output, lse, grad) = (
        wrap::<B, 2>(qkv),
        wrap::<B, 2>(output),
        wrap::<B, 2>(lse),
        wrap::<B, 2>(grad),
    );
    let group = layout.heads / layout.kv_heads;
    let mut rows = Vec::new();
    for row in segments.iter().filter(|row| !row.is_empty()) {
        let len = row.len();
        let (q_width, kv_width) = (layout.q_width(), layout.kv_width());
        let q = heads_of(&qkv, row.clone(), 0, layout.heads, layout.head_dim);
        let k = repeat_heads(
            heads_of(&qkv, row.clone(), q_width, layout.kv_heads, layout.head_dim),
            layout,
        );
        let v = repeat_heads(
            heads_of(
                &qkv,
                row.clone(),
                q_width + kv_width,
                layout.kv_heads,
                layout.head_dim,
            ),
            layout,
        );
        let o = heads_of(&output, row.clone(), 0, layout.heads, layout.head_dim);
        let go = heads_of(&grad, row.clone(), 0, layout.heads, layout.head_dim);
        let lse = lse
            .clone()
            .narrow(1, row.start, len)
            .reshape([layout.heads, len, 1]);
        let p = (causal_scores(q.clone(), k.clone(), layout) - lse).exp();
        let delta = (o * go.clone()).sum_dim(2);
        let dv = p.clone().swap_dims(1, 2).matmul(go.clone());
        let ds = p * (go.matmul(v.swap_dims(1, 2)) - delta) * layout.scale();
        let dq = ds.clone().matmul(k);
        let dk = ds.swap_dims(1, 2).matmul(q);
        // Queries of one group share a key and value head: their gradients add up.
        let shared = |x: Tensor<B, 3>| {
            let summed: Tensor<B, 3> = x
                .reshape([layout.kv_heads, group, len, layout.head_dim])
                .sum_dim(1)
                .squeeze_dim(1);
            rows_of(summed)
        };
        rows.push(Tensor::cat(vec![rows_of(dq), shared(dk), shared(dv)], 1));
    }
    unwrap(Tensor::cat(rows, 0))
}

pub(super) fn cache_write<B: Backend>(
    cache: FloatTensor<B>,
    rows: FloatTensor<B>,
    segments: &Segments,
    slots: &[usize],
    starts: &[usize],
) -> FloatTensor<B> {
    let (mut cache, rows) = (wrap::<B, 3>(cache), wrap::<B, 2>(rows));
    let width = rows.dims()[1];
    for ((row, &slot), &start) in segments.iter().zip(slots).zip(starts) {
        let len = row.len();
        let values = rows.clone().slice([row, 0..width]).reshape([1, len, width]);
        cache = cache.slice_assign([slot..slot + 1, start..start + len, 0..width], values);
    }
    unwrap(cache)
}

pub(super) fn decode_attention<B: Backend>(
    q: FloatTensor<B>,
    keys: FloatTensor<B>,
    values: FloatTensor<B>,
    slots: &[usize],
    lens: &[usize],
    layout: HeadLayout,
) -> FloatTensor<B> {
    let (q, keys, values) = (wrap::<B, 2>(q), wrap::<B, 3>(keys), wrap::<B, 3>(values));
    let device = q.device();
    let rows = slots.len();
    let longest = lens.iter().copied().max().unwrap_or(0);
    let group = layout.heads / layout.kv_heads;
    let slots = Tensor::<B, 1, Int>::from_data(
        TensorData::new(slots.iter().map(|&s| s as i32).collect::<Vec<_>>(), [rows]),
        &device,
    );
    // [rows, kv_heads, longest, head_dim]
    let gather = |cache: Tensor<B, 3>| {
        cache
            .narrow(1, 0, longest)
            .select(0, slots.clone())
            .reshape([rows, longest, layout.kv_heads, layout.head_dim])
            .swap_dims(1, 2)
    };
    let hidden: Vec<bool> = lens
        .iter()
        .flat_map(|&len| (0..longest).map(move |t| t >= len))
        .collect();
    let hidden = Tensor::<B, 4, burn::tensor::Bool>::from_data(
        TensorData::new(hidden, [rows, 1, 1, longest]),
        &device,
    );
    let q = q.reshape([rows, layout.kv_heads, group, layout.head_dim]);
    let scores = q
        .matmul(gather(keys).swap_dims(2, 3))
        .mul_scalar(layout.scale());
    let dims = scores.dims();
    let p = activation::softmax(scores.mask_fill(hidden.expand(dims), -1e30), 3);
    unwrap(p.matmul(gather(values)).reshape([rows, layout.q_width()]))
}

fn targets_of<B: Backend>(targets: &[u32], device: &B::Device) -> Tensor<B, 1, Int> {
    let targets: Vec<i32> = targets.iter().map(|&t| t as i32).collect();
    let len = targets.len();
    Tensor::from_data(TensorData::new(targets, [len]), device)
}

pub(super) fn token_logprob<B: Backend>(
    hidden: FloatTensor<B>,
    head: FloatTensor<B>,
    targets: &[u32],
    inv_temperature: f32,
    with_unit_gradient: bool,
) -> LogprobOutput<B> {
    let (hidden, head) = (wrap::<B, 2>(hidden), wrap::<B, 2>(head));
    let device = hidden.device();
    let (mut logprobs, mut entropies, mut gradients) = (Vec::new(), Vec::new(), Vec::new());
    let chunk = logit_chunk_rows(head.dims()[0]);
    for (i, part) in targets.chunks(chunk).enumerate() {
        let h = hidden.clone().narrow(0, i * chunk, part.len());
        let ids = targets_of::<B>(part, &device);
        let log_p = activation::log_softmax(
            h.matmul(head.clone().transpose())
                .mul_scalar(inv_temperature),
            1,
        );
        let p = log_p.clone().exp();
        entropies.push(
            (p.clone() * log_p.clone())
                .sum_dim(1)
                .squeeze_dim::<1>(1)
                .neg(),
        );
        logprobs.push(
            log_p
                .gather(1, ids.clone().reshape([part.len(), 1]))
                .squeeze_dim::<1>(1),
        );
        if with_unit_gradient {
            gradients.push(
                (head.clone().select(0, ids) - p.matmul(head.clone())).mul_scalar(inv_temperature),
            );
        }
    }
    let join = |parts: Vec<Tensor<B, 1>>| {
        if parts.is_empty() {
            Tensor::zeros([0], &device)
        } else {
            Tensor::cat(parts, 0)
        }
    };
    LogprobOutput {
        logprobs: unwrap(join(logprobs)),
        entropy: unwrap(join(entropies)),
        unit_gradient: with_unit_gradient.then(|| {
            unwrap(if gradients.is_empty() {
                hidden.clone()
            } else {
                Tensor::cat(gradients, 0)
            })
        }),
    }
}

pub(super) fn token_logprob_backward<B: Backend>(
    hidden: FloatTensor<B>,
    head: FloatTensor<B>,
    targets: &[u32],
    inv_temperature: f32,
    grad: FloatTensor<B>,
) -> (FloatTensor<B>, FloatTensor<B>) {
    let (hidden, head, grad) = (wrap::<B, 2>(hidden), wrap::<B, 2>(head), wrap::<B, 1>(grad));
    let device = hidden.device();
    let chunk = logit_chunk_rows(head.dims()[0]);
    let mut dhidden = Vec::new();
    let mut dhead = head.zeros_like();
    for (i, part) in targets.chunks(chunk).enumerate() {
        let len = part.len();
        let h = hidden.clone().narrow(0, i * chunk, len);
        let g = grad
            .clone()
            .narrow(0, i * chunk, len)
            .reshape([len, 1])
            .mul_scalar(inv_temperature);
        let ids = targets_of::<B>(part, &device);
        let p = activation::softmax(
            h.clone()
                .matmul(head.clone().transpose())
                .mul_scalar(inv_temperature),
            1,
        );
        dhidden.push(
            (head.clone().select(0, ids.clone()) - p.clone().matmul(head.clone())) * g.clone(),
        );
        let weighted = h * g;
        dhead = dhead - p.transpose().matmul(weighted.clone());
        dhead = dhead.select_assign(0, ids, weighted, burn::tensor::IndexingUpdateOp::Add);
    }
    let dhidden = if dhidden.is_empty() {
        hidden
    } else {
        Tensor::cat(dhidden, 0)
    };
    (unwrap(dhidden), unwrap(dhead))
}

/// The parts' `[rank, width]` matrices of the flattened `b`.
fn part_matrices<B: Backend>(b: &Tensor<B, 1>, parts: &[LowRankPart]) -> Vec<Tensor<B, 2>> {
    let mut offset = 0;
    parts
        .iter()
        .map(|part| {
            let len = part.rank * part.width;
            let matrix = b
                .clone()
                .narrow(0, offset, len)
                .reshape([part.rank, part.width]);
            offset += len;
            matrix
        })
        .collect()
}

pub(super) fn lora_linear<B: Backend>(
    x: FloatTensor<B>,
    weight: FloatTensor<B>,
    a: FloatTensor<B>,
    b: FloatTensor<B>,
    parts: &[LowRankPart],
) -> (FloatTensor<B>, FloatTensor<B>) {
    let (x, weight, a, b) = (
        wrap::<B, 2>(x),
        wrap::<B, 2>(weight),
        wrap::<B, 2>(a),
        wrap::<B, 1>(b),
    );
    let xa = x.clone().matmul(a);
    let mut y = x.matmul(weight);
    let [tokens, _] = y.dims();
    let mut first = 0;
    for (part, b) in parts.iter().zip(part_matrices(&b, parts)) {
        let columns = part.column..part.column + part.width;
        let delta = xa
            .clone()
            .narrow(1, first, part.rank)
            .matmul(b)
            .mul_scalar(part.scale);
        let old = y.clone().slice([0..tokens, columns.clone()]);
        y = y.slice_assign([0..tokens, columns], old + delta);
        first += part.rank;
    }
    (unwrap(y), unwrap(xa))
}

#[allow(clippy::too_many_arguments)]
pub(super) fn lora_linear_backward<B: Backend>(
    x: FloatTensor<B>,
    weight: FloatTensor<B>,
    a: FloatTensor<B>,
    b: FloatTensor<B>,
    xa: FloatTensor<B>,
    grad: FloatTensor<B>,
    parts: &[LowRankPart],
    with_x: bool,
) -> (Option<FloatTensor<B>>, FloatTensor<B>, FloatTensor<B>) {
    let (x, weight, a, b) = (
        wrap::<B, 2>(x),
        wrap::<B, 2>(weight),
        wrap::<B, 2>(a),
        wrap::<B, 1>(b),
    );
    let (xa, grad) = (wrap::<B, 2>(xa), wrap::<B, 2>(grad));
    let (mut dxa, mut db) = (Vec::new(), Vec::new());
    let mut first = 0;
    for (part, b) in parts.iter().zip(part_matrices(&b, parts)) {
        let g = grad
            .clone()
            .narrow(1, part.column, part.width)
            .mul_scalar(part.scale);
        dxa.push(g.clone().matmul(b.transpose()));
        db.push(
            xa.clone()
                .narrow(1, first, part.rank)
                .transpose()
                .matmul(g)
                .reshape([part.rank * part.width]),
        );
        first += part.rank;
    }
    let dxa = Tensor::cat(dxa, 1);
    let da = x.transpose().matmul(dxa.clone());
    let dx = with_x.then(|| unwrap(grad.matmul(weight.transpose()) + dxa.matmul(a.transpose())));
    (dx, unwrap(da), unwrap(Tensor::cat(db, 0)))
}
