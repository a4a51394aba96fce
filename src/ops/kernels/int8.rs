//! Products with 8-bit weights: inputs are rounded to 8 bits by row and group of 64, the groups' products are exact integers,
//! and their scaled sums are f32. The same numbers to the last bit on every instruction set.

use rayon::prelude::*;

use super::{ARCH, rows_per_task, simd_fn};
use crate::ops::reduced::{GROUP, Int8Panels, LARGEST, PANEL, Vector, round};

/// Rows of the left side that one tile computes.
const ROWS: usize = 6;
/// Vectors of columns that one tile computes, of [`LANES`] each.
const VECTORS: usize = 2;
const LANES: usize = 16;
/// Rows from which on tasks are of rows; below they are of panels, so that each weight is read by one task.
const MANY_ROWS: usize = 64;

/// `y = x . w`. `x`: `[rows, inputs]`, `y`: `[rows, columns]`, row-major; what `y` holds does not matter.
pub(in crate::ops) fn int8_product(
    y: &mut [f32],
    x: &[f32],
    w: &Int8Panels,
    inputs: usize,
    columns: usize,
) {
    if y.is_empty() {
        return;
    }
    let rows = y.len() / columns;
    let x = Rounded::new(x, rows, inputs, w.groups);
    if rows >= MANY_ROWS {
        let task = rows_per_task(rows).next_multiple_of(ROWS);
        y.par_chunks_mut(task * columns)
            .enumerate()
            .for_each(|(i, y)| {
                let x = x.rows(i * task, y.len() / columns);
                for panel in 0..columns.div_ceil(PANEL) {
                    let wide = PANEL.min(columns - panel * PANEL);
                    let y = &mut y[panel * PANEL..];
                    product_with_panel(y, columns, wide, x, w, panel);
                }
            });
        return;
    }
    let mut panels = vec![0f32; columns.div_ceil(PANEL) * rows * PANEL];
    panels
        .par_chunks_mut(rows * PANEL)
        .enumerate()
        .for_each(|(panel, y)| {
            product_with_panel(y, PANEL, PANEL, x.rows(0, rows), w, panel);
        });
    super::gather_panels(&panels, PANEL, columns, y);
}

/// A matrix in 8 bits, moved up by 128, and the scale of every group.
struct Rounded {
    groups: usize,
    numbers: Vec<[u8; GROUP]>,
    scales: Vec<f32>,
}

/// Some of its rows.
#[derive(Clone, Copy)]
struct RoundedRows<'a> {
    groups: usize,
    numbers: &'a [[u8; GROUP]],
    scales: &'a [f32],
}

impl Rounded {
    fn new(x: &[f32], rows: usize, inputs: usize, groups: usize) -> Self {
        let mut numbers = vec![[0u8; GROUP]; rows * groups];
        let mut scales = vec![0f32; rows * groups];
        let task = rows_per_task(rows);
        numbers
            .par_chunks_mut(task * groups)
            .zip(scales.par_chunks_mut(task * groups))
            .zip(x.par_chunks(task * inputs))
            .for_each(|((numbers, scales), x)| round_rows(x, inputs, groups, numbers, scales));
        Self {
            groups,
            numbers,
            scales,
        }
    }

    fn rows(&self, first: usize, count: usize) -> RoundedRows<'_> {
        let range = first * self.groups..(first + count) * self.groups;
        RoundedRows {
            groups: self.groups,
            numbers: &self.numbers[range.clone()],
            scales: &self.scales[range],
        }
    }
}

impl<'a> RoundedRows<'a> {
    /// Numbers and scales of one row.
    #[inline(always)]
    fn row(&self, row: usize) -> (&'a [[u8; GROUP]], &'a [f32]) {
        let range = row * self.groups..(row + 1) * self.groups;
        (&self.numbers[range.clone()], &self.scales[range])
    }
}

