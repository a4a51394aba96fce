//! A run's folder: the resolved recipe, `run.json`, and one folder per stage.

use std::fs::{self, File};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use super::atomic::write_atomic;
use super::git;
use crate::atomic::TEMPORARY_PREFIX;
use crate::collective::launch::hostname;
use crate::error::{Error, Result};
use crate::hub::repository_of;
use crate::model::manifest::sha256_file;
use crate::outside;

/// `run.json`: the origin of a run's results.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct RunInfo {
    /// Version of this program.
    pub version: String,
    /// Backend name, as `--backend` takes it.
    pub backend: String,
    /// The backend's device.
    pub device: String,
    /// CPU threads.
    pub threads: usize,
    /// The recipe's seed.
    pub seed: u64,
    /// Commit checked out in the working directory, if that is a git work tree.
    pub git_commit: Option<String>,
    /// Start of the run, UTC, as `2026-01-31T12:00:00Z`.
    pub started: String,
    /// Inputs of each stage, in the order of execution.
    pub lineage: Vec<StageLineage>,
}

/// Inputs of a stage.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct StageLineage {
    /// The stage's name.
    pub stage: String,
    /// Origin of its model, e.g. `base`, `stage sft`, `random`.
    pub init: String,
    /// Data files.
    pub data: Vec<FileHash>,
    /// Every model that it loaded.
    pub models: Vec<ModelLineage>,
}

impl StageLineage {
    /// The files of all its models.
    pub fn model_files(&self) -> impl Iterator<Item = &FileHash> {
        self.models.iter().flat_map(|model| &model.files)
    }
}

/// A model that a stage loaded.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelLineage {
    /// What the stage used it for.
    pub role: ModelRole,
    /// Its name in the recipe: a model, a stage or a path.
    pub name: String,
    /// The files of its weights and adapters; none for random weights and for a model behind an endpoint.
    pub files: Vec<FileHash>,
}

/// What a stage used a model for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ModelRole {
    /// Training, or generation.
    Policy,
    /// The reference of a KL term or of a comparison, if it is not the policy before training.
    Reference,
    /// Teaching a student.
    Teacher,
    /// The start of the value function.
    Value,
    /// A reward source: a reward model, a classifier, or a language model's log-probability.
    Reward,
    /// Judging or grading.
    Judge,
}

impl ModelRole {
    /// Its name in `run.json` and in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Policy => "policy",
            Self::Reference => "reference",
            Self::Teacher => "teacher",
            Self::Value => "value",
            Self::Reward => "reward",
            Self::Judge => "judge",
        }
    }
}

/// A file with its hash.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileHash {
    /// The file.
    pub path: PathBuf,
    /// Its SHA-256 in hexadecimal.
    pub sha256: String,
    /// The repository of the hub and its commit, `owner/name@commit`, for a file in the hub's cache.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub repository: Option<String>,
    /// Rows used, for data files.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rows: Option<usize>,
}

impl RunInfo {
    /// The facts known at the start of a run: version, commit and time.
    pub fn begin() -> Self {
        Self {
            version: env!("CARGO_PKG_VERSION").into(),
            git_commit: git::commit(Path::new(".")),
            started: utc(SystemTime::now()),
            ..Self::default()
        }
    }
}

impl FileHash {
    /// Hashes a file.
    ///
    /// # Errors
    /// `Error::Io`.
    pub fn of(path: impl AsRef<Path>, rows: Option<usize>) -> Result<Self> {
        let path = path.as_ref();
        Ok(Self::known(path, &sha256_file(path)?, rows))
    }

    /// A file whose hash is known.
    pub fn known(path: &Path, sha256: &str, rows: Option<usize>) -> Self {
        Self {
            path: path.to_path_buf(),
            sha256: sha256.to_owned(),
            repository: repository_of(path),
            rows,
        }
    }
}

/// Lock file of an open run folder.
const LOCK: &str = ".lock";

/// An open run folder, locked against other processes until dropped.
#[derive(Debug)]
pub struct RunDir {
    path: PathBuf,
    /// Holds the lock, which the system releases even after a crash; `None` on ranks beside the first. Has a byte while a process works.
    lock: Option<File>,
}

