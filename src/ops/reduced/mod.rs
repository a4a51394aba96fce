//! Frozen weights in reduced precision.

mod bf16;
mod blocks;
mod int8;

use std::any::Any;
use std::fmt::{Debug, Formatter};
use std::ops::Range;
use std::sync::{Arc, OnceLock};

use serde::{Deserialize, Serialize};

use super::MatmulPrecision;

pub(in crate::ops) use bf16::Bf16Panels;
pub use blocks::{BlockFormat, Blocks, NestedAbsmax, nf4_codes, nf4_nested};
pub(in crate::ops) use blocks::{BlockMatrix, LANES, Part, ScaleLine, TILE, Word};
pub(in crate::ops) use int8::{GROUP, Int8Panels, LARGEST, Vector, round};

/// Columns of a weight that lie together in bfloat16 and in 8 bits: both are stored in panels this wide, from top to bottom, so that a product
/// reads them once and in order.
pub(in crate::ops) const PANEL: usize = 64;

/// How the frozen weights of a base are stored. Adapters, norms, biases and score heads stay in f32, and so do activations
/// between layers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
pub enum Precision {
    /// As they are.
    #[default]
    F32,
    /// Rounded to bfloat16. Exact for a checkpoint that is stored in bfloat16.
    Bf16,
    /// 8 bits, and a scale for every 64 inputs of a column. In the forward pass the input is rounded likewise, row by row, and
    /// products are exact integers; gradients are those of the product with the rounded weights.
    Int8,
    /// Linear layers in NF4 with double quantisation, 4.13 bits a weight, as QLoRA has them; embedding and head, which QLoRA leaves in
    /// 16 bits, in 8-bit blocks of 32 ([`BlockFormat::Q8_0`]). What a file holds in NF4 blocks stays as it is. Products are those of the
    /// numbers that blocks stand for.
    Nf4,
    /// As the file stores them: matrices in blocks (Q8_0, Q4_0 and Q4_1 of GGUF, NF4 of bitsandbytes) stay in blocks, numbers that bfloat16 holds
    /// exactly are in bfloat16, others in f32. Exact.
    Stored,
}

impl Precision {
    /// The name in recipes.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
            Self::Int8 => "int8",
            Self::Nf4 => "nf4",
            Self::Stored => "stored",
        }
    }

    /// Bytes that one weight of a linear layer takes, its share of the scales included; of [`Precision::Stored`], which goes by the
    /// file, the most.
    pub fn bytes(self) -> f64 {
        match self {
            Self::F32 | Self::Stored => 4.0,
            Self::Bf16 => 2.0,
            Self::Int8 => 1.0 + 8.0 / GROUP as f64,
            Self::Nf4 => BlockFormat::Nf4.bytes(),
        }
    }

    /// The same of an embedding or output head.
    pub fn table_bytes(self) -> f64 {
        match self {
            Self::Nf4 => BlockFormat::Q8_0.bytes(),
            other => other.bytes(),
        }
    }
}

/// A frozen matrix `[inputs, outputs]` in reduced precision, in host memory and shared by its clones.
#[derive(Debug, Clone)]
pub struct ReducedMatrix {
    inputs: usize,
    outputs: usize,
    panels: Panels,
    matmul: MatmulPrecision,
    resident: Resident,
}

/// What a backend with a memory of its own keeps there of a matrix, from the first use on; shared by the matrix's clones.
#[derive(Clone, Default)]
struct Resident(Arc<OnceLock<Arc<dyn Any + Send + Sync>>>);

impl Debug for Resident {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        f.write_str("..")
    }
}

#[derive(Debug, Clone)]
pub(in crate::ops) enum Panels {
    Bf16(Arc<Bf16Panels>),
    Int8(Arc<Int8Panels>),
    Blocks(Arc<BlockMatrix>),
}

/// Where the entries of a matrix lie in a slice: entry `(k, c)` at `k * row + c * column`.
#[derive(Debug, Clone, Copy)]
struct Strides {
    row: usize,
    column: usize,
}

impl ReducedMatrix {
    /// The same for clones, and for nothing else.
    pub(crate) fn address(&self) -> usize {
        Arc::as_ptr(&self.resident.0) as usize
    }

    /// Rounds a row-major matrix; `None` for [`Precision::F32`], and for [`Precision::Stored`] as there is no file.
    ///
    /// # Panics
    /// If `values` has not `inputs * outputs` entries.
    pub fn new(
        values: &[f32],
        inputs: usize,
        outputs: usize,
        precision: Precision,
    ) -> Option<Self> {
        let strides = Strides {
            row: outputs,
            column: 1,
        };
        Self::rounded(values, inputs, outputs, strides, precision)
    }

