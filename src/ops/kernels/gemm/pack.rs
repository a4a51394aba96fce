//! From rows and weights to the words that tiles read.

use std::ops::Range;

use half::bf16;
use rayon::prelude::*;

use super::panel::Panel;
use super::square::{SIDE, Square, transpose};
use super::{Factor, LowRank, Matrix, Right};
use crate::ops::kernels::{self, rows_per_task};
use crate::ops::reduced::{Bf16Panels, PANEL, Panels};

/// What a word of a packed side is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    /// An f32.
    Full,
    /// An f32 that a bfloat16 can hold.
    Rounded,
    /// Two neighbours in depth in bfloat16, the first in the upper half.
    Pairs,
}

impl Form {
    /// Words that hold so many inputs.
    pub(super) fn words(self, inputs: usize) -> usize {
        match self {
            Self::Pairs => inputs.div_ceil(2),
            _ => inputs,
        }
    }

    /// The words of a row of inputs.
    #[inline(always)]
    fn row(self, inputs: &[f32], words: &mut [u32]) {
        match self {
            Self::Full => {
                for (word, x) in words.iter_mut().zip(inputs) {
                    *word = x.to_bits();
                }
            }
            Self::Rounded => {
                for (word, x) in words.iter_mut().zip(inputs) {
                    *word = rounded(*x);
                }
            }
            Self::Pairs => {
                let (pairs, last) = inputs.as_chunks::<2>();
                for (word, [a, b]) in words.iter_mut().zip(pairs) {
                    *word = rounded(*a) | rounded(*b) >> 16;
                }
                if let [x] = last {
                    words[pairs.len()] = rounded(*x);
                }
            }
        }
    }
}

/// The nearest bfloat16, ties to even, as the bits of an f32. Not-a-number stays so.
#[inline(always)]
pub(super) fn rounded(x: f32) -> u32 {
    let bits = x.to_bits();
    let nearest = bits.wrapping_add(0x7FFF + (bits >> 16 & 1)) & 0xFFFF_0000;
    let quiet = bits & 0xFFFF_0000 | 0x0040_0000;
    if bits & 0x7FFF_FFFF > 0x7F80_0000 {
        quiet
    } else {
        nearest
    }
}

/// A word of [`Form::Pairs`].
#[inline(always)]
fn pair(first: bf16, second: bf16) -> u32 {
    u32::from(first.to_bits()) << 16 | u32::from(second.to_bits())
}

/// The words of all rows of `x`.
pub(super) fn round_rows<'a>(
    arch: pulp::Arch,
    form: Form,
    x: &[f32],
    factor: &Factor<'_>,
    rows: usize,
    room: &'a mut Vec<u32>,
) -> &'a [u32] {
    struct Rounding<'a> {
        form: Form,
        x: &'a [f32],
        stride: usize,
        depth: usize,
        out: &'a mut [u32],
    }
    impl pulp::WithSimd for Rounding<'_> {
        type Output = ();
        #[inline(always)]
        fn with_simd<S: pulp::Simd>(self, _: S) {
            let rows = self.out.chunks_exact_mut(self.form.words(self.depth));
            for (x, out) in self.x.chunks(self.stride).zip(rows) {
                self.form.row(&x[..self.depth], out);
            }
        }
    }
    let (depth, stride) = (factor.depth, factor.left_stride);
    let words = form.words(depth);
    let room = kernels::room(room, rows * words);
    let task = rows_per_task(rows);
    room.par_chunks_mut(task * words)
        .zip(x.par_chunks(task * stride))
        .for_each(|(out, x)| {
            arch.dispatch(Rounding {
                form,
                x,
                stride,
                depth,
                out,
            });
        });
    room
}

/// A block of the depth.
#[derive(Debug, Clone)]
pub(super) struct Block<'a> {
    pub(super) factor: &'a Factor<'a>,
    pub(super) form: Form,
    pub(super) inputs: Range<usize>,
    /// The same in words of a row.
    pub(super) words: Range<usize>,
    /// Columns of a panel.
    pub(super) width: usize,
    /// Whether whole panels are read where they lie.
    pub(super) in_place: bool,
    pub(super) low_rank: Option<LowRank<'a>>,
}

