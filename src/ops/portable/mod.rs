//! The operations in plain burn ops: correct on every backend, and the reference for the kernels.

mod attention;
mod logprob;
mod reduced;

pub(super) use attention::{attention, attention_backward, cache_write, decode_attention};
pub(super) use logprob::{
    reduced_token_logprob, replaced_token_logprob, token_logprob, token_logprob_backward,
};
pub(super) use reduced::{bf16_matmul, reduced_columns, reduced_linear, reduced_linear_backward};

use burn::tensor::backend::Backend;
use burn::tensor::ops::FloatTensor;
use burn::tensor::{Tensor, TensorMetadata, activation};

use super::tensor::{unwrap, wrap};
use super::{Gate, Gelu, LayerNormGradients, LowRankPart, Owners};
use crate::host;

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

/// `x - mean`, and the standard deviation with `eps`.
fn centred<B: Backend>(x: Tensor<B, 2>, eps: f32) -> [Tensor<B, 2>; 2] {
    let centred = x.clone() - x.mean_dim(1);
    let variance = centred.clone().square().mean_dim(1);
    [centred, variance.add_scalar(eps).sqrt()]
}

pub(super) fn layer_norm<B: Backend>(
    x: FloatTensor<B>,
    weight: FloatTensor<B>,
    bias: FloatTensor<B>,
    eps: f32,
) -> FloatTensor<B> {
    let [centred, deviation] = centred(wrap::<B, 2>(x), eps);
    let (weight, bias) = (wrap::<B, 1>(weight), wrap::<B, 1>(bias));
    unwrap(centred / deviation * weight.unsqueeze::<2>() + bias.unsqueeze::<2>())
}

pub(super) fn layer_norm_backward<B: Backend>(
    x: FloatTensor<B>,
    weight: FloatTensor<B>,
    grad: FloatTensor<B>,
    eps: f32,
    with_weight: bool,
) -> LayerNormGradients<B> {
    let (weight, grad) = (wrap::<B, 1>(weight), wrap::<B, 2>(grad));
    let [centred, deviation] = centred(wrap::<B, 2>(x), eps);
    let normed = centred / deviation.clone();
    let by_column = |x: Tensor<B, 2>| unwrap(x.sum_dim(0).squeeze_dim::<1>(0));
    let of_weights = with_weight.then(|| {
        let dweight = by_column(grad.clone() * normed.clone());
        [dweight, by_column(grad.clone())]
    });
    // With n the normed row: dx = (w g - mean(w g) - n mean(w g n)) / deviation.
    let wg = grad * weight.unsqueeze::<2>();
    let along = (wg.clone() * normed.clone()).mean_dim(1);
    let dx = (wg.clone() - wg.mean_dim(1) - normed * along) / deviation;
    (unwrap(dx), of_weights)
}

pub(super) fn gelu<B: Backend>(x: FloatTensor<B>, form: Gelu) -> FloatTensor<B> {
    let x = wrap::<B, 2>(x);
    unwrap(match form {
        // Not burn's gelu: on most backends its gradient is that of the tanh form.
        Gelu::Erf => x.clone() * phi(x),
        Gelu::Tanh => x.clone() * logistic(x),
    })
}

pub(super) fn gelu_backward<B: Backend>(
    x: FloatTensor<B>,
    grad: FloatTensor<B>,
    form: Gelu,
) -> FloatTensor<B> {
    let (x, grad) = (wrap::<B, 2>(x), wrap::<B, 2>(grad));
    let slope = match form {
        Gelu::Erf => {
            let bell = x.clone().square().mul_scalar(-0.5).exp();
            let density = bell.mul_scalar((0.5 * std::f64::consts::FRAC_1_PI).sqrt());
            phi(x.clone()) + x * density
        }
        Gelu::Tanh => {
            let s = logistic(x.clone());
            let inner = x.clone().square().mul_scalar(3.0 * CUBIC).add_scalar(1.0);
            let rest = s.clone().neg().add_scalar(1.0) * inner.mul_scalar(2.0 * tanh_factor());
            s * (x * rest).add_scalar(1.0)
        }
    };
    unwrap(grad * slope)
}

/// Factor of the cubic term in GELU's tanh form.
const CUBIC: f64 = 0.044_715;

