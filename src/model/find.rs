//! Finds a model with all adapters of a stack: from the outermost one down to the base that the innermost one names.

use std::path::{Path, PathBuf};

use super::files::{Fetch, Finder, ModelFiles, at_path};
use super::reference::{HubModel, Reference};
use super::source::ModelSource;
use crate::error::{Error, Result};
use crate::outside;
use crate::peft::base::read_base;
use crate::peft::files::ADAPTER_CONFIG;

/// Most adapters in a stack.
const MAX_ADAPTERS: usize = 8;

impl Finder {
    /// Finds the model that `name` means, see [`Reference::parse`].
    ///
    /// # Errors
    /// As [`Finder::find_on`].
    pub fn find(&self, name: &str) -> Result<ModelSource> {
        self.find_on(name, None)
    }

    /// As [`Finder::find`]; `given_base` is used if an adapter's base is not on this machine.
    ///
    /// # Errors
    /// As [`Finder::files`]; `Error::Usage` for an adapter whose base is not found.
    pub fn find_on(&self, name: &str, given_base: Option<&str>) -> Result<ModelSource> {
        self.stack(name, self.files(name)?, given_base)
    }

    /// As [`Finder::find`]; of a model of the hub the newest commit is downloaded, even if the cache has an older one.
    ///
    /// # Errors
    /// As [`Finder::find_on`].
    pub fn update(&self, name: &str) -> Result<ModelSource> {
        self.stack(name, self.newest(name)?, None)
    }

    /// The model at `path`, even if a known model has the same name; or of the hub's repository of that name.
    ///
    /// # Errors
    /// As [`Finder::find_on`]; `Error::Io` for a path that does not exist and names no repository.
    pub fn at(&self, path: &Path, given_base: Option<&str>) -> Result<ModelSource> {
        self.stack(&path.to_string_lossy(), self.files_at(path)?, given_base)
    }

    /// The model in `files`, on the base that its adapters name.
    fn stack(&self, name: &str, files: ModelFiles, given: Option<&str>) -> Result<ModelSource> {
        let mut notes = Vec::new();
        let mut absent = Vec::new();
        let mut adapters = Vec::new();
        let mut files = result_of(files);
        while files.weights.join(ADAPTER_CONFIG).is_file() {
            if adapters.len() == MAX_ADAPTERS {
                return Err(Error::format(
                    &files.dir,
                    format!(
                        "more than {MAX_ADAPTERS} adapters are stacked, or their bases form a circle"
                    ),
                ));
            }
            let base = self.base_of(&files.dir, given, &mut notes)?;
            adapters.insert(0, files.dir);
            absent.extend(files.absent);
            files = result_of(base);
        }
        absent.extend(files.absent.clone());
        ModelSource::open(name, files, adapters, absent, notes)
    }

    /// The files of the base that an adapter names, or else of `given`.
    fn base_of(
        &self,
        folder: &Path,
        given: Option<&str>,
        notes: &mut Vec<String>,
    ) -> Result<ModelFiles> {
        let file = folder.join(ADAPTER_CONFIG);
        let named = named_base(&file)?;
        if let Some(path) = named.as_deref().and_then(|named| local_base(folder, named)) {
            return self.files(&path.to_string_lossy());
        }
        let reference = named.as_deref().and_then(Reference::by_name);
        if let Some(reference) = &reference
            && let Some(files) = self.present(reference)?
        {
            return Ok(files);
        }
        let says = match &named {
            Some(named) => format!("names the base model \"{named}\""),
            None => "names no base model (\"base_model_name_or_path\")".into(),
        };
        // A path may hold what the adapter names; another model's name says that it does not.
        let path = given.is_some_and(|given| Path::new(given).exists());
        let why = match reference {
            _ if path => "which is not on this machine".into(),
            Some(reference) => match self.files_of(reference) {
                Ok(files) => return Ok(files),
                Err(error) => error.to_string(),
            },
            None => "it is neither a file or folder nor a known model".into(),
        };
        if let Some(given) = given {
            notes.push(format!(
                "{}: {says} ({why}); the recipe's model {given} is used in its place",
                file.display()
            ));
            return self.files(given);
        }
        Err(Error::Usage(format!(
            "{}: the adapter {says}: {why}. Name another base: --model BASE --adapter {} on the command line, `model: \"BASE\"` in a recipe",
            file.display(),
            folder.display()
        )))
    }
}

/// Resolves a stage's folder to the `adapter` or `model` inside; other paths are unchanged.
pub(super) fn result_of(files: ModelFiles) -> ModelFiles {
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
        Some(result) => at_path(&files.name, result),
        None => files,
    }
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
    Ok(match Reference::by_name(&named) {
        Some(Reference::Known(known)) => match HubModel::of(&known) {
            Some(model) => Some(model.repo.id),
            None => {
                let files = Finder::new(Fetch::Description).present(&Reference::Known(known))?;
                files.map(|files| absolute(&files.dir)).transpose()?
            }
        },
        Some(Reference::Hub(model)) => Some(model.to_string()),
        _ => None,
    })
}

/// The absolute form of a path.
///
/// # Errors
/// `Error::Io` if the current folder is not known.
pub(super) fn absolute(path: &Path) -> Result<String> {
    let path = std::path::absolute(path).map_err(Error::io("find", path))?;
    Ok(path.to_string_lossy().into_owned())
}

/// `base_model_name_or_path` of an `adapter_config.json`, if set, with its `revision`.
fn named_base(file: &Path) -> Result<Option<String>> {
    let text = outside::read_text(file, outside::SETTINGS)?;
    let config = serde_json::from_str(&text).map_err(|e| Error::format(file, e.to_string()))?;
    Ok(read_base(&config))
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
