//! Number formats of written GGUF files.

use half::f16;

use crate::error::Result;
use crate::model::weights::StoreAs;

/// Values of a block.
const BLOCK: usize = 32;

/// How the matrices of a GGUF file are stored. Norms and biases are f32 in all of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum TensorType {
    /// IEEE single.
    F32,
    /// IEEE half, rounded to nearest.
    F16,
    /// The upper half of a single, rounded to nearest.
    Bf16,
    /// 8 bits and a half for each 32 values.
    #[value(name = "q8_0")]
    Q8_0,
    /// 4 bits and a half for each 32 values.
    #[value(name = "q4_0")]
    Q4_0,
}

impl TensorType {
    /// ggml's number of the type.
    pub(super) fn id(self) -> u32 {
        match self {
            Self::F32 => 0,
            Self::F16 => 1,
            Self::Q4_0 => 2,
            Self::Q8_0 => 8,
            Self::Bf16 => 30,
        }
    }

    /// llama.cpp's number of a file whose matrices have this type (`general.file_type`).
    pub(super) fn file_type(self) -> u32 {
        match self {
            Self::F32 => 0,
            Self::F16 => 1,
            Self::Q4_0 => 2,
            Self::Q8_0 => 7,
            Self::Bf16 => 32,
        }
    }

    /// The name as llama.cpp writes it.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "F32",
            Self::F16 => "F16",
            Self::Bf16 => "BF16",
            Self::Q8_0 => "Q8_0",
            Self::Q4_0 => "Q4_0",
        }
    }

    /// The type of a matrix with rows of `width` values: F16 where they are not made of whole blocks.
    pub(super) fn of_rows(self, width: usize) -> Self {
        match self {
            Self::Q8_0 | Self::Q4_0 if !width.is_multiple_of(BLOCK) => Self::F16,
            other => other,
        }
    }

    /// Refuses the numbers of a tensor if the type cannot hold them.
    ///
    /// # Errors
    /// As [`StoreAs::check_range`].
    pub(super) fn check_range(self, name: &str, values: &[f32]) -> Result<()> {
        match self {
            Self::F16 => StoreAs::F16.check_range(name, values),
            _ => Ok(()),
        }
    }

    /// Bytes of `len` values.
    pub(super) fn num_bytes(self, len: usize) -> usize {
        match self {
            Self::F32 => len * 4,
            Self::F16 | Self::Bf16 => len * 2,
            Self::Q8_0 => len / BLOCK * 34,
            Self::Q4_0 => len / BLOCK * 18,
        }
    }

    /// Appends `values` in this format.
    ///
    /// # Source
    /// ggml's `quantize_row_q8_0_ref` and `quantize_row_q4_0_ref`; the product of the latter is rounded once, as the gguf package does.
    pub(super) fn encode(self, values: &[f32], out: &mut Vec<u8>) {
        match self {
            Self::F32 => StoreAs::F32.encode(values, out),
            Self::F16 => StoreAs::F16.encode(values, out),
            Self::Bf16 => StoreAs::Bf16.encode(values, out),
            Self::Q8_0 => values
                .chunks_exact(BLOCK)
                .for_each(|block| q8_0(block, out)),
            Self::Q4_0 => values
                .chunks_exact(BLOCK)
                .for_each(|block| q4_0(block, out)),
        }
    }
}

fn inverse(scale: f32) -> f32 {
    match scale == 0.0 {
        true => 0.0,
        false => 1.0 / scale,
    }
}

fn q8_0(block: &[f32], out: &mut Vec<u8>) {
    let largest = block.iter().fold(0.0f32, |most, x| most.max(x.abs()));
    let scale = largest / 127.0;
    let inverse = inverse(scale);
    out.extend(f16::from_f32(scale).to_le_bytes());
    let code = |x: &f32| ((x * inverse).round() as i8).cast_unsigned();
    out.extend(block.iter().map(code));
}

fn q4_0(block: &[f32], out: &mut Vec<u8>) {
    // The first of the largest ones, with its sign: it becomes code 0.
    let largest = block
        .iter()
        .fold(0.0f32, |most, &x| match x.abs() > most.abs() {
            true => x,
            false => most,
        });
    let scale = largest / -8.0;
    let inverse = f64::from(inverse(scale));
    out.extend(f16::from_f32(scale).to_le_bytes());
    let code = |x: f32| ((f64::from(x) * inverse + 8.5) as f32).clamp(0.0, 15.0) as u8;
    let (low, high) = block.split_at(BLOCK / 2);
    out.extend(
        low.iter()
            .zip(high)
            .map(|(&low, &high)| code(low) | code(high) << 4),
    );
}

#[cfg(test)]
mod tests {
    use sha2::{Digest, Sha256};

    use super::*;

    #[test]
    fn blocks_are_those_of_the_gguf_package_to_the_bit() {
        // gguf 0.19, `quants.quantize` of the same values; the third block is zeros.
        let value = |i: usize| match i / BLOCK {
            2 => 0.0,
            block => ((i * 37 % 101) as f32 - 50.0) / 16.0 * (1 + block % 3) as f32,
        };
        let values: Vec<f32> = (0..5 * BLOCK).map(value).collect();
        for (kind, expected) in [
            (
                TensorType::Q8_0,
                "d144eb47d8cc9cbd64ffcca1b524e1bc15d3ec677de0bd7110ca217e2c3f62b2",
            ),
            (
                TensorType::Q4_0,
                "4a1596cabaaf6ed0dd841639bfed54391e9b6a20509492b9db51687b950d4242",
            ),
        ] {
            let mut bytes = Vec::new();
            kind.encode(&values, &mut bytes);
            assert_eq!(bytes.len(), kind.num_bytes(values.len()));
            assert_eq!(
                format!("{:x}", Sha256::digest(&bytes)),
                expected,
                "{kind:?}"
            );
        }
    }
}
