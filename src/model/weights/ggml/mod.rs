//! Blocks of ggml: neighbouring values that share scales, as GGUF files hold them.

mod integers;
mod super_blocks;
mod tables;

use half::f16;

use crate::ops::BlockFormat;

/// A kind of blocks. All numbers are little endian; `q` is a code.
///
/// # Source
/// ggml's `ggml-common.h`; values equal those of the gguf package's `quants.dequantize` to the bit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GgmlType {
    /// 32 values `d (q - 8)` of 4 bits.
    Q4_0,
    /// 32 values `d q + m` of 4 bits.
    Q4_1,
    /// 32 values `d (q - 16)` of 5 bits.
    Q5_0,
    /// 32 values `d q + m` of 5 bits.
    Q5_1,
    /// 32 values `d q` of 8 bits.
    Q8_0,
    /// 16 times 16 values `d s q - m t` of 2 bits, `s` and `t` of 4 bits.
    Q2K,
    /// 16 times 16 values `d s q` of 3 bits, `s` of 6 bits.
    Q3K,
    /// 8 times 32 values `d s q - m t` of 4 bits, `s` and `t` of 6 bits.
    Q4K,
    /// 8 times 32 values `d s q - m t` of 5 bits, `s` and `t` of 6 bits.
    Q5K,
    /// 16 times 16 values `d s q` of 6 bits, `s` of 8 bits.
    Q6K,
    /// 32 values `d T(q)` with a table `T` of 16 integers.
    Iq4Nl,
    /// 8 times 32 values `d s T(q)` with the table of [`GgmlType::Iq4Nl`], `s` of 6 bits.
    Iq4Xs,
    /// 32 values of 4 bits, floats of two exponent bits and one mantissa bit, times a power of two.
    Mxfp4,
}

impl GgmlType {
    const ALL: [Self; 13] = [
        Self::Q4_0,
        Self::Q4_1,
        Self::Q5_0,
        Self::Q5_1,
        Self::Q8_0,
        Self::Q2K,
        Self::Q3K,
        Self::Q4K,
        Self::Q5K,
        Self::Q6K,
        Self::Iq4Nl,
        Self::Iq4Xs,
        Self::Mxfp4,
    ];

    /// The kind with ggml's number.
    pub(super) fn of_id(id: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.id() == id)
    }

    /// ggml's number.
    fn id(self) -> u32 {
        match self {
            Self::Q4_0 => 2,
            Self::Q4_1 => 3,
            Self::Q5_0 => 6,
            Self::Q5_1 => 7,
            Self::Q8_0 => 8,
            Self::Q2K => 10,
            Self::Q3K => 11,
            Self::Q4K => 12,
            Self::Q5K => 13,
            Self::Q6K => 14,
            Self::Iq4Nl => 20,
            Self::Iq4Xs => 23,
            Self::Mxfp4 => 39,
        }
    }

    /// The name as llama.cpp writes it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Q4_0 => "Q4_0",
            Self::Q4_1 => "Q4_1",
            Self::Q5_0 => "Q5_0",
            Self::Q5_1 => "Q5_1",
            Self::Q8_0 => "Q8_0",
            Self::Q2K => "Q2_K",
            Self::Q3K => "Q3_K",
            Self::Q4K => "Q4_K",
            Self::Q5K => "Q5_K",
            Self::Q6K => "Q6_K",
            Self::Iq4Nl => "IQ4_NL",
            Self::Iq4Xs => "IQ4_XS",
            Self::Mxfp4 => "MXFP4",
        }
    }

    /// Values and bytes of a block.
    pub(super) fn block(self) -> (usize, usize) {
        match self {
            Self::Q4_0 | Self::Iq4Nl => (32, 18),
            Self::Q4_1 => (32, 20),
            Self::Q5_0 => (32, 22),
            Self::Q5_1 => (32, 24),
            Self::Q8_0 => (32, 34),
            Self::Mxfp4 => (32, 17),
            Self::Q2K => (256, 84),
            Self::Q3K => (256, 110),
            Self::Q4K => (256, 144),
            Self::Q5K => (256, 176),
            Self::Q6K => (256, 210),
            Self::Iq4Xs => (256, 136),
        }
    }

    /// The format in memory of kinds whose matrices can stay in blocks; others grow to f32.
    pub(super) fn in_memory(self) -> Option<BlockFormat> {
        match self {
            Self::Q4_0 => Some(BlockFormat::Q4_0),
            Self::Q4_1 => Some(BlockFormat::Q4_1),
            Self::Q8_0 => Some(BlockFormat::Q8_0),
            _ => None,
        }
    }

    /// Converts whole blocks; what is left over of either side stays as it is.
    pub(super) fn decode(self, bytes: &[u8], out: &mut [f32]) {
        match self {
            Self::Q4_0 => each(bytes, out, integers::q4_0),
            Self::Q4_1 => each(bytes, out, integers::q4_1),
            Self::Q5_0 => each(bytes, out, integers::q5_0),
            Self::Q5_1 => each(bytes, out, integers::q5_1),
            Self::Q8_0 => each(bytes, out, integers::q8_0),
            Self::Q2K => each(bytes, out, super_blocks::q2_k),
            Self::Q3K => each(bytes, out, super_blocks::q3_k),
            Self::Q4K => each(bytes, out, super_blocks::q4_k),
            Self::Q5K => each(bytes, out, super_blocks::q5_k),
            Self::Q6K => each(bytes, out, super_blocks::q6_k),
            Self::Iq4Nl => each(bytes, out, tables::iq4_nl),
            Self::Iq4Xs => each(bytes, out, tables::iq4_xs),
            Self::Mxfp4 => each(bytes, out, tables::mxfp4),
        }
    }
}

