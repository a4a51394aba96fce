//! Adds low-rank products to the columns of a matrix.

use rayon::prelude::*;

use super::{ARCH, SMALL, rows_per_task};
use crate::ops::LowRankPart;

/// `y[:, columns] += scale * t[:, ranks] . b` for every part; `b` holds the parts' `[rank, width]` matrices in turn.
pub(in crate::ops) fn add_low_rank(
    y: &mut [f32],
    width: usize,
    t: &[f32],
    t_width: usize,
    b: &[f32],
    parts: &[LowRankPart],
) {
    let task = rows_per_task(y.len() / width).next_multiple_of(4);
    let run = |(y, t): (&mut [f32], &[f32])| {
        ARCH.dispatch(AddLowRank {
            y,
            width,
            t,
            t_width,
            b,
            parts,
        })
    };
    if y.len() < SMALL {
        return run((y, t));
    }
    y.par_chunks_mut(task * width)
        .zip(t.par_chunks(task * t_width))
        .for_each(run);
}

struct AddLowRank<'a> {
    y: &'a mut [f32],
    width: usize,
    t: &'a [f32],
    t_width: usize,
    b: &'a [f32],
    parts: &'a [LowRankPart],
}

impl pulp::WithSimd for AddLowRank<'_> {
    type Output = ();

    /// Four rows by two vectors stay in registers, which auto-vectorisation does not manage.
    #[inline(always)]
    fn with_simd<S: pulp::Simd>(self, simd: S) {
        let Self {
            y,
            width,
            t,
            t_width,
            b,
            parts,
        } = self;
        let tile = 2 * S::F32_LANES;
        for (y, t) in y.chunks_mut(4 * width).zip(t.chunks(4 * t_width)) {
            let rows = y.len() / width;
            let (mut first, mut offset) = (0, 0);
            for part in parts {
                let LowRankPart {
                    rank,
                    scale,
                    column,
                    width: part_width,
                } = *part;
                let b = &b[offset..offset + rank * part_width];
                let tiled = if rows == 4 {
                    part_width / tile * tile
                } else {
                    0
                };
                for c in (0..tiled).step_by(tile) {
                    let mut acc = [[simd.splat_f32s(0.0); 2]; 4];
                    for q in 0..rank {
                        let (bv, _) =
                            S::as_simd_f32s(&b[q * part_width + c..q * part_width + c + tile]);
                        for (i, acc) in acc.iter_mut().enumerate() {
                            let x = simd.splat_f32s(t[i * t_width + first + q]);
                            acc[0] = simd.mul_add_f32s(x, bv[0], acc[0]);
                            acc[1] = simd.mul_add_f32s(x, bv[1], acc[1]);
                        }
                    }
                    let factor = simd.splat_f32s(scale);
                    for (i, acc) in acc.iter().enumerate() {
                        let from = i * width + column + c;
                        let (out, _) = S::as_mut_simd_f32s(&mut y[from..from + tile]);
                        out[0] = simd.mul_add_f32s(acc[0], factor, out[0]);
                        out[1] = simd.mul_add_f32s(acc[1], factor, out[1]);
                    }
                }
                for i in 0..rows {
                    let out = &mut y[i * width + column..i * width + column + part_width];
                    for q in 0..rank {
                        let x = t[i * t_width + first + q] * scale;
                        for j in tiled..part_width {
                            out[j] += x * b[q * part_width + j];
                        }
                    }
                }
                first += rank;
                offset += rank * part_width;
            }
        }
    }
}
