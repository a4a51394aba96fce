//! Precision of products with the weights of linear layers and heads.

use burn::tensor::ops::FloatTensor;
use serde::{Deserialize, Serialize};

use super::{ModelBackend, Precision};

/// Storage and product precision of a model's weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Numerics {
    /// Storage precision.
    pub storage: Precision,
    /// Precision of products.
    pub matmul: MatmulPrecision,
}

impl Numerics {
    /// Whether inputs of linear layers are rounded.
    pub fn round_inputs(self) -> bool {
        self.storage == Precision::Int8 || self.matmul != MatmulPrecision::F32
    }

    /// The settings that differ from f32, by their names in recipes.
    pub fn name(self) -> String {
        let Self { storage, matmul } = self;
        match (storage, matmul) {
            (storage, MatmulPrecision::F32) => storage.name().to_owned(),
            (Precision::F32, matmul) => format!("{} products", matmul.name()),
            _ => format!("{} with {} products", storage.name(), matmul.name()),
        }
    }
}

impl From<Precision> for Numerics {
    fn from(storage: Precision) -> Self {
        Self {
            storage,
            ..Self::default()
        }
    }
}

/// Rounding of both sides of products with weights. Sums are f32, as are weights and activations elsewhere. Adapters' own products,
/// attention and norms are always f32.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
pub enum MatmulPrecision {
    /// None.
    #[default]
    F32,
    /// bfloat16, forward and backward: mixed precision with f32 master weights. 8-bit weights have their own forward product.
    Bf16,
}

impl MatmulPrecision {
    /// The name in recipes.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
        }
    }

    /// `a . b`.
    pub(super) fn matmul<B: ModelBackend>(
        self,
        a: FloatTensor<B>,
        b: FloatTensor<B>,
    ) -> FloatTensor<B> {
        match self {
            Self::F32 => B::f32_matmul(a, b),
            Self::Bf16 => B::bf16_matmul(a, b),
        }
    }
}
