//! DoRA: the norm of each output's weights is trained by itself, the low-rank product changes their direction.
//!
//! `y_j = m_j / |w_j + delta_j| * (x . (w_j + delta_j)) + bias_j` for column `j`, with the norm taken for a constant in the backward
//! pass.
//!
//! # Source
//! Liu et al. 2024, arXiv:2402.09353, sections 4.1 and 4.3; PEFT 0.21, `DoraLinearLayer`.

use burn::module::{Module, Param, ParamId};
use burn::tensor::Tensor;
use burn::tensor::backend::Backend;

use super::Lora;
use crate::ops::{ModelBackend, f32_matmul};

/// Smallest square of a norm: columns of zeros stay zeros, where PEFT divides by zero.
const LEAST: f64 = 1e-30;

/// Norms of a layer's columns.
#[derive(Module, Debug)]
pub struct Magnitude<B: Backend> {
    /// `[out]`, trained; the norms of the weight at the start.
    pub values: Param<Tensor<B, 1>>,
    /// `[1, out]`: the squared norms of the frozen weight's columns.
    squares: Tensor<B, 2>,
}

impl<B: Backend> Magnitude<B> {
    /// Those of a weight, `[in, out]`.
    pub(super) fn of(weight: Tensor<B, 2>) -> Self {
        let squares = squares(weight.detach());
        let norms = squares.clone().clamp_min(LEAST).sqrt();
        Self {
            values: Param::initialized(ParamId::new(), norms.squeeze_dim::<1>(0)),
            squares,
        }
    }

    /// `[1, out]`: the norms of the columns of `w + a b`, whose squares are `|w|^2 + 2 b . (a^T w) + b . (a^T a) b` by column, so
    /// that no matrix of the weight's size is formed. `a`: `[in, rank]`, `b`: `[rank, out]`, the factor of the product included.
    /// `product`: `a^T w`, `[rank, out]`.
    fn norms(&self, a: Tensor<B, 2>, b: Tensor<B, 2>, product: Tensor<B, 2>) -> Tensor<B, 2>
    where
        B: ModelBackend,
    {
        let gram = f32_matmul(a.clone().transpose(), a);
        // 2 b . p + b . (g b) = b . (2 p + g b)
        let inner = product.mul_scalar(2.0) + f32_matmul(gram, b.clone());
        let change = (b * inner).sum_dim(0);
        (self.squares.clone() + change).clamp_min(LEAST).sqrt()
    }

    /// The merged weight: `weight`, the low-rank product included, with its columns brought to these norms.
    pub(super) fn scaled(&self, weight: Tensor<B, 2>) -> Tensor<B, 2> {
        let norms = squares(weight.clone()).clamp_min(LEAST).sqrt();
        weight * (self.values.val().detach().unsqueeze::<2>() / norms)
    }
}

/// The sum of squares of each column, `[1, out]`.
fn squares<B: Backend>(weight: Tensor<B, 2>) -> Tensor<B, 2> {
    (weight.clone() * weight).sum_dim(0)
}

/// The low-rank matrices as constants, with the factor on their product in the second.
fn constants<B: Backend>(lora: &Lora<B>) -> (Tensor<B, 2>, Tensor<B, 2>) {
    let (a, b) = lora.matrices();
    (a.detach(), b.detach().mul_scalar(lora.scale))
}

fn magnitude_of<B: Backend>(lora: Option<&Lora<B>>) -> Option<&Magnitude<B>> {
    lora?.magnitude.as_ref()
}

/// For each of the layers side by side their width, and LoRA's adapter if there is one: what DoRA multiplies the joint output's
/// columns by, `[1, sum of out]`. `None` if no adapter has magnitudes. `base` multiplies by the joint weight; `remember` gives back what it
/// was last given a way to compute, as long as no parameter has changed.
pub(in crate::peft) fn column_factors<B: ModelBackend>(
    layers: &[(usize, Option<&Lora<B>>)],
    device: &B::Device,
    base: impl Fn(Tensor<B, 2>) -> Tensor<B, 2>,
    remember: impl Fn(&dyn Fn() -> Tensor<B, 2>) -> Tensor<B, 2>,
) -> Option<Tensor<B, 2>> {
    if layers.iter().all(|(_, lora)| magnitude_of(*lora).is_none()) {
        return None;
    }
    let row = |parts: Vec<Tensor<B, 2>>| Tensor::cat(parts, 1);
    let ones = |width| Tensor::ones([1, width], device);
    let magnitudes = || {
        let parts = layers
            .iter()
            .map(|(width, lora)| match magnitude_of(*lora) {
                Some(magnitude) => magnitude.values.val().unsqueeze::<2>(),
                None => ones(*width),
            });
        row(parts.collect())
    };
    let norms = || {
        let joint: Vec<_> = (layers.iter())
            .map(|(_, lora)| lora.filter(|lora| lora.magnitude.is_some()).map(constants))
            .collect();
        // An input of the weight for each rank: as dear as that many tokens.
        let inputs = joint.iter().flatten().map(|(a, _)| a.clone().transpose());
        let products = base(Tensor::cat(inputs.collect(), 0));
        let (mut rank, mut column, mut parts) = (0, 0, Vec::new());
        for ((width, lora), joint) in layers.iter().zip(joint) {
            let columns = column..column + width;
            column = columns.end;
            parts.push(match (magnitude_of(*lora), joint) {
                (Some(magnitude), Some((a, b))) => {
                    let ranks = rank..rank + a.dims()[1];
                    rank = ranks.end;
                    magnitude.norms(a, b, products.clone().slice([ranks, columns]))
                }
                _ => ones(*width),
            });
        }
        row(parts)
    };
    let mut values = (layers.iter()).filter_map(|(_, lora)| magnitude_of(*lora));
    Some(
        match values.any(|magnitude| magnitude.values.val().is_require_grad()) {
            true => magnitudes() / remember(&norms),
            false => remember(&|| magnitudes() / norms()),
        },
    )
}
