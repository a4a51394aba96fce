//! Matrix products with a frozen weight, the low-rank product of its adapters in the same pass.

use std::cell::Cell;
use std::ops::Range;

use pulp::Simd;
use rayon::prelude::*;

use super::{ARCH, gather_panels, rows_per_task};
use crate::ops::{LowRankPart, ReducedMatrix};

/// Rows of the left side that one tile computes.
const ROWS: usize = 6;
/// Largest depth of a block: a panel of the right side, this deep, stays in the second-level cache (256 KiB).
const DEPTH: usize = 1024;
/// Side of a square that is transposed at once: one line of the cache.
const SQUARE: usize = 16;

/// Rows from which on tasks are of rows and the right side is packed once for all of them. Below, as in decoding, each task packs
/// a panel for itself and takes all rows through it, so that the weight is read once.
const MANY_ROWS: usize = 64;

/// The right side of a product.
#[derive(Debug, Clone, Copy)]
pub(in crate::ops) enum Matrix<'a> {
    /// Row-major.
    Full(&'a [f32]),
    /// In fewer bits; the product is f32 all the same.
    Reduced(&'a ReducedMatrix),
}

impl Matrix<'_> {
    /// Copies some columns of a row; a row has `width` columns.
    #[inline(always)]
    fn row_part(&self, row: usize, columns: Range<usize>, width: usize, out: &mut [f32]) {
        match self {
            Self::Full(values) => {
                let from = row * width + columns.start;
                out.copy_from_slice(&values[from..from + columns.len()]);
            }
            Self::Reduced(matrix) => matrix.row_part(row, columns, out),
        }
    }
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

thread_local! {
    /// Room for the packed right side, kept between calls.
    static PACKED: Cell<Vec<f32>> = const { Cell::new(Vec::new()) };
}

/// `y = x . b`, or with [`Right::Transposed`] `y = x . b^T`, plus the low-rank product. `x`: `[rows, depth]`, `y`: `[rows,
/// columns]`, row-major; what `y` holds does not matter.
///
/// The right side is packed into panels as wide as a tile, each number once. The result depends neither on the number of threads
/// nor on how many rows there are: every entry is summed in the order of the depth.
///
/// # Panics
/// If `depth` is 0.
pub(in crate::ops) fn gemm(
    y: &mut [f32],
    x: &[f32],
    b: Matrix<'_>,
    depth: usize,
    columns: usize,
    right: Right,
    low_rank: Option<LowRank<'_>>,
) {
    // Taken out, not borrowed: while this thread waits for the others it may be given a task that comes here again.
    let mut packed = PACKED.take();
    gemm_on(
        *ARCH,
        &mut packed,
        y,
        x,
        (b, right),
        [depth, columns],
        low_rank,
    );
    PACKED.set(packed);
}

/// [`gemm`] with an instruction set of choice, and `packed` as the room for the right side.
fn gemm_on(
    arch: pulp::Arch,
    packed: &mut Vec<f32>,
    y: &mut [f32],
    x: &[f32],
    right: (Matrix<'_>, Right),
    [depth, columns]: [usize; 2],
    low_rank: Option<LowRank<'_>>,
) {
    assert!(depth > 0, "a product needs a depth");
    if y.is_empty() {
        return;
    }
    let width = arch.dispatch(PanelWidth);
    let rows = y.len() / columns;
    // Blocks of one size: each goes once more over `y`.
    let most = depth.div_ceil(depth.div_ceil(DEPTH));
    let blocks = (0..depth).step_by(most).map(|first| {
        let deep = most.min(depth - first);
        Block {
            first,
            deep,
            depth,
            columns,
            width,
            // With the last block.
            low_rank: low_rank.filter(|_| first + deep == depth),
        }
    });
    if rows < MANY_ROWS {
        let blocks: Vec<Block<'_>> = blocks.collect();
        return few_rows(arch, y, x, right, &blocks);
    }
    let task = rows_per_task(rows).next_multiple_of(ROWS);
    for block in blocks {
        let len = columns.div_ceil(width) * block.panel_len();
        if packed.len() < len {
            packed.resize(len, 0.0);
        }
        let packed = &mut packed[..len];
        packed
            .par_chunks_mut(block.panel_len())
            .enumerate()
            .for_each(|(panel, out)| block.pack(panel, right, out));
        let packed = &*packed;
        y.par_chunks_mut(task * columns)
            .enumerate()
            .for_each(|(i, y)| {
                arch.dispatch(Rows {
                    y,
                    columns,
                    x: &x[i * task * depth..],
                    row: i * task,
                    packed,
                    panels: 0..columns.div_ceil(width),
                    block: &block,
                })
            });
    }
}

/// All rows by one panel at a time.
fn few_rows(
    arch: pulp::Arch,
    y: &mut [f32],
    x: &[f32],
    right: (Matrix<'_>, Right),
    blocks: &[Block<'_>],
) {
    let Block { columns, width, .. } = blocks[0];
    let rows = y.len() / columns;
    let most = blocks.iter().map(Block::panel_len).max().unwrap_or(0);
    let mut panels = vec![0f32; columns.div_ceil(width) * rows * width];
    panels
        .par_chunks_mut(rows * width)
        .enumerate()
        .for_each_init(
            || vec![0f32; most],
            |packed, (panel, y)| {
                for block in blocks {
                    let packed = &mut packed[..block.panel_len()];
                    block.pack(panel, right, packed);
                    arch.dispatch(Rows {
                        y: &mut *y,
                        columns: width,
                        x,
                        row: 0,
                        packed,
                        panels: panel..panel + 1,
                        block,
                    });
                }
            },
        );
    gather_panels(&panels, width, columns, y);
}

/// A block of the depth, and the shape around it.
#[derive(Debug, Clone, Copy)]
struct Block<'a> {
    first: usize,
    deep: usize,
    depth: usize,
    columns: usize,
    /// Columns of a panel.
    width: usize,
    low_rank: Option<LowRank<'a>>,
}

impl Block<'_> {
    /// Numbers of a packed panel: the block's depth, and below it the ranks that may touch the panel.
    fn panel_len(&self) -> usize {
        let ranks = self.low_rank.map_or(0, |low| low.ranks);
        (self.deep + ranks) * self.width
    }

    /// The ranks whose parts have columns in a panel.
    fn ranks(&self, panel: usize) -> Range<usize> {
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

    /// Copies panel `panel` of the right side to `[deep, width]`, columns that do not exist being zero, and what the ranks
    /// add to it to the rows below.
    fn pack(&self, panel: usize, (b, right): (Matrix<'_>, Right), out: &mut [f32]) {
        let (width, start) = (self.width, panel * self.width);
        let count = width.min(self.columns - start);
        let (weight, below) = out.split_at_mut(self.deep * width);
        if count < width {
            weight.fill(0.0);
        }
        match right {
            Right::Plain => {
                for (k, out) in weight.chunks_exact_mut(width).enumerate() {
                    let columns = start..start + count;
                    b.row_part(self.first + k, columns, self.columns, &mut out[..count]);
                }
            }
            Right::Transposed => self.transpose(b, start, count, weight),
        }
        self.pack_ranks(panel, below);
    }

    /// The ranks' rows of a panel.
    fn pack_ranks(&self, panel: usize, below: &mut [f32]) {
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

    /// Rows `start..start + count` of `b` (`[.., depth]`), of this block's depth, as columns of `out`.
    fn transpose(&self, b: Matrix<'_>, start: usize, count: usize, out: &mut [f32]) {
        for k in (0..self.deep).step_by(SQUARE) {
            let tall = SQUARE.min(self.deep - k);
            for column in (0..count).step_by(SQUARE) {
                let wide = SQUARE.min(count - column);
                let mut square = [[0f32; SQUARE]; SQUARE];
                for j in 0..wide {
                    let (from, mut line) = (self.first + k, [0f32; SQUARE]);
                    let row = start + column + j;
                    b.row_part(row, from..from + tall, self.depth, &mut line[..tall]);
                    for (row, value) in square.iter_mut().zip(line) {
                        row[j] = value;
                    }
                }
                for (i, row) in square.iter().enumerate().take(tall) {
                    let to = (k + i) * self.width + column;
                    out[to..to + wide].copy_from_slice(&row[..wide]);
                }
            }
        }
    }
}

/// Vectors side by side in a tile: as many as leave the accumulators in registers.
const fn vectors<S: Simd>() -> usize {
    // 16 lanes (AVX-512) and 4 (NEON) come with 32 registers, 8 (AVX2) with 16.
    if S::F32_LANES == 8 { 2 } else { 4 }
}

struct PanelWidth;

impl pulp::WithSimd for PanelWidth {
    type Output = usize;
    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) -> usize {
        vectors::<S>() * S::F32_LANES
    }
}

/// One task: some rows of `y` and `x`, some panels.
struct Rows<'a> {
    /// Of the panels' columns.
    y: &'a mut [f32],
    columns: usize,
    /// From the task's first row on.
    x: &'a [f32],
    /// That row.
    row: usize,
    packed: &'a [f32],
    panels: Range<usize>,
    block: &'a Block<'a>,
}

impl pulp::WithSimd for Rows<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        if vectors::<S>() == 2 {
            rows::<S, 2>(simd, self);
        } else {
            rows::<S, 4>(simd, self);
        }
    }
}

#[inline(always)]
fn rows<S: Simd, const V: usize>(simd: S, task: Rows<'_>) {
    let block = task.block;
    let (depth, columns) = (block.depth, task.columns);
    let packed = task.packed.chunks_exact(block.panel_len());
    for (i, (panel, b)) in task.panels.zip(packed).enumerate() {
        let ranks = block.ranks(panel);
        let start = i * block.width;
        let y = task.y.chunks_mut(ROWS * columns);
        for (i, (y, x)) in y.zip(task.x.chunks(ROWS * depth)).enumerate() {
            let tile = Tile {
                t: block.low_rank.map_or(&[], |low| {
                    &low.t[(task.row + i * ROWS) * low.ranks + ranks.start..]
                }),
                ranks: ranks.len(),
                y,
                x,
                b,
                columns,
                start,
                block,
            };
            match tile.y.len() / columns {
                6 => tile.run::<S, V, 6>(simd),
                5 => tile.run::<S, V, 5>(simd),
                4 => tile.run::<S, V, 4>(simd),
                3 => tile.run::<S, V, 3>(simd),
                2 => tile.run::<S, V, 2>(simd),
                _ => tile.run::<S, V, 1>(simd),
            }
        }
    }
}

/// A few rows by one panel.
struct Tile<'a> {
    y: &'a mut [f32],
    x: &'a [f32],
    /// Left side of the low-rank product, from its first row and rank on.
    t: &'a [f32],
    ranks: usize,
    b: &'a [f32],
    columns: usize,
    start: usize,
    block: &'a Block<'a>,
}