fn tanh_factor() -> f64 {
    (2.0 * std::f64::consts::FRAC_1_PI).sqrt()
}

/// The normal distribution's Phi.
fn phi<B: Backend>(x: Tensor<B, 2>) -> Tensor<B, 2> {
    let erf = x.div_scalar(std::f64::consts::SQRT_2).erf();
    erf.add_scalar(1.0).mul_scalar(0.5)
}

/// Its approximation in the tanh form.
fn logistic<B: Backend>(x: Tensor<B, 2>) -> Tensor<B, 2> {
    let inner = x.clone() + x.powi_scalar(3).mul_scalar(CUBIC);
    let tanh = inner.mul_scalar(tanh_factor()).tanh();
    tanh.add_scalar(1.0).mul_scalar(0.5)
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
    // burn 0.21 reshapes a transposed matrix of one column wrongly on GPUs; results of arithmetic have contiguous rows.
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
    let rotated_columns = Tensor::cat(
        vec![
            first.clone() * cos.clone() - second.clone() * sin.clone(),
            second * cos + first * sin,
        ],
        2,
    )
    .reshape([tokens, rotated]);
    if rotated == width {
        return unwrap(rotated_columns);
    }
    unwrap(Tensor::cat(
        vec![rotated_columns, x.slice([0..tokens, rotated..width])],
        1,
    ))
}

/// Gate and up.
fn halves<B: Backend>(gate_up: FloatTensor<B>) -> (Tensor<B, 2>, Tensor<B, 2>) {
    let gate_up = wrap::<B, 2>(gate_up);
    let half = gate_up.dims()[1] / 2;
    let gate = gate_up.clone().narrow(1, 0, half);
    (gate, gate_up.narrow(1, half, half))
}

pub(super) fn gated_unit<B: Backend>(gate_up: FloatTensor<B>, gate: Gate) -> FloatTensor<B> {
    let (x, up) = halves::<B>(gate_up);
    let active = match gate {
        Gate::Silu => activation::silu(x),
        Gate::Gelu(form) => wrap(gelu::<B>(unwrap(x), form)),
    };
    unwrap(active * up)
}

pub(super) fn gated_unit_backward<B: Backend>(
    gate_up: FloatTensor<B>,
    grad: FloatTensor<B>,
    gate: Gate,
) -> FloatTensor<B> {
    let (x, up) = halves::<B>(gate_up);
    let grad = wrap::<B, 2>(grad);
    if let Gate::Gelu(form) = gate {
        let active: Tensor<B, 2> = wrap(gelu::<B>(unwrap(x.clone()), form));
        let through = unwrap(grad.clone() * up);
        let of_gate = wrap(gelu_backward::<B>(unwrap(x), through, form));
        return unwrap(Tensor::cat(vec![of_gate, grad * active], 1));
    }
    let sigmoid = activation::sigmoid(x.clone());
    let silu = x * sigmoid.clone();
    // silu'(g) = s + g s (1 - s) = s + silu (1 - s)
    let slope = sigmoid.clone() + silu.clone() * (sigmoid.neg().add_scalar(1.0));
    unwrap(Tensor::cat(vec![grad.clone() * up * slope, grad * silu], 1))
}

