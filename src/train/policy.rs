//! Policies and reward models: loaded from the base or an earlier stage, prepared for training, saved in standard formats.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use burn::backend::Autodiff;
use burn::module::AutodiffModule;

use super::Session;
use super::config::{Init, Peft};
use super::sources::reward_folder;
use crate::atomic::write_atomic;
use crate::checkpoint::{ModelRole, write_dir_atomic};
use crate::collective;
use crate::data::Tokenizer;
use crate::error::{Error, Result};
use crate::model::weights::{RandomSource, StoreAs, write_snapshot};
use crate::model::{
    LanguageModel, ModelConfig, ModelSource, SCORE_OFFSET, ScalarModel, adapted_precision,
    prepare_adapters, save_adapter, stored_tensors, trained_tensors, with_token_ids, write_sidecar,
};
use crate::ops::ModelBackend;
use crate::params::Parameters;
use crate::peft::{Adaptable, AdapterSpec};
use crate::rng::Seed;

/// A language model with its configuration and tokenizer.
#[derive(Debug, Clone)]
pub struct Policy<B: ModelBackend> {
    /// The weights, frozen.
    pub model: LanguageModel<B>,
    /// Its configuration.
    pub config: ModelConfig,
    /// Its tokenizer.
    pub tokenizer: Arc<Tokenizer>,
    /// Settings of its adapters, if it has any.
    pub adapter: Option<AdapterSpec>,
    /// The base for PEFT's `base_model_name_or_path`: a hub repository or an absolute path.
    pub base: String,
    /// Score head stored beside the weights (`score.weight` of a classification model or adapter), `[hidden]`. Reward models start
    /// from it; policies ignore it.
    pub score: Option<Vec<f32>>,
}

/// A trained reward model.
#[derive(Debug, Clone)]
pub struct RewardModel<B: ModelBackend> {
    /// The weights, frozen.
    pub model: ScalarModel<B>,
    /// Settings of its adapters, if it has any.
    pub adapter: Option<AdapterSpec>,
    /// Its configuration.
    pub config: ModelConfig,
    /// Its tokenizer, which need not be the policy's.
    pub tokenizer: Arc<Tokenizer>,
}

