//! Adapter methods as a recipe names them.

use serde::{Deserialize, Serialize};

/// Low-rank adaptation.
///
/// # Source
/// Hu et al. 2021, arXiv:2106.09685; rsLoRA: Kalajdzievski 2023, arXiv:2312.03732.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LoraConfig {
    /// Inner dimension of the low-rank product.
    pub rank: usize,
    /// The product is scaled by `alpha / rank`.
    pub alpha: f64,
    /// Scale by `alpha / sqrt(rank)` instead.
    pub use_rslora: bool,
    /// Probability with which an input of the adapter (not of the base) is dropped in training.
    pub dropout: f64,
    /// Which linear layers: `["all-linear"]`, last path components (`"q_proj"`), or regular expressions on whole paths.
    pub target_modules: Vec<String>,
}

impl Default for LoraConfig {
    fn default() -> Self {
        Self {
            rank: 16,
            alpha: 32.0,
            use_rslora: false,
            dropout: 0.0,
            target_modules: vec!["all-linear".into()],
        }
    }
}
