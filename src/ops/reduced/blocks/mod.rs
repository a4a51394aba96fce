//! Weights in blocks: neighbouring numbers of a row that share a scale, each a code of 4 or 8 bits.

mod format;
mod matrix;
mod nf4;
mod scales;

use std::ops::Range;
use std::sync::Arc;

use half::f16;
use rayon::prelude::*;

pub use format::BlockFormat;
pub(in crate::ops) use matrix::{BlockMatrix, Part};
pub use nf4::{NestedAbsmax, nf4_codes, nf4_nested};
pub(in crate::ops) use scales::ScaleLine;
use scales::{Nested, Scales};

/// Columns that lie together in a panel.
pub(in crate::ops) const LANES: usize = 16;
/// Inputs of a tile: what kernels unpack at once, [`LANES`] columns of each.
pub(in crate::ops) const TILE: usize = 16;

/// Neighbouring codes of each column of a panel, the first input's in the lowest bits.
pub(in crate::ops) type Word = [u32; LANES];

/// One tensor `[outputs, inputs]` in blocks, row after row as files have them: a block ends where it is full, also in the
/// next row.
///
/// In memory codes are in panels of 16 rows, which are columns of a product: `[panels][tiles][words of a tile]`.
#[derive(Debug, Clone)]
pub struct Blocks {
    format: BlockFormat,
    inputs: usize,
    outputs: usize,
    /// Inputs that share a scale in every row: a whole block where blocks end with rows.
    run: usize,
    codes: Vec<Word>,
    scales: Scales,
}

impl Blocks {
    /// Rounds a row-major matrix `[outputs, inputs]`: NF4 as bitsandbytes' `quantize_4bit` with `compress_statistics`, the
    /// others as ggml's reference.
    ///
    /// # Panics
    /// If `values` has not `outputs * inputs` entries.
    pub fn quantize(format: BlockFormat, values: &[f32], [outputs, inputs]: [usize; 2]) -> Self {
        assert_eq!(values.len(), outputs * inputs, "entries of a matrix");
        if format == BlockFormat::Nf4 {
            let (codes, absmax) = nf4_codes(values);
            let nested = nf4_nested(&absmax);
            return Self::nf4(|at| codes[at], nested, [outputs, inputs]);
        }
        let blocks: Vec<_> = (values.par_chunks(format.len()))
            .map(|block| format.quantize(block))
            .collect();
        let len = format.len();
        let code = |at: usize| blocks[at / len].codes[at % len];
        let (scale, minimum) = (
            |block: usize| blocks[block].scale,
            |block: usize| blocks[block].minimum,
        );
        Self::with_halves(format, code, scale, minimum, [outputs, inputs])
    }

    /// A tensor of bitsandbytes, `codes` being two to a byte, the first in the upper half.
    ///
    /// # Panics
    /// If there are fewer bytes than codes, or scales than blocks.
    pub fn from_nf4_bytes(
        bytes: &[u8],
        absmax: NestedAbsmax,
        [outputs, inputs]: [usize; 2],
    ) -> Self {
        let code = |at: usize| match at % 2 {
            0 => bytes[at / 2] >> 4,
            _ => bytes[at / 2] & 15,
        };
        Self::nf4(code, absmax, [outputs, inputs])
    }

    /// A tensor of a GGUF file, block after block.
    ///
    /// # Panics
    /// For NF4, and if `bytes` does not hold as many whole blocks as the shape takes.
    pub fn from_gguf_bytes(
        format: BlockFormat,
        bytes: &[u8],
        [outputs, inputs]: [usize; 2],
    ) -> Self {
        let (len, size) = (format.len(), format.gguf_bytes());
        assert_eq!(bytes.len() * len, outputs * inputs * size, "whole blocks");
        let half = |block: usize, place: usize| {
            let at = block * size + 2 * place;
            f16::from_le_bytes([bytes[at], bytes[at + 1]])
        };
        let code = |at: usize| {
            let (block, i) = (at / len, at % len);
            let codes = &bytes[block * size + format.gguf_header()..];
            match (format, i < len / 2) {
                (BlockFormat::Q8_0, _) => codes[i],
                (_, true) => codes[i] & 15,
                (_, false) => codes[i - len / 2] >> 4,
            }
        };
        let (scale, minimum) = (|block| half(block, 0), |block| half(block, 1));
        Self::with_halves(format, code, scale, minimum, [outputs, inputs])
    }

