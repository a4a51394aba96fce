//! Resolves a user's name for a model to weights, configuration, tokenizer and heads.
//!
//! A model is a folder in Hugging Face's layout, one weight file, a model known by name, the result of a stage, or an
//! adapter on any of these, other adapters included. Commands, recipes, reward models and exports all resolve it here.

mod tables;
mod tokenizer;

use std::path::{Path, PathBuf};

use super::adapter::check_adapter;
use super::config::ModelConfig;
use super::files::{AbsentWeights, Fetch, Finder, ModelFiles, at_path};
use super::find::{absolute, result_of};
use super::offset::{SIDECAR, read_score_offset};
use super::prompt;
use super::reference::HubModel;
use super::weights::heads::SCORE;
use super::weights::{self, WeightSource};
use crate::data::Tokenizer;
use crate::error::{Error, Result};
use crate::peft::files::{ADAPTER_CONFIG, weights_file};
use crate::peft::keys::{StoredKey, parse_key};
use tables::TableFiles;

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
    /// Weights of the base and of adapters that are still to be downloaded: what they hold is not known, and nothing can be loaded.
    pub absent: Vec<AbsentWeights>,
    /// The model of the hub that the base is.
    hub: Option<HubModel>,
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
    /// Finds the model that `--model` names: a file or folder, a known model, or a repository of the hub. Downloads what is not on
    /// this machine.
    ///
    /// # Errors
    /// As [`Finder::find_on`].
    pub fn find(name: &str) -> Result<Self> {
        Finder::new(Fetch::All).find(name)
    }

    /// The model at `path`, even if a known model has the same name; or of the hub's repository of that name. `given_base` is used if
    /// an adapter's base is not on this machine.
    ///
    /// # Errors
    /// As [`Finder::find_on`].
    pub fn at(path: &Path, given_base: Option<&str>) -> Result<Self> {
        Finder::new(Fetch::All).at(path, given_base)
    }

    /// The result in a stage's folder; `None` if there is none yet.
    ///
    /// # Errors
    /// As [`Finder::find_on`].
    pub fn of_stage(folder: &Path, given_base: Option<&str>) -> Result<Option<Self>> {
        let results = ["adapter", "model"].map(|name| folder.join(name));
        match results.iter().find(|result| result.exists()) {
            Some(result) => Self::at(result, given_base).map(Some),
            None => Ok(None),
        }
    }

    /// The same model with one more adapter on it, a folder or a repository of the hub, whatever base the adapter names.
    ///
    /// # Errors
    /// `Error::Usage` if the folder is not an adapter's.
    pub fn with_adapter(mut self, folder: &Path) -> Result<Self> {
        let given = folder;
        let name = folder.to_string_lossy();
        let folder = match HubModel::parse(&name) {
            Some(_) if !folder.exists() => Finder::new(Fetch::All).files(&name)?,
            _ => at_path("", folder),
        };
        let folder = result_of(folder).dir;
        if !folder.join(ADAPTER_CONFIG).is_file() {
            return Err(Error::Usage(format!(
                "adapter {}: expected a folder with {ADAPTER_CONFIG}",
                given.display()
            )));
        }
        self.adapters.push(folder);
        self.take_stored_tables()?;
        Ok(self)
    }

    /// Configuration and tokenizer for a model with random weights, given a `config.json`, its folder, or a repository of the hub.
    ///
    /// # Errors
    /// Those of [`ModelConfig::load`] and [`Tokenizer::load`].
    pub fn blank(path: &Path) -> Result<(ModelConfig, Tokenizer)> {
        let files = match HubModel::parse(&path.to_string_lossy()) {
            Some(_) if !path.exists() => Finder::new(Fetch::Description).files_at(path)?,
            _ => at_path("", path),
        };
        let config = ModelConfig::load(&files.weights)?;
        let dir = files.dir;
        let tokenizer = Tokenizer::load(&dir)?;
        tokenizer.check_embedding(config.vocab_size())?;
        Ok((config, tokenizer))
    }

    /// The model in these files.
    pub(super) fn open(
        name: &str,
        files: ModelFiles,
        adapters: Vec<PathBuf>,
        absent: Vec<AbsentWeights>,
        notes: Vec<String>,
    ) -> Result<Self> {
        let mut found = Self {
            name: name.to_owned(),
            config: match files.absent {
                Some(_) => ModelConfig::load(&files.dir)?,
                None => ModelConfig::load(&files.weights)?,
            },
            dir: files.dir,
            weights: files.weights,
            adapters,
            notes,
            absent,
            hub: files.hub,
            tables: TableFiles::default(),
        };
        if !found.is_whole() {
            return Ok(found);
        }
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

    /// Whether all weights are on this machine.
    pub fn is_whole(&self) -> bool {
        self.absent.is_empty()
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

    /// The base of the outermost adapter, for its configuration: a repository of the hub, `owner/name` or `owner/name@revision`,
    /// otherwise an absolute path.
    ///
    /// # Errors
    /// `Error::Io` if the current folder is not known.
    pub fn peft_base(&self) -> Result<String> {
        if let [.., below, _] = self.adapters.as_slice() {
            return absolute(below);
        }
        if let Some(HubModel { repo, file: None }) = &self.hub {
            return Ok(repo.to_string());
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

#[cfg(test)]
mod tests;