impl<B: ModelBackend> Session<'_, B> {
    /// The policy that `init` names.
    ///
    /// # Errors
    /// When files are missing, do not fit, or the stage has not run.
    pub fn policy(&mut self, init: &Init) -> Result<Policy<B>> {
        self.policy_as(ModelRole::Policy, init)
    }

    /// The language model that `init` names, which the lineage lists with this role.
    ///
    /// # Errors
    /// When files are missing, do not fit, or the stage has not run.
    pub(super) fn policy_as(&mut self, role: ModelRole, init: &Init) -> Result<Policy<B>> {
        let mut source = match init {
            Init::Base => {
                let name = self.model.as_deref().ok_or_else(|| {
                    Error::Usage(
                        "the recipe has no `model`, but a stage starts from the base".into(),
                    )
                })?;
                ModelSource::find(name)?
            }
            Init::Stage(stage) => self.stage_result(stage)?,
            Init::Folder(path) => ModelSource::at(path, self.model.as_deref())?,
            Init::Random(path) => {
                let (config, tokenizer) = ModelSource::blank(path)?;
                let (tokenizer, config) = self.with_tokens(&tokenizer, &config)?;
                let source = RandomSource::new(&config, self.seed.fork("weights"));
                self.record_model(role, init.name(), Vec::new())?;
                return Ok(Policy {
                    model: LanguageModel::load(&config, &source, &self.device)?,
                    tokenizer,
                    adapter: None,
                    base: path.to_string_lossy().into_owned(),
                    score: None,
                    config,
                });
            }
        };
        let (tokenizer, config) = self.with_tokens(&source.tokenizer()?, &source.config)?;
        source.resize(config);
        self.record_model(role, self.lineage_name(init), source.files()?)?;
        self.warn(&source.notes);
        let mut model = self.shared_base(&source)?;
        let adapter = source.attach_outermost(&mut model, &self.device)?;
        if let Some(adapter) = &adapter {
            self.warn(&adapter.warnings);
        }
        let score = match source.score_head()? {
            Some(head) if head.labels == 1 => Some(source.read_score(&head)?),
            _ => None,
        };
        Ok(Policy {
            model,
            tokenizer,
            adapter: adapter.map(|adapter| adapter.config.spec),
            base: source.peft_base()?,
            score,
            config: source.config,
        })
    }

    /// The result of an earlier stage.
    fn stage_result(&self, stage: &str) -> Result<ModelSource> {
        let dir = self.stage_dir(stage)?;
        ModelSource::of_stage(&dir, self.model.as_deref())?.ok_or_else(|| Error::Stage {
            stage: stage.to_owned(),
            message: format!(
                "it has no result yet ({} is missing); run the recipe without --stage",
                dir.join("model").display()
            ),
        })
    }

    /// The model under the outermost adapter, shared by all models on it.
    pub(super) fn shared_base(&mut self, source: &ModelSource) -> Result<LanguageModel<B>> {
        let inner = source.adapters.len().saturating_sub(1);
        // Adapters name their base by an absolute path, recipes often by a relative one.
        let same = |path: &PathBuf| path.canonicalize().unwrap_or_else(|_| path.clone());
        let files = std::iter::once(&source.weights).chain(&source.adapters[..inner]);
        let config = &source.config;
        let tied = config.tie_word_embeddings();
        let key = (files.map(same).collect(), config.vocab_size(), tied);
        if let Some(model) = self.bases.get(&key) {
            return Ok(model.clone());
        }
        let model = source.load_base(self.numerics, &self.device)?;
        self.bases.insert(key, model.clone());
        Ok(model)
    }

    /// Reports each warning about a model's files once.
    pub(super) fn warn(&mut self, warnings: &[String]) {
        for warning in warnings {
            if self.warned.insert(warning.clone()) {
                self.reporter.message(&format!("warning: {warning}"));
            }
        }
    }

    /// The reward model of a stage, or of a folder.
    ///
    /// # Errors
    /// As [`Session::policy`].
    pub fn reward_model(&mut self, stage: &str) -> Result<RewardModel<B>> {
        self.reward_model_as(ModelRole::Reward, stage)
    }

    /// The reward model of a stage, or of a folder, which the lineage lists with this role.
    ///
    /// # Errors
    /// As [`Session::policy`].
    pub(super) fn reward_model_as(
        &mut self,
        role: ModelRole,
        stage: &str,
    ) -> Result<RewardModel<B>> {
        let source = match reward_folder(stage) {
            Some(folder) => ModelSource::at(folder, self.model.as_deref())?,
            None => self.stage_result(stage)?,
        };
        source.check_reward()?;
        self.record_model(role, stage.to_owned(), source.files()?)?;
        let tokenizer = Arc::new(source.tokenizer()?);
        self.warn(&source.notes);
        // A whole classification checkpoint is not shared as a base.
        let backbone = match !source.adapters.is_empty() && source.has_output_head()? {
            true => self.shared_base(&source)?,
            false => source.load_backbone(self.numerics, &self.device)?,
        };
        let (model, adapter) = source.reward_model(backbone, &self.device)?;
        if let Some(adapter) = &adapter {
            self.warn(&adapter.warnings);
        }
        Ok(RewardModel {
            model,
            tokenizer,
            adapter: adapter.map(|adapter| adapter.config.spec),
            config: source.config,
        })
    }
}

impl<B: ModelBackend> Policy<B> {
    /// Prepares the policy for training by `peft`, on the autodiff backend.
    ///
    /// Adapters of the requested shape are continued, so that policy, reference, reward and value share one base. Other adapters
    /// are merged into the weights first (`merged` is true), and the stage has a base of its own.
    ///
    /// # Errors
    /// As [`prepare_adapters`].
    pub fn into_trainable(self, peft: &Peft, seed: Seed) -> Result<TrainablePolicy<B>> {
        let peft = &token_ids(peft, &self.tokenizer)?;
        trained_tensors(&self.config, false, peft)?;
        let mut model = self.model;
        let present = self.adapter.as_ref();
        let encode = |text: &str| self.tokenizer.encode_document(text);
        let prepared = prepare_adapters(&mut model, &self.config, present, peft, seed, &encode)?;
        let mut model = LanguageModel::<Autodiff<B>>::from_inner(model);
        peft.mark_trained(&mut model);
        Ok(TrainablePolicy {
            model,
            adapter: prepared.adapter,
            merged: prepared.merged,
        })
    }
}