    fn nf4(code: impl Fn(usize) -> u8 + Sync, absmax: NestedAbsmax, shape: [usize; 2]) -> Self {
        Self::new(BlockFormat::Nf4, code, shape, |lines| match absmax {
            NestedAbsmax::Plain(absmax) => Scales::Full(lines.of(|block| absmax[block])),
            NestedAbsmax::Nested {
                codes,
                absmax,
                map,
                offset,
            } => Scales::Nested(Nested {
                codes: lines.of(|block| codes[block]),
                absmax,
                map,
                offset,
                order: None,
            }),
        })
    }

    fn with_halves(
        format: BlockFormat,
        code: impl Fn(usize) -> u8 + Sync,
        scale: impl Fn(usize) -> f16 + Sync,
        minimum: impl Fn(usize) -> f16 + Sync,
        shape: [usize; 2],
    ) -> Self {
        Self::new(format, code, shape, |lines| match format {
            BlockFormat::Q4_1 => Scales::HalvesWithMinima(lines.of(scale), lines.of(minimum)),
            _ => Scales::Halves(lines.of(scale)),
        })
    }

    /// `code` gives the code of an entry by its place in the row-major matrix.
    fn new(
        format: BlockFormat,
        code: impl Fn(usize) -> u8 + Sync,
        [outputs, inputs]: [usize; 2],
        scales: impl FnOnce(Lines) -> Scales,
    ) -> Self {
        let run = gcd(inputs.max(1), format.len());
        let per_word = format.per_word();
        let words = inputs.div_ceil(TILE) * (TILE / per_word);
        let mut codes = vec![[0u32; LANES]; outputs.div_ceil(LANES) * words];
        let panels = codes.par_chunks_mut(words.max(1)).enumerate();
        panels.for_each(|(panel, words)| {
            let rows = panel * LANES..outputs.min((panel + 1) * LANES);
            for row in rows {
                for k in 0..inputs {
                    let shift = k % per_word * format.bits();
                    let code = u32::from(code(row * inputs + k));
                    words[k / per_word][row % LANES] |= code << shift;
                }
            }
        });
        let lines = Lines {
            outputs,
            inputs,
            run,
            block: format.len(),
        };
        Self {
            format,
            inputs,
            outputs,
            run,
            codes,
            scales: scales(lines),
        }
    }

    /// The same with its rows in another order: row `i` is the present row `order[i]`.
    ///
    /// # Panics
    /// If `order` has not an entry for each row.
    pub fn reordered(&self, order: &Arc<Vec<usize>>) -> Self {
        assert_eq!(order.len(), self.outputs, "one entry for each row");
        Self {
            codes: reordered(&self.codes, self.tiles() * self.words_of_tile(), order),
            scales: self.scales.reordered(self.inputs / self.run.max(1), order),
            ..self.clone()
        }
    }

    /// How numbers are written.
    pub fn format(&self) -> BlockFormat {
        self.format
    }

    /// Columns of the tensor: features of the input.
    pub fn inputs(&self) -> usize {
        self.inputs
    }

    /// Rows of the tensor: features of the output.
    pub fn outputs(&self) -> usize {
        self.outputs
    }

    /// Bytes in memory.
    pub fn num_bytes(&self) -> usize {
        std::mem::size_of_val(self.codes.as_slice()) + self.scales.num_bytes()
    }

    /// Inputs that share a scale in every row: a power of two.
    pub(in crate::ops) fn run(&self) -> usize {
        self.run
    }

    /// Tiles of a panel.
    pub(in crate::ops) fn tiles(&self) -> usize {
        self.inputs.div_ceil(TILE)
    }

    fn words_of_tile(&self) -> usize {
        TILE / self.format.per_word()
    }

    /// The codes of some tiles: each word those of the next inputs.
    #[inline(always)]
    pub(in crate::ops) fn words(&self, panel: usize, tiles: Range<usize>) -> &[Word] {
        let words = self.words_of_tile();
        let first = panel * self.tiles();
        &self.codes[(first + tiles.start) * words..(first + tiles.end) * words]
    }

