//! AdamW and the norm of gradients, over all parameters at once: adapters are hundreds of small matrices, and a parallel loop for
//! each would cost more than its arithmetic.

use rayon::prelude::*;

use super::{LANES, simd_fn};
use crate::ops::AdamWStep;

/// Entries of a task.
const TASK: usize = 1 << 15;

/// A parameter, or a piece of one.
pub(in crate::ops) struct AdamWPart<'a> {
    pub(in crate::ops) value: &'a mut [f32],
    pub(in crate::ops) grad: &'a [f32],
    pub(in crate::ops) moments: [&'a mut [f32]; 2],
    /// Factor on the old value.
    pub(in crate::ops) keep: f32,
}

/// One AdamW update of all parts in place.
pub(in crate::ops) fn adamw(parts: Vec<AdamWPart<'_>>, step: AdamWStep) {
    let pieces: Vec<_> = (parts.into_iter())
        .flat_map(|part| {
            let [m, v] = part.moments;
            let values = part.value.chunks_mut(TASK).zip(part.grad.chunks(TASK));
            let moments = m.chunks_mut(TASK).zip(v.chunks_mut(TASK));
            values.zip(moments).map(move |both| (both, part.keep))
        })
        .collect();
    pieces
        .into_par_iter()
        .for_each(|(((w, g), (m, v)), keep)| piece(w, g, m, v, keep, step));
}

simd_fn! {
    fn piece(
        w: &'a mut [f32], g: &'a [f32], m: &'a mut [f32], v: &'a mut [f32], keep: f32, s: AdamWStep,
    ) -> () {
        let n = w.len();
        let (w, g, m, v) = (&mut w[..n], &g[..n], &mut m[..n], &mut v[..n]);
        let [(decay1, share1), (decay2, share2)] = s.moment_factors();
        let (c1, c2) = (1.0 / s.bias_correction1, 1.0 / s.bias_correction2);
        for i in 0..n {
            let grad = g[i] * s.grad_scale;
            m[i] = decay1 * m[i] + share1 * grad;
            v[i] = decay2 * v[i] + share2 * grad * grad;
            w[i] = w[i] * keep - s.lr * (m[i] * c1) / ((v[i] * c2).sqrt() + s.eps);
        }
    }
}

/// The sum of squares over all entries, in an order that depends on shapes alone.
pub(in crate::ops) fn sum_of_squares(tensors: &[&[f32]]) -> f64 {
    let pieces: Vec<&[f32]> = tensors.iter().flat_map(|x| x.chunks(TASK)).collect();
    let sums: Vec<f64> = pieces.into_par_iter().map(squares).collect();
    sums.into_iter().sum()
}

simd_fn! {
    /// In f64: a norm of many small entries beside a few large ones keeps its digits.
    fn squares(x: &'a [f32]) -> f64 {
        let mut sums = [0f64; LANES];
        let (rows, rest) = x.as_chunks::<LANES>();
        for row in rows {
            for (sum, x) in sums.iter_mut().zip(row) {
                let x = f64::from(*x);
                *sum = x.mul_add(x, *sum);
            }
        }
        sums.iter().sum::<f64>() + rest.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>()
    }
}
