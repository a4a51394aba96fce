//! The activation functions that operations have kernels for.

/// The two forms of GELU.
///
/// # Source
/// Hendrycks and Gimpel 2016, arXiv:1606.08415, section 2.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Gelu {
    /// `x * Phi(x)` with the normal distribution's `Phi`.
    Erf,
    /// The same with `Phi(x)` replaced by `(1 + tanh(sqrt(2 / pi) * (x + 0.044715 * x^3))) / 2`.
    Tanh,
}

/// The activation of a gated unit's gate.
///
/// # Source
/// Shazeer 2020, arXiv:2002.05202, section 2.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Gate {
    /// `x / (1 + exp(-x))`: SwiGLU.
    Silu,
    /// GEGLU.
    Gelu(Gelu),
}
