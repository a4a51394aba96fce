//! The checkpoint that a stage goes on from.

use std::path::{Path, PathBuf};

use super::{METRICS, RestoredCheckpoint, SAMPLES};
use crate::checkpoint::{self, StepCheckpoint};
use crate::error::{Error, Result};
use crate::ops::ModelBackend;
use crate::train::Session;
use crate::train::state::Position;

/// The newest intact checkpoint of a stage with intact logs. Damaged newer ones are renamed, with a message.
///
/// # Errors
/// `Error::Stage` if there are checkpoints and none is intact; `Error::Io`.
pub(super) fn restore<B: ModelBackend>(
    session: &mut Session<'_, B>,
    stage: &str,
    dir: &Path,
) -> Result<Option<RestoredCheckpoint>> {
    let mut refused: Vec<(PathBuf, String)> = Vec::new();
    for folder in checkpoint::all(dir).into_iter().rev() {
        match whole(&folder, dir) {
            Ok(checkpoint) => {
                for (damaged, why) in &refused {
                    let name = folder.file_name().unwrap_or_default().display();
                    (session.reporter)
                        .message(&format!("{stage}: {why}; the stage continues from {name}"));
                    checkpoint::set_aside(damaged)?;
                }
                return Ok(Some((folder, checkpoint)));
            }
            Err(error @ Error::Io { .. }) => return Err(error),
            Err(error) => refused.push((folder, error.to_string())),
        }
    }
    if refused.is_empty() {
        return Ok(None);
    }
    let reasons: Vec<String> = refused.into_iter().map(|(_, why)| why).collect();
    Err(Error::Stage {
        stage: stage.to_owned(),
        message: format!(
            "no checkpoint can be resumed from: {}. Put back what is damaged, or begin the stage again: the same command \
             with `--stage {stage}` in place of `--resume`",
            reasons.join("; ")
        ),
    })
}

/// Loads a checkpoint and verifies it and the logs of its stage.
fn whole(folder: &Path, dir: &Path) -> Result<StepCheckpoint<Position>> {
    let checkpoint = StepCheckpoint::<Position>::load(folder)?;
    for (name, mark) in [METRICS, SAMPLES].iter().zip(&checkpoint.state.logs) {
        mark.check(dir.join(name))?;
    }
    Ok(checkpoint)
}