simd_fn! {
    fn round_rows(
        x: &'a [f32],
        inputs: usize,
        groups: usize,
        numbers: &'a mut [[u8; GROUP]],
        scales: &'a mut [f32],
    ) -> () {
        let rows = numbers.chunks_exact_mut(groups).zip(scales.chunks_exact_mut(groups));
        for (x, (numbers, scales)) in x.chunks_exact(inputs).zip(rows) {
            for ((x, numbers), scale) in x.chunks(GROUP).zip(numbers).zip(scales) {
                let mut group = [0f32; GROUP];
                group[..x.len()].copy_from_slice(x);
                let (mut largest, mut poison) = (0f32, 0f32);
                for x in group {
                    let size = x.abs();
                    largest = if size > largest { size } else { largest };
                    // Not a number, or infinite: it must show in the product.
                    poison += x * 0.0;
                }
                let inverse = if largest > 0.0 { LARGEST / largest } else { 0.0 };
                *scale = largest / LARGEST + poison;
                for (number, x) in numbers.iter_mut().zip(group) {
                    *number = (round(x * inverse) + 128.0) as u8;
                }
            }
        }
    }
}

/// Rows of `x` by one panel, the first `wide` columns of which go to `y`, `stride` numbers from row to row.
fn product_with_panel(
    y: &mut [f32],
    stride: usize,
    wide: usize,
    x: RoundedRows<'_>,
    w: &Int8Panels,
    panel: usize,
) {
    let groups = panel * w.groups..(panel + 1) * w.groups;
    let tile = Panel {
        x,
        numbers: &w.numbers[groups.start * Int8Panels::STEPS..groups.end * Int8Panels::STEPS],
        scales: &w.scales[groups.clone()],
        shifts: &w.shifts[groups],
        stride,
        wide,
    };
    #[cfg(target_arch = "x86_64")]
    if let Some(token) = vnni::token() {
        return vnni::product(token, &tile, y);
    }
    ARCH.dispatch(Portable { panel: &tile, y });
}

/// One panel of the weight, and the rows it meets.
struct Panel<'a> {
    x: RoundedRows<'a>,
    numbers: &'a [[Vector; PANEL / LANES]],
    scales: &'a [[[f32; LANES]; PANEL / LANES]],
    shifts: &'a [[[i32; LANES]; PANEL / LANES]],
    stride: usize,
    wide: usize,
}

impl Panel<'_> {
    fn num_rows(&self) -> usize {
        self.x.scales.len() / self.x.groups
    }

    /// Stores sixteen columns of a row, as far as they exist.
    #[inline(always)]
    fn store(&self, y: &mut [f32], row: usize, vector: usize, sums: &[f32; LANES]) {
        let first = vector * LANES;
        if first < self.wide {
            let count = LANES.min(self.wide - first);
            let at = row * self.stride + first;
            y[at..at + count].copy_from_slice(&sums[..count]);
        }
    }
}

/// Without an instruction for it: whole numbers in f32, which are exact as the sum of a group stays below 2^24.
struct Portable<'a> {
    panel: &'a Panel<'a>,
    y: &'a mut [f32],
}

impl pulp::WithSimd for Portable<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: pulp::Simd>(self, _: S) {
        let Self { panel, y } = self;
        for vector in 0..panel.wide.div_ceil(LANES) {
            for first in (0..panel.num_rows()).step_by(ROWS) {
                let count = ROWS.min(panel.num_rows() - first);
                let mut sums = [[0f32; LANES]; ROWS];
                for group in 0..panel.x.groups {
                    let mut products = [[0f32; LANES]; ROWS];
                    let steps = &panel.numbers[group * Int8Panels::STEPS..][..Int8Panels::STEPS];
                    for (k, step) in steps.iter().enumerate() {
                        for i in 0..4 {
                            let mut w = [0f32; LANES];
                            for (lane, w) in w.iter_mut().enumerate() {
                                *w = f32::from(step[vector][4 * lane + i]);
                            }
                            for (r, products) in products.iter_mut().enumerate().take(count) {
                                let x = panel.x.row(first + r).0[group][4 * k + i];
                                let x = f32::from(x) - 128.0;
                                for (product, w) in products.iter_mut().zip(w) {
                                    *product += x * w;
                                }
                            }
                        }
                    }
                    let scales = &panel.scales[group][vector];
                    for (r, sums) in sums.iter_mut().enumerate().take(count) {
                        let scale = panel.x.row(first + r).1[group];
                        for ((sum, product), w) in sums.iter_mut().zip(&products[r]).zip(scales) {
                            *sum = product.mul_add(scale * w, *sum);
                        }
                    }
                }
                for (r, sums) in sums.iter().enumerate().take(count) {
                    panel.store(y, first + r, vector, sums);
                }
            }
        }
    }
}

