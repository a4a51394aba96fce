//! Resolves a user's name for a model to weights, configuration, tokenizer and heads.
//!
//! A model is a folder in Hugging Face's layout, one weight file, a model known by name, the result of a stage, or an
//! adapter on any of these, other adapters included. Commands, recipes, reward models and exports all resolve it here.

mod tables;
mod tokenizer;

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::adapter::check_adapter;
use super::config::ModelConfig;
use super::manifest::{self, Manifest, ModelFiles, Source};
use super::offset::{SIDECAR, read_score_offset};
use super::prompt;
use super::weights::heads::SCORE;
use super::weights::{self, WeightSource};
use crate::data::Tokenizer;
use crate::error::{Error, Result};
use crate::peft::files::{ADAPTER_CONFIG, weights_file};
use crate::peft::keys::{StoredKey, parse_key};
use tables::TableFiles;

/// Most adapters in a stack.
const MAX_ADAPTERS: usize = 8;

/// A model whose files have been found and whose headers have been read; the weights are still on disk.
#[derive(Debug, Clone)]
pub struct ModelSource {
    /// The user's name for it.
    pub name: String,
    /// The base's configuration, with `tie_word_embeddings` corrected by the stored tensors.
    pub config: ModelConfig,
    /// The folder with the base's configuration.
    pub dir: PathBuf,
    /// Path of the base's weights, for [`weights::open`].
    pub weights: PathBuf,
    /// Adapter folders, innermost first.
    pub adapters: Vec<PathBuf>,
    /// Notes for the user about the files.
    pub notes: Vec<String>,
    manifest: Option<Manifest>,
    /// What is other in embedding and output head than in the base's files.
    pub(super) tables: TableFiles,
}

/// A score head in a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ScoreHead {
    /// Number of labels; a reward model has one.
    pub labels: usize,
    /// The adapter's folder, or the base's weights.
    pub place: PathBuf,
    /// The stored name of the tensor.
    pub tensor: String,
}

impl ModelSource {
    /// Finds the model that `--model` names: a file or folder, or a known model.
    ///
    /// # Errors
    /// As [`ModelSource::find_on`].
    pub fn find(name: &str) -> Result<Self> {
        Self::find_on(name, None)
    }

    /// As [`ModelSource::find`]; `given_base` is used if an adapter's base is not on this machine.
    ///
    /// # Errors
    /// `Error::Usage` for an unknown name, a path that is not there, and an adapter whose base is not found; `Error::Format`
    /// for a configuration that is not supported; `Error::Io`.
    pub fn find_on(name: &str, given_base: Option<&str>) -> Result<Self> {
        let mut notes = Vec::new();
        let mut adapters = Vec::new();
        // `manifest::find` is the place to resolve further hub repositories, `owner/name[@revision]`.
        let mut files = result_of(manifest::find(name)?);
        while files.weights.join(ADAPTER_CONFIG).is_file() {
            if adapters.len() == MAX_ADAPTERS {
                return Err(Error::format(
                    &files.dir,
                    format!(
                        "more than {MAX_ADAPTERS} adapters are stacked, or their bases form a circle"
                    ),
                ));
            }
            let base = base_of(&files.dir, given_base, &mut notes)?;
            adapters.insert(0, files.dir);
            files = result_of(base);
        }
        Self::open(name, files, adapters, notes)
    }

    /// The model at `path`, even if a known model has the same name.
    ///
    /// # Errors
    /// As [`ModelSource::find_on`].
    pub fn at(path: &Path, given_base: Option<&str>) -> Result<Self> {
        fs::metadata(path).map_err(Error::io("open", path))?;
        Self::find_on(&path.to_string_lossy(), given_base)
    }

    /// The result in a stage's folder; `None` if there is none yet.
    ///
    /// # Errors
    /// As [`ModelSource::find_on`].
    pub fn of_stage(folder: &Path, given_base: Option<&str>) -> Result<Option<Self>> {
        let results = ["adapter", "model"].map(|name| folder.join(name));
        match results.iter().find(|result| result.exists()) {
            Some(result) => Self::at(result, given_base).map(Some),
            None => Ok(None),
        }
    }

