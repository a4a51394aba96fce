//! Matrix products with a weight, the low-rank product of its adapters in the same pass.

mod bf16;
mod blocks;
mod codes;
mod f32;
mod few_rows;
mod pack;
mod packed;
mod panel;
mod square;
#[cfg(test)]
mod tests;

use std::cell::Cell;

use rayon::prelude::*;

use self::pack::{Block, Form};
pub(in crate::ops) use self::packed::{Left, PackedRight};
use self::panel::{OncePacked, Panel};
pub(in crate::ops) use self::square::transposed;
use super::ARCH;
use crate::ops::kernels;
use crate::ops::reduced::{PANEL, Panels, TILE};
use crate::ops::{LowRankPart, MatmulPrecision, ReducedMatrix};

/// Rows of the left side that one tile computes.
const ROWS: usize = 6;
/// Largest depth of a block, in words: a panel of the right side, this deep, stays in the second-level cache (256 KiB).
const DEPTH: usize = 1024;
/// Rows up to which a panel is read where it lies: each tile reads it once, packing it would be one time more.
const ROWS_IN_PLACE: usize = 48;
/// Words of the right side that are packed at once (8 MiB): a whole layer of a small model, a part of an output head.
const STRIP: usize = 2 << 20;

/// Rows from which on tasks are of rows and the right side is packed once for all of them. Below, as in decoding, each task packs
/// a panel for itself and takes all rows through it, so that the weight is read once.
const MANY_ROWS: usize = 64;

/// Most rows of a task: with a panel, this deep, they stay in the second-level cache (384 KiB).
const ROWS_OF_TASK: usize = 96;

/// The right side of a product.
#[derive(Debug, Clone, Copy)]
pub(in crate::ops) enum Matrix<'a> {
    /// Row-major.
    Full(&'a [f32]),
    /// In reduced precision.
    Reduced(&'a ReducedMatrix),
}

/// How the right side of a product lies in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::ops) enum Right {
    /// `[depth, columns]`, row-major.
    Plain,
    /// `[columns, depth]`, row-major: the product is with its transpose.
    Transposed,
}

/// `scale * t . b` for every part, in its columns.
#[derive(Debug, Clone, Copy)]
pub(in crate::ops) struct LowRank<'a> {
    /// `[rows, ranks]`, the parts' ranks side by side.
    pub(in crate::ops) t: &'a [f32],
    pub(in crate::ops) ranks: usize,
    /// The parts' `[rank, width]` matrices, one after another.
    pub(in crate::ops) b: &'a [f32],
    /// From left to right.
    pub(in crate::ops) parts: &'a [LowRankPart],
}

/// What rows are multiplied with.
#[derive(Debug, Clone, Copy)]
pub(in crate::ops) struct Factor<'a> {
    pub(in crate::ops) matrix: Matrix<'a>,
    pub(in crate::ops) right: Right,
    /// Inputs of a row.
    pub(in crate::ops) depth: usize,
    /// Outputs of a row.
    pub(in crate::ops) columns: usize,
    /// Numbers from row to row of the left side as it lies in memory.
    pub(in crate::ops) left_stride: usize,
    /// Whether the left side lies as `[depth, rows]`: in f32 only.
    pub(in crate::ops) left_transposed: bool,
    /// Numbers from row to row of the right side as it lies in memory.
    pub(in crate::ops) right_stride: usize,
    pub(in crate::ops) precision: MatmulPrecision,
    /// Added in f32, whatever the precision.
    pub(in crate::ops) low_rank: Option<LowRank<'a>>,
}

impl<'a> Factor<'a> {
    /// Of whole matrices, without a low-rank product.
    pub(in crate::ops) fn new(
        matrix: Matrix<'a>,
        right: Right,
        [depth, columns]: [usize; 2],
        precision: MatmulPrecision,
    ) -> Self {
        Self {
            matrix,
            right,
            depth,
            columns,
            left_stride: depth,
            left_transposed: false,
            right_stride: match right {
                Right::Plain => columns,
                Right::Transposed => depth,
            },
            precision,
            low_rank: None,
        }
    }

    /// The right side, if it is kept in f32.
    fn numbers(&self) -> Option<&'a [f32]> {
        match self.matrix {
            Matrix::Full(values) => Some(values),
            Matrix::Reduced(_) => None,
        }
    }

    /// Whether the right side is kept in blocks.
    fn in_blocks(&self) -> bool {
        match self.matrix {
            Matrix::Reduced(matrix) => matches!(matrix.panels(), Panels::Blocks(_)),
            Matrix::Full(_) => false,
        }
    }

    /// Of a matrix that is no model's weight.
    pub(in crate::ops) fn of_numbers(right: &'a [f32], form: Right, sizes: [usize; 2]) -> Self {
        Self::new(Matrix::Full(right), form, sizes, MatmulPrecision::F32)
    }
}