impl Tile<'_> {
    #[inline(always)]
    fn run<S: Simd, const V: usize, const R: usize>(self, simd: S) {
        let Block {
            first,
            deep,
            depth,
            width,
            low_rank,
            ..
        } = *self.block;
        let columns = self.columns;
        let mut sums = [[simd.splat_f32s(0.0); V]; R];
        let (b, _) = S::as_simd_f32s(self.b);
        let (weight, below) = b.split_at(deep * V);
        let x: [&[f32]; R] =
            std::array::from_fn(|r| &self.x[r * depth + first..r * depth + first + deep]);
        add::<S, V, R>(simd, &mut sums, x, weight);
        if let Some(low) = low_rank {
            let t: [&[f32]; R] =
                std::array::from_fn(|r| &self.t[r * low.ranks..r * low.ranks + self.ranks]);
            add::<S, V, R>(simd, &mut sums, t, &below[..self.ranks * V]);
        }
        let count = width.min(columns - self.start);
        for (r, sums) in sums.iter().enumerate() {
            let from = r * columns + self.start;
            let y = &mut self.y[from..from + count];
            if count == width {
                let (y, _) = S::as_mut_simd_f32s(y);
                for v in 0..V {
                    y[v] = match first {
                        0 => sums[v],
                        _ => simd.add_f32s(y[v], sums[v]),
                    };
                }
            } else {
                // The widest panel: four vectors of sixteen.
                let mut last = [0f32; 64];
                let (vectors, _) = S::as_mut_simd_f32s(&mut last);
                vectors[..V].copy_from_slice(sums);
                for (y, sum) in y.iter_mut().zip(last) {
                    *y = if first == 0 { sum } else { *y + sum };
                }
            }
        }
    }
}

