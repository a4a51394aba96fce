//! Finds a classifier's files, checks and loads them.

use std::path::{Path, PathBuf};

use super::{EncoderClassifier, EncoderConfig};
use crate::data::EncoderTokenizer;
use crate::error::{Error, Result};
use crate::model::files::{AbsentWeights, Fetch, Finder, ModelFiles};
use crate::model::load::fill;
use crate::model::weights::{self, WeightSource};
use crate::ops::{ModelBackend, Numerics};

/// A classifier whose files have been found and whose configuration has been read; the weights are still on disk.
#[derive(Debug, Clone)]
pub struct ClassifierSource {
    /// The user's name for it.
    pub name: String,
    /// Its configuration.
    pub config: EncoderConfig,
    /// Path of the weights, for [`weights::open`].
    pub weights: PathBuf,
    /// The weights, where they are still to be downloaded.
    pub absent: Option<AbsentWeights>,
    /// The folder with configuration and tokenizer.
    dir: PathBuf,
}

impl ClassifierSource {
    /// Finds a classifier, see [`Finder::files`].
    ///
    /// # Errors
    /// As [`Finder::files`] and [`EncoderConfig::load`].
    pub fn find(finder: &Finder, name: &str) -> Result<Self> {
        Self::of(finder.clone().with_encoders().files(name)?)
    }

    /// The classifier in `files`.
    ///
    /// # Errors
    /// As [`EncoderConfig::load`].
    pub fn of(files: ModelFiles) -> Result<Self> {
        Ok(Self {
            config: EncoderConfig::load(files.dir.join("config.json"))?,
            name: files.name,
            weights: files.weights,
            absent: files.absent,
            dir: files.dir,
        })
    }

    /// The tokenizer; it gives no more tokens than the classifier has positions for.
    ///
    /// # Errors
    /// As [`EncoderTokenizer::load`].
    pub fn tokenizer(&self) -> Result<EncoderTokenizer> {
        let (rows, positions) = (self.config.vocab_size(), self.config.max_positions());
        EncoderTokenizer::load(&self.dir, rows, positions)
    }

    /// Checks names and shapes of all tensors without reading them.
    ///
    /// # Errors
    /// `Error::Weights` listing what is missing, surplus or mis-shaped; `Error::Format`; `Error::Io`.
    pub fn check(&self) -> Result<()> {
        self.check_in(weights::open(&self.weights)?.as_ref())
    }

    fn check_in(&self, source: &dyn WeightSource) -> Result<()> {
        let leaves_out = |name: &str| self.config.leaves_out(name);
        weights::check_but(source, &self.config.tensors(), &leaves_out)
    }

    /// The files of its weights.
    ///
    /// # Errors
    /// As [`weights::open`].
    pub fn files(&self) -> Result<Vec<PathBuf>> {
        Ok(weights::open(&self.weights)?.files())
    }

    /// Loads the classifier, after checking all tensors of the file.
    ///
    /// # Errors
    /// As [`ClassifierSource::check`]; `Error::Io` while reading.
    pub fn load<B: ModelBackend>(
        &self,
        numerics: Numerics,
        device: &B::Device,
    ) -> Result<EncoderClassifier<B>> {
        let source = weights::open(&self.weights)?;
        self.check_in(source.as_ref())?;
        let mut model = EncoderClassifier::new(&self.config, device);
        model.store_as(numerics);
        fill(&mut model, source.as_ref(), device)?;
        Ok(model)
    }
}

impl Finder {
    /// The classifier that `name` means; `None` for another model, and if nothing is found.
    ///
    /// # Errors
    /// As [`ClassifierSource::find`], for an encoder.
    pub fn classifier(&self, name: &str) -> Result<Option<ClassifierSource>> {
        let described = Finder {
            fetch: Fetch::Description,
            ..self.clone().with_encoders()
        };
        match described.files(name) {
            Ok(files) if has_encoder(&files.dir) => ClassifierSource::find(self, name).map(Some),
            // An encoder without a head for labels.
            Err(error @ Error::Format { .. }) => Err(error),
            _ => Ok(None),
        }
    }
}

/// Whether the configuration in a folder is an encoder's; false if it cannot be read.
pub(in crate::model) fn has_encoder(folder: &Path) -> bool {
    super::config::read_json(&folder.join("config.json"))
        .ok()
        .and_then(|config| Some(super::is_encoder(config.get("model_type")?.as_str()?)))
        .unwrap_or(false)
}
