//! Models by role: loaded from the base or an earlier stage, prepared for training, saved as others can read them.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use burn::backend::Autodiff;
use burn::module::AutodiffModule;

use super::Session;
use super::config::{Init, Peft};
use crate::atomic::write_atomic;
use crate::checkpoint::{FileHash, StageLineage, write_dir_atomic};
use crate::data::Tokenizer;
use crate::error::{Error, Result};
use crate::model::weights::{self, RandomSource, write_snapshot};
use crate::model::{
    LanguageModel, ModelConfig, SCORE_OFFSET, SIDECAR, ScalarModel, attach_lora, load_adapter,
    manifest, read_score_offset, save_adapter, stored_tensors,
};
use crate::ops::ModelBackend;
use crate::params::{ParamKind, Parameters};
use crate::peft::files::{ADAPTER_CONFIG, ADAPTER_WEIGHTS};
use crate::peft::{Adaptable, LoraConfig};
use crate::rng::Seed;

/// Name of a reward model's head in files.
const SCORE: &str = "score.weight";

/// A language model with what is needed to use and save it.
#[derive(Debug, Clone)]
pub struct Policy<B: ModelBackend> {
    /// The weights, frozen.
    pub model: LanguageModel<B>,
    /// Its configuration.
    pub config: ModelConfig,
    /// Its tokenizer.
    pub tokenizer: Arc<Tokenizer>,
    /// Configuration of its adapters, if it has any.
    pub lora: Option<LoraConfig>,
    /// Folder or name of the base, as PEFT's `base_model_name_or_path`.
    pub base: String,
    /// Files that the weights came from.
    pub files: Vec<PathBuf>,
    /// A score head found beside the weights (`score.weight` of a classification model or adapter), `[hidden]`: a reward
    /// model starts from it, policies do not use it.
    pub score: Option<Vec<f32>>,
}

/// A trained reward model.
#[derive(Debug, Clone)]
pub struct RewardModel<B: ModelBackend> {
    /// The weights, frozen.
    pub model: ScalarModel<B>,
    /// Configuration of its adapters, if it has any.
    pub lora: Option<LoraConfig>,
    /// Rows of its embedding.
    pub vocab_size: usize,
}