/// Decodes `BYTES` into `VALUES` as often as there are any.
fn each<const BYTES: usize, const VALUES: usize>(
    bytes: &[u8],
    out: &mut [f32],
    decode: impl Fn(&[u8; BYTES], &mut [f32; VALUES]),
) {
    let (blocks, _) = bytes.as_chunks::<BYTES>();
    let (values, _) = out.as_chunks_mut::<VALUES>();
    for (block, values) in blocks.iter().zip(values) {
        decode(block, values);
    }
}

/// The half-precision number at a place.
fn half_at(bytes: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([bytes[at], bytes[at + 1]]).to_f32()
}

/// The low nibbles are the first half of the values, the high nibbles the second.
fn nibbles(packed: &[u8], out: &mut [f32], value: impl Fn(u8) -> f32) {
    let (low, high) = out.split_at_mut(packed.len());
    for ((&byte, low), high) in packed.iter().zip(low).zip(high) {
        *low = value(byte & 15);
        *high = value(byte >> 4);
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use serde_json::Value;
    use sha2::{Digest, Sha256};

    use super::*;

    #[test]
    fn values_are_those_of_the_gguf_package_to_the_bit() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let text = std::fs::read(root.join("tests/reference/ggml_blocks.json")).unwrap();
        let reference: Value = serde_json::from_slice(&text).unwrap();
        for kind in GgmlType::ALL {
            let expected = &reference[kind.name()];
            let hex = expected["bytes"].as_str().unwrap();
            let bytes: Vec<u8> = (0..hex.len() / 2)
                .map(|i| u8::from_str_radix(&hex[2 * i..2 * i + 2], 16).unwrap())
                .collect();
            assert_eq!(expected["id"], kind.id(), "{kind:?}");
            let (values, size) = kind.block();
            let mut found = vec![f32::NAN; bytes.len() / size * values];
            kind.decode(&bytes, &mut found);
            let first: Vec<u64> = (expected["first"].as_array().unwrap().iter())
                .map(|bits| bits.as_u64().unwrap())
                .collect();
            let bits: Vec<u64> = found.iter().map(|x| u64::from(x.to_bits())).collect();
            assert_eq!(bits[..first.len()], first, "{kind:?}");
            let hash = Sha256::digest(
                found
                    .iter()
                    .flat_map(|x| x.to_le_bytes())
                    .collect::<Vec<_>>(),
            );
            assert_eq!(expected["sha256"], format!("{hash:x}"), "{kind:?}");
        }
    }
}