/// `sums += x . b`, `b` being rows of `V` vectors.
#[inline(always)]
fn add<S: Simd, const V: usize, const R: usize>(
    simd: S,
    sums: &mut [[S::f32s; V]; R],
    x: [&[f32]; R],
    b: &[S::f32s],
) {
    // In registers of their own: through the reference they would be stored at every step.
    let mut acc = *sums;
    for (k, b) in b.chunks_exact(V).enumerate() {
        for r in 0..R {
            let x = simd.splat_f32s(x[r][k]);
            for v in 0..V {
                acc[r][v] = simd.mul_add_f32s(x, b[v], acc[r][v]);
            }
        }
    }
    *sums = acc;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::Precision;
    use crate::rng::Seed;

    fn numbers(len: usize, name: &str) -> Vec<f32> {
        let seed = Seed::new(1).fork(name);
        (0..len).map(|i| seed.normal(i as u64) as f32).collect()
    }

    /// Every instruction set that this machine has.
    fn arches() -> Vec<pulp::Arch> {
        #[cfg(target_arch = "x86_64")]
        let wider = pulp::x86::V3::try_new().map(pulp::Arch::V3);
        #[cfg(not(target_arch = "x86_64"))]
        let wider = None;
        [Some(pulp::Arch::Scalar), wider, Some(*ARCH)]
            .into_iter()
            .flatten()
            .collect()
    }

    /// The product in f64.
    fn product(x: &[f32], b: impl Fn(usize, usize) -> f32, sizes: [usize; 3]) -> Vec<f64> {
        let [rows, depth, columns] = sizes;
        let entry = |i: usize, j: usize| {
            let terms = (0..depth).map(|k| f64::from(x[i * depth + k]) * f64::from(b(k, j)));
            terms.sum::<f64>()
        };
        (0..rows)
            .flat_map(|i| (0..columns).map(move |j| (i, j)))
            .map(|(i, j)| entry(i, j))
            .collect()
    }

    #[test]
    fn products_are_those_of_f64() {
        // Rows that fill no tile, columns that fill no panel or several, and a depth of more than one block.
        for sizes in [
            [1, 1, 1],
            [7, 3, 65],
            [13, 40, 64],
            [6, 513, 17],
            [61, 2050, 130],
            [67, 1100, 130],
        ] {
            let [rows, depth, columns] = sizes;
            let (x, b) = (numbers(rows * depth, "x"), numbers(depth * columns, "b"));
            let sides = [Right::Plain, Right::Transposed];
            for (right, arch) in sides
                .into_iter()
                .flat_map(|r| arches().into_iter().map(move |a| (r, a)))
            {
                // What was in `y` before must not matter.
                let (mut y, mut room) = (vec![f32::NAN; rows * columns], Vec::new());
                gemm_on(
                    arch,
                    &mut room,
                    &mut y,
                    &x,
                    (Matrix::Full(&b), right),
                    [depth, columns],
                    None,
                );
                let at = |k: usize, j: usize| match right {
                    Right::Plain => b[k * columns + j],
                    Right::Transposed => b[j * depth + k],
                };
                // Sums grow as the root of the number of terms, and each addition rounds by half a unit of the sum: in all
                // about one unit (1.2e-7) a term; the first term alone is up to 9.
                let allowed = 1.2e-7 * depth as f64 + 5e-7;
                for (got, want) in y.iter().zip(product(&x, at, sizes)) {
                    let off = (f64::from(*got) - want).abs();
                    assert!(off < allowed, "{sizes:?} {right:?}: off by {off}");
                }
            }
        }
    }

    #[test]
    fn reduced_weights_are_those_of_their_rounded_numbers() {
        // Both kinds of tasks, both sides, panels of the weight that are cut by panels of the product.
        for (rows, right) in [
            (5, Right::Plain),
            (5, Right::Transposed),
            (70, Right::Plain),
            (70, Right::Transposed),
        ] {
            let (depth, columns) = (1100, 150);
            let [inputs, outputs] = match right {
                Right::Plain => [depth, columns],
                Right::Transposed => [columns, depth],
            };
            let (x, w) = (numbers(rows * depth, "x"), numbers(inputs * outputs, "w"));
            for precision in [Precision::Bf16, Precision::Int8] {
                let reduced = ReducedMatrix::new(&w, inputs, outputs, precision).unwrap();
                let rounded = reduced.values();
                for arch in arches() {
                    let product = |right| {
                        let (mut y, mut room) = (vec![f32::NAN; rows * columns], Vec::new());
                        gemm_on(arch, &mut room, &mut y, &x, right, [depth, columns], None);
                        y
                    };
                    let got = product((Matrix::Reduced(&reduced), right));
                    assert_eq!(got, product((Matrix::Full(&rounded), right)));
                }
            }
        }
    }

    #[test]
    fn low_rank_products_join_in_their_columns() {
        // Parts that end inside a panel, leave columns out, and span panels.
        let part = |rank, scale, column, width| LowRankPart {
            rank,
            scale,
            column,
            width,
        };
        let parts = [
            part(3, 0.5, 2, 20),
            part(1, -2.0, 22, 100),
            part(4, 1.0, 140, 9),
        ];
        for rows in [20, 70] {
            low_rank_products(rows, &parts);
        }
    }

    fn low_rank_products(rows: usize, parts: &[LowRankPart]) {
        let (depth, columns, ranks) = (515, 150, 8);
        let (x, b) = (numbers(rows * depth, "x"), numbers(depth * columns, "b"));
        let (t, low) = (numbers(rows * ranks, "t"), numbers(60 + 100 + 36, "low"));
        let low_rank = LowRank {
            t: &t,
            ranks,
            b: &low,
            parts,
        };
        let at = |k: usize, j: usize| b[k * columns + j];
        let mut want = product(&x, at, [rows, depth, columns]);
        let (mut first, mut offset) = (0, 0);
        for part in parts {
            for (i, q, j) in (0..rows).flat_map(|i| {
                (0..part.rank).flat_map(move |q| (0..part.width).map(move |j| (i, q, j)))
            }) {
                let product = t[i * ranks + first + q] * low[offset + q * part.width + j];
                want[i * columns + part.column + j] += f64::from(part.scale * product);
            }
            first += part.rank;
            offset += part.rank * part.width;
        }
        for arch in arches() {
            let (mut y, mut room) = (vec![f32::NAN; rows * columns], Vec::new());
            let right = (Matrix::Full(&b), Right::Plain);
            let sizes = [depth, columns];
            gemm_on(arch, &mut room, &mut y, &x, right, sizes, Some(low_rank));
            for (got, want) in y.iter().zip(&want) {
                let off = (f64::from(*got) - want).abs();
                // As above, for 523 terms; a sum beyond their root, 23, rounds by more in proportion.
                let allowed = 6.4e-5 * (want.abs() / 23.0).max(1.0);
                assert!(off < allowed, "{got}, expected {want}");
            }
        }
    }
}
