//! How exactly products with the weights of linear layers and heads are computed.

use burn::tensor::ops::FloatTensor;
use serde::{Deserialize, Serialize};

use super::{ModelBackend, Precision};

/// How a model's weights are kept and multiplied.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Numerics {
    /// How weights are kept.
    pub storage: Precision,
    /// How products with them are computed.
    pub matmul: MatmulPrecision,
}

impl Numerics {
    /// Whether inputs of linear layers are rounded.
    pub fn round_inputs(self) -> bool {
        self.storage == Precision::Int8 || self.matmul != MatmulPrecision::F32
    }

    /// In recipes: what differs from f32.
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

/// What both sides of a product with a weight are rounded to; sums are f32, and so are weights and activations elsewhere.
/// Products of adapters' low-rank matrices, attention and norms are always f32.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
pub enum MatmulPrecision {
    /// Not at all.
    #[default]
    F32,
    /// bfloat16, forward and backward: mixed precision with f32 master weights. An 8-bit weight keeps its own forward product.
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
