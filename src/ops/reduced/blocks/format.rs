//! How the numbers of a block are written.

use half::f16;

use super::nf4::NF4;

/// How the numbers of a block are written.
///
/// # Source
/// NF4: Dettmers et al. 2023, arXiv:2305.14314, section 3, as bitsandbytes computes it. The others are ggml's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BlockFormat {
    /// 64 numbers: quantiles of a normal distribution in 4 bits, times the block's largest absolute value, which is itself
    /// in 8 bits.
    Nf4,
    /// 32 numbers: `d * (q - 8)`, q in 0..=15.
    Q4_0,
    /// 32 numbers: `d * q + m`, q in 0..=15.
    Q4_1,
    /// 32 numbers: `d * q`, q in -127..=127.
    Q8_0,
}

/// A rounded block.
pub(super) struct Quantized {
    pub(super) codes: Vec<u8>,
    pub(super) scale: f16,
    pub(super) minimum: f16,
}

impl BlockFormat {
    /// The name, as files spell it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Nf4 => "nf4",
            Self::Q4_0 => "Q4_0",
            Self::Q4_1 => "Q4_1",
            Self::Q8_0 => "Q8_0",
        }
    }

    /// Numbers of a block.
    pub(in crate::ops) const fn len(self) -> usize {
        match self {
            Self::Nf4 => 64,
            Self::Q4_0 | Self::Q4_1 | Self::Q8_0 => 32,
        }
    }

    /// Bits of a code.
    pub(in crate::ops) const fn bits(self) -> usize {
        match self {
            Self::Nf4 | Self::Q4_0 | Self::Q4_1 => 4,
            Self::Q8_0 => 8,
        }
    }

    /// Codes of a word of 32 bits.
    pub(in crate::ops) const fn per_word(self) -> usize {
        32 / self.bits()
    }

    /// Bytes of one number, its share of the scales included.
    pub fn bytes(self) -> f64 {
        let scales = match self {
            // A byte for each block, and four for 256 of those.
            Self::Nf4 => 1.0 + 4.0 / 256.0,
            Self::Q4_0 | Self::Q8_0 => 2.0,
            Self::Q4_1 => 4.0,
        };
        self.bits() as f64 / 8.0 + scales / self.len() as f64
    }

    /// Bytes before the codes of a block in a GGUF file.
    pub(super) fn gguf_header(self) -> usize {
        match self {
            Self::Nf4 => unreachable!("GGUF files have no NF4 blocks"),
            Self::Q4_0 | Self::Q8_0 => 2,
            Self::Q4_1 => 4,
        }
    }

    /// Bytes of a block in a GGUF file.
    pub(super) fn gguf_bytes(self) -> usize {
        self.gguf_header() + self.len() * self.bits() / 8
    }

    /// The numbers of NF4 codes in a block whose largest absolute value is 1.
    pub const QUANTILES: [f32; 16] = NF4;

    /// The numbers of codes of four bits, before scaling.
    ///
    /// # Panics
    /// For codes of eight bits.
    #[inline(always)]
    pub(in crate::ops) fn table(self) -> [f32; 16] {
        const PLAIN: [f32; 16] = [
            0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0, 11.0, 12.0, 13.0, 14.0, 15.0,
        ];
        const CENTRED: [f32; 16] = [
            -8.0, -7.0, -6.0, -5.0, -4.0, -3.0, -2.0, -1.0, 0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0,
        ];
        match self {
            Self::Nf4 => NF4,
            Self::Q4_0 => CENTRED,
            Self::Q4_1 => PLAIN,
            Self::Q8_0 => unreachable!("codes of eight bits are numbers"),
        }
    }

    /// The number of a code.
    #[inline(always)]
    pub(in crate::ops) fn value(self, code: u32, scale: f32, minimum: f32) -> f32 {
        match self {
            Self::Nf4 => NF4[code as usize % NF4.len()] * scale,
            Self::Q4_0 => scale * (code as f32 - 8.0),
            // Two roundings, as the reference has them.
            Self::Q4_1 => scale * code as f32 + minimum,
            Self::Q8_0 => scale * f32::from(code as u8 as i8),
        }
    }

    /// ggml's reference rounding of a block.
    pub(super) fn quantize(self, values: &[f32]) -> Quantized {
        let inverse = |scale: f32| if scale == 0.0 { 0.0 } else { 1.0 / scale };
        let largest = |values: &[f32]| {
            values
                .iter()
                .fold(0f32, |most, &x| match x.abs() > most.abs() {
                    true => x,
                    false => most,
                })
        };
        let (scale, minimum, codes): (f32, f32, Vec<u8>) = match self {
            Self::Nf4 => unreachable!("a block of NF4 is rounded with its tensor"),
            Self::Q4_0 => {
                let scale = largest(values) / -8.0;
                let inverse = inverse(scale);
                let code = |x: &f32| (x * inverse + 8.5).min(15.0) as u8;
                (scale, 0.0, values.iter().map(code).collect())
            }
            Self::Q4_1 => {
                let minimum = values.iter().copied().fold(f32::INFINITY, f32::min);
                let maximum = values.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                let scale = (maximum - minimum) / 15.0;
                let inverse = inverse(scale);
                let code = |x: &f32| ((x - minimum) * inverse + 0.5).min(15.0) as u8;
                (scale, minimum, values.iter().map(code).collect())
            }
            Self::Q8_0 => {
                let scale = largest(values).abs() / 127.0;
                let inverse = inverse(scale);
                let code = |x: &f32| (x * inverse).round() as i8 as u8;
                (scale, 0.0, values.iter().map(code).collect())
            }
        };
        Quantized {
            codes,
            scale: f16::from_f32(scale),
            minimum: f16::from_f32(minimum),
        }
    }
}
