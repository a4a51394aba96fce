//! The recipe: a model and a list of stages. Stage configurations are defined beside the stages.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::data::DataConfig;
use crate::ops::{MatmulPrecision, Numerics, Precision};
use crate::report::ReportTo;
use crate::train::Stage;

/// A whole pipeline in one file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    /// Name of the recipe and of its run folder.
    pub name: String,
    /// The base model: a name of `temper models`, or a folder / GGUF file. May be absent when every stage has an `init` of its own.
    #[serde(default)]
    pub model: Option<String>,
    /// Overrides the EOS token of the models' tokenizers, in encoding, generation and written files. TRL's key.
    #[serde(default)]
    pub eos_token: Option<String>,
    /// Special tokens that every tokenizer gets that lacks them; tables without a row for one grow.
    #[serde(default)]
    pub add_tokens: Vec<String>,
    /// Storage precision of the base model and of whole models from earlier stages. Anything but f32 freezes them: stages can then
    /// train adapters only.
    #[serde(default)]
    pub base_precision: Precision,
    /// Precision of products with weights, frozen and trained.
    #[serde(default)]
    pub matmul_precision: MatmulPrecision,
    /// Root of all randomness.
    #[serde(default = "one")]
    pub seed: u64,
    /// Run folder; `runs/<name>` if absent.
    #[serde(default)]
    pub output: Option<PathBuf>,
    /// Where metrics go besides the run folder's own logs. TRL's key.
    #[serde(default)]
    pub report_to: Vec<ReportTo>,
    /// Named data sets, which stages read as `source: Data("name")`.
    #[serde(default)]
    pub data: BTreeMap<String, DataConfig>,
    /// The stages, in order.
    pub stages: Vec<Stage>,
}

impl Recipe {
    /// Storage and product precision of weights.
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
