//! Weights in fewer bits in device memory, where they lie packed from their first use on.

use std::sync::Arc;

use burn::tensor::DType;
use burn_cubecl::CubeRuntime;
use burn_cubecl::tensor::CubeTensor;

use super::words::{BF16, BYTES, F32, Kind, NF4, Q4_0, Q4_1, QUANTILES, per_word};
use crate::ops::reduced::{BlockFormat, BlockMatrix, GROUP, Panels};
use crate::ops::{Precision, ReducedMatrix};

/// A matrix `[inputs, outputs]` in device memory.
pub(super) struct Packed<R: CubeRuntime> {
    /// `[inputs, words]`, numbers of neighbouring columns in a word, lower bits first.
    pub(super) words: CubeTensor<R>,
    /// NF4's numbers where codes are its, then `[runs, outputs]` scales, then as many minima where the kind has them; the words again
    /// where there is nothing of this.
    pub(super) scales: CubeTensor<R>,
    /// What the words hold.
    pub(super) kind: Kind,
    pub(super) outputs: usize,
    /// Inputs that share a scale.
    pub(super) run: usize,
}

impl<R: CubeRuntime> Packed<R> {
    /// The copy on the device of `like`.
    pub(super) fn of(weight: &ReducedMatrix, like: &CubeTensor<R>) -> Arc<Self> {
        weight.resident(
            |packed: &Self| packed.words.device == like.device,
            || Self::upload(weight, like),
        )
    }

    /// A contiguous row-major matrix as one with a number in each word.
    pub(super) fn of_f32(matrix: &CubeTensor<R>) -> Self {
        let (client, device) = (matrix.client.clone(), matrix.device.clone());
        let (shape, handle) = (matrix.meta.shape().clone(), matrix.handle.clone());
        let outputs = shape.dims::<2>()[1];
        let words = CubeTensor::new_contiguous(client, device, shape, handle, DType::U32);
        Self {
            scales: words.clone(),
            words,
            kind: F32,
            outputs,
            run: GROUP,
        }
    }

    fn upload(weight: &ReducedMatrix, like: &CubeTensor<R>) -> Self {
        let (inputs, outputs) = (weight.inputs(), weight.outputs());
        let kind = match weight.panels() {
            Panels::Bf16(_) => BF16,
            Panels::Int8(_) => BYTES,
            Panels::Blocks(matrix) => match alike(matrix) {
                Some((format, run)) if inputs * outputs > 0 => {
                    return Self::upload_blocks(matrix, format, run, like);
                }
                _ => F32,
            },
        };
        let row_bytes = outputs.div_ceil(per_word(kind)) * 4;
        let mut bytes = vec![0u8; inputs * row_bytes];
        let mut scales = Vec::new();
        let rows = bytes.chunks_exact_mut(row_bytes.max(1)).enumerate();
        match weight.panels() {
            Panels::Bf16(_) => {
                let mut row = vec![0f32; outputs];
                for (k, out) in rows {
                    weight.row_part(k, 0..outputs, &mut row);
                    for (out, x) in out.chunks_exact_mut(2).zip(&row) {
                        out.copy_from_slice(&half::bf16::from_f32(*x).to_le_bytes());
                    }
                }
            }
            Panels::Blocks(_) => {
                let mut row = vec![0f32; outputs];
                for (k, out) in rows {
                    weight.row_part(k, 0..outputs, &mut row);
                    out.copy_from_slice(bytemuck::cast_slice(&row));
                }
            }
            Panels::Int8(panels) => {
                for (k, out) in rows {
                    for (column, out) in out.iter_mut().enumerate().take(outputs) {
                        *out = panels.number(k, column) as u8;
                    }
                }
                for group in 0..panels.groups {
                    scales.extend((0..outputs).map(|column| panels.scale(group, column)));
                }
            }
        }
        Self::new(&bytes, &scales, [inputs, outputs], (kind, GROUP), like)
    }

    fn upload_blocks(
        matrix: &BlockMatrix,
        format: BlockFormat,
        run: usize,
        like: &CubeTensor<R>,
    ) -> Self {
        let (inputs, outputs) = (matrix.inputs(), matrix.outputs());
        let (kind, bits) = (kind(format), format.bits());
        let per_word = per_word(kind);
        let row_words = outputs.div_ceil(per_word);
        let mut words = vec![0u32; inputs * row_words];
        let runs = inputs / run;
        let lines = runs * outputs;
        let minima = if kind == Q4_1 { lines } else { 0 };
        let mut scales = match kind {
            NF4 => BlockFormat::QUANTILES.to_vec(),
            _ => Vec::new(),
        };
        let first = scales.len();
        scales.resize(first + lines + minima, 0.0);
        let mut column = 0;
        for blocks in matrix.pieces() {
            for row in 0..blocks.outputs() {
                for k in 0..inputs {
                    let code = blocks.code(k, row) << (column % per_word * bits);
                    words[k * row_words + column / per_word] |= code;
                }
                for line in 0..runs {
                    let (scale, minimum) = blocks.scale(line * run, row);
                    let at = first + line * outputs + column;
                    scales[at] = scale;
                    if minima > 0 {
                        scales[lines + at] = minimum;
                    }
                }
                column += 1;
            }
        }
        let words: &[u8] = bytemuck::cast_slice(&words);
        Self::new(words, &scales, [inputs, outputs], (kind, run), like)
    }

    fn new(
        words: &[u8],
        scales: &[f32],
        [inputs, outputs]: [usize; 2],
        (kind, run): (Kind, usize),
        like: &CubeTensor<R>,
    ) -> Self {
        let new = |bytes: &[u8], shape: [usize; 2], dtype| {
            let handle = like.client.create_from_slice(bytes);
            let (client, device) = (like.client.clone(), like.device.clone());
            CubeTensor::new_contiguous(client, device, shape.into(), handle, dtype)
        };
        let row_words = outputs.div_ceil(per_word(kind));
        let words = new(words, [inputs, row_words], DType::U32);
        let scales = match scales.is_empty() {
            true => words.clone(),
            false => new(bytemuck::cast_slice(scales), [1, scales.len()], DType::F32),
        };
        Self {
            words,
            scales,
            kind,
            outputs,
            run,
        }
    }

    /// The words as a bfloat16 matrix, if rows end where words do.
    pub(super) fn as_bf16(&self, weight: &ReducedMatrix) -> Option<CubeTensor<R>> {
        let shape = [weight.inputs(), weight.outputs()];
        let words = &self.words;
        (weight.precision() == Precision::Bf16 && shape[1].is_multiple_of(2)).then(|| {
            let (client, device) = (words.client.clone(), words.device.clone());
            let handle = words.handle.clone();
            CubeTensor::new_contiguous(client, device, shape.into(), handle, DType::BF16)
        })
    }
}

/// Format and run of a matrix in blocks of one kind; `None` for several.
fn alike(matrix: &BlockMatrix) -> Option<(BlockFormat, usize)> {
    let mut pieces = (matrix.pieces()).map(|piece| (piece.format(), piece.run()));
    let first = pieces.next()?;
    pieces.all(|piece| piece == first).then_some(first)
}

fn kind(format: BlockFormat) -> Kind {
    match format {
        BlockFormat::Nf4 => NF4,
        BlockFormat::Q4_0 => Q4_0,
        BlockFormat::Q4_1 => Q4_1,
        BlockFormat::Q8_0 => BYTES,
    }
}

const _: () = assert!(BlockFormat::QUANTILES.len() == QUANTILES);
