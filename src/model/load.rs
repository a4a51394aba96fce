//! Loads models from weight files, and returns their tensors in the layout of files.

use burn::module::{Param, ParamId};
use burn::tensor::backend::Backend;
use burn::tensor::{Tensor, TensorData};

use super::adapter::{LoadedAdapter, load_adapter, merge_for_training};
use super::config::ModelConfig;
use super::source::ModelSource;
use super::weights::{self, WeightSource};
use super::{LanguageModel, ScalarModel};
use crate::error::Result;
use crate::ops::{ModelBackend, Numerics};
use crate::params::{HostTensor, ParamKind, Parameters, StoredTensor};
use crate::peft::{Adaptable, LayerKind};
use crate::rng::Seed;
use crate::snapshot::Snapshot;

impl<B: Backend> LanguageModel<B> {
    /// Loads a model with an output head, after checking all tensors of the file. All parameters are frozen.
    ///
    /// # Errors
    /// One `Error::Weights` listing all missing, surplus and mis-shaped tensors; `Error::Io` while reading.
    pub fn load(
        config: &ModelConfig,
        source: &dyn WeightSource,
        device: &B::Device,
    ) -> Result<Self> {
        Self::load_as(config, source, Numerics::default(), device)
    }

    /// [`LanguageModel::load`] with the storage and product precision of `numerics` (see [`LanguageModel::store_as`]). Weights are
    /// rounded one by one as they are read, so that the model is never in memory as f32.
    ///
    /// # Errors
    /// As [`LanguageModel::load`].
    pub fn load_as(
        config: &ModelConfig,
        source: &dyn WeightSource,
        numerics: impl Into<Numerics>,
        device: &B::Device,
    ) -> Result<Self> {
        weights::check(source, &config.tensors())?;
        let mut model = Self::new(config, true, device);
        model.store_as(numerics.into());
        fill(&mut model, source, device)?;
        Ok(model)
    }

    /// Loads a model without an output head, for a score head, with the storage and product precision of `numerics`.
    ///
    /// # Errors
    /// As [`LanguageModel::load`].
    pub fn load_backbone(
        config: &ModelConfig,
        source: &dyn WeightSource,
        numerics: impl Into<Numerics>,
        device: &B::Device,
    ) -> Result<Self> {
        weights::check(source, &config.backbone_tensors())?;
        let mut model = Self::new(config, false, device);
        model.store_as(numerics.into());
        fill(&mut model, source, device)?;
        Ok(model)
    }

    /// The same model without its output head.
    pub fn into_backbone(mut self) -> Self {
        self.for_each_table(&mut |kind, adapter| {
            if kind == LayerKind::Head {
                *adapter = None;
            }
        });
        self.parts().remove_head();
        self
    }
}

impl<B: Backend> ScalarModel<B> {
    /// Loads a reward model from a classification checkpoint (`score.weight`, `[1, hidden]`).
    ///
    /// # Errors
    /// As [`LanguageModel::load`].
    pub fn load(
        config: &ModelConfig,
        source: &dyn WeightSource,
        device: &B::Device,
    ) -> Result<Self> {
        Self::load_as(config, source, Numerics::default(), device)
    }

    /// [`ScalarModel::load`] with the storage and product precision of `numerics` for all weights except the score head.
    ///
    /// # Errors
    /// As [`LanguageModel::load`].
    pub fn load_as(
        config: &ModelConfig,
        source: &dyn WeightSource,
        numerics: impl Into<Numerics>,
        device: &B::Device,
    ) -> Result<Self> {
        weights::check(source, &config.classifier_tensors())?;
        let backbone = LanguageModel::load_backbone(config, source, numerics, device)?;
        let score = source.read("score.weight")?;
        let mut model = Self::with_zero_head(backbone, config.output_size(), device);
        model.set_score(score, device);
        Ok(model)
    }

    /// A backbone with a zero head, so that all values are 0 at first (lm-human-preferences' value head).
    pub fn with_zero_head(backbone: LanguageModel<B>, hidden: usize, device: &B::Device) -> Self {
        let score = Tensor::zeros([hidden], device);
        Self {
            backbone: backbone.into_backbone(),
            score: Param::initialized(ParamId::new(), score),
            offset: 0.0,
        }
    }

    /// A backbone with a random head from `N(0, 1 / sqrt(hidden + 1))`.
    ///
    /// # Source
    /// Stiennon et al. 2020, appendix B.1; the square root as in their code.
    pub fn with_random_head(
        backbone: LanguageModel<B>,
        hidden: usize,
        seed: Seed,
        device: &B::Device,
    ) -> Self {
        let std = 1.0 / ((hidden + 1) as f64).sqrt();
        let values = (0..hidden)
            .map(|i| (seed.normal(i as u64) * std) as f32)
            .collect();
        let mut model = Self::with_zero_head(backbone, hidden, device);
        model.set_score(values, device);
        model
    }

