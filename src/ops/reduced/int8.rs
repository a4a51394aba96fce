//! 8-bit panels with a scale for every group of inputs.

use rayon::prelude::*;

use super::{PANEL, Strides};

/// Inputs of a column that share a scale.
pub(in crate::ops) const GROUP: usize = 64;
/// Largest rounded number.
pub(in crate::ops) const LARGEST: f32 = 127.0;
/// Inputs that one step of an integer product takes together.
const QUAD: usize = 4;
/// Columns of a vector of the kernels.
const LANES: usize = 16;

/// Four inputs of sixteen columns: `[column][input]`.
pub(in crate::ops) type Vector = [i8; QUAD * LANES];

/// Numbers `[panels][groups][GROUP / 4][PANEL][4]`, scales `[panels][groups][PANEL]`. Inputs and columns that do not exist
/// are zero.
#[derive(Debug)]
pub(in crate::ops) struct Int8Panels {
    /// Groups of a column.
    pub(in crate::ops) groups: usize,
    /// In fours: one step of the product, all columns of the panel.
    pub(in crate::ops) numbers: Vec<[Vector; PANEL / LANES]>,
    pub(in crate::ops) scales: Vec<[[f32; LANES]; PANEL / LANES]>,
    /// `-128` times the sum of the group's numbers: kernels see inputs that are moved up by 128.
    pub(in crate::ops) shifts: Vec<[[i32; LANES]; PANEL / LANES]>,
}

/// To the nearest whole number, ties to even, of numbers below 2^22: `f32::round_ties_even` is a call where the compiler may not
/// assume SSE4.1.
#[inline(always)]
pub(in crate::ops) fn round(x: f32) -> f32 {
    const SHIFT: f32 = 12_582_912.0;
    (x + SHIFT) - SHIFT
}

impl Int8Panels {
    /// Steps of a group.
    pub(in crate::ops) const STEPS: usize = GROUP / QUAD;

    pub(super) fn new(values: &[f32], [inputs, outputs]: [usize; 2], strides: Strides) -> Self {
        let (groups, panels) = (inputs.div_ceil(GROUP), outputs.div_ceil(PANEL));
        let mut numbers = vec![[[0i8; QUAD * LANES]; PANEL / LANES]; panels * groups * Self::STEPS];
        let mut scales = vec![[[0f32; LANES]; PANEL / LANES]; panels * groups];
        let mut shifts = vec![[[0i32; LANES]; PANEL / LANES]; panels * groups];
        numbers
            .par_chunks_mut((groups * Self::STEPS).max(1))
            .zip(scales.par_chunks_mut(groups.max(1)))
            .zip(shifts.par_chunks_mut(groups.max(1)))
            .enumerate()
            .for_each(|(panel, ((numbers, scales), shifts))| {
                for group in 0..groups {
                    let rows = group * GROUP..((group + 1) * GROUP).min(inputs);
                    let steps = &mut numbers[group * Self::STEPS..(group + 1) * Self::STEPS];
                    for c in 0..PANEL.min(outputs - panel * PANEL) {
                        let column = (panel * PANEL + c) * strides.column;
                        let at = |k: usize| values[k * strides.row + column];
                        let largest = rows.clone().map(|k| at(k).abs()).fold(0.0, f32::max);
                        let inverse = if largest > 0.0 {
                            LARGEST / largest
                        } else {
                            0.0
                        };
                        let (vector, lane) = (c / LANES, c % LANES);
                        scales[group][vector][lane] = largest / LARGEST;
                        let mut sum = 0;
                        for (i, k) in rows.clone().enumerate() {
                            let number = round(at(k) * inverse) as i8;
                            steps[i / QUAD][vector][lane * QUAD + i % QUAD] = number;
                            sum += i32::from(number);
                        }
                        shifts[group][vector][lane] = -128 * sum;
                    }
                }
            });
        Self {
            groups,
            numbers,
            scales,
            shifts,
        }
    }

    /// The rounded number of input `k` and a column.
    #[allow(dead_code, reason = "for backends with a memory of their own")]
    pub(in crate::ops) fn number(&self, k: usize, column: usize) -> i8 {
        let group = column / PANEL * self.groups + k / GROUP;
        let step = &self.numbers[group * Self::STEPS + k % GROUP / QUAD];
        step.as_flattened()[column % PANEL * QUAD + k % QUAD]
    }

    /// The scale of a group of inputs of a column.
    #[allow(dead_code, reason = "for backends with a memory of their own")]
    pub(in crate::ops) fn scale(&self, group: usize, column: usize) -> f32 {
        let scales = &self.scales[column / PANEL * self.groups + group];
        scales.as_flattened()[column % PANEL]
    }

    pub(super) fn at(&self, k: usize, column: usize) -> f32 {
        let mut one = [0.0];
        self.row_part(k, column / PANEL, column % PANEL, &mut one);
        one[0]
    }

    pub(super) fn num_bytes(&self) -> usize {
        size_of_val(self.numbers.as_slice())
            + size_of_val(self.scales.as_slice())
            + size_of_val(self.shifts.as_slice())
    }

    pub(super) fn row_part(&self, k: usize, panel: usize, first: usize, out: &mut [f32]) {
        let group = panel * self.groups + k / GROUP;
        let step = &self.numbers[group * Self::STEPS + k % GROUP / QUAD];
        let (numbers, scales) = (step.as_flattened(), self.scales[group].as_flattened());
        for (c, out) in (first..).zip(out) {
            *out = f32::from(numbers[c * QUAD + k % QUAD]) * scales[c];
        }
    }
}
