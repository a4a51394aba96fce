//! The activation functions of MLPs without a gate.

use burn::tensor::backend::Backend;
use burn::tensor::{Tensor, activation};

/// What lies between the two products of an MLP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// `x * Phi(x)` with the normal distribution's `Phi`.
    Gelu,
    /// The same with `Phi` replaced by a tanh.
    GeluTanh,
    /// `max(x, 0)`.
    Relu,
}

impl Activation {
    /// Hugging Face's names, each with what it computes. `gelu_fast` is the tanh form, multiplied out.
    const NAMES: [(&'static str, Self); 7] = [
        ("gelu", Self::Gelu),
        ("gelu_python", Self::Gelu),
        ("gelu_new", Self::GeluTanh),
        ("gelu_pytorch_tanh", Self::GeluTanh),
        ("gelu_python_tanh", Self::GeluTanh),
        ("gelu_fast", Self::GeluTanh),
        ("relu", Self::Relu),
    ];

    /// The function that a `config.json` names; the names there are if it is another one.
    pub(super) fn named(name: &str) -> Result<Self, String> {
        let known = Self::NAMES.iter().find(|(known, _)| *known == name);
        known.map(|(_, activation)| *activation).ok_or_else(|| {
            let names = Self::NAMES.map(|(name, _)| name);
            names.join(", ")
        })
    }

    /// Applies it to each entry.
    ///
    /// # Source
    /// Hendrycks and Gimpel 2016, arXiv:1606.08415, section 2, for both forms of GELU.
    pub(super) fn forward<B: Backend>(self, x: Tensor<B, 2>) -> Tensor<B, 2> {
        match self {
            // Not burn's own gelu: on most backends its gradient is that of the tanh form.
            Self::Gelu => {
                let erf = x.clone().div_scalar(std::f64::consts::SQRT_2).erf();
                x.mul_scalar(0.5) * erf.add_scalar(1.0)
            }
            Self::GeluTanh => {
                let cubic = x.clone() + x.clone().powi_scalar(3).mul_scalar(0.044_715);
                let inner = cubic.mul_scalar((2.0 / std::f64::consts::PI).sqrt()).tanh();
                x.mul_scalar(0.5) * inner.add_scalar(1.0)
            }
            Self::Relu => activation::relu(x),
        }
    }
}
