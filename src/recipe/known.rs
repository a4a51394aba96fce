//! Models that a recipe names, without their weights.

use std::path::Path;

use crate::data::Tokenizer;
use crate::error::Result;
use crate::model::{ModelConfig, ModelSource};
use crate::reward::RewardConfig;

/// A model as far as plans need it.
#[derive(Clone)]
pub(super) struct Known {
    pub(super) config: ModelConfig,
    pub(super) tokenizer: Tokenizer,
}

impl Known {
    /// Opens a model's files without reading a tensor: configuration, tokenizer, and every tensor's name and shape.
    fn policy(source: ModelSource) -> Result<Self> {
        source.check()?;
        Ok(Self {
            tokenizer: source.tokenizer()?,
            config: source.config,
        })
    }
}

/// The recipe's `model`.
pub(super) fn open_model(name: &str) -> Result<Known> {
    Known::policy(ModelSource::find(name)?)
}

/// The model of a folder or file; `model` is the recipe's, which stands in for a base that an adapter misses.
pub(super) fn open_folder(folder: &Path, model: Option<&str>) -> Result<Known> {
    Known::policy(ModelSource::at(folder, model)?)
}

/// The reward model of a folder.
pub(super) fn open_reward(folder: &Path, model: Option<&str>) -> Result<Known> {
    let source = ModelSource::at(folder, model)?;
    source.check_reward()?;
    Ok(Known {
        tokenizer: source.tokenizer()?,
        config: source.config,
    })
}

/// The configuration and tokenizer of a model with random weights.
pub(super) fn open_blank(path: &Path) -> Result<Known> {
    let (config, tokenizer) = ModelSource::blank(path)?;
    Ok(Known { config, tokenizer })
}

/// The reward models that a source at `key` names, folders or stages; each comes with the key that names it.
pub(super) fn learned(key: &str, reward: &RewardConfig) -> Vec<(String, String)> {
    match reward {
        RewardConfig::Learned { stage } => vec![(format!("{key}.stage"), stage.clone())],
        RewardConfig::Sum(terms) => (terms.iter().enumerate())
            .flat_map(|(index, (_, term))| learned(&format!("{key}.{index}.1"), term))
            .collect(),
        _ => Vec::new(),
    }
}