    /// The same model with one more adapter on it, whatever base the adapter names.
    ///
    /// # Errors
    /// `Error::Usage` if the folder is not an adapter's.
    pub fn with_adapter(mut self, folder: &Path) -> Result<Self> {
        let folder = result_of(manifest::at_path("", folder)).dir;
        if !folder.join(ADAPTER_CONFIG).is_file() {
            return Err(Error::Usage(format!(
                "adapter {}: expected a folder with {ADAPTER_CONFIG}",
                folder.display()
            )));
        }
        self.adapters.push(folder);
        self.take_stored_tables()?;
        Ok(self)
    }

    /// Configuration and tokenizer for a model with random weights, given a `config.json` or its folder.
    ///
    /// # Errors
    /// Those of [`ModelConfig::load`] and [`Tokenizer::load`].
    pub fn blank(path: &Path) -> Result<(ModelConfig, Tokenizer)> {
        let config = ModelConfig::load(path)?;
        let dir = manifest::at_path("", path).dir;
        let tokenizer = Tokenizer::load(&dir)?;
        tokenizer.check_embedding(config.vocab_size())?;
        Ok((config, tokenizer))
    }

    fn open(
        name: &str,
        files: ModelFiles,
        adapters: Vec<PathBuf>,
        notes: Vec<String>,
    ) -> Result<Self> {
        let mut found = Self {
            name: name.to_owned(),
            config: ModelConfig::load(&files.weights)?,
            dir: files.dir,
            weights: files.weights,
            adapters,
            notes,
            manifest: files.manifest,
            tables: TableFiles::default(),
        };
        let source = weights::open(&found.weights)?;
        found.take_stored_head(source.as_ref())?;
        if let Some(labels) = labels(source.as_ref(), SCORE)
            && labels > 1
        {
            found.notes.push(format!(
                "{}: the model is a classifier, and its {SCORE} with {labels} labels is not used",
                source.path().display()
            ));
        }
        found.take_stored_tables()?;
        Ok(found)
    }

    /// The score head of a reward model from these files: that of the outermost adapter with one, or the base's.
    ///
    /// # Errors
    /// When a weight file cannot be read.
    pub fn score_head(&self) -> Result<Option<ScoreHead>> {
        for folder in self.adapters.iter().rev() {
            let source = weights::open(weights_file(folder)?)?;
            let saved = |name: &String| match parse_key(name, &[]) {
                StoredKey::Whole(parameter) => parameter == SCORE,
                _ => false,
            };
            if let Some(tensor) = source.names().into_iter().find(saved) {
                return Ok(Some(ScoreHead {
                    labels: labels(source.as_ref(), &tensor).unwrap_or(0),
                    place: folder.clone(),
                    tensor,
                }));
            }
        }
        let source = weights::open(&self.weights)?;
        Ok(labels(source.as_ref(), SCORE).map(|labels| ScoreHead {
            labels,
            place: source.path().to_path_buf(),
            tensor: SCORE.into(),
        }))
    }

    /// Whether the base's weights hold the output head of a causal model.
    ///
    /// # Errors
    /// As [`weights::open`].
    pub fn has_output_head(&self) -> Result<bool> {
        let source = self.open_weights()?;
        let head = self.config.tensors().pop();
        Ok(head.is_some_and(|head| {
            head.tied_to.is_some() || weights::resolve(source.as_ref(), &head.name).is_some()
        }))
    }

    /// Checks names and shapes of all tensors of a causal model without reading them, and its adapters.
    ///
    /// # Errors
    /// `Error::Weights` listing what is missing, surplus or mis-shaped; `Error::Invalid` for numbers of an adapter that are not finite;
    /// `Error::Format`; `Error::Io`.
    pub fn check(&self) -> Result<()> {
        weights::check(self.open_weights()?.as_ref(), &self.config.tensors())?;
        self.check_adapters()
    }

