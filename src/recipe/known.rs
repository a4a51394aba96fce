//! The models of a recipe, resolved without loading weights.

use std::path::{Path, PathBuf};

use crate::data::Tokenizer;
use crate::error::Result;
use crate::model::{AbsentWeights, Fetch, Finder, ModelConfig, ModelSource};
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
    /// Weights that are still to be downloaded, and are not checked.
    pub(super) absent: Vec<AbsentWeights>,
}

/// A model whose weights are downloaded and checked when the rest of the recipe is sound.
pub(super) struct UncheckedModel {
    /// Its key in the recipe.
    pub(super) place: String,
    /// What is to be downloaded.
    pub(super) absent: Vec<AbsentWeights>,
    wanted: WantedModel,
}

/// A model of a recipe by the user's words.
#[derive(Debug, Clone)]
pub(super) enum WantedModel {
    /// The recipe's `model`.
    Base(String),
    /// A policy's folder.
    Folder(PathBuf),
    /// A reward model's folder.
    Reward(PathBuf),
}

impl WantedModel {
    /// Finds and checks the model, its base kept in the recipe's precision; `model`, the recipe's, is used if an adapter's base is
    /// missing.
    pub(super) fn open(
        &self,
        finder: &Finder,
        model: Option<&str>,
        precision: Precision,
    ) -> Result<ResolvedModel> {
        match self {
            Self::Base(name) => ResolvedModel::of(finder.find(name)?, precision, false),
            Self::Folder(path) => ResolvedModel::of(finder.at(path, model)?, precision, false),
            Self::Reward(path) => ResolvedModel::of(finder.at(path, model)?, precision, true),
        }
    }

    /// What is left to do for it at the key `place`, if anything is.
    pub(super) fn unchecked(self, place: &str, found: &ResolvedModel) -> Option<UncheckedModel> {
        (!found.absent.is_empty()).then(|| UncheckedModel {
            place: place.to_owned(),
            absent: found.absent.clone(),
            wanted: self,
        })
    }
}

impl UncheckedModel {
    /// Downloads and checks it.
    pub(super) fn complete(&self, model: Option<&str>, precision: Precision) -> Result<()> {
        let finder = Finder::new(Fetch::All);
        self.wanted.open(&finder, model, precision).map(drop)
    }
}

impl ResolvedModel {
    /// Reads configuration and tokenizer of a policy or `reward` model and checks its tensors' names and shapes; reads no tensor.
    fn of(source: ModelSource, precision: Precision, reward: bool) -> Result<Self> {
        let stored_bytes = match source.is_whole() {
            true => {
                match reward {
                    true => drop(source.check_reward()?),
                    false => source.check()?,
                }
                source.check_precision(precision)?;
                source.stored_bytes()?
            }
            false => source.absent.iter().map(|weights| weights.bytes).sum(),
        };
        Ok(Self {
            tokenizer: source.tokenizer()?,
            adapter: source.adapter()?,
            stored_bytes,
            absent: source.absent,
            config: source.config,
        })
    }
}

/// The configuration and tokenizer of a model with random weights.
pub(super) fn open_blank(path: &Path) -> Result<ResolvedModel> {
    let (config, tokenizer) = ModelSource::blank(path)?;
    Ok(ResolvedModel {
        adapter: None,
        stored_bytes: 4 * config.num_params() as u64,
        absent: Vec::new(),
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
