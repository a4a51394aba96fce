//! The lineage of a stage in `run.json`: its data files, and every model that it loads.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use super::Session;
use crate::checkpoint::{FileHash, ModelLineage, ModelRole, StageLineage};
use crate::collective;
use crate::error::Result;
use crate::model::Init;
use crate::ops::ModelBackend;

/// What the lineage of the stage that runs will say.
#[derive(Debug, Default)]
pub(super) struct Lineage {
    /// The models that it has loaded.
    models: Vec<LoadedModel>,
    /// What is recorded once the data has been read.
    origin: Option<Origin>,
    /// SHA-256 of files that this stage has hashed: policy, reference and rewards often share them.
    hashes: HashMap<PathBuf, String>,
}

/// Where the stage begins.
#[derive(Debug)]
struct Origin {
    stage: String,
    init: String,
    /// The files of each data set, and rows read from them.
    data: Vec<(Vec<PathBuf>, usize)>,
}

/// A model that the stage has loaded.
#[derive(Debug)]
struct LoadedModel {
    role: ModelRole,
    name: String,
    files: Vec<PathBuf>,
}

impl Lineage {
    /// The entry of `run.json`; `known` has hashes of data files.
    fn entry(&mut self, known: &HashMap<PathBuf, String>) -> Result<Option<StageLineage>> {
        let Self {
            models,
            origin,
            hashes,
        } = self;
        let Some(origin) = origin else {
            return Ok(None);
        };
        let mut hash = |path: &Path, rows: Option<usize>| -> Result<FileHash> {
            if let Some(sha256) = known.get(path).or_else(|| hashes.get(path)) {
                return Ok(FileHash::known(path, sha256, rows));
            }
            let file = FileHash::of(path, rows)?;
            hashes.insert(path.to_path_buf(), file.sha256.clone());
            Ok(file)
        };
        let mut entry = StageLineage {
            stage: origin.stage.clone(),
            init: origin.init.clone(),
            ..StageLineage::default()
        };
        for (files, rows) in &origin.data {
            // How many are of each of several files is not known.
            let rows = Some(*rows).filter(|_| files.len() == 1);
            for path in files {
                entry.data.push(hash(path, rows)?);
            }
        }
        for LoadedModel { role, name, files } in models {
            entry.models.push(ModelLineage {
                role: *role,
                name: name.clone(),
                files: files
                    .iter()
                    .map(|path| hash(path, None))
                    .collect::<Result<_>>()?,
            });
        }
        Ok(Some(entry))
    }
}

impl<B: ModelBackend> Session<'_, B> {
    /// Begins the lineage of a stage.
    pub(super) fn begin_lineage(&mut self) {
        self.lineage = Lineage::default();
    }

    /// Adds a model to the lineage, when it is loaded. `files` are none for a model behind an endpoint.
    ///
    /// # Errors
    /// `Error::Io`.
    pub(super) fn record_model(
        &mut self,
        role: ModelRole,
        name: String,
        files: Vec<PathBuf>,
    ) -> Result<()> {
        let models = &mut self.lineage.models;
        if models.iter().any(|of| of.role == role && of.name == name) {
            return Ok(());
        }
        models.push(LoadedModel { role, name, files });
        self.write_lineage()
    }

    /// Records the origin of a stage's model and its data: files, and rows read from them. Models are recorded as they are loaded, before
    /// this and after it.
    ///
    /// # Errors
    /// `Error::Io`.
    pub(super) fn record(
        &mut self,
        stage: &str,
        init: &str,
        data: &[(Vec<PathBuf>, usize)],
    ) -> Result<()> {
        self.lineage.origin = Some(Origin {
            stage: stage.to_owned(),
            init: init.to_owned(),
            data: data.to_vec(),
        });
        self.write_lineage()
    }

    /// The name of a model in the lineage: that of the recipe's `model`, of a stage, or a path.
    pub(super) fn lineage_name(&self, init: &Init) -> String {
        match (init, &self.model) {
            (Init::Base, Some(model)) => model.clone(),
            _ => init.name(),
        }
    }

    fn write_lineage(&mut self) -> Result<()> {
        if self.lineage.origin.is_none() {
            return Ok(());
        }
        let (run, known, lineage) = (self.run, &self.hashes, &mut self.lineage);
        collective::on_first(|| match lineage.entry(known)? {
            Some(entry) => run.record(entry),
            None => Ok(()),
        })?;
        Ok(())
    }
}
