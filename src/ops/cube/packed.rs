//! Weights in fewer bits in device memory, where they lie packed from their first use on.

use burn::tensor::DType;
use burn_cubecl::CubeRuntime;
use burn_cubecl::tensor::CubeTensor;

use crate::ops::reduced::Panels;
use crate::ops::{Precision, ReducedMatrix};

/// A matrix `[inputs, outputs]` in device memory.
pub(super) struct Packed<R: CubeRuntime> {
    /// `[inputs, words]`, one f32, two bfloat16 or four 8-bit numbers of neighbouring columns in a word, lower bits first.
    pub(super) words: CubeTensor<R>,
    /// `[groups, outputs]`; the words again where there are none.
    pub(super) scales: CubeTensor<R>,
}

/// Numbers in a word.
pub(super) fn per_word(precision: Precision) -> usize {
    match precision {
        Precision::Int8 => 4,
        Precision::Bf16 => 2,
        _ => 1,
    }
}

impl<R: CubeRuntime> Packed<R> {
    /// The copy on the device of `like`.
    pub(super) fn of(weight: &ReducedMatrix, like: &CubeTensor<R>) -> std::sync::Arc<Self> {
        weight.resident(
            |packed: &Self| packed.words.device == like.device,
            || Self::upload(weight, like),
        )
    }

    fn upload(weight: &ReducedMatrix, like: &CubeTensor<R>) -> Self {
        let (inputs, outputs) = (weight.inputs(), weight.outputs());
        let row_bytes = outputs.div_ceil(per_word(weight.precision())) * 4;
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
        let new = |bytes: &[u8], shape: [usize; 2], dtype| {
            let handle = like.client.create_from_slice(bytes);
            let (client, device) = (like.client.clone(), like.device.clone());
            CubeTensor::new_contiguous(client, device, shape.into(), handle, dtype)
        };
        let words = new(&bytes, [inputs, row_bytes / 4], DType::U32);
        let scales = match scales.is_empty() {
            true => words.clone(),
            false => {
                let shape = [scales.len() / outputs, outputs];
                let bytes: Vec<u8> = scales.into_iter().flat_map(f32::to_ne_bytes).collect();
                new(&bytes, shape, DType::F32)
            }
        };
        Self { words, scales }
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
