//! Tiles of f32 sums by AVX-512's dot product of bfloat16 pairs, which does two inputs in the time of one.
//!
//! The instruction adds the product of the upper halves, then that of the lower ones, each with one rounding: with the first
//! input of a pair in the upper half these are the fused multiply-adds of the f32 tile, in its order.

use multiversion::multiversion;
use multiversion::target::match_target;

use super::Rows;

/// Columns of a panel: four vectors.
pub(super) const WIDTH: usize = 64;

/// Whether this CPU has the instruction.
#[multiversion(targets("x86_64+avx512f+avx512bf16"))]
pub(super) fn available() -> bool {
    match_target! {
        "x86_64+avx512f+avx512bf16" => true,
        _ => false,
    }
}

/// All tiles of a task.
///
/// # Panics
/// If the instruction is not [`available`].
#[multiversion(targets("x86_64+avx512f+avx512bf16"))]
pub(super) fn rows(task: Rows<'_>) {
    match_target! {
        "x86_64+avx512f+avx512bf16" => {
            use std::arch::x86_64::*;

            use multiversion::inherit_target;

            use super::{Sums, Tile};

            const LANES: usize = 16;
            const VECTORS: usize = WIDTH / LANES;

            #[inherit_target]
            fn run<const R: usize>(mut tile: Tile<'_>) {
                let mut sums = [[_mm512_setzero_ps(); VECTORS]; R];
                let x = tile.inputs::<R>();
                let (weight, _) = tile.b.words.as_chunks::<LANES>();
                for (k, b) in weight.chunks_exact(VECTORS).enumerate() {
                    let b: [__m512bh; VECTORS] = std::array::from_fn(|v| bytemuck::cast(b[v]));
                    for r in 0..R {
                        let x = _mm512_set1_epi32(x[r][k] as i32);
                        for v in 0..VECTORS {
                            sums[r][v] = _mm512_dpbf16_ps(sums[r][v], bytemuck::cast(x), b[v]);
                        }
                    }
                }
                let t = tile.low_rank::<R>();
                let (below, _) = tile.below(WIDTH).as_chunks::<LANES>();
                for (k, b) in below.chunks_exact(VECTORS).enumerate() {
                    let b: [__m512; VECTORS] = std::array::from_fn(|v| bytemuck::cast(b[v]));
                    for r in 0..R {
                        let t = _mm512_set1_ps(t[r][k]);
                        for v in 0..VECTORS {
                            sums[r][v] = _mm512_fmadd_ps(t, b[v], sums[r][v]);
                        }
                    }
                }
                let added = tile.sums == Sums::Added;
                for (r, sums) in sums.into_iter().enumerate() {
                    for (y, sum) in tile.outputs(r).chunks_mut(LANES).zip(sums) {
                        let sum: [f32; LANES] = bytemuck::cast(sum);
                        for (y, sum) in y.iter_mut().zip(sum) {
                            *y = if added { *y + sum } else { sum };
                        }
                    }
                }
            }

            task.for_each_tile(|tile| match tile.rows {
                6 => run::<6>(tile),
                5 => run::<5>(tile),
                4 => run::<4>(tile),
                3 => run::<3>(tile),
                2 => run::<2>(tile),
                _ => run::<1>(tile),
            });
        }
        _ => {
            let _ = task;
            unreachable!("pairs are made where the instruction is there")
        }
    }
}