impl<B: ModelBackend> Session<'_, B> {
    /// The model that `init` names.
    ///
    /// # Errors
    /// When files are missing, do not fit, or the stage has not run.
    pub fn policy(&mut self, init: &Init) -> Result<Policy<B>> {
        match init {
            Init::Base => {
                let name = self.model.clone().ok_or_else(|| {
                    Error::Usage(
                        "the recipe has no `model`, and a stage starts from the base".into(),
                    )
                })?;
                self.base_policy(&name)
            }
            Init::Stage(stage) => {
                let dir = self.stage_dir(stage)?;
                let adapter = dir.join("adapter");
                if adapter.exists() {
                    return self.adapted_policy(&adapter);
                }
                self.base_policy(&existing(dir.join("model"), stage)?.to_string_lossy())
            }
            Init::Folder(path) if path.join(ADAPTER_CONFIG).exists() => self.adapted_policy(path),
            Init::Folder(path) => match path.exists() {
                true => self.base_policy(&path.to_string_lossy()),
                false => Err(Error::Usage(format!(
                    "init: no such file or folder: {}",
                    path.display()
                ))),
            },
            Init::Random(path) => {
                let config = ModelConfig::load(path)?;
                let folder = if path.is_dir() {
                    path.as_path()
                } else {
                    path.parent().unwrap_or(Path::new("."))
                };
                let source = RandomSource::new(&config, self.seed.fork("weights"));
                Ok(Policy {
                    model: LanguageModel::load(&config, &source, &self.device)?,
                    tokenizer: Arc::new(Tokenizer::load(folder)?),
                    lora: None,
                    base: folder.to_string_lossy().into_owned(),
                    files: Vec::new(),
                    score: None,
                    config,
                })
            }
        }
    }

    /// The adapter of a folder on the base that it names.
    fn adapted_policy(&mut self, adapter: &Path) -> Result<Policy<B>> {
        let base = manifest::adapter_base(adapter)?;
        let mut policy = self.base_policy(&base)?;
        let loaded = load_adapter(&mut policy.model, &policy.config, adapter, &self.device)?;
        self.warn(&loaded.warnings);
        policy.lora = Some(loaded.config.lora());
        policy.score = loaded.score.or(policy.score);
        policy.files.push(adapter.join(ADAPTER_WEIGHTS));
        Ok(policy)
    }

    /// Tells what an adapter's files hold that has no effect.
    fn warn(&mut self, warnings: &[String]) {
        for warning in warnings {
            self.reporter.message(&format!("warning: {warning}"));
        }
    }

    fn base_policy(&mut self, name: &str) -> Result<Policy<B>> {
        let files = manifest::find(name)?;
        let config = ModelConfig::load(&files.weights)?;
        let source = weights::open(&files.weights)?;
        let model = match self.bases.get(&files.weights) {
            Some(model) => model.clone(),
            None => {
                let numerics = self.numerics;
                let model =
                    LanguageModel::load_as(&config, source.as_ref(), numerics, &self.device)?;
                self.bases.insert(files.weights.clone(), model.clone());
                model
            }
        };
        let tokenizer = Arc::new(Tokenizer::load(&files.dir)?);
        if tokenizer.vocab_size() > config.vocab_size() {
            return Err(Error::format(
                &files.dir,
                format!(
                    "the tokenizer has {} tokens and the model {} embeddings",
                    tokenizer.vocab_size(),
                    config.vocab_size()
                ),
            ));
        }
        let is_scalar = source.shape(SCORE).is_some_and(|shape| shape[0] == 1);
        Ok(Policy {
            model,
            config,
            tokenizer,
            lora: None,
            base: name.to_owned(),
            score: match is_scalar {
                true => Some(source.read(SCORE)?),
                false => None,
            },
            files: source.files(),
        })
    }

    /// The reward model of a stage, or of a folder.
    ///
    /// # Errors
    /// As [`Session::policy`].
    pub fn reward_model(&mut self, stage: &str) -> Result<RewardModel<B>> {
        let dir = if stage.contains(['/', '\\']) {
            PathBuf::from(stage)
        } else {
            self.stage_dir(stage)?
        };
        let adapter = dir.join("adapter");
        if adapter.exists() {
            let base = self.base_policy(&manifest::adapter_base(&adapter)?)?;
            let mut backbone = base.model.into_backbone();
            let loaded = load_adapter(&mut backbone, &base.config, &adapter, &self.device)?;
            self.warn(&loaded.warnings);
            let score = loaded.score.ok_or_else(|| {
                Error::format(
                    &adapter,
                    "a reward model's adapter holds base_model.model.score.weight; it is missing",
                )
            })?;
            let mut model =
                ScalarModel::with_zero_head(backbone, base.config.output_size(), &self.device);
            model.set_score(score, &self.device);
            model.offset = read_score_offset(&adapter.join(SIDECAR))?;
            let vocab_size = base.config.vocab_size();
            return Ok(RewardModel {
                model,
                lora: Some(loaded.config.lora()),
                vocab_size,
            });
        }
        let folder = if dir.join("config.json").exists() {
            dir
        } else {
            existing(dir.join("model"), stage)?
        };
        let config = ModelConfig::load(&folder)?;
        let source = weights::open(&folder)?;
        let numerics = self.numerics;
        let mut model = ScalarModel::load_as(&config, source.as_ref(), numerics, &self.device)?;
        model.offset = read_score_offset(&folder.join("config.json"))?;
        Ok(RewardModel {
            model,
            lora: None,
            vocab_size: config.vocab_size(),
        })
    }

    /// Records where a stage's weights and data came from.
    ///
    /// # Errors
    /// `Error::Io`.
    pub(super) fn record(
        &self,
        stage: &str,
        init: &str,
        weights: &[PathBuf],
        data: &[(Option<PathBuf>, usize)],
    ) -> Result<()> {
        let hash = |path: &PathBuf, rows| FileHash::of(path, rows);
        self.run.record(StageLineage {
            stage: stage.to_owned(),
            init: init.to_owned(),
            data: data
                .iter()
                .filter_map(|(path, rows)| path.as_ref().map(|path| hash(path, Some(*rows))))
                .collect::<Result<_>>()?,
            weights: weights
                .iter()
                .map(|path| hash(path, None))
                .collect::<Result<_>>()?,
        })
    }
}

impl<B: ModelBackend> Policy<B> {
    /// The model on the autodiff backend with what `peft` says trained, and the adapters' configuration.
    ///
    /// Adapters of the same shape as asked for are continued, so that policy, reference, reward and value keep one
    /// base; others are first added to the weights, and `merged` is true: the stage then has a base of its own.
    ///
    /// # Errors
    /// `Error::Usage` for a target that matches no layer.
    pub fn into_trainable(self, peft: &Peft, seed: Seed) -> Result<Trainable<B>> {
        let mut model = self.model;
        let (lora, merged) = prepare(&mut model, &self.config, self.lora.as_ref(), peft, seed)?;
        let mut model = LanguageModel::<Autodiff<B>>::from_inner(model);
        let full = lora.is_none();
        model.train_only(&|kind| full || kind == ParamKind::Adapter);
        Ok(Trainable {
            model,
            lora,
            merged,
        })
    }
}

