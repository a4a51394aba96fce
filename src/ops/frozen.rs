//! The frozen weight of a linear layer.

use burn::tensor::Tensor;
use burn::tensor::backend::Backend;
use burn::tensor::ops::FloatTensor;

use super::{MatmulPrecision, ModelBackend, ReducedMatrix, unwrap};

/// A frozen weight, `[in, out]`, full or reduced.
#[derive(Debug, Clone)]
pub enum FrozenWeight<B: Backend> {
    /// f32, with the precision of products.
    Full(FloatTensor<B>, MatmulPrecision),
    /// Reduced, see [`Precision`](super::Precision).
    Reduced(ReducedMatrix),
}

impl<B: Backend> FrozenWeight<B> {
    /// A weight in f32.
    pub fn full(weight: Tensor<B, 2>, precision: MatmulPrecision) -> Self {
        Self::Full(unwrap(weight), precision)
    }
}

impl<B: ModelBackend> FrozenWeight<B> {
    /// That of products.
    pub(super) fn precision(&self) -> MatmulPrecision {
        match self {
            Self::Full(_, precision) => *precision,
            Self::Reduced(weight) => weight.matmul(),
        }
    }

    /// `x . weight`.
    pub(super) fn product(&self, x: FloatTensor<B>) -> FloatTensor<B> {
        match self {
            Self::Full(weight, precision) => B::full_linear(x, weight.clone(), *precision),
            Self::Reduced(weight) => B::reduced_linear(x, weight),
        }
    }

    /// `grad . weight^T`.
    pub(super) fn backward(&self, grad: FloatTensor<B>) -> FloatTensor<B> {
        match self {
            Self::Full(weight, precision) => {
                precision.matmul::<B>(grad, B::float_transpose(weight.clone()))
            }
            Self::Reduced(weight) => B::reduced_linear_backward(grad, weight),
        }
    }
}