    /// As [`ModelSource::check`] for a reward model, whose score head has one label.
    ///
    /// # Errors
    /// As [`ModelSource::check`]; `Error::Format` if there is no score head or one with several labels.
    pub fn check_reward(&self) -> Result<ScoreHead> {
        let head = self.score_head()?.ok_or_else(|| {
            Error::format(
                self.adapters.last().unwrap_or(&self.weights),
                "not a reward model: there is no score.weight, neither in the model nor in an adapter",
            )
        })?;
        if head.labels != 1 {
            return Err(Error::format(
                &head.place,
                format!(
                    "{}: the classifier has {} labels; a reward model has one, score.weight of shape [1, {}]",
                    head.tensor,
                    head.labels,
                    self.config.output_size()
                ),
            ));
        }
        weights::check(
            self.open_weights()?.as_ref(),
            &self.config.backbone_tensors(),
        )?;
        self.check_adapters()?;
        Ok(head)
    }

    /// Checks names and shapes of all adapters' tensors, and that their numbers are finite.
    ///
    /// # Errors
    /// As [`ModelSource::check`].
    pub(super) fn check_adapters(&self) -> Result<()> {
        prompt::check_stack(&self.adapters)?;
        self.adapters
            .iter()
            .try_for_each(|folder| check_adapter(&self.config, folder))
    }

    /// The values of a score head with one label, `[output size]`.
    ///
    /// # Errors
    /// As [`WeightSource::read`].
    pub fn read_score(&self, head: &ScoreHead) -> Result<Vec<f32>> {
        let source = match self.adapters.contains(&head.place) {
            true => weights::open(weights_file(&head.place)?)?,
            false => weights::open(&self.weights)?,
        };
        source.read(&head.tensor)
    }

    /// The score offset.
    ///
    /// # Errors
    /// As [`read_score_offset`].
    pub fn score_offset(&self, head: &ScoreHead) -> Result<f64> {
        match self.adapters.contains(&head.place) {
            true => read_score_offset(&head.place.join(SIDECAR)),
            false => read_score_offset(&self.dir.join("config.json")),
        }
    }

    /// The value of PEFT's `base_model_name_or_path` for the outermost adapter: the hub repository of a known model, otherwise an
    /// absolute path.
    ///
    /// # Errors
    /// `Error::Io` if the current folder is not known.
    pub fn peft_base(&self) -> Result<String> {
        if let [.., below, _] = self.adapters.as_slice() {
            return absolute(below);
        }
        if let Some(Manifest {
            source: Source::Hub { repo, .. },
            ..
        }) = &self.manifest
        {
            return Ok(repo.clone());
        }
        // PEFT takes folders; a file is named only if it has a non-standard name.
        let in_folder = self.weights.file_name() == Some("model.safetensors".as_ref());
        absolute(if in_folder { &self.dir } else { &self.weights })
    }

    /// All weight files.
    ///
    /// # Errors
    /// As [`weights::open`].
    pub fn files(&self) -> Result<Vec<PathBuf>> {
        let mut files = weights::open(&self.weights)?.files();
        for folder in &self.adapters {
            files.extend(weights::open(weights_file(folder)?)?.files());
        }
        Ok(files)
    }
}

/// Number of labels of the score head `tensor`.
fn labels(source: &dyn WeightSource, tensor: &str) -> Option<usize> {
    let shape = source.shape(tensor)?;
    Some(shape.first().copied().unwrap_or(0))
}

fn absolute(path: &Path) -> Result<String> {
    let path = std::path::absolute(path).map_err(Error::io("find", path))?;
    Ok(path.to_string_lossy().into_owned())
}

