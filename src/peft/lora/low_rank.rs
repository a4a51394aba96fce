//! The fused products of LoRA: all low-rank products of a projection beside its weight, as one operation.

use burn::tensor::Tensor;
use burn::tensor::backend::Backend;

use super::Lora;
use crate::ops::LowRankPart;
use crate::peft::projection::all_of;
use crate::peft::{Adapter, LayerSpec};

/// Low-rank matrices as [`crate::ops::lora_linear`] takes them.
pub(in crate::peft) struct LowRank<B: Backend> {
    pub(in crate::peft) a: Tensor<B, 2>,
    pub(in crate::peft) b: Tensor<B, 1>,
    pub(in crate::peft) parts: Vec<LowRankPart>,
    /// Whose each part is.
    pub(in crate::peft) owners: Vec<usize>,
}

/// The adapters of a projection if LoRA's are all that it has, and one per layer.
pub(in crate::peft) fn low_rank_adapters<B: Backend>(
    adapters: &[Option<Adapter<B>>],
) -> Option<Vec<Option<&Lora<B>>>> {
    all_of(adapters, |adapter| match adapter {
        Adapter::Lora(lora) => Some(lora),
        _ => None,
    })
}

impl<B: Backend> LowRank<B> {
    /// The adapters of `models` on `layers`, from left to right, in each column those of one model after the other.
    pub(in crate::peft) fn new(layers: &[LayerSpec], models: &[Vec<Option<&Lora<B>>>]) -> Self {
        let (mut a, mut b, mut parts) = (Vec::new(), Vec::new(), Vec::new());
        let (mut column, mut owners) = (0, Vec::new());
        for (index, layer) in layers.iter().enumerate() {
            for (owner, adapters) in models.iter().enumerate() {
                let Some(lora) = adapters[index] else {
                    continue;
                };
                owners.push(owner);
                let (down, up) = lora.matrices();
                let [_, rank] = down.dims();
                parts.push(LowRankPart {
                    rank,
                    scale: lora.scale as f32,
                    column,
                    width: layer.width,
                });
                a.push(down);
                b.push(up.reshape([rank * layer.width]));
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

/// What the up projections' biases add to the joint output, `[1, sum of out]`; `None` if there are none.
pub(in crate::peft) fn added_bias<B: Backend>(
    layers: &[LayerSpec],
    adapters: &[Option<&Lora<B>>],
) -> Option<Tensor<B, 2>> {
    let biases: Vec<_> = (adapters.iter())
        .map(|adapter| adapter.and_then(Lora::added_bias))
        .collect();
    let device = biases.iter().flatten().next()?.device();
    let parts = biases.into_iter().zip(layers);
    let parts =
        parts.map(|(bias, layer)| bias.unwrap_or_else(|| Tensor::zeros([1, layer.width], &device)));
    Some(join(parts.collect(), 1))
}
