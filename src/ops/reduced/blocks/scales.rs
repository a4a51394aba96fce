//! Scales of blocks, in lines of as many columns as a panel has.

use std::sync::Arc;

use half::f16;

use super::{LANES, reordered};

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

impl Scales {
    /// The row of the tensor that is row `row` here.
    #[inline(always)]
    pub(super) fn row(&self, row: usize) -> usize {
        match self {
            Self::Nested(Nested {
                order: Some(order), ..
            }) => order[row],
            _ => row,
        }
    }

    /// A line of which `lanes` exist; `block` says which block of the tensor a lane is of.
    #[inline(always)]
    pub(super) fn line(
        &self,
        line: usize,
        lanes: usize,
        block: impl Fn(usize) -> usize,
    ) -> ScaleLine {
        let mut out = ScaleLine::default();
        match self {
            Self::Full(scales) => out.scale = scales[line],
            Self::Halves(scales) => out.scale = scales[line].map(f16::to_f32),
            Self::HalvesWithMinima(scales, minima) => {
                out.scale = scales[line].map(f16::to_f32);
                out.minimum = minima[line].map(f16::to_f32);
            }
            Self::Nested(nested) => {
                for (lane, code) in nested.codes[line].iter().enumerate().take(lanes) {
                    let absmax = nested.absmax[block(lane) / NESTED];
                    // Two roundings, as bitsandbytes has them.
                    out.scale[lane] = nested.map[usize::from(*code)] * absmax + nested.offset;
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
                let rows = order.iter().map(|&row| self.row(row)).collect();
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