impl RunDir {
    /// Starts a run in a new folder, or in one without a run.
    ///
    /// # Errors
    /// `Error::Usage` if the folder holds a run or another process uses it; `Error::Io`.
    pub fn create(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        fs::create_dir_all(path).map_err(Error::io("create", path))?;
        let run = Self::lock(path)?;
        if run.has_info() {
            return Err(Error::Usage(format!(
                "{} already holds a run; continue it with --resume or choose another --output",
                path.display()
            )));
        }
        Ok(run)
    }

    /// Continues the run in a folder, even if it ended right after creating its lock or the folder itself.
    ///
    /// # Errors
    /// `Error::Usage` if there is no run or another process uses it; `Error::Io`.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let is_empty = || fs::read_dir(path).is_ok_and(|mut entries| entries.next().is_none());
        if !path.join("run.json").exists() && !path.join(LOCK).exists() && !is_empty() {
            return Err(Error::Usage(format!(
                "{} holds no run (no run.json); to begin one, leave out --resume",
                path.display()
            )));
        }
        Self::lock(path)
    }

    /// The run that rank 0 has opened and locked.
    ///
    /// # Errors
    /// `Error::Usage` if there is none: the ranks see different folders.
    pub fn of_first(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        if !path.join("run.json").exists() {
            return Err(Error::Usage(format!(
                "{} has no run.json on {}, although rank 0 has written it: --output must be in a folder that all hosts share",
                path.display(),
                hostname()
            )));
        }
        Ok(Self {
            path: path.to_path_buf(),
            lock: None,
        })
    }

    /// Whether a process has opened the run in this folder.
    pub fn is_in_use(path: impl AsRef<Path>) -> bool {
        // The lock is taken and released at once; a folder that cannot be written to has no file to lock.
        let file = File::options().write(true).open(path.as_ref().join(LOCK));
        file.is_ok_and(|file| matches!(file.try_lock(), Err(fs::TryLockError::WouldBlock)))
    }

    /// Notes that a process works here. Returns whether another one has noted that and has not ended in order.
    ///
    /// # Errors
    /// `Error::Io`.
    pub fn begin_work(&self) -> Result<bool> {
        let Some(lock) = &self.lock else {
            return Ok(false);
        };
        let file = self.path.join(LOCK);
        let found = lock.metadata().map_err(Error::io("read", &file))?;
        lock.set_len(1).map_err(Error::io("write", &file))?;
        Ok(found.len() > 0)
    }

    /// Notes that the process has ended its work in order, with a result or with an error.
    ///
    /// # Errors
    /// `Error::Io`.
    pub fn end_work(&self) -> Result<()> {
        let Some(lock) = &self.lock else {
            return Ok(());
        };
        let file = self.path.join(LOCK);
        lock.set_len(0).map_err(Error::io("write", &file))
    }

    /// Removes all files and folders with the names of unfinished ones: no process writes here while the run is locked. Returns how
    /// many there were, and their bytes.
    ///
    /// # Errors
    /// `Error::Io`.
    pub fn sweep(&self) -> Result<(usize, u64)> {
        let mut found = Vec::new();
        unfinished(&self.path, DEEPEST, &mut found)?;
        let mut bytes = 0;
        for path in &found {
            bytes += size(path);
            let removed = match path.is_dir() && !path.is_symlink() {
                true => fs::remove_dir_all(path),
                false => fs::remove_file(path),
            };
            removed.map_err(Error::io("remove", path))?;
        }
        Ok((found.len(), bytes))
    }

    /// Whether `run.json` exists.
    pub fn has_info(&self) -> bool {
        self.path.join("run.json").exists()
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The folder of a stage, created if it is not there.
    ///
    /// # Errors
    /// `Error::Usage` for a name that is not a plain folder name; `Error::Io`.
    pub fn stage_dir(&self, name: &str) -> Result<PathBuf> {
        let plain = !name.is_empty()
            && !name.starts_with('.')
            && name
                .chars()
                .all(|c| c.is_alphanumeric() || matches!(c, '-' | '_' | '.'));
        if !plain {
            return Err(Error::Usage(format!(
                "stage name \"{name}\": expected letters, digits, '-', '_' and '.'"
            )));
        }
        let folder = self.path.join(name);
        // Not its parents: a run whose folder was removed must not begin another one.
        match fs::create_dir(&folder) {
            Err(error) if error.kind() == ErrorKind::AlreadyExists && folder.is_dir() => {}
            outcome => outcome.map_err(Error::io("create", &folder))?,
        }
        Ok(folder)
    }

    /// Writes `recipe.ron`, the recipe as resolved.
    ///
    /// # Errors
    /// `Error::Io`.
    pub fn write_recipe(&self, text: &str) -> Result<()> {
        write_atomic(self.path.join("recipe.ron"), text.as_bytes())
    }

    /// The text of `recipe.ron`.
    ///
    /// # Errors
    /// `Error::Io`.
    pub fn read_recipe(&self) -> Result<String> {
        let file = self.path.join("recipe.ron");
        outside::read_text(&file, outside::SETTINGS)
    }

    /// Writes `run.json`.
    ///
    /// # Errors
    /// `Error::Io`.
    pub fn write_info(&self, info: &RunInfo) -> Result<()> {
        let file = self.path.join("run.json");
        let mut text =
            serde_json::to_vec_pretty(info).map_err(|e| Error::format(&file, e.to_string()))?;
        text.push(b'\n');
        write_atomic(file, &text)
    }

    /// Reads `run.json`.
    ///
    /// # Errors
    /// `Error::Io`, and `Error::Format` for a corrupt file.
    pub fn read_info(&self) -> Result<RunInfo> {
        read_info(&self.path)
    }

    /// Renames a `run.json` that cannot be read; returns its new path.
    ///
    /// # Errors
    /// `Error::Io`.
    pub fn set_info_aside(&self) -> Result<PathBuf> {
        let (file, aside) = (
            self.path.join("run.json"),
            self.path.join("damaged-run.json"),
        );
        fs::rename(&file, &aside).map_err(Error::io("rename", &file))?;
        Ok(aside)
    }

    /// Adds a stage to the lineage in `run.json`, replacing an older entry of that stage.
    ///
    /// # Errors
    /// As [`RunDir::read_info`] and [`RunDir::write_info`].
    pub fn record(&self, stage: StageLineage) -> Result<()> {
        let mut info = self.read_info()?;
        info.lineage.retain(|other| other.stage != stage.stage);
        info.lineage.push(stage);
        self.write_info(&info)
    }

    fn lock(path: &Path) -> Result<Self> {
        let file = path.join(LOCK);
        let lock = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&file)
            .map_err(Error::io("create", &file))?;
        match lock.try_lock() {
            Ok(()) => Ok(Self {
                path: path.to_path_buf(),
                lock: Some(lock),
            }),
            Err(fs::TryLockError::WouldBlock) => Err(Error::Usage(format!(
                "{} is in use by another process; wait for it or choose another --output",
                path.display()
            ))),
            Err(fs::TryLockError::Error(source)) => Err(Error::io("lock", &file)(source)),
        }
    }
}