    /// Rounds the transpose of a row-major `[outputs, inputs]` matrix; `None` as for [`ReducedMatrix::new`].
    ///
    /// # Panics
    /// As [`ReducedMatrix::new`].
    pub fn of_transpose(
        values: &[f32],
        inputs: usize,
        outputs: usize,
        precision: Precision,
    ) -> Option<Self> {
        let strides = Strides {
            row: 1,
            column: inputs,
        };
        Self::rounded(values, inputs, outputs, strides, precision)
    }

    fn rounded(
        values: &[f32],
        inputs: usize,
        outputs: usize,
        strides: Strides,
        precision: Precision,
    ) -> Option<Self> {
        assert_eq!(values.len(), inputs * outputs, "entries of a matrix");
        let shape = [inputs, outputs];
        let panels = match precision {
            Precision::F32 | Precision::Stored => return None,
            Precision::Bf16 => Panels::Bf16(Arc::new(Bf16Panels::new(values, shape, strides))),
            Precision::Int8 => Panels::Int8(Arc::new(Int8Panels::new(values, shape, strides))),
            Precision::Nf4 => {
                let mut rows = Vec::with_capacity(values.len());
                for c in 0..outputs {
                    rows.extend((0..inputs).map(|k| values[k * strides.row + c * strides.column]));
                }
                let blocks = Blocks::quantize(BlockFormat::Nf4, &rows, [outputs, inputs]);
                return Some(Self::of_blocks(vec![blocks]));
            }
        };
        Some(Self::of_panels(inputs, outputs, panels))
    }

    /// The transposes of tensors `[outputs, inputs]` in blocks, side by side.
    ///
    /// # Panics
    /// If there is none, or not all have as many inputs.
    pub fn of_blocks(tensors: Vec<Blocks>) -> Self {
        let matrix = BlockMatrix::new(tensors);
        let (inputs, outputs) = (matrix.inputs(), matrix.outputs());
        Self::of_panels(inputs, outputs, Panels::Blocks(Arc::new(matrix)))
    }

    fn of_panels(inputs: usize, outputs: usize, panels: Panels) -> Self {
        Self {
            inputs,
            outputs,
            panels,
            matmul: MatmulPrecision::F32,
            resident: Resident::default(),
        }
    }

    /// The same matrix with products as `matmul` says. Those of 8 bits in the forward pass are their own.
    pub fn with_matmul(mut self, matmul: MatmulPrecision) -> Self {
        self.matmul = matmul;
        self
    }

    /// How products are computed.
    pub fn matmul(&self) -> MatmulPrecision {
        self.matmul
    }

    /// Rows: features of the input.
    pub fn inputs(&self) -> usize {
        self.inputs
    }

    /// Columns: features of the output.
    pub fn outputs(&self) -> usize {
        self.outputs
    }

    /// How it is stored: of a matrix in blocks [`Precision::Nf4`] if all are, and [`Precision::Stored`] otherwise.
    pub fn precision(&self) -> Precision {
        match &self.panels {
            Panels::Bf16(_) => Precision::Bf16,
            Panels::Int8(_) => Precision::Int8,
            Panels::Blocks(matrix) => {
                let mut formats = matrix.pieces().map(Blocks::format);
                match formats.all(|format| format == BlockFormat::Nf4) {
                    true => Precision::Nf4,
                    false => Precision::Stored,
                }
            }
        }
    }

    /// Bytes of its numbers and scales in memory.
    pub fn num_bytes(&self) -> usize {
        match &self.panels {
            Panels::Bf16(panels) => panels.num_bytes(),
            Panels::Int8(panels) => panels.num_bytes(),
            Panels::Blocks(matrix) => matrix.pieces().map(Blocks::num_bytes).sum(),
        }
    }

    /// The rounded numbers, row-major `[inputs, outputs]`.
    pub fn values(&self) -> Vec<f32> {
        let mut values = vec![0f32; self.inputs * self.outputs];
        for (k, row) in values.chunks_exact_mut(self.outputs.max(1)).enumerate() {
            self.row_part(k, 0..self.outputs, row);
        }
        values
    }

    /// The rounded numbers of some columns, each `[inputs]`, one after another: rows of an embedding table.
    ///
    /// # Panics
    /// If there is no such column.
    pub fn columns(&self, columns: &[u32]) -> Vec<f32> {
        let mut out = vec![0f32; columns.len() * self.inputs];
        for (&column, out) in columns.iter().zip(out.chunks_exact_mut(self.inputs.max(1))) {
            let column = column as usize;
            assert!(
                column < self.outputs,
                "{column} of {} columns",
                self.outputs
            );
            let numbers = out.iter_mut().enumerate();
            match &self.panels {
                Panels::Bf16(panels) => numbers.for_each(|(k, x)| *x = panels.at(k, column)),
                Panels::Int8(panels) => numbers.for_each(|(k, x)| *x = panels.at(k, column)),
                Panels::Blocks(matrix) => matrix.column(column, out),
            }
        }
        out
    }