/// Room that is kept between calls.
#[derive(Default)]
struct Room {
    /// The packed right side.
    packed: Vec<u32>,
    /// The rounded left side.
    rounded: Vec<u32>,
}

thread_local! {
    static ROOM: Cell<Room> = Cell::default();
}

/// `y = x . b`, or with [`Right::Transposed`] `y = x . b^T`, plus the low-rank product. `x`: `[rows, depth]`, rows
/// `left_stride` apart, or transposed; `y`: `[rows, columns]`, row-major; what `y` holds does not matter.
///
/// The right side is packed into panels as wide as a tile, each number once. The result depends neither on the number of threads
/// nor on how many rows there are: every entry is summed in the order of the depth. In bfloat16 it does not depend on the
/// instruction set either, as far as that has a fused multiply-add: AVX-512's dot product of pairs adds one after the other.
pub(in crate::ops) fn gemm(y: &mut [f32], x: &[f32], factor: &Factor<'_>) {
    // Taken out, not borrowed: while this thread waits for the others it may be given a task that comes here again.
    let mut room = ROOM.take();
    let form = match factor.precision {
        MatmulPrecision::F32 => Form::Full,
        MatmulPrecision::Bf16 if bf16::available() => Form::Pairs,
        MatmulPrecision::Bf16 => Form::Rounded,
    };
    gemm_as(form, *ARCH, &mut room, y, x, factor);
    ROOM.set(room);
}

/// [`gemm`] with numbers in a form and an instruction set of choice.
fn gemm_as(
    form: Form,
    arch: pulp::Arch,
    room: &mut Room,
    y: &mut [f32],
    x: &[f32],
    factor: &Factor<'_>,
) {
    let &Factor { depth, columns, .. } = factor;
    if y.is_empty() || depth == 0 {
        return y.fill(0.0);
    }
    let Room { packed, rounded } = room;
    let x: &[u32] = match form {
        Form::Full => bytemuck::cast_slice(x),
        _ => pack::round_rows(arch, form, x, factor, y.len() / columns, rounded),
    };
    let rows = y.len() / columns;
    assert!(form == Form::Full || !factor.left_transposed);
    let words = match form {
        Form::Full => factor.left_stride,
        _ => form.words(depth),
    };
    // Blocks of one size: each goes once more over `y`. In bfloat16 they end at the same inputs in each form.
    let in_place = rows <= ROWS_IN_PLACE && form == Form::Full && factor.right == Right::Plain;
    let in_place = in_place && factor.numbers().is_some();
    let most = match factor.precision {
        // Whole tiles: a tile that two blocks share is unpacked twice.
        MatmulPrecision::F32 if factor.in_blocks() => {
            depth.div_ceil(depth.div_ceil(DEPTH)).next_multiple_of(TILE)
        }
        MatmulPrecision::F32 => depth.div_ceil(depth.div_ceil(DEPTH)),
        MatmulPrecision::Bf16 => depth
            .div_ceil(depth.div_ceil(2 * DEPTH))
            .next_multiple_of(PANEL),
    };
    let blocks = (0..depth).step_by(most).map(|first| {
        let inputs = first..(first + most).min(depth);
        Block {
            // With the last block.
            low_rank: factor.low_rank.filter(|_| inputs.end == depth),
            form,
            width: f32::panel_width(form, arch, columns),
            in_place,
            words: form.words(inputs.start)..form.words(inputs.end),
            inputs,
            factor,
        }
    });
    if rows < MANY_ROWS {
        let blocks: Vec<Block<'_>> = blocks.collect();
        return few_rows::few_rows(arch, y, x, words, &blocks);
    }
    let threads = rayon::current_num_threads();
    for block in blocks {
        let panels = columns.div_ceil(block.width);
        let strip = (STRIP / block.panel_len()).clamp(1, panels);
        for first in (0..panels).step_by(strip) {
            let strip = first..(first + strip).min(panels);
            let len = strip.len() * block.panel_len();
            let packed = kernels::room(packed, len);
            let packed = OncePacked::new(&block, strip.start, packed);
            // Each thread takes the next task when it has done one.
            tasks(y, columns, threads)
                .enumerate()
                .par_bridge()
                .for_each(|(i, (row, y))| {
                    let from = match factor.left_transposed {
                        true => row,
                        false => row * words,
                    };
                    // Threads begin at panels far from each other.
                    let begin = strip.start + i % threads * strip.len() / threads;
                    for panel in (begin..strip.end).chain(strip.start..begin) {
                        packed.with(arch, panel, |b| {
                            let rows = Rows {
                                y: &mut *y,
                                y_panel: 0,
                                columns,
                                x: &x[from..],
                                row_words: words,
                                transposed: factor.left_transposed,
                                row,
                                b,
                                sums: Sums::of(&block),
                                panel,
                                block: &block,
                            };
                            rows.run(arch);
                        });
                    }
                });
        }
    }
}

