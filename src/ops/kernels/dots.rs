//! Products of a few rows with the transpose of a matrix: an output head in decoding.

use pulp::Simd;
use rayon::prelude::*;

use super::{ARCH, gather_panels};

/// Rows of either side that one tile computes: sixteen sums stay in registers, on AVX2 in part.
const SIDE: usize = 4;
/// Rows of the right side in one task.
const PANEL: usize = 64;

/// `y = x . w^T`. `x`: `[rows, depth]`, `w`: `[columns, depth]`, `y`: `[rows, columns]`, row-major. Both sides are read along
/// their rows, so that nothing is packed and `w` passes through the caches once.
pub(in crate::ops) fn dots(y: &mut [f32], x: &[f32], w: &[f32], depth: usize, columns: usize) {
    let rows = y.len() / columns;
    let mut panels = vec![0f32; columns.div_ceil(PANEL) * rows * PANEL];
    panels
        .par_chunks_mut(rows * PANEL)
        .zip(w.par_chunks(PANEL * depth))
        .for_each(|(y, w)| ARCH.dispatch(Dots { y, x, w, depth }));
    gather_panels(&panels, PANEL, columns, y);
}

/// One task: `y` is `[rows, PANEL]`.
struct Dots<'a> {
    y: &'a mut [f32],
    x: &'a [f32],
    w: &'a [f32],
    depth: usize,
}

impl pulp::WithSimd for Dots<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { y, x, w, depth } = self;
        for (c, w) in w.chunks(SIDE * depth).enumerate() {
            for (r, x) in x.chunks(SIDE * depth).enumerate() {
                let (rows, columns) = (x.len() / depth, w.len() / depth);
                // Rows that do not exist are the last one again.
                let x: [&[f32]; SIDE] = std::array::from_fn(|i| {
                    let i = i.min(rows - 1);
                    &x[i * depth..(i + 1) * depth]
                });
                let w: [&[f32]; SIDE] = std::array::from_fn(|j| {
                    let j = j.min(columns - 1);
                    &w[j * depth..(j + 1) * depth]
                });
                let sums = tile::<S>(simd, x, w);
                for (i, sums) in sums.iter().enumerate().take(rows) {
                    let at = (r * SIDE + i) * PANEL + c * SIDE;
                    y[at..at + columns].copy_from_slice(&sums[..columns]);
                }
            }
        }
    }
}

#[inline(always)]
fn tile<S: Simd>(simd: S, x: [&[f32]; SIDE], w: [&[f32]; SIDE]) -> [[f32; SIDE]; SIDE] {
    let (x, x_rest) = split::<S>(x);
    let (w, w_rest) = split::<S>(w);
    let mut acc = [[simd.splat_f32s(0.0); SIDE]; SIDE];
    let n = x[0].len();
    for k in 0..n {
        for i in 0..SIDE {
            for j in 0..SIDE {
                acc[i][j] = simd.mul_add_f32s(x[i][k], w[j][k], acc[i][j]);
            }
        }
    }
    let mut sums = [[0f32; SIDE]; SIDE];
    for i in 0..SIDE {
        for j in 0..SIDE {
            let rest: f32 = (x_rest[i].iter().zip(w_rest[j])).map(|(x, w)| x * w).sum();
            sums[i][j] = simd.reduce_sum_f32s(acc[i][j]) + rest;
        }
    }
    sums
}

/// Whole vectors, and what is left.
#[inline(always)]
fn split<S: Simd>(rows: [&[f32]; SIDE]) -> ([&[S::f32s]; SIDE], [&[f32]; SIDE]) {
    let n = rows[0].len() / S::F32_LANES;
    let parts = rows.map(|row| S::as_simd_f32s(row));
    // Of one length for all, so that no index is checked in the loop.
    (parts.map(|part| &part.0[..n]), parts.map(|part| part.1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::Seed;

    #[test]
    fn products_are_those_of_f64() {
        for [rows, depth, columns] in [[1, 1, 1], [3, 37, 5], [16, 576, 130], [9, 16, 64]] {
            let seed = Seed::new(4);
            let numbers = |len: usize, name: &str| -> Vec<f32> {
                let seed = seed.fork(name);
                (0..len).map(|i| seed.normal(i as u64) as f32).collect()
            };
            let (x, w) = (numbers(rows * depth, "x"), numbers(columns * depth, "w"));
            let mut y = vec![f32::NAN; rows * columns];
            dots(&mut y, &x, &w, depth, columns);
            for (i, y) in y.chunks_exact(columns).enumerate() {
                for (j, &got) in y.iter().enumerate() {
                    let terms = x[i * depth..(i + 1) * depth].iter().zip(&w[j * depth..]);
                    let want: f64 = terms.map(|(&x, &w)| f64::from(x) * f64::from(w)).sum();
                    let off = (f64::from(got) - want).abs();
                    // About one unit (1.2e-7) a term, as in the products with many rows.
                    assert!(off < 1.2e-7 * depth as f64 + 5e-7, "off by {off}");
                }
            }
        }
    }
}
