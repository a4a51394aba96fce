//! The activation functions of MLPs without a gate.

use burn::tensor::{Tensor, activation};

use crate::ops::{self, Gelu, ModelBackend};

/// The activation between the two products of an MLP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// `x * Phi(x)` with the normal distribution's `Phi`.
    Gelu,
    /// GELU's tanh approximation.
    GeluTanh,
    /// `max(x, 0)`.
    Relu,
}

impl Activation {
    /// Hugging Face's names. `gelu_fast` is the tanh form, expanded.
    const NAMES: [(&'static str, Self); 7] = [
        ("gelu", Self::Gelu),
        ("gelu_python", Self::Gelu),
        ("gelu_new", Self::GeluTanh),
        ("gelu_pytorch_tanh", Self::GeluTanh),
        ("gelu_python_tanh", Self::GeluTanh),
        ("gelu_fast", Self::GeluTanh),
        ("relu", Self::Relu),
    ];

    /// The activation named in a `config.json`; for an unknown name the error lists the known ones.
    pub(super) fn named(name: &str) -> Result<Self, String> {
        let known = Self::NAMES.iter().find(|(known, _)| *known == name);
        known.map(|(_, activation)| *activation).ok_or_else(|| {
            let names = Self::NAMES.map(|(name, _)| name);
            names.join(", ")
        })
    }

    /// Applies the activation to each entry.
    pub(super) fn forward<B: ModelBackend>(self, x: Tensor<B, 2>) -> Tensor<B, 2> {
        match self {
            Self::Gelu => ops::gelu(x, Gelu::Erf),
            Self::GeluTanh => ops::gelu(x, Gelu::Tanh),
            Self::Relu => activation::relu(x),
        }
    }
}
