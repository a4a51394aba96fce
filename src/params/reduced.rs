//! Parameters in reduced precision.

use crate::ops::{Numerics, Precision, ReducedMatrix};

/// A frozen matrix stored in reduced precision.
#[derive(Debug, Clone)]
pub struct Reduced {
    numerics: Numerics,
    /// Whether the parameter is the transpose of what is kept: a table, whose rows are a head's columns.
    by_column: bool,
    matrix: Option<ReducedMatrix>,
}

impl Reduced {
    /// To be filled with a parameter `[in, out]`; `None` for f32.
    pub fn by_row(numerics: Numerics) -> Option<Self> {
        Self::new(numerics, false)
    }

    /// To be filled with a parameter `[out, in]`; `None` for f32.
    pub fn by_column(numerics: Numerics) -> Option<Self> {
        Self::new(numerics, true)
    }

    fn new(numerics: Numerics, by_column: bool) -> Option<Self> {
        (numerics.storage != Precision::F32).then_some(Self {
            numerics,
            by_column,
            matrix: None,
        })
    }

    /// `[in, out]`, once it is filled.
    pub fn matrix(&self) -> Option<&ReducedMatrix> {
        self.matrix.as_ref()
    }

    pub(super) fn shape(&self) -> [usize; 2] {
        let shape = self.matrix.as_ref().map(|m| [m.inputs(), m.outputs()]);
        let [inputs, outputs] = shape.unwrap_or([0, 0]);
        match self.by_column {
            true => [outputs, inputs],
            false => [inputs, outputs],
        }
    }

    pub(super) fn fill(&mut self, values: &[f32], shape: &[usize]) {
        let Numerics { storage, matmul } = self.numerics;
        let matrix = match self.by_column {
            true => ReducedMatrix::of_transpose(values, shape[1], shape[0], storage),
            false => ReducedMatrix::new(values, shape[0], shape[1], storage),
        };
        self.matrix = matrix.map(|matrix| matrix.with_matmul(matmul));
    }

    pub(super) fn values(&self) -> Vec<f32> {
        let Some(matrix) = &self.matrix else {
            return Vec::new();
        };
        match self.by_column {
            true => matrix.columns(&(0..matrix.outputs() as u32).collect::<Vec<_>>()),
            false => matrix.values(),
        }
    }
}
