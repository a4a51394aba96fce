//! Checkpoints of a stage: `checkpoints/step-000100/` with weights, optimiser moments and state.

use std::fs;
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::atomic::{COMPLETE, is_complete, verify, write_atomic, write_dir_with_checksums};
use super::tensor_map::{TensorMap, read_tensor_map};
use crate::atomic::{TEMPORARY_PREFIX, temporary_name};
use crate::error::{Error, Result};
use crate::model::weights::write_snapshot;
use crate::outside;
use crate::snapshot::Snapshot;

/// The folder of a stage that holds its checkpoints.
pub const CHECKPOINTS: &str = "checkpoints";

/// The folder of a stage that holds the weights of its best evaluation.
const BEST: &str = "best";

const WEIGHTS: &str = "weights.safetensors";
const OPTIM: &str = "optim.safetensors";
const STATE: &str = "state.json";

/// Prefix of the names of damaged checkpoints.
const DAMAGED_PREFIX: &str = "damaged-";

/// A checkpoint in memory. `state`: the stage's further state, such as step, position and controllers.
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
    /// Verifies and reads a checkpoint's folder.
    ///
    /// # Errors
    /// `Error::Format` for an incomplete folder, a damaged file, or a state of another shape or of another step than the
    /// folder's name; `Error::Io`.
    pub fn load(folder: impl AsRef<Path>) -> Result<Self> {
        let folder = folder.as_ref();
        verify(folder, &[WEIGHTS, OPTIM, STATE])?;
        let file = folder.join(STATE);
        let bytes = outside::read(&file, outside::LOGS)?;
        let foreign = |e: serde_json::Error| {
            Error::format(&file, format!("not the state this version writes: {e}"))
        };
        let state: Value = serde_json::from_slice(&bytes).map_err(foreign)?;
        let (found, named) = (&state["step"], step_of(folder));
        if found.as_u64() != named.map(|step| step as u64) {
            return Err(Error::format(
                &file,
                format!("is of step {found}, expected that of the folder's name"),
            ));
        }
        Ok(Self {
            weights: read_tensor_map(folder.join(WEIGHTS))?,
            optim: read_tensor_map(folder.join(OPTIM))?,
            state: serde_json::from_value(state).map_err(foreign)?,
        })
    }
}

/// Writes the checkpoint of `step` under `stage_dir` atomically and returns its folder. `state` must have a key `step`.
///
/// # Errors
/// `Error::Io`; leaves no files then.
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
        .map_err(|e| Error::format(folder.join(STATE), e.to_string()))?;
    write_dir_with_checksums(&folder, |dir| {
        write_snapshot(dir.join(WEIGHTS), weights)?;
        write_snapshot(dir.join(OPTIM), optim)?;
        write_atomic(dir.join(STATE), &state)
    })?;
    Ok(folder)
}

/// Writes the weights of the evaluation at `step` under `stage_dir` atomically; those of the steps in `keep` stay beside them, others
/// are removed.
///
/// # Errors
/// `Error::Io`.
pub fn save_best(
    stage_dir: impl AsRef<Path>,
    step: usize,
    weights: &Snapshot<'_>,
    keep: &[usize],
) -> Result<()> {
    let all = stage_dir.as_ref().join(BEST);
    write_dir_with_checksums(all.join(format!("step-{step:06}")), |dir| {
        write_snapshot(dir.join(WEIGHTS), weights)
    })?;
    for entry in fs::read_dir(&all).map_err(Error::io("read", &all))? {
        let path = entry.map_err(Error::io("read", &all))?.path();
        let stays = |other| other == step || keep.contains(&other);
        if !step_of(&path).is_some_and(stays) {
            fs::remove_dir_all(&path).map_err(Error::io("remove", &path))?;
        }
    }
    Ok(())
}

/// The weights that [`save_best`] wrote at `step`, with their folder.
///
/// # Errors
/// `Error::Format` if they are missing or damaged; `Error::Io`.
pub fn load_best(stage_dir: impl AsRef<Path>, step: usize) -> Result<(PathBuf, TensorMap)> {
    let folder = (stage_dir.as_ref().join(BEST)).join(format!("step-{step:06}"));
    if !folder.exists() {
        let message = "the weights of the best evaluation are missing; begin the stage again";
        return Err(Error::format(folder, message));
    }
    verify(&folder, &[WEIGHTS])?;
    let weights = read_tensor_map(folder.join(WEIGHTS))?;
    Ok((folder, weights))
}

/// The value of `key` in the states of all complete checkpoints of a stage.
pub fn of_states(stage_dir: impl AsRef<Path>, key: &str) -> Vec<Value> {
    let state = |folder: PathBuf| -> Option<Value> {
        let bytes = outside::read(&folder.join(STATE), outside::LOGS).ok()?;
        let state: Value = serde_json::from_slice(&bytes).ok()?;
        state.get(key).cloned()
    };
    let folders = complete_checkpoints(stage_dir.as_ref());
    folders.into_iter().filter_map(state).collect()
}

/// The newest complete checkpoint of a stage.
pub fn latest(stage_dir: impl AsRef<Path>) -> Option<PathBuf> {
    complete_checkpoints(stage_dir.as_ref()).pop()
}

