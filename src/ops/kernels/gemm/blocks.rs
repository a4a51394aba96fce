//! Tiles of a right side in blocks: codes to numbers, sixteen inputs of sixteen columns at once.

use std::ops::Range;

use pulp::Simd;

use super::pack::{Block, Form, rounded};
use super::square::{SIDE, Square};
use super::{Matrix, Right};
use crate::ops::reduced::{BlockFormat, BlockMatrix, Blocks, LANES, Panels, ScaleLine, TILE};

const _: () = assert!(LANES == SIDE && TILE == SIDE, "tiles are squares");

/// The numbers of a tile as the bits of f32, a line for each input. What lies beyond the tensor is no number of it.
#[inline(always)]
pub(super) fn square<S: Simd>(simd: S, blocks: &Blocks, panel: usize, tile: usize) -> Square {
    let words = blocks.tile(panel, tile);
    let first = tile * TILE;
    if blocks.run() >= TILE {
        let scales = blocks.scales(panel, first);
        return match blocks.format() {
            BlockFormat::Nf4 => nf4(simd, words, &scales),
            BlockFormat::Q4_0 => four_bits(words, |q, lane| scales.scale[lane] * (q - 8.0)),
            BlockFormat::Q4_1 => four_bits(words, |q, lane| {
                // Two roundings, as the reference has them.
                scales.scale[lane] * q + scales.minimum[lane]
            }),
            BlockFormat::Q8_0 => eight_bits(words, &scales),
        };
    }
    // Blocks that end inside rows: right, not fast.
    let mut square = [[0; SIDE]; SIDE];
    let mut scales = ScaleLine::default();
    for (i, line) in square.iter_mut().enumerate() {
        let k = first + i;
        if k >= blocks.inputs() {
            break;
        }
        if i == 0 || k.is_multiple_of(blocks.run()) {
            scales = blocks.scales(panel, k);
        }
        let (word, place) = (
            i / blocks.format().per_word(),
            i % blocks.format().per_word(),
        );
        let bits = blocks.format().bits();
        for (lane, out) in line.iter_mut().enumerate() {
            let code = words[word][lane] >> (place * bits) & ((1 << bits) - 1);
            let value = blocks
                .format()
                .value(code, scales.scale[lane], scales.minimum[lane]);
            *out = value.to_bits();
        }
    }
    square
}

#[inline(always)]
fn four_bits(words: &[[u32; LANES]], value: impl Fn(f32, usize) -> f32) -> Square {
    let mut square = [[0; SIDE]; SIDE];
    for (word, lines) in words.iter().zip(square.chunks_exact_mut(8)) {
        for (place, line) in lines.iter_mut().enumerate() {
            for lane in 0..LANES {
                let code = word[lane] >> (4 * place) & 15;
                line[lane] = value(code as i32 as f32, lane).to_bits();
            }
        }
    }
    square
}

#[inline(always)]
fn eight_bits(words: &[[u32; LANES]], scales: &ScaleLine) -> Square {
    let mut square = [[0; SIDE]; SIDE];
    for (word, lines) in words.iter().zip(square.chunks_exact_mut(4)) {
        for (place, line) in lines.iter_mut().enumerate() {
            for lane in 0..LANES {
                // The sign comes down with the shift.
                let code = (word[lane] << (24 - 8 * place)) as i32 >> 24;
                line[lane] = (scales.scale[lane] * code as f32).to_bits();
            }
        }
    }
    square
}

/// The quantiles are looked up in registers.
#[inline(always)]
fn nf4<S: Simd>(simd: S, words: &[[u32; LANES]], scales: &ScaleLine) -> Square {
    let table = BlockFormat::QUANTILES;
    #[cfg(target_arch = "x86_64")]
    {
        let simd = &simd as &dyn std::any::Any;
        if let Some(simd) = simd.downcast_ref::<pulp::x86::V4>() {
            return by_sixteen(*simd, words, &table, &scales.scale);
        }
        if let Some(simd) = simd.downcast_ref::<pulp::x86::V3>() {
            return by_eight(*simd, words, &table, &scales.scale);
        }
    }
    let _ = simd;
    let mut square = [[0; SIDE]; SIDE];
    for (word, lines) in words.iter().zip(square.chunks_exact_mut(8)) {
        for (place, line) in lines.iter_mut().enumerate() {
            for lane in 0..LANES {
                let quantile = table[(word[lane] >> (4 * place) & 15) as usize];
                line[lane] = (quantile * scales.scale[lane]).to_bits();
            }
        }
    }
    square
}

/// The whole table is one register, and the look-up reads the lowest four bits alone.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
fn by_sixteen(
    simd: pulp::x86::V4,
    words: &[[u32; LANES]],
    table: &[f32; 16],
    scale: &[f32; LANES],
) -> Square {
    use std::arch::x86_64::{__m512, __m512i};
    let (table, scale): (__m512, __m512) = (bytemuck::cast(*table), bytemuck::cast(*scale));
    let f = simd.avx512f;
    let mut lines: [__m512; SIDE] = bytemuck::cast([[0u32; SIDE]; SIDE]);
    for (word, lines) in words.iter().zip(lines.chunks_exact_mut(8)) {
        let mut codes: __m512i = bytemuck::cast(*word);
        for line in lines {
            let quantiles = f._mm512_permutexvar_ps(codes, table);
            *line = f._mm512_mul_ps(quantiles, scale);
            codes = f._mm512_srli_epi32::<4>(codes);
        }
    }
    bytemuck::cast(lines)
}

