//! The fused products of LoRA: all low-rank products of a projection beside its weight, as one operation.

use burn::tensor::Tensor;
use burn::tensor::backend::Backend;

use super::{Adapter, LayerSpec, Lora};
use crate::ops::LowRankPart;

/// Low-rank matrices as [`crate::ops::lora_linear`] takes them.
pub(super) struct LowRank<B: Backend> {
    pub(super) a: Tensor<B, 2>,
    pub(super) b: Tensor<B, 1>,
    pub(super) parts: Vec<LowRankPart>,
    /// Whose each part is.
    pub(super) owners: Vec<usize>,
}

/// The adapters of a projection if LoRA's are all that it has, and one per layer.
pub(super) fn low_rank_adapters<B: Backend>(
    adapters: &[Option<Adapter<B>>],
) -> Option<Vec<Option<&Lora<B>>>> {
    let adapters = adapters.iter().map(|adapter| match adapter {
        Some(Adapter::Lora(lora)) => Some(Some(lora)),
        Some(_) => None,
        None => Some(None),
    });
    adapters.collect()
}

impl<B: Backend> LowRank<B> {
    /// The adapters of `models` on `layers`, from left to right, in each column those of one model after the other.
    pub(super) fn new(layers: &[LayerSpec], models: &[Vec<Option<&Lora<B>>>]) -> Self {
        let (mut a, mut b, mut parts) = (Vec::new(), Vec::new(), Vec::new());
        let (mut column, mut owners) = (0, Vec::new());
        for (index, layer) in layers.iter().enumerate() {
            for (owner, adapters) in models.iter().enumerate() {
                let Some(lora) = adapters[index] else {
                    continue;
                };
                owners.push(owner);
                let rank = lora.rank();
                parts.push(LowRankPart {
                    rank,
                    scale: lora.scale as f32,
                    column,
                    width: layer.width,
                });
                a.push(lora.a.val());
                b.push(lora.b.val().reshape([rank * layer.width]));
            }
            column += layer.width;
        }
        Self {
            a: join(a, 1),
            b: join(b, 0),
            parts,
            owners,
        }
    }
}

/// One tensor of several, side by side along `dim`.
fn join<B: Backend, const D: usize>(mut tensors: Vec<Tensor<B, D>>, dim: usize) -> Tensor<B, D> {
    match tensors.len() {
        1 => tensors.remove(0),
        _ => Tensor::cat(tensors, dim),
    }
}
