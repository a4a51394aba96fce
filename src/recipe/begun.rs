//! `begun.json` in a stage's folder: what the stage was begun with. It stays true when `recipe.ron` is damaged, or written anew for
//! another stage.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::Recipe;
use super::resume::{settings, whole};
use crate::atomic::write_atomic;
use crate::data::source_files;
use crate::error::{Error, Problem, Result};
use crate::model::manifest::sha256_file;
use crate::outside;
use crate::train::Stage;

const FILE: &str = "begun.json";

/// What a stage was begun with.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Begun {
    /// The stage's settings that determine its result.
    pub(super) settings: Value,
    /// Those of the whole recipe.
    pub(super) recipe: Value,
    /// SHA-256 of the files of each data set, by its key.
    pub(super) data: BTreeMap<String, Vec<String>>,
    /// The backend, as `--backend` takes it.
    pub(super) backend: String,
    /// CPU threads.
    pub(super) threads: usize,
}

/// Data files with their SHA-256, by the key of the data set.
type Hashes = BTreeMap<String, Vec<(PathBuf, String)>>;

impl Begun {
    /// What `stage` is begun with now, in the run at `run`, and the hashes of its data files.
    ///
    /// # Errors
    /// `Error::Io`.
    pub(super) fn now(
        recipe: &Recipe,
        stage: &Stage,
        run: &Path,
        backend: &str,
    ) -> Result<(Self, Vec<(PathBuf, String)>)> {
        let hashes = hashes(stage, run)?;
        let only_hashes = |files: &Vec<(PathBuf, String)>| -> Vec<String> {
            files.iter().map(|(_, sha256)| sha256.clone()).collect()
        };
        let begun = Self {
            settings: settings(stage),
            recipe: whole(recipe),
            data: (hashes.iter())
                .map(|(key, files)| (key.clone(), only_hashes(files)))
                .collect(),
            backend: backend.to_owned(),
            threads: rayon::current_num_threads(),
        };
        Ok((begun, hashes.into_values().flatten().collect()))
    }

    /// Writes it into the stage's folder.
    ///
    /// # Errors
    /// `Error::Io`.
    pub(super) fn write(&self, folder: &Path) -> Result<()> {
        let path = folder.join(FILE);
        let mut text =
            serde_json::to_vec_pretty(self).map_err(|e| Error::format(&path, e.to_string()))?;
        text.push(b'\n');
        write_atomic(path, &text)
    }

    /// What is in a stage's folder; `None` if there is none, as in runs of earlier versions.
    ///
    /// # Errors
    /// When the file cannot be read or is damaged.
    pub(super) fn read(folder: &Path) -> Result<Option<Self>> {
        let path = folder.join(FILE);
        if !path.exists() {
            return Ok(None);
        }
        let text = outside::read_text(&path, outside::SETTINGS)?;
        let damaged = |e| Error::format(&path, format!("damaged: {e}"));
        serde_json::from_str(&text).map(Some).map_err(damaged)
    }

    /// A problem for each data set of `stage` whose files are others now; `place` is the stage's key.
    pub(super) fn changed_data(&self, stage: &Stage, run: &Path, place: &str) -> Vec<Problem> {
        // What cannot be read is reported by the check of the data.
        let now = hashes(stage, run).unwrap_or_default();
        let mut problems = Vec::new();
        for (key, files) in now {
            let Some(was) = self.data.get(&key).filter(|_| !files.is_empty()) else {
                continue;
            };
            let place = format!("{place}.{key}");
            if was.len() != files.len() {
                let message = format!(
                    "the stage was begun with {} files of data, found {}",
                    was.len(),
                    files.len()
                );
                problems.push(Problem::new(place, message));
                continue;
            }
            let changed = (was.iter().zip(&files)).find(|(was, (_, is))| *was != is);
            if let Some((was, (path, is))) = changed {
                let message = format!(
                    "{} has changed since the stage was begun: expected SHA-256 {was}, found {is}",
                    path.display()
                );
                problems.push(Problem::new(place, message));
            }
        }
        problems
    }

    /// A problem if the stage is to go on with another backend or another number of threads.
    pub(super) fn changed_machine(&self, stage: &str, backend: &str) -> Option<Problem> {
        let threads = rayon::current_num_threads();
        let place = format!("stages.{stage}");
        let again = format!("or begin the stage again: `--stage {stage}` in place of `--resume`");
        if self.backend != backend {
            let message = format!(
                "was begun with the backend {}, found {backend}: results would be a mixture",
                self.backend
            );
            let help = format!("to resume, pass --backend {}; {again}", self.backend);
            return Some(Problem::new(place, message).with_help(help));
        }
        if self.threads != threads {
            let message = format!(
                "was begun with {} threads, found {threads}: sums in another order give other results",
                self.threads
            );
            let help = format!("to resume, pass --threads {}; {again}", self.threads);
            return Some(Problem::new(place, message).with_help(help));
        }
        None
    }
}

/// The hashes of the data files that are on this machine.
fn hashes(stage: &Stage, run: &Path) -> Result<Hashes> {
    let mut found = Hashes::new();
    for data in stage.inputs().data {
        let files = source_files(&data.config.source, run).into_iter();
        let files = files.map(|path| sha256_file(&path).map(|sha256| (path, sha256)));
        found.insert(data.key.to_owned(), files.collect::<Result<_>>()?);
    }
    Ok(found)
}