/// Resolves a stage's folder to the `adapter` or `model` inside; other paths are unchanged.
fn result_of(files: ModelFiles) -> ModelFiles {
    let holds_model = |dir: &Path| {
        [ADAPTER_CONFIG, "config.json"]
            .iter()
            .any(|name| dir.join(name).is_file())
    };
    let folder = &files.weights;
    if !folder.is_dir() || holds_model(folder) {
        return files;
    }
    let results = ["adapter", "model"].map(|name| folder.join(name));
    match results.iter().find(|result| holds_model(result)) {
        Some(result) => manifest::at_path(&files.name, result),
        None => files,
    }
}

/// The files of the base that an adapter names, or else of `given`.
fn base_of(folder: &Path, given: Option<&str>, notes: &mut Vec<String>) -> Result<ModelFiles> {
    let file = folder.join(ADAPTER_CONFIG);
    let named = named_base(&file)?;
    let (local, known) = match &named {
        Some(named) => (local_base(folder, named), manifest::known(named)),
        None => (None, None),
    };
    if let Some(path) = local {
        return manifest::find(&path.to_string_lossy());
    }
    if let Some(known) = &known
        && let Some(files) = manifest::find_local(known)?
    {
        return Ok(files);
    }
    let says = match &named {
        Some(named) => format!("names the base model \"{named}\""),
        None => "names no base model (\"base_model_name_or_path\")".into(),
    };
    if let Some(given) = given {
        notes.push(format!(
            "{}: {says}, which is not on this machine; the recipe's model {given} is used in its place",
            file.display()
        ));
        return manifest::find(given);
    }
    let why = match known {
        Some(known) => match manifest::find(&known.name) {
            Ok(files) => return Ok(files),
            Err(error) => error.to_string(),
        },
        None => "it is neither a file or folder nor a known model".into(),
    };
    Err(Error::Usage(format!(
        "{}: the adapter {says}: {why}. Name another base: --model BASE --adapter {} on the command line, `model: \"BASE\"` in a recipe",
        file.display(),
        folder.display()
    )))
}

/// The base of the adapter in `folder` in a form that PEFT can find from anywhere: a hub repository or an absolute path. `None` if
/// the base is unknown; nothing is downloaded.
///
/// # Errors
/// `Error::Io`; `Error::Format` for a configuration that is not JSON.
pub fn portable_base(folder: &Path) -> Result<Option<String>> {
    let Some(named) = named_base(&folder.join(ADAPTER_CONFIG))? else {
        return Ok(None);
    };
    if let Some(path) = local_base(folder, &named) {
        return absolute(&path).map(Some);
    }
    Ok(match manifest::known(&named) {
        Some(Manifest {
            source: Source::Hub { repo, .. },
            ..
        }) => Some(repo),
        Some(known) => match manifest::find_local(&known)? {
            Some(files) => Some(absolute(&files.dir)?),
            None => None,
        },
        None => None,
    })
}

/// `base_model_name_or_path` of an `adapter_config.json`, if set.
fn named_base(file: &Path) -> Result<Option<String>> {
    let text = fs::read_to_string(file).map_err(Error::io("read", file))?;
    let config: Value =
        serde_json::from_str(&text).map_err(|e| Error::format(file, e.to_string()))?;
    let named = config
        .get("base_model_name_or_path")
        .and_then(Value::as_str);
    Ok(named.filter(|base| !base.is_empty()).map(str::to_owned))
}

/// Resolves the path that an adapter gives for its base: as written, relative to the adapter, or, in a moved run folder, to the
/// result of the named stage.
fn local_base(folder: &Path, named: &str) -> Option<PathBuf> {
    let parent = folder.parent().unwrap_or(Path::new("."));
    let mut places = vec![PathBuf::from(named), parent.join(named)];
    if Path::new(named).file_name() == Some("base".as_ref())
        && folder.file_name() == Some("adapter".as_ref())
    {
        places.push(parent.join("base"));
    }
    places.into_iter().find(|place| place.exists())
}

#[cfg(test)]
mod tests;
