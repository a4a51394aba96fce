//! All VeRA adapters of a projection at once: low-rank products beside its weight, in one operation.

use burn::tensor::Tensor;
use burn::tensor::backend::Backend;

use super::Vera;
use crate::ops::{LowRankPart, ModelBackend, f32_matmul};
use crate::peft::projection::all_of;
use crate::peft::{Adapter, LayerSpec};

/// Rows from which on the second matrices are scaled by column before the product. Below, as in decoding, that would take longer than
/// to scale the product, and the shared matrix stays in the cache.
const MANY_ROWS: usize = 64;

/// Low-rank products as [`crate::ops::low_rank_linear`] takes them.
pub(in crate::peft) struct Products<B: Backend> {
    pub(in crate::peft) t: Tensor<B, 2>,
    pub(in crate::peft) b: Tensor<B, 1>,
    pub(in crate::peft) parts: Vec<LowRankPart>,
}

/// The adapters of a projection if VeRA's are all that it has, and one per layer.
pub(in crate::peft) fn vera_adapters<B: Backend>(
    adapters: &[Option<Adapter<B>>],
) -> Option<Vec<Option<&Vera<B>>>> {
    all_of(adapters, |adapter| match adapter {
        Adapter::Vera(vera) => Some(vera),
        _ => None,
    })
}

impl<B: ModelBackend> Products<B> {
    /// Those of `x`, the input of all `layers`, which is multiplied with the shared matrix once. `None` for few rows, and where
    /// there is no adapter.
    pub(in crate::peft) fn new(
        x: Tensor<B, 2>,
        layers: &[LayerSpec],
        adapters: &[Option<&Vera<B>>],
    ) -> Option<Self> {
        if x.dims()[0] < MANY_ROWS {
            return None;
        }
        // Layers with as many inputs have the same leading part of it.
        let shared = adapters.iter().flatten().next()?.a.clone();
        let inner = f32_matmul(x, shared);
        let (mut t, mut b) = (Vec::new(), Vec::new());
        let (mut parts, mut column) = (Vec::new(), 0);
        for (layer, vera) in layers.iter().zip(adapters) {
            if let Some(vera) = vera {
                let (rank, width) = (vera.rank(), layer.width);
                t.push(inner.clone() * vera.lambda_d.val().unsqueeze::<2>());
                let scaled = vera.b.clone() * vera.lambda_b.val().unsqueeze::<2>();
                b.push(scaled.reshape([rank * width]));
                parts.push(LowRankPart {
                    rank,
                    scale: 1.0,
                    column,
                    width,
                });
            }
            column += layer.width;
        }
        Some(Self {
            t: Tensor::cat(t, 1),
            b: Tensor::cat(b, 0),
            parts,
        })
    }
}
