//! Checkpoints of a stage: `checkpoints/step-000100/` with weights, optimiser moments and state.

use std::fs;
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::atomic::{is_complete, write_atomic, write_dir_atomic};
use super::tensor_map::{TensorMap, read_tensor_map};
use crate::atomic::TEMPORARY_PREFIX;
use crate::error::{Error, Result};
use crate::model::weights::write_snapshot;
use crate::snapshot::Snapshot;

/// The folder of a stage that holds its checkpoints.
pub const CHECKPOINTS: &str = "checkpoints";

/// One checkpoint, in memory. `state` is whatever the stage needs to continue: step, position, controllers.
#[derive(Debug, Clone, PartialEq)]
pub struct StepCheckpoint<S> {
    /// Trained weights by parameter name.
    pub weights: TensorMap,
    /// Optimiser moments by parameter name.
    pub optim: TensorMap,
    /// The stage's own state.
    pub state: S,
}

impl<S: DeserializeOwned> StepCheckpoint<S> {
    /// Reads a checkpoint's folder.
    ///
    /// # Errors
    /// `Error::Format` for an incomplete folder, a corrupt file, or a state of another shape; `Error::Io`.
    pub fn load(folder: impl AsRef<Path>) -> Result<Self> {
        let folder = folder.as_ref();
        if !is_complete(folder) {
            return Err(Error::format(folder, "not a complete checkpoint"));
        }
        let file = folder.join("state.json");
        let text = fs::read_to_string(&file).map_err(Error::io("read", &file))?;
        let state = serde_json::from_str(&text)
            .map_err(|e| Error::format(&file, format!("not the state this version writes: {e}")))?;
        Ok(Self {
            weights: read_tensor_map(folder.join("weights.safetensors"))?,
            optim: read_tensor_map(folder.join("optim.safetensors"))?,
            state,
        })
    }
}

/// Writes the checkpoint of `step` under `stage_dir`, whole or not at all, and returns its folder.
///
/// # Errors
/// `Error::Io`; nothing is then left behind.
pub fn save<S: Serialize>(
    stage_dir: impl AsRef<Path>,
    step: usize,
    weights: &Snapshot<'_>,
    optim: &Snapshot<'_>,
    state: &S,
) -> Result<PathBuf> {
    let folder = stage_dir
        .as_ref()
        .join(CHECKPOINTS)
        .join(format!("step-{step:06}"));
    let state = serde_json::to_vec_pretty(state)
        .map_err(|e| Error::format(folder.join("state.json"), e.to_string()))?;
    write_dir_atomic(&folder, |dir| {
        write_snapshot(dir.join("weights.safetensors"), weights)?;
        write_snapshot(dir.join("optim.safetensors"), optim)?;
        write_atomic(dir.join("state.json"), &state)
    })?;
    Ok(folder)
}

/// The newest complete checkpoint of a stage.
pub fn latest(stage_dir: impl AsRef<Path>) -> Option<PathBuf> {
    complete_checkpoints(stage_dir.as_ref()).pop()
}

/// Removes all but the `keep` newest complete checkpoints (never the newest), and what crashed writers left.
///
/// # Errors
/// `Error::Io`.
pub fn prune(stage_dir: impl AsRef<Path>, keep: usize) -> Result<()> {
    let stage_dir = stage_dir.as_ref();
    let complete = complete_checkpoints(stage_dir);
    let surplus = complete.len().saturating_sub(keep.max(1));
    let mut remove: Vec<PathBuf> = complete[..surplus].to_vec();
    let folder = stage_dir.join(CHECKPOINTS);
    if folder.is_dir() {
        for entry in fs::read_dir(&folder).map_err(Error::io("read", &folder))? {
            let entry = entry.map_err(Error::io("read", &folder))?;
            let temporary = entry
                .file_name()
                .to_string_lossy()
                .starts_with(TEMPORARY_PREFIX);
            let unfinished = step_of(&entry.path()).is_some() && !is_complete(entry.path());
            if temporary || unfinished {
                remove.push(entry.path());
            }
        }
    }
    for path in remove {
        let removed = if path.is_dir() {
            fs::remove_dir_all(&path)
        } else {
            fs::remove_file(&path)
        };
        removed.map_err(Error::io("remove", &path))?;
    }
    Ok(())
}