    /// What a panel's codes of input `k` are multiplied with.
    #[inline(always)]
    pub(in crate::ops) fn scales(&self, panel: usize, k: usize) -> ScaleLine {
        let rows = panel * LANES..self.outputs.min((panel + 1) * LANES);
        let line = panel * (self.inputs / self.run) + k / self.run;
        self.scales.line(line, rows, |row| row * self.inputs + k)
    }

    /// The code of input `k` of a row.
    pub(in crate::ops) fn code(&self, k: usize, row: usize) -> u32 {
        let (bits, word) = (self.format.bits(), k % TILE / self.format.per_word());
        let tile = k / TILE;
        let word = self.words(row / LANES, tile..tile + 1)[word][row % LANES];
        word >> (k % self.format.per_word() * bits) & ((1 << bits) - 1)
    }

    /// What the code of input `k` of a row is multiplied with, and what is added.
    #[allow(dead_code, reason = "for backends with a memory of their own")]
    pub(in crate::ops) fn scale(&self, k: usize, row: usize) -> (f32, f32) {
        let line = self.scales(row / LANES, k);
        (line.scale[row % LANES], line.minimum[row % LANES])
    }

    /// The numbers of input `k` of some rows.
    pub(in crate::ops) fn across(&self, k: usize, rows: Range<usize>, out: &mut [f32]) {
        let mut panel = usize::MAX;
        let mut scales = ScaleLine::default();
        for (row, out) in rows.zip(out) {
            if row / LANES != panel {
                panel = row / LANES;
                scales = self.scales(panel, k);
            }
            let lane = row % LANES;
            let code = self.code(k, row);
            *out = (self.format).value(code, scales.scale[lane], scales.minimum[lane]);
        }
    }

    /// The numbers of a row.
    pub(in crate::ops) fn along(&self, row: usize, out: &mut [f32]) {
        for (i, out) in out.chunks_mut(self.run).enumerate() {
            let first = i * self.run;
            let scales = self.scales(row / LANES, first);
            let (scale, minimum) = (scales.scale[row % LANES], scales.minimum[row % LANES]);
            for (k, out) in (first..).zip(out) {
                *out = self.format.value(self.code(k, row), scale, minimum);
            }
        }
    }

    /// The numbers, row-major `[outputs, inputs]`.
    pub fn values(&self) -> Vec<f32> {
        let mut values = vec![0f32; self.outputs * self.inputs];
        let rows = values.par_chunks_exact_mut(self.inputs.max(1)).enumerate();
        rows.for_each(|(row, out)| self.along(row, out));
        values
    }
}

/// Where scales lie: `[panels][runs of a row][LANES]`.
struct Lines {
    outputs: usize,
    inputs: usize,
    run: usize,
    block: usize,
}

impl Lines {
    /// What `of_block` gives for the block that each run lies in.
    fn of<T: Copy + Default>(&self, of_block: impl Fn(usize) -> T) -> Vec<[T; LANES]> {
        let runs = self.inputs / self.run;
        let mut lines = vec![[T::default(); LANES]; self.outputs.div_ceil(LANES) * runs];
        for row in 0..self.outputs {
            for run in 0..runs {
                let block = (row * self.inputs + run * self.run) / self.block;
                lines[row / LANES * runs + run][row % LANES] = of_block(block);
            }
        }
        lines
    }
}

/// Lanes in another order; `lines` is `[panels][lines of a panel][LANES]`.
fn reordered<T: Copy + Default>(
    lines: &[[T; LANES]],
    of_panel: usize,
    order: &[usize],
) -> Vec<[T; LANES]> {
    let mut out = vec![[T::default(); LANES]; lines.len()];
    for (to, &from) in order.iter().enumerate() {
        for line in 0..of_panel {
            out[to / LANES * of_panel + line][to % LANES] =
                lines[from / LANES * of_panel + line][from % LANES];
        }
    }
    out
}

fn gcd(a: usize, b: usize) -> usize {
    match b {
        0 => a,
        b => gcd(b, a % b),
    }
}

#[cfg(test)]
mod tests;
