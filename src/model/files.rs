//! Finds the files of models, and downloads those that are not on this machine.

use std::path::{Path, PathBuf};

use super::config::ModelConfig;
use super::encoder::{EncoderConfig, has_encoder};
use super::manifest::{self, Manifest, Source};
use super::reference::{HubModel, Reference};
use super::repository;
use crate::error::{Error, Result};
use crate::hub::Hub;

/// A model's files on this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelFiles {
    /// The user's name for it.
    pub name: String,
    /// The folder with `config.json` and the tokenizer.
    pub dir: PathBuf,
    /// The path for `weights::open` and `ModelConfig::load`: the folder, or the named weight file.
    pub weights: PathBuf,
    /// The model of the hub that these files are.
    pub hub: Option<HubModel>,
    /// The weights, where they are still to be downloaded.
    pub absent: Option<AbsentWeights>,
}

/// Weights that are still to be downloaded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AbsentWeights {
    /// The model, as the user may write it.
    pub model: String,
    /// How much is to be downloaded.
    pub bytes: u64,
}

/// How much of a model is downloaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fetch {
    /// Configuration and tokenizer.
    Description,
    /// As [`Fetch::Description`]; of models that are described by their weight file alone (GGUF) everything.
    Check,
    /// Everything.
    All,
}

/// Finds models: by path, by name, in the hub's cache, on the hub.
#[derive(Debug, Clone)]
pub struct Finder {
    pub(super) hub: Hub,
    pub(super) fetch: Fetch,
    /// Whether encoders are looked for, too.
    pub(super) encoders: bool,
}

impl Finder {
    /// Finds models with the hub of the environment.
    pub fn new(fetch: Fetch) -> Self {
        Self::with_hub(Hub::from_env(), fetch)
    }

    /// Finds models with a hub.
    pub fn with_hub(hub: Hub, fetch: Fetch) -> Self {
        Self {
            hub,
            fetch,
            encoders: false,
        }
    }

    /// The same for encoders, too. Other finders refuse them before their weights are downloaded.
    pub fn with_encoders(self) -> Self {
        Self {
            encoders: true,
            ..self
        }
    }

    /// Downloads what the cache does not have of a model of the hub.
    fn download(&self, model: &HubModel) -> Result<ModelFiles> {
        let check = |folder: &Path| match self.encoders && has_encoder(folder) {
            true => EncoderConfig::load(folder).map(drop),
            false => ModelConfig::load(folder).map(drop),
        };
        repository::download(&self.hub, model, self.fetch, &check)
    }

    /// The files of the model that `name` means, see [`Reference::parse`].
    ///
    /// A known model is searched for in `./models/<name>` and `<home>/models/<name>` (see [`manifest::home`]); an embedded one is
    /// unpacked into the latter. A model of the hub is taken from the cache if it is there, and downloaded otherwise.
    ///
    /// # Errors
    /// `Error::Usage` for an unknown name, a missing path, a repository that is not on the hub, is refused, or holds no weights that
    /// are read; `Error::Hub` if the hub cannot be reached; `Error::Format` for a configuration that is not supported; `Error::Io`.
    pub fn files(&self, name: &str) -> Result<ModelFiles> {
        let files = self.files_of(Reference::parse(name)?)?;
        Ok(ModelFiles {
            name: name.to_owned(),
            ..files
        })
    }

    /// Downloads the newest commit of a model of the hub, even if the cache has an older one. Other models as [`Finder::files`].
    ///
    /// # Errors
    /// As [`Finder::files`].
    pub(super) fn newest(&self, name: &str) -> Result<ModelFiles> {
        let model = match Reference::parse(name)? {
            Reference::Hub(model) => Some(model),
            Reference::Known(manifest) if manifest::folder(&manifest)?.is_none() => {
                HubModel::of(&manifest)
            }
            _ => None,
        };
        match model {
            Some(model) => self.download(&model),
            None => self.files(name),
        }
    }

    /// The folder or file at `path`, or if there is none, of the hub's repository of that name.
    ///
    /// # Errors
    /// As [`Finder::files`]; `Error::Io` for a path that does not exist and names no repository.
    pub fn files_at(&self, path: &Path) -> Result<ModelFiles> {
        let text = path.to_string_lossy();
        match Reference::by_name(&text) {
            Some(Reference::Hub(_) | Reference::Known(_))
                if !path.exists() && text.contains('/') =>
            {
                self.files(&text)
            }
            _ => {
                std::fs::metadata(path).map_err(Error::io("open", path))?;
                Ok(at_path(&text, path))
            }
        }
    }

    /// The folder of a known model that is on this machine; an embedded one is not unpacked for it.
    pub fn on_disk(&self, model: &Manifest) -> Option<PathBuf> {
        match model.source {
            Source::Embedded => None,
            _ => self
                .present(&Reference::Known(model.clone()))
                .ok()?
                .map(|files| files.dir),
        }
    }

    /// The files that a reference means.
    ///
    /// # Errors
    /// As [`Finder::files`].
    pub(super) fn files_of(&self, reference: Reference) -> Result<ModelFiles> {
        if let Some(files) = self.present(&reference)? {
            return Ok(files);
        }
        match reference {
            Reference::Path(path) => Ok(at_path(&path.to_string_lossy(), &path)),
            Reference::Known(manifest) => match HubModel::of(&manifest) {
                Some(model) => self.download(&model).map_err(|error| match error {
                    Error::Hub { place, message } => Error::Hub {
                        place,
                        message: format!("{message}; or {}", manifest::place_for(&manifest)),
                    },
                    error => error,
                }),
                None => Err(Error::Usage(format!(
                    "model {}: not on this machine; {}",
                    manifest.name,
                    manifest::place_for(&manifest)
                ))),
            },
            Reference::Hub(model) => self.download(&model),
        }
    }

    /// The files that a reference means, if they are on this machine.
    ///
    /// # Errors
    /// `Error::Io` if an embedded model cannot be unpacked.
    pub(super) fn present(&self, reference: &Reference) -> Result<Option<ModelFiles>> {
        Ok(match reference {
            Reference::Path(path) => Some(at_path(&path.to_string_lossy(), path)),
            Reference::Known(manifest) => {
                let of_hub = HubModel::of(manifest);
                match manifest::folder(manifest)? {
                    Some(dir) => Some(ModelFiles {
                        hub: of_hub,
                        ..at_path(&manifest.name, &dir)
                    }),
                    None => of_hub.and_then(|model| repository::cached(&self.hub, &model)),
                }
            }
            Reference::Hub(model) => repository::cached(&self.hub, model),
        })
    }
}

/// The files of a model at an existing path.
pub(crate) fn at_path(name: &str, path: &Path) -> ModelFiles {
    let dir = match path.parent() {
        _ if path.is_dir() => path,
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    ModelFiles {
        name: name.to_owned(),
        dir: dir.to_path_buf(),
        weights: path.to_path_buf(),
        hub: None,
        absent: None,
    }
}
