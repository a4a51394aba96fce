//! Stored number formats and their conversion to f32.

use std::fmt;

use half::{bf16, f16};

use super::ggml::GgmlType;
use crate::ops::BlockFormat;

/// Stored number format of a tensor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Dtype {
    /// IEEE single.
    F32,
    /// IEEE half.
    F16,
    /// The upper half of a single.
    Bf16,
    /// Blocks of a GGUF file.
    Ggml(GgmlType),
    /// bitsandbytes' 4 bits, in blocks of 64 whose scales are tensors of their own; read with them alone.
    Nf4,
    /// An unsupported type.
    Other(String),
}

impl Dtype {
    /// Values and bytes per block; `None` for an unsupported type.
    pub fn block(&self) -> Option<(usize, usize)> {
        match self {
            Self::F32 => Some((1, 4)),
            Self::F16 | Self::Bf16 => Some((1, 2)),
            Self::Ggml(kind) => Some(kind.block()),
            Self::Nf4 | Self::Other(_) => None,
        }
    }

    /// The format of a type whose matrices can stay in blocks in memory.
    pub fn blocks(&self) -> Option<BlockFormat> {
        match self {
            Self::Ggml(kind) => kind.in_memory(),
            Self::Nf4 => Some(BlockFormat::Nf4),
            Self::F32 | Self::F16 | Self::Bf16 | Self::Other(_) => None,
        }
    }

    /// Bytes of `len` values; `None` if the type is unsupported, `len` is not a multiple of the block, or the size overflows.
    pub fn num_bytes(&self, len: usize) -> Option<u64> {
        let (values, bytes) = self.block()?;
        if !len.is_multiple_of(values) {
            return None;
        }
        ((len / values) as u64).checked_mul(bytes as u64)
    }

    /// What to say of a tensor of an unsupported type, and what to do.
    pub(super) fn unsupported(&self) -> String {
        let name = self.to_string();
        let supported = "F32, F16, BF16, in GGUF Q8_0, Q4_0, Q4_1, Q5_0, Q5_1, Q2_K to Q6_K, IQ4_NL, IQ4_XS, MXFP4, and \
                         bitsandbytes' nf4";
        let help = match ["IQ", "TQ", "NVFP4", "Q1_"]
            .iter()
            .any(|of_ggml| name.starts_with(of_ggml))
        {
            true => {
                "; use another file of the model (Q4_K_M, Q8_0, ..), or write this one anew: \
                 llama-quantize --allow-requantize IN.gguf OUT.gguf Q8_0"
            }
            false => "",
        };
        format!("type {name} is not supported; supported are {supported}{help}")
    }

    /// Converts whole blocks.
    ///
    /// # Panics
    /// If the lengths of `bytes` and `out` do not correspond, or the type is unsupported.
    pub(super) fn decode(&self, bytes: &[u8], out: &mut [f32]) {
        assert_eq!(
            self.num_bytes(out.len()),
            Some(bytes.len() as u64),
            "bytes and values must correspond"
        );
        match self {
            Self::F32 => {
                for (x, b) in out.iter_mut().zip(bytes.as_chunks().0) {
                    *x = f32::from_le_bytes(*b);
                }
            }
            Self::F16 => {
                for (x, b) in out.iter_mut().zip(bytes.as_chunks().0) {
                    *x = f16::from_le_bytes(*b).to_f32();
                }
            }
            Self::Bf16 => {
                for (x, b) in out.iter_mut().zip(bytes.as_chunks().0) {
                    *x = bf16::from_le_bytes(*b).to_f32();
                }
            }
            Self::Ggml(kind) => kind.decode(bytes, out),
            Self::Nf4 | Self::Other(_) => unreachable!("num_bytes refused the type above"),
        }
    }
}

impl fmt::Display for Dtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::F32 => "F32",
            Self::F16 => "F16",
            Self::Bf16 => "BF16",
            Self::Ggml(kind) => kind.name(),
            Self::Nf4 => "NF4",
            Self::Other(name) => name,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decoded<const N: usize>(dtype: &Dtype, bytes: &[u8]) -> [f32; N] {
        let mut out = [0.0; N];
        dtype.decode(bytes, &mut out);
        out
    }

    #[test]
    fn plain_types_are_exact() {
        assert_eq!(decoded::<1>(&Dtype::F32, &1.5f32.to_le_bytes()), [1.5]);
        // 0x3e00 is 1.5 in f16, 0xbfc0 is -1.5 in bf16.
        assert_eq!(decoded::<1>(&Dtype::F16, &[0x00, 0x3e]), [1.5]);
        assert_eq!(decoded::<1>(&Dtype::Bf16, &[0xc0, 0xbf]), [-1.5]);
    }

    #[test]
    fn sizes_count_whole_blocks() {
        let q4_1 = Dtype::Ggml(GgmlType::Q4_1);
        assert_eq!(q4_1.num_bytes(64), Some(40));
        assert_eq!(q4_1.num_bytes(33), None);
        assert_eq!(Dtype::Other("I64".into()).num_bytes(1), None);
    }

    #[test]
    fn types_that_are_not_read_name_a_way_out() {
        let said = |name: &str| Dtype::Other(name.into()).unsupported();
        assert!(said("IQ2_XXS").starts_with("type IQ2_XXS is not supported"));
        assert!(said("TQ1_0").ends_with("llama-quantize --allow-requantize IN.gguf OUT.gguf Q8_0"));
        assert!(said("I64").ends_with("nf4"));
    }
}