/// `y` in tasks, each with its first row: large ones first and ever smaller ones at the end, so that all threads have done their
/// last ones nearly at the same time, whenever they began.
fn tasks(
    y: &mut [f32],
    columns: usize,
    threads: usize,
) -> impl Iterator<Item = (usize, &mut [f32])> {
    let mut rest = y;
    let mut row = 0;
    std::iter::from_fn(move || {
        let left = rest.len() / columns;
        let share = left.div_ceil(2 * threads).min(ROWS_OF_TASK);
        let rows = share.next_multiple_of(ROWS).min(left);
        let (task, later) = std::mem::take(&mut rest).split_at_mut(rows * columns);
        rest = later;
        row += rows;
        (rows > 0).then_some((row - rows, task))
    })
}

/// What becomes of a tile's sums.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sums {
    /// They begin at zero and are written.
    Written,
    /// They begin at zero and are added to what an earlier block has left.
    Added,
    /// They go on from where an earlier part of the block has stopped, which tiles of pairs in bfloat16 never do.
    Continued,
}

impl Sums {
    fn of(block: &Block<'_>) -> Self {
        match block.inputs.start {
            0 => Self::Written,
            _ => Self::Added,
        }
    }
}

/// Some rows of `y` and `x` by one panel.
struct Rows<'a> {
    /// From panel `y_panel` on, `columns` from row to row.
    y: &'a mut [f32],
    y_panel: usize,
    columns: usize,
    /// From the task's first row on.
    x: &'a [u32],
    /// From row to row, or from input to input if `x` is transposed.
    row_words: usize,
    /// Whether `x` is `[depth, rows]` in memory: in words of one input only.
    transposed: bool,
    /// That row.
    row: usize,
    b: Panel<'a>,
    sums: Sums,
    panel: usize,
    block: &'a Block<'a>,
}

impl Rows<'_> {
    fn run(self, arch: pulp::Arch) {
        match self.block.form {
            Form::Pairs => bf16::rows(self),
            _ => arch.dispatch(self),
        }
    }

    /// The tiles from top to bottom.
    #[inline(always)]
    fn for_each_tile(self, mut run: impl FnMut(Tile<'_>)) {
        let Block { words, width, .. } = self.block;
        let low_rank = self.block.low_rank;
        let ranks = self.block.ranks(self.panel);
        let start = (self.panel - self.y_panel) * width;
        let y = self.y.chunks_mut(ROWS * self.columns);
        for (i, y) in y.enumerate() {
            let from = match self.transposed {
                true => words.start * self.row_words + i * ROWS,
                false => i * ROWS * self.row_words + words.start,
            };
            run(Tile {
                rows: y.len() / self.columns,
                y: &mut y[start..],
                columns: self.columns,
                count: (*width).min(self.columns - start),
                x: &self.x[from..],
                row_words: self.row_words,
                transposed: self.transposed,
                words: words.len(),
                b: self.b,
                t: low_rank.map_or(&[], |low| {
                    &low.t[(self.row + i * ROWS) * low.ranks + ranks.start..]
                }),
                row_ranks: low_rank.map_or(0, |low| low.ranks),
                ranks: ranks.len(),
                sums: self.sums,
            });
        }
    }
}

/// A few rows by one panel.
struct Tile<'a> {
    /// From the tile's first row and column on, `columns` from row to row; `count` of them are the panel's.
    y: &'a mut [f32],
    rows: usize,
    columns: usize,
    count: usize,
    /// From the tile's first row and the block's first word on, `row_words` from row to row, or from word to word if it is transposed.
    x: &'a [u32],
    row_words: usize,
    transposed: bool,
    words: usize,
    b: Panel<'a>,
    /// Left side of the low-rank product, from the tile's first row and rank on, `row_ranks` from row to row.
    t: &'a [f32],
    row_ranks: usize,
    ranks: usize,
    sums: Sums,
}

impl<'a> Tile<'a> {
    /// The words of `R` rows.
    #[inline(always)]
    fn inputs<const R: usize>(&self) -> [&'a [u32]; R] {
        std::array::from_fn(|r| &self.x[r * self.row_words..][..self.words])
    }

    /// The low-rank product's left side of `R` rows.
    #[inline(always)]
    fn low_rank<const R: usize>(&self) -> [&'a [f32]; R] {
        std::array::from_fn(|r| match self.ranks {
            0 => [].as_slice(),
            ranks => &self.t[r * self.row_ranks..][..ranks],
        })
    }

    /// The low-rank product's right side, `width` columns.
    #[inline(always)]
    fn below(&self, width: usize) -> &'a [f32] {
        &self.b.below[..self.ranks * width]
    }

    /// The panel's columns of row `r`.
    #[inline(always)]
    fn outputs(&mut self, r: usize) -> &mut [f32] {
        let from = r * self.columns;
        &mut self.y[from..from + self.count]
    }
}