/// The step in a checkpoint folder's name.
pub fn step_of(folder: &Path) -> Option<usize> {
    let digits = folder.file_name()?.to_str()?.strip_prefix("step-")?;
    digits.parse().ok()
}

/// Complete checkpoints, oldest first.
fn complete_checkpoints(stage_dir: &Path) -> Vec<PathBuf> {
    let mut found: Vec<(usize, PathBuf)> = fs::read_dir(stage_dir.join(CHECKPOINTS))
        .into_iter()
        .flatten()
        .filter_map(|entry| {
            let path = entry.ok()?.path();
            Some((step_of(&path)?, path))
        })
        .filter(|(_, path)| is_complete(path))
        .collect();
    found.sort();
    found.into_iter().map(|(_, path)| path).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::Deserialize;

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct State {
        step: usize,
        kl_coef: f64,
    }

    fn weights(x: f32) -> TensorMap {
        [("w".to_owned(), (vec![1], vec![x]))].into()
    }

    /// [`weights`], to be saved.
    fn held(x: f32) -> Snapshot<'static> {
        let mut snapshot = Snapshot::default();
        snapshot.insert("w", vec![1], move || vec![x].into());
        snapshot
    }

    fn save_at(stage: &Path, step: usize) -> PathBuf {
        let state = State { step, kl_coef: 0.1 };
        save(
            stage,
            step,
            &held(step as f32),
            &Snapshot::default(),
            &state,
        )
        .unwrap()
    }

    #[test]
    fn a_checkpoint_reads_back() {
        let stage = tempfile::tempdir().unwrap();
        let folder = save_at(stage.path(), 100);
        assert!(folder.ends_with("checkpoints/step-000100"));
        let read = StepCheckpoint::<State>::load(&folder).unwrap();
        assert_eq!(
            read.state,
            State {
                step: 100,
                kl_coef: 0.1
            }
        );
        assert_eq!(read.weights, weights(100.0));
        assert!(read.optim.is_empty());
        fs::write(folder.join("state.json"), b"{\"step\": 1").unwrap();
        let message = StepCheckpoint::<State>::load(&folder)
            .unwrap_err()
            .to_string();
        assert!(message.contains("state.json"), "{message}");
    }

    #[test]
    fn half_written_folders_are_neither_latest_nor_kept() {
        let stage = tempfile::tempdir().unwrap();
        assert_eq!(latest(stage.path()), None);
        let steps = [5, 40, 300].map(|step| save_at(stage.path(), step));
        // A crash before the rename leaves a temporary folder, marker and all; a copy cut short lacks the marker.
        let checkpoints = stage.path().join(CHECKPOINTS);
        let crashed = checkpoints.join(format!("{TEMPORARY_PREFIX}7-0-step-000400"));
        fs::create_dir(&crashed).unwrap();
        fs::write(crashed.join("COMPLETE"), b"").unwrap();
        let cut = checkpoints.join("step-000500");
        fs::create_dir(&cut).unwrap();
        fs::write(cut.join("weights.safetensors"), b"half").unwrap();
        assert_eq!(latest(stage.path()), Some(steps[2].clone()));
        assert!(StepCheckpoint::<State>::load(&cut).is_err());

        prune(stage.path(), 2).unwrap();
        let mut left: Vec<PathBuf> = fs::read_dir(&checkpoints)
            .unwrap()
            .map(|e| e.unwrap().path())
            .collect();
        left.sort();
        assert_eq!(left, steps[1..]);
        prune(stage.path(), 0).unwrap();
        assert_eq!(latest(stage.path()), Some(steps[2].clone()));
    }

    #[test]
    fn a_checkpoint_that_cannot_be_written_leaves_nothing() {
        let stage = tempfile::tempdir().unwrap();
        fs::write(stage.path().join(CHECKPOINTS), b"a file in the way").unwrap();
        let state = State {
            step: 1,
            kl_coef: 0.0,
        };
        let outcome = save(stage.path(), 1, &held(1.0), &Snapshot::default(), &state);
        assert!(matches!(outcome, Err(Error::Io { .. })));
        assert_eq!(fs::read_dir(stage.path()).unwrap().count(), 1);
    }
}