impl Block<'_> {
    /// Words of a packed panel: the block's depth, and below it the ranks that may touch the panel, in f32.
    pub(super) fn panel_len(&self) -> usize {
        let ranks = self.low_rank.map_or(0, |low| low.ranks);
        (self.words.len() + ranks) * self.width
    }

    /// Whether a panel is read where it lies, which takes all its columns.
    pub(super) fn lies_whole(&self, panel: usize) -> bool {
        self.in_place && (panel + 1) * self.width <= self.factor.columns
    }

    /// A panel as it lies, and its ranks.
    pub(super) fn in_place<'p>(&'p self, panel: usize, below: &'p [f32]) -> Panel<'p> {
        let (start, stride) = (panel * self.width, self.factor.right_stride);
        let end = (self.inputs.end - 1) * stride + start + self.width;
        let numbers = self.factor.numbers().unwrap_or(&[]);
        Panel {
            words: bytemuck::cast_slice(&numbers[self.inputs.start * stride + start..end]),
            stride,
            below,
        }
    }

    /// The block in parts of `most` inputs, where a word is an input; the low-rank product is with the last one.
    pub(super) fn parts(&self, most: usize) -> impl Iterator<Item = Block<'_>> {
        let all = self.inputs.clone();
        all.clone().step_by(most).map(move |first| {
            let inputs = first..(first + most).min(all.end);
            Block {
                low_rank: self.low_rank.filter(|_| inputs.end == all.end),
                words: inputs.clone(),
                inputs,
                ..self.clone()
            }
        })
    }

    /// What comes after the block's inputs: the low-rank product.
    pub(super) fn end(&self) -> Block<'_> {
        Block {
            inputs: self.inputs.end..self.inputs.end,
            words: self.words.end..self.words.end,
            ..self.clone()
        }
    }

    /// The ranks whose parts have columns in a panel.
    pub(super) fn ranks(&self, panel: usize) -> Range<usize> {
        let Some(low) = self.low_rank else {
            return 0..0;
        };
        let (start, end) = (panel * self.width, (panel + 1) * self.width);
        let (mut first, mut found) = (0, 0..0);
        for part in low.parts {
            if part.column < end && part.column + part.width > start {
                if found.is_empty() {
                    found.start = first;
                }
                found.end = first + part.rank;
            }
            first += part.rank;
        }
        found
    }

    /// Copies panel `panel` of the right side to `[words, width]`, columns that do not exist being zero, and what the ranks
    /// add to it to the rows below.
    pub(super) fn pack(&self, arch: pulp::Arch, panel: usize, out: &mut [u32]) {
        struct Packing<'a> {
            block: &'a Block<'a>,
            start: usize,
            out: &'a mut [u32],
        }
        impl pulp::WithSimd for Packing<'_> {
            type Output = ();
            #[inline(always)]
            fn with_simd<S: pulp::Simd>(self, simd: S) {
                let Self { block, start, out } = self;
                let count = block.width.min(block.factor.columns - start);
                if count < block.width {
                    out.fill(0);
                }
                match (block.factor.right, block.form) {
                    (Right::Plain, _) if let Some(blocks) = block.in_blocks() => {
                        block.unpack(simd, blocks, start..start + count, out);
                    }
                    (Right::Transposed, _) => block.transpose(simd, start, count, out),
                    (Right::Plain, Form::Pairs) => block.pairs(start..start + count, out),
                    (Right::Plain, _) => block.copy(start..start + count, out),
                }
            }
        }
        let start = panel * self.width;
        let (weight, below) = out.split_at_mut(self.words.len() * self.width);
        arch.dispatch(Packing {
            block: self,
            start,
            out: weight,
        });
        self.pack_ranks(panel, bytemuck::cast_slice_mut(below));
    }

    /// Some columns of a row of the right side as it lies in memory.
    #[inline(always)]
    fn row_part(&self, row: usize, columns: Range<usize>, out: &mut [f32]) {
        match self.factor.matrix {
            Matrix::Full(values) => {
                let from = row * self.factor.right_stride + columns.start;
                let values = &values[from..from + columns.len()];
                // A panel's whole row, of a length that the compiler knows: a few moves and no call.
                match (
                    out.first_chunk_mut::<PANEL>(),
                    values.first_chunk::<PANEL>(),
                ) {
                    (Some(out), Some(values)) if columns.len() == PANEL => *out = *values,
                    _ => out.copy_from_slice(values),
                }
            }
            Matrix::Reduced(matrix) => matrix.row_part(row, columns, out),
        }
    }

    /// Rows of the right side, as they are or rounded.
    #[inline(always)]
    fn copy(&self, columns: Range<usize>, out: &mut [u32]) {
        for (row, out) in self.inputs.clone().zip(out.chunks_exact_mut(self.width)) {
            let out = &mut out[..columns.len()];
            self.row_part(row, columns.clone(), bytemuck::cast_slice_mut(out));
            if self.form == Form::Rounded {
                for word in out {
                    *word = rounded(f32::from_bits(*word));
                }
            }
        }
    }

    /// The right side, if it is kept in bfloat16.
    #[inline(always)]
    fn kept(&self) -> Option<&Bf16Panels> {
        match self.factor.matrix {
            Matrix::Reduced(matrix) => match matrix.panels() {
                Panels::Bf16(panels) => Some(panels),
                Panels::Int8(_) | Panels::Blocks(_) => None,
            },
            Matrix::Full(_) => None,
        }
    }

    /// Two rows of the right side in each of the panel's.
    #[inline(always)]
    fn pairs(&self, columns: Range<usize>, out: &mut [u32]) {
        let rows = self.inputs.clone().step_by(2);
        let rows = rows.zip(out.chunks_exact_mut(self.width));
        if let Some(kept) = self.kept() {
            // Panels here and there are equally wide, and both are filled with zeros.
            let columns = columns.start..columns.start + self.width;
            for (row, out) in rows {
                let lower = match row + 1 < self.inputs.end {
                    true => kept.line(row + 1, columns.clone()),
                    false => &[bf16::ZERO; PANEL],
                };
                let both = kept.line(row, columns.clone()).iter().zip(lower);
                for (word, (a, b)) in out.iter_mut().zip(both) {
                    *word = pair(*a, *b);
                }
            }
            return;
        }
        let mut lower = [0f32; PANEL];
        let lower = &mut lower[..columns.len()];
        for (row, out) in rows {
            let out = &mut out[..columns.len()];
            self.row_part(row, columns.clone(), bytemuck::cast_slice_mut(out));
            match row + 1 < self.inputs.end {
                true => self.row_part(row + 1, columns.clone(), lower),
                false => lower.fill(0.0),
            }
            for (word, lower) in out.iter_mut().zip(&*lower) {
                *word = rounded(f32::from_bits(*word)) | rounded(*lower) >> 16;
            }
        }
    }

    /// The words of some inputs, of one column of a transposed right side.
    #[inline(always)]
    fn line(&self, column: usize, inputs: Range<usize>) -> [u32; SIDE] {
        let mut words = [0u32; SIDE];
        if self.form == Form::Pairs
            && let Some(kept) = self.kept()
        {
            // Squares do not cross panels.
            let (pairs, last) = kept.line(column, inputs).as_chunks::<2>();
            for (word, [a, b]) in words.iter_mut().zip(pairs) {
                *word = pair(*a, *b);
            }
            if let [a] = last {
                words[pairs.len()] = pair(*a, bf16::ZERO);
            }
            return words;
        }
        let mut line = [0f32; SIDE];
        // A length that the compiler knows makes one load of the copy.
        if inputs.len() == SIDE {
            self.row_part(column, inputs, &mut line);
            self.form.row(&line, &mut words);
        } else {
            let line = &mut line[..inputs.len()];
            self.row_part(column, inputs, line);
            self.form.row(line, &mut words);
        }
        words
    }

    /// A square of a transposed right side that is packed in f32, and whole: without a branch from line to line it stays
    /// in registers.
    #[inline(always)]
    fn whole_square<S: pulp::Simd>(&self, simd: S, column: usize, input: usize) -> Option<Square> {
        if self.form != Form::Full {
            return None;
        }
        let Some(values) = self.factor.numbers() else {
            return self.square_of_blocks(simd, column, input);
        };
        let stride = self.factor.right_stride;
        let values = &values[column * stride + input..];
        let values = &values[..(SIDE - 1) * stride + SIDE];
        let mut square = [[0; SIDE]; SIDE];
        for (j, line) in square.iter_mut().enumerate() {
            let values = values[j * stride..].first_chunk::<SIDE>();
            *line = bytemuck::cast(*values.expect("a whole line"));
        }
        Some(square)
    }

    /// Rows `start..start + count` of the right side (`[.., depth]`), of this block's depth, as columns of `out`.
    ///
    /// [`SIDE`] rows from end to end before the next ones: so few streams the processor fetches ahead, a whole panel's it does not.
    #[inline(always)]
    fn transpose<S: pulp::Simd>(&self, simd: S, start: usize, count: usize, out: &mut [u32]) {
        for column in (0..count).step_by(SIDE) {
            let wide = SIDE.min(count - column);
            let inputs_of = self.inputs.clone().step_by(SIDE);
            for (first, k) in inputs_of.zip((0..).step_by(self.form.words(SIDE))) {
                let inputs = first..(first + SIDE).min(self.inputs.end);
                let tall = self.form.words(inputs.len());
                let out = &mut out[k * self.width + column..];
                let whole = (wide, inputs.len()) == (SIDE, SIDE);
                if whole && let Some(square) = self.whole_square(simd, start + column, first) {
                    let out = &mut out[..(SIDE - 1) * self.width + SIDE];
                    for (j, row) in transpose(simd, square).into_iter().enumerate() {
                        let out = out[j * self.width..].first_chunk_mut::<SIDE>();
                        *out.expect("a whole line") = row;
                    }
                    continue;
                }
                let mut square = [[0; SIDE]; SIDE];
                let lines = whole.then(|| self.square_of_blocks(simd, start + column, first));
                match lines.flatten() {
                    Some(lines) => {
                        for (line, numbers) in square.iter_mut().zip(lines) {
                            self.form.row(&numbers.map(f32::from_bits), line);
                        }
                    }
                    None => {
                        for (j, line) in square.iter_mut().take(wide).enumerate() {
                            *line = self.line(start + column + j, inputs.clone());
                        }
                    }
                }
                let rows = out.chunks_mut(self.width).take(tall);
                for (out, row) in rows.zip(transpose(simd, square)) {
                    match out.first_chunk_mut::<SIDE>() {
                        Some(out) if wide == SIDE => *out = row,
                        _ => out[..wide].copy_from_slice(&row[..wide]),
                    }
                }
            }
        }
    }

    /// The ranks' rows of a panel.
    pub(super) fn pack_ranks(&self, panel: usize, below: &mut [f32]) {
        let (width, start) = (self.width, panel * self.width);
        let Some(low) = self.low_rank else { return };
        let ranks = self.ranks(panel);
        let below = &mut below[..ranks.len() * width];
        below.fill(0.0);
        let (mut first, mut offset) = (0, 0);
        for part in low.parts {
            let columns = part.column.max(start)..(part.column + part.width).min(start + width);
            if !columns.is_empty() {
                for q in 0..part.rank {
                    let from = offset + q * part.width - part.column;
                    let to = (first + q - ranks.start) * width - start;
                    for column in columns.clone() {
                        below[to + column] = part.scale * low.b[from + column];
                    }
                }
            }
            first += part.rank;
            offset += part.rank * part.width;
        }
    }
}
