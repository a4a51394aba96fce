//! The models of a recipe, resolved without loading weights.

use std::path::Path;

use crate::data::Tokenizer;
use crate::error::Result;
use crate::model::{ModelConfig, ModelSource};
use crate::peft::AdapterSpec;
use crate::reward::RewardConfig;

/// Configuration and tokenizer of a model.
#[derive(Clone)]
pub(super) struct ResolvedModel {
    pub(super) config: ModelConfig,
    pub(super) tokenizer: Tokenizer,
    /// Settings of the adapters on it, if there are any.
    pub(super) adapter: Option<AdapterSpec>,
}

impl ResolvedModel {
    /// Reads configuration and tokenizer of a model and checks its tensors' names and shapes; reads no tensor.
    fn policy(source: ModelSource) -> Result<Self> {
        source.check()?;
        Ok(Self {
            tokenizer: source.tokenizer()?,
            adapter: source.adapter()?,
            config: source.config,
        })
    }
}

/// The recipe's `model`.
pub(super) fn open_model(name: &str) -> Result<ResolvedModel> {
    ResolvedModel::policy(ModelSource::find(name)?)
}

/// The model of a folder or file; `model`, the recipe's, is used if an adapter's base is missing.
pub(super) fn open_folder(folder: &Path, model: Option<&str>) -> Result<ResolvedModel> {
    ResolvedModel::policy(ModelSource::at(folder, model)?)
}

/// The reward model of a folder.
pub(super) fn open_reward(folder: &Path, model: Option<&str>) -> Result<ResolvedModel> {
    let source = ModelSource::at(folder, model)?;
    source.check_reward()?;
    Ok(ResolvedModel {
        tokenizer: source.tokenizer()?,
        adapter: source.adapter()?,
        config: source.config,
    })
}

/// The configuration and tokenizer of a model with random weights.
pub(super) fn open_blank(path: &Path) -> Result<ResolvedModel> {
    let (config, tokenizer) = ModelSource::blank(path)?;
    Ok(ResolvedModel {
        config,
        tokenizer,
        adapter: None,
    })
}

/// The reward models (folders or stages) of the source at `key`, each with its own key.
pub(super) fn learned(key: &str, reward: &RewardConfig) -> Vec<(String, String)> {
    match reward {
        RewardConfig::Learned { stage } => vec![(format!("{key}.stage"), stage.clone())],
        RewardConfig::Sum(terms) => (terms.iter().enumerate())
            .flat_map(|(index, (_, term))| learned(&format!("{key}.{index}.1"), term))
            .collect(),
        _ => Vec::new(),
    }
}
