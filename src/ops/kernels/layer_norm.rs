//! LayerNorm by row.

use rayon::prelude::*;

use super::{dot, for_rows, rows_per_task, simd_fn, sum};

pub(in crate::ops) fn layer_norm(x: &[f32], weight: &[f32], bias: &[f32], eps: f32, y: &mut [f32]) {
    let d = weight.len();
    for_rows(y, d, [(x, d)], |y, [x]| {
        layer_norm_rows(x, weight, bias, eps, y)
    });
}

/// Mean, and one over the standard deviation; `centred` gets `x - mean`.
#[inline(always)]
fn moments(x: &[f32], eps: f32, centred: &mut [f32]) -> f32 {
    let n = x.len() as f32;
    let mean = sum(x) / n;
    for (c, x) in centred.iter_mut().zip(x) {
        *c = x - mean;
    }
    // Of the centred numbers: the mean of squares less the square of the mean would cancel.
    1.0 / (dot(centred, centred) / n + eps).sqrt()
}

simd_fn! {
    fn layer_norm_rows(
        x: &'a [f32], weight: &'a [f32], bias: &'a [f32], eps: f32, y: &'a mut [f32],
    ) -> () {
        let d = weight.len();
        for (y, x) in y.chunks_exact_mut(d).zip(x.chunks_exact(d)) {
            let r = moments(x, eps, y);
            for i in 0..d {
                y[i] = y[i] * r * weight[i] + bias[i];
            }
        }
    }
}

/// `dx`, and if asked for the gradients of weight and bias.
pub(in crate::ops) fn layer_norm_backward(
    x: &[f32],
    weight: &[f32],
    grad: &[f32],
    eps: f32,
    dx: &mut [f32],
    with_weight: bool,
) -> Option<[Vec<f32>; 2]> {
    let d = weight.len();
    let rows = rows_per_task(dx.len() / d);
    let parts: Vec<[Vec<f32>; 2]> = dx
        .par_chunks_mut(rows * d)
        .zip(x.par_chunks(rows * d))
        .zip(grad.par_chunks(rows * d))
        .map(|((dx, x), grad)| layer_norm_backward_rows(x, weight, grad, eps, dx, with_weight))
        .collect();
    // Summed in task order: the result does not depend on which task ended first.
    with_weight.then(|| {
        let mut total = [vec![0f32; d], vec![0f32; d]];
        for part in parts {
            for (total, part) in total.iter_mut().zip(part) {
                for (total, part) in total.iter_mut().zip(part) {
                    *total += part;
                }
            }
        }
        total
    })
}

simd_fn! {
    fn layer_norm_backward_rows(
        x: &'a [f32], weight: &'a [f32], grad: &'a [f32], eps: f32, dx: &'a mut [f32], with_weight: bool,
    ) -> [Vec<f32>; 2] {
        let d = weight.len();
        let kept = if with_weight { d } else { 0 };
        let (mut dweight, mut dbias) = (vec![0f32; kept], vec![0f32; kept]);
        let mut normed = vec![0f32; d];
        for ((dx, x), g) in dx.chunks_exact_mut(d).zip(x.chunks_exact(d)).zip(grad.chunks_exact(d)) {
            let r = moments(x, eps, &mut normed);
            for i in 0..d {
                normed[i] *= r;
                dx[i] = g[i] * weight[i];
            }
            let (mean, along) = (sum(dx) / d as f32, dot(dx, &normed) / d as f32);
            for i in 0..d {
                dx[i] = r * (dx[i] - mean - normed[i] * along);
            }
            for i in 0..kept {
                dweight[i] += g[i] * normed[i];
                dbias[i] += g[i];
            }
        }
        [dweight, dbias]
    }
}
