//! From `--model` and `--adapter` to a model on a device.

use std::path::PathBuf;

use super::args::ModelArgs;
use crate::data::Tokenizer;
use crate::error::{Error, Result};
use crate::model::weights::{self, WeightSource};
use crate::model::{
    LanguageModel, LoadedAdapter, ModelConfig, SIDECAR, ScalarModel, load_adapter, manifest,
    read_score_offset,
};
use crate::ops::{ModelBackend, Numerics};
use crate::peft::Adaptable;
use crate::peft::files::ADAPTER_CONFIG;

/// Adapters that may stand on one another.
const MAX_ADAPTERS: usize = 8;

/// A model that was found and whose configuration was read; its weights are still on disk.
#[derive(Debug, Clone)]
pub(super) struct FoundModel {
    /// The base model's configuration.
    pub(super) config: ModelConfig,
    /// The folder with the base model's configuration.
    pub(super) dir: PathBuf,
    /// What `weights::open` takes.
    pub(super) weights: PathBuf,
    /// How the base's weights are kept and multiplied.
    pub(super) numerics: Numerics,
    /// Adapter folders, the one next to the base first; all but the last are merged on loading.
    pub(super) adapters: Vec<PathBuf>,
}

impl FoundModel {
    /// Finds the files. A folder that is an adapter stands for its base model with the adapter on it.
    ///
    /// # Errors
    /// Those of [`manifest::find`] and [`ModelConfig::load`]; `Error::Format` for an adapter that names no base.
    pub(super) fn find(args: &ModelArgs) -> Result<Self> {
        let mut adapters: Vec<PathBuf> = args.adapter.iter().cloned().collect();
        let mut files = manifest::find(&args.model)?;
        while files.weights.join(ADAPTER_CONFIG).is_file() {
            if adapters.len() == MAX_ADAPTERS {
                return Err(Error::format(
                    &files.dir,
                    "the base models of the adapters form a circle",
                ));
            }
            let base = manifest::adapter_base(&files.dir)?;
            adapters.insert(0, files.dir);
            files = manifest::find(&base)?;
        }
        for folder in &adapters {
            if !folder.join(ADAPTER_CONFIG).is_file() {
                return Err(Error::Usage(format!(
                    "adapter {}: expected a folder with {ADAPTER_CONFIG}",
                    folder.display()
                )));
            }
        }
        let config = ModelConfig::load(&files.weights)?;
        Ok(Self {
            config,
            dir: files.dir,
            weights: files.weights,
            numerics: args.numerics(),
            adapters,
        })
    }

    /// The tokenizer of the outermost folder that has one.
    ///
    /// # Errors
    /// Those of [`Tokenizer::load`].
    pub(super) fn tokenizer(&self) -> Result<Tokenizer> {
        let has_one = |dir: &&PathBuf| {
            ["tokenizer.json", "vocab.json", "encoder.json"]
                .iter()
                .any(|name| dir.join(name).is_file())
        };
        let dir = self
            .adapters
            .iter()
            .rev()
            .find(has_one)
            .unwrap_or(&self.dir);
        Tokenizer::load(dir)
    }

    /// The causal model with its adapters.
    ///
    /// # Errors
    /// Those of loading.
    pub(super) fn language_model<B: ModelBackend>(
        &self,
        device: &B::Device,
    ) -> Result<LanguageModel<B>> {
        let source = weights::open(&self.weights)?;
        let mut model =
            LanguageModel::load_as(&self.config, source.as_ref(), self.numerics, device)?;
        self.attach(&mut model, device)?;
        Ok(model)
    }

    /// Whether the weights or the outermost adapter hold a score head.
    ///
    /// # Errors
    /// When a weight file cannot be read.
    pub(super) fn is_reward_model(&self) -> Result<bool> {
        if has_score(weights::open(&self.weights)?.as_ref()) {
            return Ok(true);
        }
        match self.adapters.last() {
            Some(folder) => Ok(has_score(
                weights::open(folder.join(crate::peft::files::ADAPTER_WEIGHTS))?.as_ref(),
            )),
            None => Ok(false),
        }
    }

    /// The reward model: a classification checkpoint, or a causal one whose adapter brings the score head.
    ///
    /// # Errors
    /// Those of loading; `Error::Format` where there is no score head.
    pub(super) fn reward_model<B: ModelBackend>(
        &self,
        device: &B::Device,
    ) -> Result<ScalarModel<B>> {
        if !self.is_reward_model()? {
            return Err(Error::format(
                self.adapters.last().unwrap_or(&self.weights),
                "not a reward model: there is no score.weight, neither in the model nor in an adapter",
            ));
        }
        let source = weights::open(&self.weights)?;
        let (source, numerics) = (source.as_ref(), self.numerics);
        let mut model = if has_score(source) {
            let mut model = ScalarModel::load_as(&self.config, source, numerics, device)?;
            model.offset = read_score_offset(&self.dir.join("config.json"))?;
            model
        } else {
            let backbone = LanguageModel::load_backbone(&self.config, source, numerics, device)?;
            ScalarModel::with_zero_head(backbone, self.config.output_size(), device)
        };
        let outermost = self.attach(&mut model, device)?;
        if let (Some(folder), Some(score)) = (
            self.adapters.last(),
            outermost.and_then(|adapter| adapter.score),
        ) {
            let hidden = self.config.output_size();
            if score.len() != hidden {
                return Err(Error::format(
                    folder,
                    format!(
                        "score.weight: expected {hidden} numbers, found {}",
                        score.len()
                    ),
                ));
            }
            model.set_score(score, device);
            model.offset = read_score_offset(&folder.join(SIDECAR))?;
        }
        Ok(model)
    }

    /// Puts the adapters on, merging all but the last, and shows their warnings.
    fn attach<B: ModelBackend, M: Adaptable<B>>(
        &self,
        model: &mut M,
        device: &B::Device,
    ) -> Result<Option<LoadedAdapter>> {
        let mut last = None;
        for folder in &self.adapters {
            model.merge_adapters();
            let adapter = load_adapter(model, &self.config, folder, device)?;
            warn(&adapter.warnings);
            last = Some(adapter);
        }
        Ok(last)
    }
}

/// Shows warnings on stderr.
fn warn(warnings: &[String]) {
    for warning in warnings {
        eprintln!("warning: {warning}");
    }
}

fn has_score(source: &dyn WeightSource) -> bool {
    source
        .names()
        .iter()
        .any(|name| name == "score.weight" || name.ends_with(".score.weight"))
}
