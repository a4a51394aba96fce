//! From `--model` and `--adapter` to a model on a device.

use std::path::{Path, PathBuf};

use super::args::ModelArgs;
use super::stage_result::{last_result_of, result_of};
use crate::data::Tokenizer;
use crate::error::{Error, Result};
use crate::model::{LanguageModel, LoadedAdapter, ModelConfig, ModelSource, ScalarModel};
use crate::ops::{ModelBackend, Numerics};
use crate::terminal;

/// A model given on the command line, with its configuration read and its weights still on disk.
#[derive(Debug, Clone)]
pub(super) struct UnloadedModel {
    /// The base model's configuration.
    pub(super) config: ModelConfig,
    /// Its files.
    pub(super) source: ModelSource,
    /// Longest row in tokens.
    pub(super) max_row_tokens: usize,
    /// Storage and product precision of the base's weights.
    pub(super) numerics: Numerics,
}

impl UnloadedModel {
    /// Finds the files and shows notes about them.
    ///
    /// # Errors
    /// Those of [`ModelSource::find`], [`ModelSource::with_adapter`] and [`ModelSource::trained_on`].
    pub(super) fn find(args: &ModelArgs) -> Result<Self> {
        let mut source = match (&args.model, &args.run) {
            (Some(model), _) => ModelSource::find(model)?,
            (None, Some(run)) => ModelSource::at(&trained(run, args.stage.as_deref())?, None)?,
            (None, None) => return Err(Error::Usage("expected --model or --run".into())),
        };
        if let Some(folder) = &args.adapter {
            source = source.with_adapter(folder)?;
        }
        warn(&source.notes);
        if let Some(precision) = args.base_precision
            && let Err(error) = source.check_precision(precision)
        {
            warn(&[error.to_string()]);
        }
        let storage = match args.base_precision {
            Some(precision) => precision,
            None => source.trained_on()?,
        };
        let numerics = Numerics {
            storage,
            matmul: args.matmul_precision,
        };
        Self::of(source, numerics)
    }

    /// A model with the storage and product precision that `numerics` says.
    ///
    /// # Errors
    /// Those of [`ModelSource::max_row_tokens`].
    pub(super) fn of(source: ModelSource, numerics: Numerics) -> Result<Self> {
        Ok(Self {
            config: source.config.clone(),
            max_row_tokens: source.max_row_tokens()?,
            source,
            numerics,
        })
    }

    /// The tokenizer, the outermost folder's files first.
    ///
    /// # Errors
    /// Those of [`ModelSource::tokenizer`].
    pub(super) fn tokenizer(&self) -> Result<Tokenizer> {
        self.source.tokenizer()
    }

    /// The causal model with its adapters, and without the outermost one if there is any; they share their weights.
    ///
    /// # Errors
    /// Those of loading.
    pub(super) fn with_and_without_adapter<B: ModelBackend>(
        &self,
        device: &B::Device,
    ) -> Result<(LanguageModel<B>, Option<LanguageModel<B>>)> {
        let mut model = self.source.load_base(self.numerics, device)?;
        let bare = (!self.source.adapters.is_empty()).then(|| model.clone());
        let adapter = self.source.attach_outermost(&mut model, device)?;
        warn_of(adapter.as_ref());
        Ok((model, bare))
    }

    /// The causal model with its adapters.
    ///
    /// # Errors
    /// Those of loading.
    pub(super) fn language_model<B: ModelBackend>(
        &self,
        device: &B::Device,
    ) -> Result<LanguageModel<B>> {
        let mut model = self.source.load_base(self.numerics, device)?;
        let adapter = self.source.attach_outermost(&mut model, device)?;
        warn_of(adapter.as_ref());
        Ok(model)
    }

    /// Whether this is a reward model: a whole model or an outermost adapter with a score head of one label. A policy's adapter on a
    /// classifier is a policy.
    ///
    /// # Errors
    /// When a weight file cannot be read.
    pub(super) fn is_reward_model(&self) -> Result<bool> {
        let head = self.source.score_head()?;
        let outermost = self.source.adapters.last();
        Ok(head.is_some_and(|head| {
            head.labels == 1 && outermost.is_none_or(|folder| *folder == head.place)
        }))
    }

    /// The reward model: a classification checkpoint, or a model with an adapter that has the score head.
    ///
    /// # Errors
    /// Those of loading; `Error::Format` if there is no score head with one label.
    pub(super) fn reward_model<B: ModelBackend>(
        &self,
        device: &B::Device,
    ) -> Result<ScalarModel<B>> {
        self.source.check_reward()?;
        let backbone = self.source.load_backbone(self.numerics, device)?;
        let (model, adapter) = self.source.reward_model(backbone, device)?;
        warn_of(adapter.as_ref());
        Ok(model)
    }
}

/// The result of a stage of a run; without a name, of the last one, which is said.
fn trained(run: &Path, stage: Option<&str>) -> Result<PathBuf> {
    match stage {
        Some(stage) => result_of(run, stage),
        None => {
            let (stage, folder) = last_result_of(run)?;
            terminal::say(&format!("stage {stage}, the last one with a result"));
            Ok(folder)
        }
    }
}

fn warn_of(adapter: Option<&LoadedAdapter>) {
    warn(adapter.map_or(&[], |adapter| &adapter.warnings));
}

/// Shows warnings on stderr.
pub(super) fn warn(warnings: &[String]) {
    for warning in warnings {
        terminal::say(&format!("warning: {warning}"));
    }
}
