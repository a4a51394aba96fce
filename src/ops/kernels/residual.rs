//! The residual stream.

use rayon::prelude::*;

use super::{SMALL, simd_fn};

/// Numbers of one task: a few hundred kilobytes pass through its caches.
const TASK: usize = 1 << 15;

/// `sum += x`.
pub(in crate::ops) fn add(sum: &mut [f32], x: &[f32]) {
    if sum.len() < SMALL {
        return add_part(sum, x);
    }
    sum.par_chunks_mut(TASK)
        .zip(x.par_chunks(TASK))
        .for_each(|(sum, x)| add_part(sum, x));
}

simd_fn! {
    fn add_part(sum: &'a mut [f32], x: &'a [f32]) -> () {
        for (sum, x) in sum.iter_mut().zip(x) {
            *sum += x;
        }
    }
}
