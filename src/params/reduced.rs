//! Parameters in reduced precision.

use crate::ops::{BlockFormat, Blocks, Numerics, Precision, ReducedMatrix};

use super::{ParamMeta, transpose};

/// A tensor as it comes from a file.
#[derive(Debug)]
pub enum StoredTensor {
    /// Numbers in the file's layout.
    Values(Vec<f32>),
    /// A matrix in blocks, `[out, in]` whatever the file's layout.
    Blocks(Blocks),
}

impl From<Vec<f32>> for StoredTensor {
    fn from(values: Vec<f32>) -> Self {
        Self::Values(values)
    }
}

impl StoredTensor {
    /// The numbers in the file's layout: `[out, in]` if that is `transposed`, `[in, out]` otherwise.
    pub(super) fn into_values(self, transposed: bool) -> Vec<f32> {
        match self {
            Self::Values(values) => values,
            Self::Blocks(blocks) if transposed => blocks.values(),
            Self::Blocks(blocks) => transpose(&blocks.values(), blocks.outputs(), blocks.inputs()),
        }
    }
}

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

    /// How it is kept.
    pub fn storage(&self) -> Precision {
        self.numerics.storage
    }

    /// Whether blocks of a file are kept as they are.
    pub(super) fn keeps_blocks(&self) -> bool {
        matches!(self.numerics.storage, Precision::Nf4 | Precision::Stored)
    }

    pub(super) fn shape(&self) -> [usize; 2] {
        let shape = self.matrix.as_ref().map(|m| [m.inputs(), m.outputs()]);
        let [inputs, outputs] = shape.unwrap_or([0, 0]);
        match self.by_column {
            true => [outputs, inputs],
            false => [inputs, outputs],
        }
    }

    /// Takes the numbers of a parameter of `shape`; `false` if they are not kept in fewer bits.
    #[must_use]
    pub(super) fn fill(&mut self, values: &[f32], shape: &[usize]) -> bool {
        let storage = self.numerics.storage;
        let matrix = match (self.by_column, storage) {
            (true, Precision::Nf4) => {
                let table = Blocks::quantize(BlockFormat::Q8_0, values, [shape[0], shape[1]]);
                Some(ReducedMatrix::of_blocks(vec![table]))
            }
            (_, Precision::Stored) if !values.iter().all(|x| x.to_bits() << 16 == 0) => None,
            (true, _) => {
                let storage = stored_as(storage);
                ReducedMatrix::of_transpose(values, shape[1], shape[0], storage)
            }
            (false, _) => ReducedMatrix::new(values, shape[0], shape[1], stored_as(storage)),
        };
        self.keep(matrix)
    }

    /// Takes the tensors of a parameter, which is [`Reduced::keeps_blocks`]; gives them back if they are not kept in fewer
    /// bits.
    pub(super) fn fill_blocks(
        &mut self,
        meta: &ParamMeta,
        tensors: Vec<StoredTensor>,
    ) -> Result<(), Vec<StoredTensor>> {
        let all = tensors.iter().all(|t| matches!(t, StoredTensor::Blocks(_)));
        let rounds = self.numerics.storage == Precision::Nf4 && !self.by_column;
        if !all && !rounds {
            return Err(tensors);
        }
        let widths = meta.pieces.iter().map(|(_, columns)| *columns);
        let blocks = tensors.into_iter().zip(widths).map(|(tensor, outputs)| {
            let blocks = match tensor {
                StoredTensor::Blocks(blocks) if rounds && blocks.format() != BlockFormat::Nf4 => {
                    let shape = [blocks.outputs(), blocks.inputs()];
                    Blocks::quantize(BlockFormat::Nf4, &blocks.values(), shape)
                }
                StoredTensor::Blocks(blocks) => blocks,
                StoredTensor::Values(values) => {
                    let inputs = values.len() / outputs.max(1);
                    let rows = match meta.transposed {
                        true => values,
                        false => transpose(&values, inputs, outputs),
                    };
                    Blocks::quantize(BlockFormat::Nf4, &rows, [outputs, inputs])
                }
            };
            match &meta.order {
                Some(order) => blocks.reordered(order),
                None => blocks,
            }
        });
        let matrix = ReducedMatrix::of_blocks(blocks.collect());
        self.keep(Some(matrix));
        Ok(())
    }

    fn keep(&mut self, matrix: Option<ReducedMatrix>) -> bool {
        self.matrix = matrix.map(|matrix| matrix.with_matmul(self.numerics.matmul));
        self.matrix.is_some()
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

/// How numbers that are not in blocks are kept.
fn stored_as(storage: Precision) -> Precision {
    match storage {
        Precision::Stored => Precision::Bf16,
        other => other,
    }
}
