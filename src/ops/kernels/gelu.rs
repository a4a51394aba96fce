//! GELU, entry by entry.

use rayon::prelude::*;

use super::{SMALL, exp, simd_fn};
use crate::ops::Gelu;

/// Numbers of one task: a few hundred kilobytes pass through its caches.
const TASK: usize = 1 << 15;

pub(in crate::ops) fn gelu(x: &[f32], form: Gelu, y: &mut [f32]) {
    if y.len() < SMALL {
        return gelu_part(x, form, y);
    }
    y.par_chunks_mut(TASK)
        .zip(x.par_chunks(TASK))
        .for_each(|(y, x)| gelu_part(x, form, y));
}

pub(in crate::ops) fn gelu_backward(x: &[f32], grad: &[f32], form: Gelu, dx: &mut [f32]) {
    if dx.len() < SMALL {
        return gelu_backward_part(x, grad, form, dx);
    }
    dx.par_chunks_mut(TASK)
        .zip(x.par_chunks(TASK))
        .zip(grad.par_chunks(TASK))
        .for_each(|((dx, x), grad)| gelu_backward_part(x, grad, form, dx));
}

/// `Phi(x)`, and the normal density at `x`.
///
/// # Source
/// Abramowitz and Stegun, 7.1.26: off by at most 1.5e-7.
#[inline(always)]
pub(super) fn normal(x: f32) -> (f32, f32) {
    let z = x.abs() * std::f32::consts::FRAC_1_SQRT_2;
    let bell = exp(-z * z);
    let t = 1.0 / (1.0 + 0.327_591_1 * z);
    let mut p = 1.061_405_4;
    for c in [-1.453_152, 1.421_413_7, -0.284_496_74, 0.254_829_6] {
        p = p * t + c;
    }
    let tail = 0.5 * p * t * bell;
    let phi = if x < 0.0 { tail } else { 1.0 - tail };
    // 1 / sqrt(2 pi)
    (phi, bell * 0.398_942_3)
}

/// The logistic function of `2 sqrt(2 / pi) (x + 0.044715 x^3)`, by which the tanh form multiplies `x`, and its argument's
/// derivative.
#[inline(always)]
pub(super) fn logistic(x: f32) -> (f32, f32) {
    // 2 sqrt(2 / pi)
    const FACTOR: f32 = 1.595_769;
    let square = x * x;
    let u = FACTOR * x * (1.0 + 0.044_715 * square);
    let s = 1.0 / (1.0 + exp(-u));
    (s, FACTOR * (1.0 + 3.0 * 0.044_715 * square))
}

simd_fn! {
    fn gelu_part(x: &'a [f32], form: Gelu, y: &'a mut [f32]) -> () {
        match form {
            Gelu::Erf => {
                for (y, &x) in y.iter_mut().zip(x) {
                    *y = x * normal(x).0;
                }
            }
            Gelu::Tanh => {
                for (y, &x) in y.iter_mut().zip(x) {
                    *y = x * logistic(x).0;
                }
            }
        }
    }
}

simd_fn! {
    fn gelu_backward_part(x: &'a [f32], grad: &'a [f32], form: Gelu, dx: &'a mut [f32]) -> () {
        match form {
            Gelu::Erf => {
                for ((dx, &x), &g) in dx.iter_mut().zip(x).zip(grad) {
                    let (phi, density) = normal(x);
                    *dx = g * (phi + x * density);
                }
            }
            Gelu::Tanh => {
                for ((dx, &x), &g) in dx.iter_mut().zip(x).zip(grad) {
                    let (s, slope) = logistic(x);
                    *dx = g * s * (1.0 + x * (1.0 - s) * slope);
                }
            }
        }
    }
}
