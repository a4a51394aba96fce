//! Scales of blocks, in lines of as many columns as a panel has.

use std::ops::Range;
use std::sync::Arc;

use half::f16;

use super::{BlockFormat, LANES, reordered};

/// Scales of a tensor's runs of inputs, `[panels][runs][LANES]`.
#[derive(Debug, Clone)]
pub(super) enum Scales {
    Full(Vec<[f32; LANES]>),
    Halves(Vec<[f16; LANES]>),
    HalvesWithMinima(Vec<[f16; LANES]>, Vec<[f16; LANES]>),
    Nested(Nested),
}

/// Scales that are rounded themselves, in groups of blocks.
#[derive(Debug, Clone)]
pub(super) struct Nested {
    pub(super) codes: Vec<[u8; LANES]>,
    /// Of each group of [`NESTED`] blocks of the tensor.
    pub(super) absmax: Vec<f32>,
    /// The numbers of the codes.
    pub(super) map: Arc<[f32; 256]>,
    /// Added to every scale.
    pub(super) offset: f32,
    /// The row of the tensor that each row here is: groups go by the tensor's.
    pub(super) order: Option<Arc<Vec<usize>>>,
}

/// Blocks whose scales share a scale.
pub(super) const NESTED: usize = 256;

/// What the codes of one input of a panel are multiplied with, and what is added; zero for columns that do not exist.
#[derive(Debug, Clone, Copy, Default)]
pub(in crate::ops) struct ScaleLine {
    pub(in crate::ops) scale: [f32; LANES],
    pub(in crate::ops) minimum: [f32; LANES],
}

impl Nested {
    /// The scale of the block that an entry of the tensor is in.
    #[inline(always)]
    fn scale(&self, code: u8, entry: usize) -> f32 {
        let absmax = self.absmax[entry / (NESTED * BlockFormat::Nf4.len())];
        // Two roundings, as bitsandbytes has them.
        self.map[usize::from(code)] * absmax + self.offset
    }
}

/// The same numbers in f32, without a branch or call: `half`'s own conversion asks for each number what the processor can do.
#[inline(always)]
fn widened(line: &[f16; LANES]) -> [f32; LANES] {
    const INFINITE: u32 = 0x7C00;
    let mut out = [0f32; LANES];
    for (out, half) in out.iter_mut().zip(line) {
        let bits = u32::from(half.to_bits());
        let magnitude = bits & 0x7FFF;
        // The exponents differ by 127 - 15.
        let finite = f32::from_bits(magnitude << 13) * f32::from_bits((127 + 112) << 23);
        let magnitude = match magnitude >= INFINITE {
            true => magnitude << 13 | f32::INFINITY.to_bits(),
            false => finite.to_bits(),
        };
        *out = f32::from_bits(magnitude | (bits & 0x8000) << 16);
    }
    out
}

impl Scales {
    /// A line, which is of some rows; `entry` gives the place in the tensor of a row's first number.
    #[inline(always)]
    pub(super) fn line(
        &self,
        line: usize,
        rows: Range<usize>,
        entry: impl Fn(usize) -> usize,
    ) -> ScaleLine {
        let mut out = ScaleLine::default();
        match self {
            Self::Full(scales) => out.scale = scales[line],
            Self::Halves(scales) => out.scale = widened(&scales[line]),
            Self::HalvesWithMinima(scales, minima) => {
                out.scale = widened(&scales[line]);
                out.minimum = widened(&minima[line]);
            }
            Self::Nested(nested) => {
                let lanes = rows.zip(&nested.codes[line]).zip(&mut out.scale);
                match &nested.order {
                    None => lanes.for_each(|((row, code), scale)| {
                        *scale = nested.scale(*code, entry(row));
                    }),
                    Some(order) => lanes.for_each(|((row, code), scale)| {
                        *scale = nested.scale(*code, entry(order[row]));
                    }),
                }
            }
        }
        out
    }

    pub(super) fn reordered(&self, runs: usize, order: &Arc<Vec<usize>>) -> Self {
        match self {
            Self::Full(scales) => Self::Full(reordered(scales, runs, order)),
            Self::Halves(scales) => Self::Halves(reordered(scales, runs, order)),
            Self::HalvesWithMinima(scales, minima) => Self::HalvesWithMinima(
                reordered(scales, runs, order),
                reordered(minima, runs, order),
            ),
            Self::Nested(nested) => {
                let row = |&row: &usize| match &nested.order {
                    Some(before) => before[row],
                    None => row,
                };
                let rows = order.iter().map(row).collect();
                Self::Nested(Nested {
                    codes: reordered(&nested.codes, runs, order),
                    order: Some(Arc::new(rows)),
                    ..nested.clone()
                })
            }
        }
    }

    pub(super) fn num_bytes(&self) -> usize {
        match self {
            Self::Full(scales) => size_of_val(scales.as_slice()),
            Self::Halves(scales) => size_of_val(scales.as_slice()),
            Self::HalvesWithMinima(scales, _) => 2 * size_of_val(scales.as_slice()),
            Self::Nested(nested) => {
                let order = nested
                    .order
                    .as_ref()
                    .map_or(0, |order| size_of_val(order.as_slice()));
                size_of_val(nested.codes.as_slice())
                    + size_of_val(nested.absmax.as_slice())
                    + size_of_val(nested.map.as_ref())
                    + order
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_half_is_widened_exactly() {
        for bits in 0..=u16::MAX {
            let half = f16::from_bits(bits);
            let [got, ..] = widened(&[half; LANES]);
            let same = got.to_bits() == half.to_f32().to_bits();
            assert!(same || half.is_nan() && got.is_nan(), "{bits:x}: {got}");
        }
    }
}