/// All checkpoints of a stage, oldest first, incomplete ones included.
pub fn all(stage_dir: impl AsRef<Path>) -> Vec<PathBuf> {
    let mut found: Vec<(usize, PathBuf)> = fs::read_dir(stage_dir.as_ref().join(CHECKPOINTS))
        .into_iter()
        .flatten()
        .filter_map(|entry| {
            let path = entry.ok()?.path();
            Some((step_of(&path)?, path))
        })
        .collect();
    found.sort();
    found.into_iter().map(|(_, path)| path).collect()
}

/// Renames a damaged checkpoint, so that it is neither resumed from nor counted as the newest.
///
/// # Errors
/// `Error::Io`.
pub fn set_aside(folder: &Path) -> Result<()> {
    let name = folder.file_name().unwrap_or_default().display();
    let aside = folder.with_file_name(format!("{DAMAGED_PREFIX}{name}"));
    if aside.exists() {
        fs::remove_dir_all(&aside).map_err(Error::io("remove", &aside))?;
    }
    fs::rename(folder, &aside).map_err(Error::io("rename", folder))
}

/// Removes all checkpoints of a stage that starts again. Atomic: a crash leaves all or none.
///
/// # Errors
/// `Error::Io`.
pub fn clear(stage_dir: impl AsRef<Path>) -> Result<()> {
    let best = stage_dir.as_ref().join(BEST);
    if best.exists() {
        fs::remove_dir_all(&best).map_err(Error::io("remove", &best))?;
    }
    let folder = stage_dir.as_ref().join(CHECKPOINTS);
    if !folder.exists() {
        return Ok(());
    }
    let aside = temporary_name(&folder)?;
    fs::rename(&folder, &aside).map_err(Error::io("rename", &folder))?;
    fs::remove_dir_all(&aside).map_err(Error::io("remove", &aside))
}

/// Removes all but the `keep` newest complete checkpoints (never the newest one), and leftovers of crashed writes.
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
            // The marker first, so that a partly removed folder does not count as a checkpoint.
            let _ = fs::remove_file(path.join(COMPLETE));
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
    let mut found = all(stage_dir);
    found.retain(|path| is_complete(path));
    found
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

    /// [`weights`] as a snapshot.
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
    fn a_damaged_checkpoint_is_refused() {
        let stage = tempfile::tempdir().unwrap();
        let folder = save_at(stage.path(), 7);
        let refused = |part: &str| {
            let error = StepCheckpoint::<State>::load(&folder).unwrap_err();
            assert!(error.to_string().contains(part), "{part}: {error}");
        };
        for name in [WEIGHTS, OPTIM, STATE, COMPLETE] {
            let whole = fs::read(folder.join(name)).unwrap();
            let mut flipped = whole.clone();
            let last = flipped.len() - 1;
            flipped[last] ^= 64;
            let truncated = whole[..whole.len() / 2].to_vec();
            for damage in [flipped, truncated, Vec::new()] {
                fs::write(folder.join(name), damage).unwrap();
                refused("damaged");
            }
            fs::remove_file(folder.join(name)).unwrap();
            refused("m"); // "missing", or "incomplete" without the marker
            fs::write(folder.join(name), &whole).unwrap();
        }
        assert!(StepCheckpoint::<State>::load(&folder).is_ok());
        // Whole, but of another step than its name says.
        let copy = folder.with_file_name("step-000009");
        fs::rename(&folder, &copy).unwrap();
        let message = StepCheckpoint::<State>::load(&copy)
            .unwrap_err()
            .to_string();
        assert!(message.contains("is of step 7"), "{message}");
    }

    #[test]
    fn checkpoints_set_aside_are_not_resumed_from() {
        let stage = tempfile::tempdir().unwrap();
        let steps = [1, 2].map(|step| save_at(stage.path(), step));
        set_aside(&steps[1]).unwrap();
        assert_eq!(all(stage.path()), steps[..1]);
        save_at(stage.path(), 2);
        set_aside(&steps[1]).unwrap();
        prune(stage.path(), 1).unwrap();
        assert_eq!(all(stage.path()), steps[..1]);
        clear(stage.path()).unwrap();
        assert_eq!(fs::read_dir(stage.path()).unwrap().count(), 0);
        clear(stage.path()).unwrap();
    }

    #[test]
    fn the_best_weights_stay_with_those_that_a_checkpoint_needs() {
        let stage = tempfile::tempdir().unwrap();
        let best = |step, keep: &[usize]| {
            save_best(stage.path(), step, &held(step as f32), keep).unwrap();
        };
        best(2, &[]);
        best(4, &[2]);
        best(6, &[4]);
        assert_eq!(load_best(stage.path(), 6).unwrap().1, weights(6.0));
        assert_eq!(load_best(stage.path(), 4).unwrap().1, weights(4.0));
        let missing = load_best(stage.path(), 2).unwrap_err().to_string();
        assert!(missing.contains("are missing"), "{missing}");
        fs::write(stage.path().join("best/step-000006").join(WEIGHTS), b"cut").unwrap();
        assert!(load_best(stage.path(), 6).is_err());
        clear(stage.path()).unwrap();
        assert!(load_best(stage.path(), 4).is_err());
        // What a checkpoint says.
        save_at(stage.path(), 3);
        assert_eq!(of_states(stage.path(), "kl_coef"), [0.1]);
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