    /// Replaces the head.
    pub fn set_score(&mut self, values: Vec<f32>, device: &B::Device) {
        let shape = [values.len()];
        let tensor = Tensor::from_data(TensorData::new(values, shape), device);
        self.score = Param::initialized(ParamId::new(), tensor);
    }
}

impl ModelSource {
    /// Loads the base with an output head, and merges all adapters but the outermost into it.
    ///
    /// # Errors
    /// Those of loading.
    pub fn load_base<B: ModelBackend>(
        &self,
        numerics: Numerics,
        device: &B::Device,
    ) -> Result<LanguageModel<B>> {
        self.check_adapters()?;
        let source = self.open_weights()?;
        let model = LanguageModel::load_as(&self.config, source.as_ref(), numerics, device)?;
        self.merge_inner(model, device)
    }

    /// As [`ModelSource::load_base`], without the output head, which a classification checkpoint may lack.
    ///
    /// # Errors
    /// Those of loading.
    pub fn load_backbone<B: ModelBackend>(
        &self,
        numerics: Numerics,
        device: &B::Device,
    ) -> Result<LanguageModel<B>> {
        self.check_adapters()?;
        let source = self.open_weights()?;
        let model = LanguageModel::load_backbone(&self.config, source.as_ref(), numerics, device)?;
        self.merge_inner(model, device)
    }

    fn merge_inner<B: ModelBackend>(
        &self,
        mut model: LanguageModel<B>,
        device: &B::Device,
    ) -> Result<LanguageModel<B>> {
        if let [inner @ .., _] = self.adapters.as_slice() {
            for folder in inner {
                load_adapter(&mut model, &self.config, folder, device)?;
                merge_for_training(&mut model, &self.config)?;
            }
        }
        Ok(model)
    }

    /// Attaches the outermost adapter to the model of [`ModelSource::load_base`].
    ///
    /// # Errors
    /// Those of [`load_adapter`].
    pub fn attach_outermost<B: ModelBackend, M: Parameters<B> + Adaptable<B>>(
        &self,
        model: &mut M,
        device: &B::Device,
    ) -> Result<Option<LoadedAdapter>> {
        let Some(folder) = self.adapters.last() else {
            return Ok(None);
        };
        load_adapter(model, &self.config, folder, device).map(Some)
    }

    /// The reward model on a backbone from [`ModelSource::load_base`] or [`ModelSource::load_backbone`].
    ///
    /// # Errors
    /// As [`ModelSource::check_reward`], and those of loading.
    pub fn reward_model<B: ModelBackend>(
        &self,
        backbone: LanguageModel<B>,
        device: &B::Device,
    ) -> Result<(ScalarModel<B>, Option<LoadedAdapter>)> {
        let head = self.check_reward()?;
        let hidden = self.config.output_size();
        let mut model = ScalarModel::with_zero_head(backbone, hidden, device);
        let adapter = self.attach_outermost(&mut model, device)?;
        model.set_score(self.read_score(&head)?, device);
        model.offset = self.score_offset(&head)?;
        Ok((model, adapter))
    }
}

/// Reads all parameters except adapters and score heads from `source`.
pub(super) fn fill<B: Backend>(
    model: &mut dyn Parameters<B>,
    source: &dyn WeightSource,
    device: &B::Device,
) -> Result<()> {
    let mut outcome = Ok(());
    model.for_each_parameter(&mut |meta, mut slot| {
        if outcome.is_ok() && !matches!(meta.kind, ParamKind::Adapter | ParamKind::Score) {
            let keeps_blocks = slot.keeps_blocks();
            outcome = slot.load(meta, device, |name| {
                let name = weights::resolve(source, name).unwrap_or_else(|| name.to_owned());
                let blocks = match keeps_blocks {
                    true => source.read_blocks(&name)?,
                    false => None,
                };
                match blocks {
                    Some(blocks) => Ok(StoredTensor::Blocks(blocks)),
                    None => source.read(&name).map(StoredTensor::Values),
                }
            });
        }
    });
    outcome
}

/// All tensors of the chosen kinds in the layout of files. Reads the device.
pub fn host_tensors<B: Backend>(
    model: &mut dyn Parameters<B>,
    choose: &dyn Fn(ParamKind) -> bool,
) -> Vec<HostTensor> {
    let mut tensors = Vec::new();
    model.for_each_parameter(&mut |meta, slot| {
        if choose(meta.kind) {
            tensors.extend(slot.save(meta));
        }
    });
    tensors
}

/// All tensors except those of adapters in the layout of files, to be written one at a time.
pub fn stored_tensors<B: Backend>(model: &mut dyn Parameters<B>) -> Snapshot<'static> {
    let mut snapshot = Snapshot::default();
    model.for_each_parameter(&mut |meta, slot| {
        if meta.kind != ParamKind::Adapter {
            slot.put_into(&mut snapshot, meta);
        }
    });
    snapshot
}
