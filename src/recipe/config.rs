//! A recipe: a model, and stages whose configurations live beside the code they configure.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::data::DataConfig;
use crate::ops::{MatmulPrecision, Numerics, Precision};
use crate::train::Stage;

/// A whole pipeline in one file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    /// Names the run folder.
    pub name: String,
    /// The base model: a name of `temper models`, or a folder / GGUF file. May be absent when every stage has an `init` of its own.
    #[serde(default)]
    pub model: Option<String>,
    /// The token that ends a text or a turn, instead of the one that the models' tokenizers name: TRL's key. Rows, sampling and
    /// all files that are written follow it.
    #[serde(default)]
    pub eos_token: Option<String>,
    /// How the weights of the base model and of whole models from earlier stages are kept; anything but f32 keeps them frozen, so
    /// that stages train adapters only.
    #[serde(default)]
    pub base_precision: Precision,
    /// How products with weights are computed, those of the base and those that stages train.
    #[serde(default)]
    pub matmul_precision: MatmulPrecision,
    /// Root of all randomness.
    #[serde(default = "one")]
    pub seed: u64,
    /// Run folder; `runs/<name>` if absent.
    #[serde(default)]
    pub output: Option<PathBuf>,
    /// Data sets by name, for stages to read as `source: Data("name")`.
    #[serde(default)]
    pub data: BTreeMap<String, DataConfig>,
    /// The stages, in order.
    pub stages: Vec<Stage>,
}

impl Recipe {
    /// How weights are kept and multiplied.
    pub fn numerics(&self) -> Numerics {
        Numerics {
            storage: self.base_precision,
            matmul: self.matmul_precision,
        }
    }
}

fn one() -> u64 {
    1
}