    /// Copies entries `(k, columns)` to `out`.
    pub(in crate::ops) fn row_part(&self, k: usize, columns: Range<usize>, out: &mut [f32]) {
        if let Panels::Blocks(matrix) = &self.panels {
            return matrix.row_part(k, columns, out);
        }
        let (mut column, mut out) = (columns.start, out);
        while column < columns.end {
            let first = column % PANEL;
            let count = (PANEL - first).min(columns.end - column);
            let (here, rest) = out.split_at_mut(count);
            match &self.panels {
                Panels::Bf16(panels) => panels.row_part(k, column / PANEL, first, here),
                Panels::Int8(panels) => panels.row_part(k, column / PANEL, first, here),
                Panels::Blocks(_) => unreachable!("read above"),
            }
            (column, out) = (column + count, rest);
        }
    }

    pub(in crate::ops) fn panels(&self) -> &Panels {
        &self.panels
    }

    /// The copy that was made at the first use, or a new one if that was for another backend or does not `fit`.
    #[allow(dead_code, reason = "for backends with a memory of their own")]
    pub(in crate::ops) fn resident<T: Any + Send + Sync>(
        &self,
        fits: impl Fn(&T) -> bool,
        make: impl Fn() -> T,
    ) -> Arc<T> {
        let kept = self.resident.0.get_or_init(|| Arc::new(make())).clone();
        let kept = kept.downcast::<T>().ok().filter(|kept| fits(kept));
        kept.unwrap_or_else(|| Arc::new(make()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::Seed;

    fn matrix(inputs: usize, outputs: usize) -> Vec<f32> {
        let seed = Seed::new(3);
        (0..inputs * outputs)
            .map(|i| seed.normal(i as u64) as f32)
            .collect()
    }

    fn reduced(values: &[f32], shape: [usize; 2], precision: Precision) -> ReducedMatrix {
        ReducedMatrix::new(values, shape[0], shape[1], precision).unwrap()
    }

    /// Neither the inputs fill a group nor the outputs a panel.
    const SHAPES: [[usize; 2]; 4] = [[1, 1], [64, 64], [70, 130], [200, 63]];

    #[test]
    fn bf16_rounds_each_number_by_itself() {
        for shape in SHAPES {
            let values = matrix(shape[0], shape[1]);
            let rounded: Vec<f32> = values
                .iter()
                .map(|&x| half::bf16::from_f32(x).to_f32())
                .collect();
            assert_eq!(reduced(&values, shape, Precision::Bf16).values(), rounded);
        }
    }

    #[test]
    fn int8_is_off_by_half_a_step_of_its_group() {
        for [inputs, outputs] in SHAPES {
            let values = matrix(inputs, outputs);
            let rounded = reduced(&values, [inputs, outputs], Precision::Int8).values();
            for column in 0..outputs {
                for first in (0..inputs).step_by(GROUP) {
                    let at = |k: usize| k * outputs + column;
                    let group = first..(first + GROUP).min(inputs);
                    let largest = group
                        .clone()
                        .map(|k| values[at(k)].abs())
                        .fold(0.0, f32::max);
                    for k in group {
                        let off = (values[at(k)] - rounded[at(k)]).abs();
                        // Half a step, and the rounding of the division.
                        assert!(off <= largest / 127.0 * 0.50001, "{off} of {largest}");
                    }
                }
            }
        }
    }

    #[test]
    fn a_transpose_is_rounded_alike() {
        for precision in [Precision::Bf16, Precision::Int8, Precision::Nf4] {
            let values = matrix(70, 130);
            let mut transposed = vec![0.0; values.len()];
            for (k, row) in values.chunks_exact(130).enumerate() {
                for (c, value) in row.iter().enumerate() {
                    transposed[c * 70 + k] = *value;
                }
            }
            let plain = reduced(&values, [70, 130], precision);
            let of = ReducedMatrix::of_transpose(&transposed, 70, 130, precision).unwrap();
            assert_eq!(plain.values(), of.values());
            let columns = plain.columns(&[129, 0]);
            for (k, row) in plain.values().chunks_exact(130).enumerate() {
                assert_eq!((columns[k], columns[70 + k]), (row[129], row[0]));
            }
        }
    }

    #[test]
    fn f32_is_not_reduced() {
        assert!(ReducedMatrix::new(&[1.0], 1, 1, Precision::F32).is_none());
    }
}