/// Levels of folders in a run: stage, checkpoints, checkpoint, and one more.
const DEEPEST: usize = 4;

/// Unfinished files and folders below `folder`; links are not followed.
fn unfinished(folder: &Path, levels: usize, found: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(folder).map_err(Error::io("read", folder))? {
        let entry = entry.map_err(Error::io("read", folder))?;
        let path = entry.path();
        if (entry.file_name().to_string_lossy()).starts_with(TEMPORARY_PREFIX) {
            found.push(path);
        } else if levels > 0 && entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            unfinished(&path, levels - 1, found)?;
        }
    }
    Ok(())
}

/// Bytes of a file, or of the files of a folder.
fn size(path: &Path) -> u64 {
    match fs::symlink_metadata(path) {
        Ok(found) if found.is_dir() => (fs::read_dir(path).into_iter().flatten().flatten())
            .map(|entry| size(&entry.path()))
            .sum(),
        Ok(found) => found.len(),
        Err(_) => 0,
    }
}

/// Reads the `run.json` of a folder without locking it, for `export` and reports.
///
/// # Errors
/// `Error::Io`, and `Error::Format` for a corrupt file.
pub fn read_info(run: impl AsRef<Path>) -> Result<RunInfo> {
    let file = run.as_ref().join("run.json");
    let text = outside::read_text(&file, outside::SETTINGS)?;
    serde_json::from_str(&text).map_err(|e| Error::format(&file, format!("not a run.json: {e}")))
}

