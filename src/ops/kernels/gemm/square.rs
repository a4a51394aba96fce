//! Transposition of one square of words.

use pulp::Simd;

use crate::ops::kernels::ARCH;

/// Side of a square: one line of the cache.
pub(super) const SIDE: usize = 16;

pub(super) type Square = [[u32; SIDE]; SIDE];

/// The transpose of `square`.
#[inline(always)]
pub(super) fn transpose<S: Simd>(simd: S, square: Square) -> Square {
    #[cfg(target_arch = "x86_64")]
    if let Some(simd) = (&simd as &dyn std::any::Any).downcast_ref::<pulp::x86::V4>() {
        return by_permutations(*simd, square);
    }
    let _ = simd;
    let mut out = [[0; SIDE]; SIDE];
    for (j, line) in square.iter().enumerate() {
        for (out, word) in out.iter_mut().zip(line) {
            out[j] = *word;
        }
    }
    out
}

/// The square as one row of words: each of four rounds moves the bits of a word's index up by one, round the end, and after four
/// of eight those of row and column have changed places. A round is one instruction a line, where word by word the stores alone
/// are sixteen.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
fn by_permutations(simd: pulp::x86::V4, square: Square) -> Square {
    use std::arch::x86_64::__m512i;
    /// Words of two lines in turn, from `first` on; those of the second line are numbered from [`SIDE`].
    const fn in_turn(first: u32) -> [u32; SIDE] {
        let mut words = [0; SIDE];
        let mut i = 0;
        while i < SIDE {
            words[i] = first + i as u32 / 2 + (i as u32 % 2) * SIDE as u32;
            i += 1;
        }
        words
    }
    let lower: __m512i = bytemuck::cast(const { in_turn(0) });
    let upper: __m512i = bytemuck::cast(const { in_turn(SIDE as u32 / 2) });
    // Loops and casts of the whole: a closure given to `from_fn` or `map` may stay a function without this instruction set, and
    // then each line goes through memory in quarters.
    let mut lines: [__m512i; SIDE] = bytemuck::cast(square);
    for _ in 0..4 {
        let mut transposed = lines;
        for (i, line) in transposed.iter_mut().enumerate() {
            let (a, b) = (lines[i / 2], lines[i / 2 + SIDE / 2]);
            let words = if i % 2 == 0 { lower } else { upper };
            *line = simd.avx512f._mm512_permutex2var_epi32(a, words, b);
        }
        lines = transposed;
    }
    bytemuck::cast(lines)
}

/// `[columns, rows]` of `[rows, columns]`.
pub(in crate::ops) fn transposed(x: &[f32], columns: usize) -> Vec<f32> {
    transposed_by(*ARCH, x, columns)
}

fn transposed_by(arch: pulp::Arch, x: &[f32], columns: usize) -> Vec<f32> {
    let mut out = vec![0f32; x.len()];
    let rows = x.len().checked_div(columns).unwrap_or(0);
    let words = bytemuck::cast_slice_mut(&mut out);
    transpose_rows(
        arch,
        bytemuck::cast_slice(x),
        [columns, columns],
        words,
        rows,
    );
    out
}

/// Transposes rows that are `stride` words apart and have `columns` words each; rows of `out` are `height` words apart.
pub(super) fn transpose_rows(
    arch: pulp::Arch,
    x: &[u32],
    [stride, columns]: [usize; 2],
    out: &mut [u32],
    height: usize,
) {
    struct Transposing<'a> {
        x: &'a [u32],
        stride: usize,
        columns: usize,
        out: &'a mut [u32],
        height: usize,
    }
    impl pulp::WithSimd for Transposing<'_> {
        type Output = ();
        #[inline(always)]
        fn with_simd<S: Simd>(self, simd: S) {
            let Self {
                x,
                stride,
                columns,
                out,
                height,
            } = self;
            let rows = x.len().div_ceil(stride);
            for row in (0..rows).step_by(SIDE) {
                let tall = SIDE.min(rows - row);
                for column in (0..columns).step_by(SIDE) {
                    let wide = SIDE.min(columns - column);
                    let mut square = [[0; SIDE]; SIDE];
                    for (j, line) in square.iter_mut().take(tall).enumerate() {
                        copy(line, &x[(row + j) * stride + column..], wide);
                    }
                    for (j, line) in transpose(simd, square).iter().take(wide).enumerate() {
                        copy(&mut out[(column + j) * height + row..], line, tall);
                    }
                }
            }
        }
    }
    if columns == 0 {
        return;
    }
    arch.dispatch(Transposing {
        x,
        stride,
        columns,
        out,
        height,
    });
}

/// The first `count` words, at most a square's line.
#[inline(always)]
fn copy(to: &mut [u32], from: &[u32], count: usize) {
    // A length that the compiler knows makes one move of the copy.
    match (to.first_chunk_mut::<SIDE>(), from.first_chunk::<SIDE>()) {
        (Some(to), Some(from)) if count == SIDE => *to = *from,
        _ => to[..count].copy_from_slice(&from[..count]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_matrix_is_transposed_by_every_instruction_set() {
        for [rows, columns] in [[1, 1], [16, 16], [5, 40], [37, 3], [32, 49]] {
            let x: Vec<f32> = (0..rows * columns).map(|i| i as f32).collect();
            let entry = |i: usize| x[i % rows * columns + i / rows];
            let transposed: Vec<f32> = (0..x.len()).map(entry).collect();
            for arch in super::super::tests::arches() {
                assert_eq!(transposed_by(arch, &x, columns), transposed, "{arch:?}");
            }
        }
    }

    #[test]
    fn a_square_is_transposed_by_every_instruction_set() {
        struct Transposing(Square);
        impl pulp::WithSimd for Transposing {
            type Output = Square;
            #[inline(always)]
            fn with_simd<S: Simd>(self, simd: S) -> Square {
                transpose(simd, self.0)
            }
        }
        let square: Square =
            std::array::from_fn(|i| std::array::from_fn(|j| (SIDE * i + j) as u32));
        let transposed: Square =
            std::array::from_fn(|i| std::array::from_fn(|j| (SIDE * j + i) as u32));
        for arch in super::super::tests::arches() {
            assert_eq!(arch.dispatch(Transposing(square)), transposed, "{arch:?}");
        }
    }
}
