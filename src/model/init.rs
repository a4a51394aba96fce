//! The words of a recipe for a model.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// Where a stage's model comes from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, Default)]
#[serde(deny_unknown_fields)]
pub enum Init {
    /// The recipe's `model`.
    #[default]
    Base,
    /// The result of an earlier stage, by name.
    Stage(String),
    /// A model's folder (or weight file) in the layout of transformers, or an adapter's in PEFT's, whose base is the one it names.
    Folder(PathBuf),
    /// Random initial weights for a `config.json`, with the tokenizer files beside it.
    Random(PathBuf),
}

impl Init {
    /// A name for tables: `base`, a stage's name or a path.
    pub fn name(&self) -> String {
        match self {
            Self::Base => "base".into(),
            Self::Stage(stage) => stage.clone(),
            Self::Folder(path) | Self::Random(path) => path.display().to_string(),
        }
    }
}