pub(super) fn sum_of_squares<B: Backend>(tensors: Vec<FloatTensor<B>>) -> f64 {
    let square = |tensor: FloatTensor<B>| {
        let entries = tensor.shape().num_elements();
        let flat = B::float_reshape(tensor, [1, entries].into());
        // A reduction along a dimension: the full sum uses atomics on GPUs, in no fixed order.
        let sum = B::float_sum_dim(B::float_mul(flat.clone(), flat), 1);
        f64::from(host::read(wrap::<B, 2>(sum))[0])
    };
    tensors.into_iter().map(square).sum()
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

/// Adds the low-rank products to `y`, and also returns `x . a`.
pub(super) fn add_low_rank<B: Backend>(
    y: FloatTensor<B>,
    x: FloatTensor<B>,
    a: FloatTensor<B>,
    b: FloatTensor<B>,
    parts: &[LowRankPart],
) -> (FloatTensor<B>, FloatTensor<B>) {
    let xa: FloatTensor<B> = unwrap(wrap::<B, 2>(x).matmul(wrap::<B, 2>(a)));
    (add_products::<B>(y, xa.clone(), b, parts), xa)
}

/// Adds each part's product of `t` and `b` to its columns of `y`.
pub(super) fn add_products<B: Backend>(
    y: FloatTensor<B>,
    t: FloatTensor<B>,
    b: FloatTensor<B>,
    parts: &[LowRankPart],
) -> FloatTensor<B> {
    let (mut y, t, b) = (wrap::<B, 2>(y), wrap::<B, 2>(t), wrap::<B, 1>(b));
    let [tokens, _] = y.dims();
    let mut first = 0;
    for (part, b) in parts.iter().zip(part_matrices(&b, parts)) {
        let columns = part.column..part.column + part.width;
        let delta = t
            .clone()
            .narrow(1, first, part.rank)
            .matmul(b)
            .mul_scalar(part.scale);
        let old = y.clone().slice([0..tokens, columns.clone()]);
        y = y.slice_assign([0..tokens, columns], old + delta);
        first += part.rank;
    }
    unwrap(y)
}

/// The parts' products, each added to its own share of `y`.
pub(super) fn add_shared_low_rank<B: Backend>(
    y: FloatTensor<B>,
    x: FloatTensor<B>,
    a: FloatTensor<B>,
    b: FloatTensor<B>,
    parts: &[LowRankPart],
    owners: Owners<'_>,
) -> FloatTensor<B> {
    let (mut y, x) = (wrap::<B, 2>(y), wrap::<B, 2>(x));
    let (a, b) = (wrap::<B, 2>(a), wrap::<B, 1>(b));
    let len = y.dims()[0] / owners.shares;
    let mut first = 0;
    for ((part, b), owner) in (parts.iter().zip(part_matrices(&b, parts))).zip(owners.of_parts) {
        let place = [
            owner * len..(owner + 1) * len,
            part.column..part.column + part.width,
        ];
        let xa = x
            .clone()
            .narrow(0, owner * len, len)
            .matmul(a.clone().narrow(1, first, part.rank));
        let delta = xa.matmul(b).mul_scalar(part.scale);
        let old = y.clone().slice(place.clone());
        y = y.slice_assign(place, old + delta);
        first += part.rank;
    }
    unwrap(y)
}

/// Adds the low-rank products' gradient to `dx`, the gradient through the weight; also returns the gradients of `a` and `b`.
pub(super) fn low_rank_backward<B: Backend>(
    dx: Option<FloatTensor<B>>,
    x: FloatTensor<B>,
    a: FloatTensor<B>,
    b: FloatTensor<B>,
    xa: FloatTensor<B>,
    grad: FloatTensor<B>,
    parts: &[LowRankPart],
) -> (Option<FloatTensor<B>>, FloatTensor<B>, FloatTensor<B>) {
    let (dxa, db) = low_rank_gradients::<B>(grad, xa, b, parts);
    let (x, a, dxa) = (wrap::<B, 2>(x), wrap::<B, 2>(a), wrap::<B, 2>(dxa));
    let da = x.transpose().matmul(dxa.clone());
    let dx = dx.map(|dx| unwrap(wrap::<B, 2>(dx) + dxa.matmul(a.transpose())));
    (dx, unwrap(da), db)
}

/// The gradients of `t` and `b` in [`add_products`].
pub(super) fn low_rank_gradients<B: Backend>(
    grad: FloatTensor<B>,
    t: FloatTensor<B>,
    b: FloatTensor<B>,
    parts: &[LowRankPart],
) -> (FloatTensor<B>, FloatTensor<B>) {
    let (grad, t, b) = (wrap::<B, 2>(grad), wrap::<B, 2>(t), wrap::<B, 1>(b));
    let (mut dt, mut db) = (Vec::new(), Vec::new());
    let mut first = 0;
    for (part, b) in parts.iter().zip(part_matrices(&b, parts)) {
        let g = grad
            .clone()
            .narrow(1, part.column, part.width)
            .mul_scalar(part.scale);
        dt.push(g.clone().matmul(b.transpose()));
        db.push(
            t.clone()
                .narrow(1, first, part.rank)
                .transpose()
                .matmul(g)
                .reshape([part.rank * part.width]),
        );
        first += part.rank;
    }
    (unwrap(Tensor::cat(dt, 1)), unwrap(Tensor::cat(db, 0)))
}