/// AVX-512's integer dot product: four products of 8 bits a lane and step.
#[cfg(target_arch = "x86_64")]
mod vnni {
    use archmage::prelude::*;

    use super::{Int8Panels, LANES, PANEL, Panel, ROWS, VECTORS};

    /// Proof that this CPU has it.
    pub(super) fn token() -> Option<X64V4xToken> {
        X64V4xToken::summon()
    }

    #[arcane(import_intrinsics)]
    pub(super) fn product(token: X64V4xToken, panel: &Panel<'_>, y: &mut [f32]) {
        for pair in 0..PANEL / LANES / VECTORS {
            for first in (0..panel.num_rows()).step_by(ROWS) {
                match panel.num_rows() - first {
                    1 => tile::<1>(token, panel, y, first, pair),
                    2 => tile::<2>(token, panel, y, first, pair),
                    3 => tile::<3>(token, panel, y, first, pair),
                    4 => tile::<4>(token, panel, y, first, pair),
                    5 => tile::<5>(token, panel, y, first, pair),
                    _ => tile::<ROWS>(token, panel, y, first, pair),
                }
            }
        }
    }

    /// `R` rows by two vectors: integer and f32 sums stay in registers.
    #[rite(import_intrinsics)]
    fn tile<const R: usize>(
        _: X64V4xToken,
        panel: &Panel<'_>,
        y: &mut [f32],
        first: usize,
        pair: usize,
    ) {
        let at = pair * VECTORS;
        let rows: [_; R] = std::array::from_fn(|r| panel.x.row(first + r));
        let mut sums = [[_mm512_setzero_ps(); VECTORS]; R];
        for group in 0..panel.x.groups {
            let shifts = &panel.shifts[group];
            let start = [
                _mm512_loadu_si512(&shifts[at]),
                _mm512_loadu_si512(&shifts[at + 1]),
            ];
            let mut products = [start; R];
            let steps = &panel.numbers[group * Int8Panels::STEPS..][..Int8Panels::STEPS];
            let x = rows.map(|(numbers, _)| &numbers[group]);
            for (k, step) in steps.iter().enumerate() {
                let w = [
                    _mm512_loadu_si512(&step[at]),
                    _mm512_loadu_si512(&step[at + 1]),
                ];
                for r in 0..R {
                    let four = [
                        x[r][4 * k],
                        x[r][4 * k + 1],
                        x[r][4 * k + 2],
                        x[r][4 * k + 3],
                    ];
                    let x = _mm512_set1_epi32(i32::from_le_bytes(four));
                    for v in 0..VECTORS {
                        products[r][v] = _mm512_dpbusd_epi32(products[r][v], x, w[v]);
                    }
                }
            }
            let scales = [
                _mm512_loadu_ps(&panel.scales[group][at]),
                _mm512_loadu_ps(&panel.scales[group][at + 1]),
            ];
            for r in 0..R {
                let scale = _mm512_set1_ps(rows[r].1[group]);
                for v in 0..VECTORS {
                    let product = _mm512_cvtepi32_ps(products[r][v]);
                    let scale = _mm512_mul_ps(scale, scales[v]);
                    sums[r][v] = _mm512_fmadd_ps(product, scale, sums[r][v]);
                }
            }
        }
        for (r, sums) in sums.iter().enumerate() {
            for (v, &sum) in sums.iter().enumerate() {
                let mut out = [0f32; LANES];
                _mm512_storeu_ps(&mut out, sum);
                panel.store(y, first + r, at + v, &out);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::reduced::{Panels, Precision, ReducedMatrix};
    use crate::rng::Seed;

    fn numbers(len: usize, name: &str) -> Vec<f32> {
        let seed = Seed::new(1).fork(name);
        (0..len).map(|i| seed.normal(i as u64) as f32).collect()
    }

    /// The product of the rounded sides in f64.
    fn expected(x: &[f32], w: &ReducedMatrix) -> Vec<f64> {
        let (inputs, columns) = (w.inputs(), w.outputs());
        let weights = w.values();
        let mut y = vec![0f64; x.len() / inputs * columns];
        for (x, y) in x.chunks_exact(inputs).zip(y.chunks_exact_mut(columns)) {
            for (g, x) in x.chunks(GROUP).enumerate() {
                let largest = x.iter().map(|x| x.abs()).fold(0.0, f32::max);
                for (i, &x) in x.iter().enumerate() {
                    let number = match largest {
                        0.0 => 0.0,
                        largest => (x * (LARGEST / largest)).round_ties_even(),
                    };
                    let x = f64::from(number) * f64::from(largest / LARGEST);
                    let row = &weights[(g * GROUP + i) * columns..][..columns];
                    for (y, &w) in y.iter_mut().zip(row) {
                        *y += x * f64::from(w);
                    }
                }
            }
        }
        y
    }

    /// Rows that fill no tile and both kinds of tasks; inputs that fill no group; columns that fill no panel.
    const SIZES: [[usize; 3]; 5] = [
        [1, 1, 1],
        [5, 70, 65],
        [16, 576, 192],
        [7, 64, 33],
        [131, 200, 100],
    ];

    #[test]
    fn products_are_those_of_the_rounded_sides() {
        for [rows, inputs, columns] in SIZES {
            let mut x = numbers(rows * inputs, "x");
            // A group of zeros has no scale.
            x[..inputs.min(GROUP)].fill(0.0);
            let w = numbers(inputs * columns, "w");
            let w = ReducedMatrix::new(&w, inputs, columns, Precision::Int8).unwrap();
            let Panels::Int8(panels) = w.panels() else {
                panic!("8 bits were asked for")
            };
            let mut y = vec![f32::NAN; rows * columns];
            int8_product(&mut y, &x, panels, inputs, columns);
            for (got, want) in y.iter().zip(expected(&x, &w)) {
                let off = (f64::from(*got) - want).abs();
                // A rounding for each group of 64 and one for each pair of scales: sums are below 100.
                assert!(off < 2e-6 * (inputs as f64).sqrt() + 1e-6, "off by {off}");
            }
        }
    }

    #[test]
    #[cfg(target_arch = "x86_64")]
    fn the_instruction_and_whole_numbers_in_f32_agree_to_the_last_bit() {
        let Some(token) = vnni::token() else { return };
        for [rows, inputs, columns] in SIZES {
            let (x, w) = (numbers(rows * inputs, "x"), numbers(inputs * columns, "w"));
            let w = ReducedMatrix::new(&w, inputs, columns, Precision::Int8).unwrap();
            let Panels::Int8(w) = w.panels() else {
                panic!("8 bits were asked for")
            };
            let x = Rounded::new(&x, rows, inputs, w.groups);
            let panel = Panel {
                x: x.rows(0, rows),
                numbers: &w.numbers[..w.groups * Int8Panels::STEPS],
                scales: &w.scales[..w.groups],
                shifts: &w.shifts[..w.groups],
                stride: PANEL,
                wide: PANEL.min(columns),
            };
            let [mut a, mut b] = [(); 2].map(|()| vec![0f32; rows * PANEL]);
            vnni::product(token, &panel, &mut a);
            let portable = Portable {
                panel: &panel,
                y: &mut b,
            };
            ARCH.dispatch(portable);
            assert_eq!(a, b);
        }
    }

    #[test]
    fn what_is_not_a_number_shows() {
        let (rows, inputs, columns) = (2, 130, 70);
        let w = ReducedMatrix::new(
            &numbers(inputs * columns, "w"),
            inputs,
            columns,
            Precision::Int8,
        );
        let w = w.unwrap();
        let Panels::Int8(panels) = w.panels() else {
            panic!("8 bits were asked for")
        };
        for bad in [f32::NAN, f32::INFINITY] {
            let mut x = numbers(rows * inputs, "x");
            x[3] = bad;
            let mut y = vec![0f32; rows * columns];
            int8_product(&mut y, &x, panels, inputs, columns);
            assert!(y[..columns].iter().all(|y| y.is_nan()));
            assert!(y[columns..].iter().all(|y| y.is_finite()));
        }
    }
}