/// The table is two registers: the lowest three bits are looked up in both, the fourth chooses.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
fn by_eight(
    simd: pulp::x86::V3,
    words: &[[u32; LANES]],
    table: &[f32; 16],
    scale: &[f32; LANES],
) -> Square {
    use std::arch::x86_64::{__m256, __m256i};
    let [lower, upper]: [__m256; 2] = bytemuck::cast(*table);
    let scale: [__m256; 2] = bytemuck::cast(*scale);
    let mut lines: [[__m256; 2]; SIDE] = bytemuck::cast([[0u32; SIDE]; SIDE]);
    for (word, lines) in words.iter().zip(lines.chunks_exact_mut(8)) {
        let mut codes: [__m256i; 2] = bytemuck::cast(*word);
        for line in lines {
            for half in 0..2 {
                let (low, high) = (
                    simd.avx2._mm256_permutevar8x32_ps(lower, codes[half]),
                    simd.avx2._mm256_permutevar8x32_ps(upper, codes[half]),
                );
                // The choice goes by the sign bit.
                let fourth = simd.avx2._mm256_slli_epi32::<28>(codes[half]);
                let quantiles = simd.avx._mm256_blendv_ps(low, high, bytemuck::cast(fourth));
                line[half] = simd.avx._mm256_mul_ps(quantiles, scale[half]);
                codes[half] = simd.avx2._mm256_srli_epi32::<4>(codes[half]);
            }
        }
    }
    bytemuck::cast(lines)
}

impl Block<'_> {
    /// The right side, if it is kept in blocks.
    #[inline(always)]
    pub(super) fn in_blocks(&self) -> Option<&BlockMatrix> {
        match self.factor.matrix {
            Matrix::Reduced(matrix) => match matrix.panels() {
                Panels::Blocks(blocks) => Some(blocks),
                Panels::Bf16(_) | Panels::Int8(_) => None,
            },
            Matrix::Full(_) => None,
        }
    }

    /// Whether panels are unpacked row by row, so that parts of them serve as well as whole ones.
    pub(super) fn unpacks(&self) -> bool {
        (self.form, self.factor.right) == (Form::Full, Right::Plain) && self.in_blocks().is_some()
    }

    /// Rows of a right side in blocks, in the form of the panel.
    #[inline(always)]
    pub(super) fn unpack<S: Simd>(
        &self,
        simd: S,
        blocks: &BlockMatrix,
        columns: Range<usize>,
        out: &mut [u32],
    ) {
        for part in blocks.parts(columns) {
            for panel in part.rows.start / LANES..part.rows.end.div_ceil(LANES) {
                let row = panel * LANES;
                let rows = row.max(part.rows.start)..(row + LANES).min(part.rows.end);
                let at = part.offset + rows.start - part.rows.start;
                let lanes = rows.start - row..rows.end - row;
                for tile in self.inputs.start / TILE..self.inputs.end.div_ceil(TILE) {
                    let square = square(simd, part.blocks, panel, tile);
                    self.emit(tile * TILE, &square, lanes.clone(), at, out);
                }
            }
        }
    }

    /// Copies some lanes of a square whose first line is of input `first`, from column `at` on.
    #[inline(always)]
    fn emit(&self, first: usize, square: &Square, lanes: Range<usize>, at: usize, out: &mut [u32]) {
        let lines = first.max(self.inputs.start)..(first + TILE).min(self.inputs.end);
        let word = self.form.words(lines.start - self.inputs.start);
        let mut rows = out[word * self.width..].chunks_mut(self.width);
        let mut put = |line: &[u32; SIDE]| {
            let Some(out) = rows.next() else { return };
            let out = &mut out[at..];
            // A length that the compiler knows makes one move of the copy.
            match out.first_chunk_mut::<SIDE>() {
                Some(out) if lanes.len() == SIDE => *out = *line,
                _ => out[..lanes.len()].copy_from_slice(&line[lanes.clone()]),
            }
        };
        match self.form {
            Form::Full => {
                for k in lines {
                    put(&square[k - first]);
                }
            }
            Form::Rounded => {
                for k in lines {
                    put(&square[k - first].map(|word| rounded(f32::from_bits(word))));
                }
            }
            // Blocks in this form begin where tiles do.
            Form::Pairs => {
                for k in lines.clone().step_by(2) {
                    let mut line = square[k - first];
                    let lower = match k + 1 < lines.end {
                        true => square[k - first + 1],
                        false => [0; SIDE],
                    };
                    for (word, lower) in line.iter_mut().zip(lower) {
                        let [upper, lower] =
                            [*word, lower].map(|word| rounded(f32::from_bits(word)));
                        *word = upper | lower >> 16;
                    }
                    put(&line);
                }
            }
        }
    }

    /// A square of a transposed right side in blocks: sixteen inputs from `input` on of sixteen rows from `row` on, a line for
    /// each row. `None` where it is no tile of theirs.
    #[inline(always)]
    pub(super) fn square_of_blocks<S: Simd>(
        &self,
        simd: S,
        row: usize,
        input: usize,
    ) -> Option<Square> {
        let part = self.in_blocks()?.parts(input..input + SIDE).next()?;
        let whole = part.rows.len() == SIDE && part.rows.start.is_multiple_of(LANES);
        (whole && row.is_multiple_of(TILE))
            .then(|| square(simd, part.blocks, part.rows.start / LANES, row / TILE))
    }
}