/// `2026-01-31T12:00:00Z`.
///
/// # Source
/// Days to a civil date: Howard Hinnant, "chrono-Compatible Low-Level Date Algorithms", `civil_from_days`.
fn utc(time: SystemTime) -> String {
    let seconds = time
        .duration_since(UNIX_EPOCH)
        .map_or(0, |elapsed| elapsed.as_secs());
    let (days, of_day) = (seconds / 86_400, seconds % 86_400);
    // Years start in March, so that the leap day comes last; eras have 400 years.
    let shifted = days + 719_468;
    let (era, of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = (month_from_march + 2) % 12 + 1;
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    format!(
        "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}Z",
        of_day / 3600,
        of_day / 60 % 60,
        of_day % 60
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_run_is_created_once_and_opened_again() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("runs").join("tldr");
        let message = RunDir::open(&path).unwrap_err().to_string();
        assert!(message.contains("holds no run"), "{message}");
        let run = RunDir::create(&path).unwrap();
        let info = RunInfo {
            seed: 3,
            backend: "flex".into(),
            ..RunInfo::begin()
        };
        run.write_info(&info).unwrap();
        run.write_recipe("(name: \"tldr\")").unwrap();
        let entry = |init: &str| StageLineage {
            stage: "sft".into(),
            init: init.into(),
            ..StageLineage::default()
        };
        run.record(entry("random")).unwrap();
        run.record(entry("base")).unwrap();
        let message = RunDir::open(&path).unwrap_err().to_string();
        assert!(message.contains("in use by another process"), "{message}");
        assert!(RunDir::is_in_use(&path));
        drop(run);
        assert!(!RunDir::is_in_use(&path));
        assert!(!RunDir::is_in_use(root.path()));
        let message = RunDir::create(&path).unwrap_err().to_string();
        assert!(message.contains("already holds a run"), "{message}");
        let run = RunDir::open(&path).unwrap();
        let read = run.read_info().unwrap();
        assert_eq!((read.seed, &*read.backend), (3, "flex"));
        assert_eq!(read.lineage, [entry("base")]);
        assert_eq!(read.version, env!("CARGO_PKG_VERSION"));
        // What a file does not say is not made up from where and when it is read.
        fs::write(path.join("run.json"), "{}").unwrap();
        assert_eq!(run.read_info().unwrap(), RunInfo::default());
        assert_eq!(run.read_recipe().unwrap(), "(name: \"tldr\")");
        // A process that ends without a word is known by the next one.
        assert!(!run.begin_work().unwrap());
        drop(run);
        let run = RunDir::open(&path).unwrap();
        assert!(run.begin_work().unwrap());
        run.end_work().unwrap();
        assert!(!run.begin_work().unwrap());
        assert!(run.stage_dir("sft").unwrap().is_dir());
        assert!(run.stage_dir("../sft").is_err());
        assert!(run.stage_dir(".").is_err());
    }

    #[test]
    fn unfinished_files_are_swept() {
        let root = tempfile::tempdir().unwrap();
        let run = RunDir::create(root.path()).unwrap();
        let at = |name: &str| root.path().join(name);
        for folder in ["sft/checkpoints/.tmp-7-0-step-000400", "sft/model"] {
            fs::create_dir_all(at(folder)).unwrap();
        }
        for file in [
            ".tmp-7-1-run.json",
            "sft/checkpoints/.tmp-7-0-step-000400/weights.safetensors",
            "sft/model/model.safetensors",
            "sft/model/.tmp-9-9-config.json",
        ] {
            fs::write(at(file), b"abc").unwrap();
        }
        assert_eq!(run.sweep().unwrap(), (3, 9));
        assert_eq!(run.sweep().unwrap(), (0, 0));
        assert!(at("sft/model/model.safetensors").exists());
        assert_eq!(fs::read_dir(at("sft/checkpoints")).unwrap().count(), 0);
    }

    #[test]
    fn files_are_named_by_content() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("a.jsonl");
        fs::write(&path, b"abc").unwrap();
        // FIPS 180-2, appendix B.1.
        assert_eq!(
            FileHash::of(&path, Some(1)).unwrap().sha256,
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        );
    }

    #[test]
    fn times_are_utc() {
        let at = |seconds| utc(UNIX_EPOCH + Duration::from_secs(seconds));
        assert_eq!(at(0), "1970-01-01T00:00:00Z");
        assert_eq!(at(951_782_400), "2000-02-29T00:00:00Z");
        assert_eq!(at(1_709_251_199), "2024-02-29T23:59:59Z");
        assert_eq!(at(1_735_689_599), "2024-12-31T23:59:59Z");
    }
}