/// A model being trained.
pub struct Trainable<B: ModelBackend> {
    /// On the autodiff backend.
    pub model: LanguageModel<Autodiff<B>>,
    /// Configuration of its adapters, if those are trained.
    pub lora: Option<LoraConfig>,
    /// Whether other adapters were added to the base first.
    pub merged: bool,
}

/// Adapters as `peft` asks: continued, fresh, or merged away. Returns their configuration and whether the base changed.
pub(super) fn prepare<B: ModelBackend, M: Adaptable<B>>(
    model: &mut M,
    config: &ModelConfig,
    present: Option<&LoraConfig>,
    peft: &Peft,
    seed: Seed,
) -> Result<(Option<LoraConfig>, bool)> {
    let Peft::Lora(wanted) = peft else {
        model.merge_adapters();
        return Ok((None, false));
    };
    if let Some(present) = present
        && same_adapters(model, config, present, wanted)?
    {
        model.for_each_projection(&mut |projection| {
            projection
                .adapters
                .iter_mut()
                .flatten()
                .for_each(|lora| lora.dropout = wanted.dropout);
        });
        return Ok((Some(wanted.clone()), false));
    }
    model.merge_adapters();
    attach_lora(model, config, wanted, seed.fork("adapters"))?;
    Ok((Some(wanted.clone()), present.is_some()))
}

fn same_adapters<B: ModelBackend, M: Adaptable<B>>(
    model: &mut M,
    config: &ModelConfig,
    present: &LoraConfig,
    wanted: &LoraConfig,
) -> Result<bool> {
    let linear = config.linear_modules();
    let mut targets: Vec<String> = wanted
        .targets(&linear)?
        .into_iter()
        .map(|index| linear[index].name.clone())
        .collect();
    let mut adapted = Vec::new();
    let mut same_shape = true;
    model.for_each_projection(&mut |projection| {
        for (layer, adapter) in projection.layers().iter().zip(&projection.adapters) {
            if let Some(lora) = adapter {
                adapted.push(layer.path.clone());
                same_shape &= lora.rank() == wanted.rank_of(&layer.path)
                    && (lora.scale - wanted.scale_of(&layer.path)).abs() < 1e-9;
            }
        }
    });
    adapted.sort();
    targets.sort();
    Ok(same_shape && present.use_rslora == wanted.use_rslora && adapted == targets)
}

/// Writes a trained policy under `dir`: `adapter/` in PEFT's layout or `model/` in Hugging Face's.
///
/// # Errors
/// `Error::Io`.
pub(super) fn save_policy<B: ModelBackend>(
    dir: &Path,
    trained: &Trainable<B>,
    config: &ModelConfig,
    tokenizer: &Tokenizer,
    base: &str,
) -> Result<()> {
    let mut model = trained.model.valid();
    match &trained.lora {
        Some(lora) => {
            let base = match trained.merged {
                true => {
                    let own = dir.join("base");
                    let mut plain = model.clone();
                    plain.detach_adapters();
                    write_model(&own, &mut plain, config, tokenizer, false, None)?;
                    own.to_string_lossy().into_owned()
                }
                false => base.to_owned(),
            };
            write_dir_atomic(dir.join("adapter"), |folder| {
                save_adapter(&mut model, config, lora, &base, folder)?;
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
    lora: Option<&LoraConfig>,
    config: &ModelConfig,
    tokenizer: &Tokenizer,
    base: &str,
) -> Result<()> {
    let offset = model.offset;
    match lora {
        Some(lora) => write_dir_atomic(dir.join("adapter"), |folder| {
            save_adapter(model, config, lora, base, folder)?;
            let sidecar = serde_json::json!({ SCORE_OFFSET: offset });
            write_atomic(folder.join(SIDECAR), sidecar.to_string().as_bytes())?;
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
    }
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
        let mut json = config.to_json(classification);
        if let (Some(offset), Some(object)) = (offset, json.as_object_mut()) {
            object.insert(SCORE_OFFSET.into(), offset.into());
        }
        let text = serde_json::to_string_pretty(&json)
            .map_err(|e| Error::format(folder, e.to_string()))?;
        write_atomic(folder.join("config.json"), text.as_bytes())?;
        write_snapshot(folder.join("model.safetensors"), &stored_tensors(model))?;
        tokenizer.save(folder)
    })
}

fn existing(folder: PathBuf, stage: &str) -> Result<PathBuf> {
    if folder.exists() {
        return Ok(folder);
    }
    Err(Error::Stage {
        stage: stage.to_owned(),
        message: format!(
            "it has no result yet ({} is missing); run the recipe without --stage",
            folder.display()
        ),
    })
}
