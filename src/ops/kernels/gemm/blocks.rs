//! Tiles of a right side in blocks: codes to numbers, sixteen inputs of sixteen columns at once.

use std::ops::Range;

use pulp::Simd;

use super::codes::{Codes, with_codes};
use super::pack::{Block, Form, rounded};
use super::square::{SIDE, Square};
use super::{Matrix, Right};
use crate::ops::reduced::{BlockFormat, BlockMatrix, Blocks, LANES, Panels, ScaleLine, TILE, Word};

const _: () = assert!(LANES == SIDE && TILE == SIDE, "tiles are squares");

/// The numbers of a tile as the bits of f32, a line for each input. What lies beyond the tensor is no number of it. `scales`: those of
/// the tile's first input.
#[inline(always)]
fn square<S: Simd>(
    simd: S,
    blocks: &Blocks,
    panel: usize,
    tile: usize,
    scales: &ScaleLine,
) -> Square {
    let words = blocks.words(panel, tile..tile + 1);
    if blocks.run() >= TILE {
        return with_codes!(blocks.format(), |codes| numbers(simd, codes, words, scales));
    }
    // Blocks that end inside rows: right, not fast.
    let mut square = [[0; SIDE]; SIDE];
    let first = tile * TILE;
    let mut scales = *scales;
    for (i, line) in square.iter_mut().enumerate() {
        let k = first + i;
        if k >= blocks.inputs() {
            break;
        }
        if k.is_multiple_of(blocks.run()) {
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

/// The numbers of a tile whose inputs share their scales.
#[inline(always)]
fn numbers<S: Simd, C: Codes<S>>(simd: S, codes: C, words: &[Word], scales: &ScaleLine) -> Square {
    let mut square = [[0f32; SIDE]; SIDE];
    let (scale, _) = S::as_simd_f32s(&scales.scale);
    let (minimum, _) = S::as_simd_f32s(&scales.minimum);
    for (word, lines) in words.iter().zip(square.chunks_exact_mut(C::PER_WORD)) {
        let (word, _) = S::as_simd_u32s(word);
        for (place, word) in word.iter().enumerate() {
            let mut word = *word;
            for line in &mut *lines {
                // One rounding: products of 4 or 8 bits and a scale of f16 are exact, and NF4 has no minimum.
                let numbers = codes.numbers(simd, word);
                S::as_mut_simd_f32s(line).0[place] =
                    simd.mul_add_f32s(numbers, scale[place], minimum[place]);
                word = codes.next(simd, word);
            }
        }
    }
    bytemuck::cast(square)
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

    /// Whether few rows are multiplied with codes, and nothing is packed: products in f32 with blocks that end with rows.
    pub(super) fn reads_codes(&self) -> bool {
        let whole = |matrix: &BlockMatrix| matrix.pieces().all(|blocks| blocks.run() >= TILE);
        (self.form, self.factor.right) == (Form::Full, Right::Plain)
            && self.in_blocks().is_some_and(whole)
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
                let mut scales = None;
                for tile in self.inputs.start / TILE..self.inputs.end.div_ceil(TILE) {
                    let first = tile * TILE;
                    if first.is_multiple_of(part.blocks.run()) {
                        scales = None;
                    }
                    let scales = scales.get_or_insert_with(|| part.blocks.scales(panel, first));
                    let square = square(simd, part.blocks, panel, tile, scales);
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
        let panel = part.rows.start / LANES;
        (whole && row.is_multiple_of(TILE)).then(|| {
            let scales = part.blocks.scales(panel, row);
            square(simd, part.blocks, panel, row / TILE, &scales)
        })
    }
}
