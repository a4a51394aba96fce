//! bfloat16 panels.

use std::ops::Range;

use half::bf16;
use half::slice::HalfFloatSliceExt;
use rayon::prelude::*;

use super::{PANEL, Strides};

/// `[panels][inputs][PANEL]`, columns that do not exist being zero.
#[derive(Debug)]
pub(in crate::ops) struct Bf16Panels {
    inputs: usize,
    values: Vec<bf16>,
}

impl Bf16Panels {
    pub(super) fn new(values: &[f32], [inputs, outputs]: [usize; 2], strides: Strides) -> Self {
        let mut panels = vec![bf16::ZERO; outputs.div_ceil(PANEL) * inputs * PANEL];
        panels
            .par_chunks_mut((inputs * PANEL).max(1))
            .enumerate()
            .for_each(|(panel, out)| {
                let first = panel * PANEL;
                for (k, out) in out.chunks_exact_mut(PANEL).enumerate() {
                    for (c, out) in out.iter_mut().enumerate().take(outputs - first) {
                        let at = k * strides.row + (first + c) * strides.column;
                        *out = bf16::from_f32(values[at]);
                    }
                }
            });
        Self {
            inputs,
            values: panels,
        }
    }

    pub(super) fn at(&self, k: usize, column: usize) -> f32 {
        let row = column / PANEL * self.inputs + k;
        self.values[row * PANEL + column % PANEL].to_f32()
    }

    /// Entries `(k, columns)`, which are of one panel; those that do not exist are zero.
    #[inline(always)]
    pub(in crate::ops) fn line(&self, k: usize, columns: Range<usize>) -> &[bf16] {
        let from = (columns.start / PANEL * self.inputs + k) * PANEL + columns.start % PANEL;
        &self.values[from..from + columns.len()]
    }

    pub(super) fn num_bytes(&self) -> usize {
        size_of_val(self.values.as_slice())
    }

    pub(super) fn row_part(&self, k: usize, panel: usize, first: usize, out: &mut [f32]) {
        let from = (panel * self.inputs + k) * PANEL + first;
        self.values[from..from + out.len()].convert_to_f32_slice(out);
    }
}
