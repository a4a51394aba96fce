//! The models of a recipe, resolved without loading weights.

use std::path::Path;

use crate::data::Tokenizer;
use crate::error::Result;
use crate::model::{ModelConfig, ModelSource};
use crate::ops::Precision;
use crate::peft::AdapterSpec;
use crate::reward::RewardConfig;

/// Configuration and tokenizer of a model.
#[derive(Clone)]
pub(super) struct ResolvedModel {
    pub(super) config: ModelConfig,
    pub(super) tokenizer: Tokenizer,
    /// Settings of the adapters on it, if there are any.
    pub(super) adapter: Option<AdapterSpec>,
    /// Bytes of the base's weights where they are kept as the file has them.
    pub(super) stored_bytes: u64,
}

impl ResolvedModel {
    /// Reads configuration and tokenizer of a model and checks its tensors' names and shapes; reads no tensor.
    fn policy(source: ModelSource, precision: Precision) -> Result<Self> {
        source.check()?;
        source.check_precision(precision)?;
        Ok(Self {
            tokenizer: source.tokenizer()?,
            adapter: source.adapter()?,
            stored_bytes: source.stored_bytes()?,
            config: source.config,
        })
    }
}

/// The recipe's `model`, its base kept in the recipe's precision.
pub(super) fn open_model(name: &str, precision: Precision) -> Result<ResolvedModel> {
    ResolvedModel::policy(ModelSource::find(name)?, precision)
}

/// The model of a folder or file; `model`, the recipe's, is used if an adapter's base is missing.
pub(super) fn open_folder(
    folder: &Path,
    model: Option<&str>,
    precision: Precision,
) -> Result<ResolvedModel> {
    ResolvedModel::policy(ModelSource::at(folder, model)?, precision)
}

/// The reward model of a folder.
pub(super) fn open_reward(
    folder: &Path,
    model: Option<&str>,
    precision: Precision,
) -> Result<ResolvedModel> {
    let source = ModelSource::at(folder, model)?;
    source.check_reward()?;
    source.check_precision(precision)?;
    Ok(ResolvedModel {
        tokenizer: source.tokenizer()?,
        adapter: source.adapter()?,
        stored_bytes: source.stored_bytes()?,
        config: source.config,
    })
}

/// The configuration and tokenizer of a model with random weights.
pub(super) fn open_blank(path: &Path) -> Result<ResolvedModel> {
    let (config, tokenizer) = ModelSource::blank(path)?;
    Ok(ResolvedModel {
        adapter: None,
        stored_bytes: 4 * config.num_params() as u64,
        config,
        tokenizer,
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
