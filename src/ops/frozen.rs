//! The weight of a linear layer that is not trained.

use burn::tensor::Tensor;
use burn::tensor::backend::Backend;
use burn::tensor::ops::FloatTensor;

use super::{ModelBackend, ReducedMatrix, unwrap};

/// `[in, out]`, as it is or in fewer bits.
#[derive(Debug, Clone)]
pub enum FrozenWeight<B: Backend> {
    /// f32.
    Full(FloatTensor<B>),
    /// See [`Precision`](super::Precision).
    Reduced(ReducedMatrix),
}

impl<B: Backend> From<Tensor<B, 2>> for FrozenWeight<B> {
    fn from(weight: Tensor<B, 2>) -> Self {
        Self::Full(unwrap(weight))
    }
}

impl<B: ModelBackend> FrozenWeight<B> {
    /// `x . weight`.
    pub(super) fn product(&self, x: FloatTensor<B>) -> FloatTensor<B> {
        match self {
            Self::Full(weight) => B::full_linear(x, weight.clone()),
            Self::Reduced(weight) => B::reduced_linear(x, weight),
        }
    }

    /// `grad . weight^T`.
    pub(super) fn backward(&self, grad: FloatTensor<B>) -> FloatTensor<B> {
        match self {
            Self::Full(weight) => {
                let transposed = B::float_transpose(weight.clone());
                B::float_matmul(grad, transposed)
            }
            Self::Reduced(weight) => B::reduced_linear_backward(grad, weight),
        }
    }
}