/// `peft` with the ids that a tokenizer gives in place of tokens' texts.
///
/// # Errors
/// `Error::Usage` for texts that are no tokens.
pub(super) fn token_ids(peft: &Peft, tokenizer: &Tokenizer) -> Result<Peft> {
    with_token_ids(peft, tokenizer).map_err(|problems| {
        let problems: Vec<String> = problems.iter().map(ToString::to_string).collect();
        Error::Usage(problems.join("; "))
    })
}

/// A policy in training.
pub struct TrainablePolicy<B: ModelBackend> {
    /// The model, on the autodiff backend.
    pub model: LanguageModel<Autodiff<B>>,
    /// Settings of its adapters; `None` if weights of the model itself are trained.
    pub adapter: Option<AdapterSpec>,
    /// Whether other adapters were merged into the base first.
    pub merged: bool,
}

/// Writes a trained policy under `dir`: `adapter/` in PEFT's layout or `model/` in Hugging Face's.
///
/// # Errors
/// `Error::Io`.
pub(super) fn save_policy<B: ModelBackend>(
    dir: &Path,
    trained: &TrainablePolicy<B>,
    config: &ModelConfig,
    tokenizer: &Tokenizer,
    base: &str,
) -> Result<()> {
    collective::on_first(|| write_policy(dir, trained, config, tokenizer, base))?;
    Ok(())
}

fn write_policy<B: ModelBackend>(
    dir: &Path,
    trained: &TrainablePolicy<B>,
    config: &ModelConfig,
    tokenizer: &Tokenizer,
    base: &str,
) -> Result<()> {
    let mut model = trained.model.valid();
    let of_base = config.with_tables_of_base();
    match &trained.adapter {
        Some(adapter) => {
            let (base, config) = match trained.merged {
                true => {
                    let own = dir.join("base");
                    let mut plain = model.clone();
                    plain.detach_adapters();
                    write_model(&own, &mut plain, config, tokenizer, false, None)?;
                    let own = std::path::absolute(&own).map_err(Error::io("find", &own))?;
                    (own.to_string_lossy().into_owned(), &of_base)
                }
                false => (base.to_owned(), config),
            };
            write_dir_atomic(dir.join("adapter"), |folder| {
                save_adapter(&mut model, config, adapter, &base, folder)?;
                write_sidecar(folder, adapted_precision(&mut model), None)?;
                tokenizer.save(folder)
            })
        }
        None => write_model(
            &dir.join("model"),
            &mut model,
            config,
            tokenizer,
            false,
            None,
        ),
    }
}

/// Writes a trained reward model under `dir`, as [`save_policy`] does.
///
/// # Errors
/// `Error::Io`.
pub(super) fn save_reward_model<B: ModelBackend>(
    dir: &Path,
    model: &mut ScalarModel<B>,
    adapter: Option<&AdapterSpec>,
    config: &ModelConfig,
    tokenizer: &Tokenizer,
    base: &str,
) -> Result<()> {
    let offset = model.offset;
    collective::on_first(|| match adapter {
        Some(adapter) => write_dir_atomic(dir.join("adapter"), |folder| {
            save_adapter(model, config, adapter, base, folder)?;
            write_sidecar(folder, adapted_precision(model), Some(offset))?;
            tokenizer.save(folder)
        }),
        None => write_model(
            &dir.join("model"),
            model,
            config,
            tokenizer,
            true,
            Some(offset),
        ),
    })?;
    Ok(())
}

/// Writes all weights with configuration and tokenizer.
fn write_model<B: ModelBackend>(
    folder: &Path,
    model: &mut dyn Parameters<B>,
    config: &ModelConfig,
    tokenizer: &Tokenizer,
    classification: bool,
    offset: Option<f64>,
) -> Result<()> {
    write_dir_atomic(folder, |folder| {
        let mut json = config.to_json_as(classification, StoreAs::F32);
        if let Some(object) = json.as_object_mut() {
            tokenizer.name_eos(object);
            if let Some(offset) = offset {
                object.insert(SCORE_OFFSET.into(), offset.into());
            }
        }
        let text = serde_json::to_string_pretty(&json)
            .map_err(|e| Error::format(folder, e.to_string()))?;
        write_atomic(folder.join("config.json"), text.as_bytes())?;
        write_snapshot(folder.join("model.safetensors"), &stored_tensors(model))?;
        tokenizer.save(folder)
    })
}
