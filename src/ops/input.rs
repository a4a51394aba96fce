//! Inputs of linear layers that are recomputed in the backward pass instead of being stored.

use burn::tensor::backend::Backend;
use burn::tensor::ops::FloatTensor;

use super::{Gate, ModelBackend};

/// How a linear layer's input is computed from a source that is stored anyway: the states before a norm, or gate and up before the
/// activation. Recomputing it is cheap beside the product; storing it would cost a third of a layer's activations.
#[derive(Debug, Clone)]
pub enum LinearInput<B: Backend> {
    /// The source itself.
    Plain,
    /// [`ModelBackend::rms_norm`] with a frozen weight.
    RmsNorm {
        /// `[features]`.
        weight: FloatTensor<B>,
        /// Added to the mean square.
        eps: f32,
    },
    /// [`ModelBackend::gated_unit`].
    Gated(Gate),
}

impl<B: ModelBackend> LinearInput<B> {
    /// The input.
    pub(super) fn of(&self, source: FloatTensor<B>) -> FloatTensor<B> {
        match self {
            Self::Plain => source,
            Self::RmsNorm { weight, eps } => B::rms_norm(source, weight.clone(), *eps),
            Self::Gated(gate) => B::gated_unit(source, *gate),
        }
    }

    /// Gradient with respect to the source.
    pub(super) fn backward(&self, source: FloatTensor<B>, grad: FloatTensor<B>) -> FloatTensor<B> {
        match self {
            Self::Plain => grad,
            Self::RmsNorm { weight, eps } => {
                B::rms_norm_backward(source, weight.clone(), grad, *eps, false).0
            }
            Self::Gated(gate) => B::gated_unit_backward(source, grad, *gate),
        }
    }
}
