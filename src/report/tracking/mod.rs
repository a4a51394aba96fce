//! Metrics for other programs: TensorBoard's event files and an MLflow server, beside `metrics.jsonl`.
//!
//! They repeat what the logs say. A failure never ends a stage: it is said.

mod event;
mod events;
mod mlflow;
mod record;

use std::path::Path;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use super::{Sample, StageLogs};
use crate::error::Result;
use events::{EventFile, TIMING};
use mlflow::Mlflow;

/// Where metrics go besides the run folder's own logs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ReportTo {
    /// Event files in the stage's folder, for `tensorboard --logdir RUN`.
    TensorBoard,
    /// The MLflow server at this address.
    Mlflow(String),
}

/// What trackers are told of a stage.
#[derive(Debug, Clone, Default)]
pub struct TrackedStage {
    /// The recipe's name.
    pub recipe_name: String,
    /// The resolved recipe.
    pub recipe: String,
    /// The stage's name.
    pub stage: String,
    /// Whether it continues from a checkpoint.
    pub resumed: bool,
}

/// How a stage ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// It is done.
    Done,
    /// The user stopped it.
    Interrupted,
    /// It failed.
    Failed,
}

/// The trackers of a stage in progress.
#[derive(Default)]
pub struct Trackers {
    events: Option<EventFile>,
    mlflow: Option<Mlflow>,
    said: Vec<String>,
}

impl Trackers {
    /// Opens those of `report_to` for the stage in `dir` with the lines that `logs` have. Event files of a run before are removed.
    pub fn open(
        report_to: &[ReportTo],
        dir: &Path,
        stage: &TrackedStage,
        logs: &StageLogs,
    ) -> Self {
        let mut trackers = Self::default();
        if !stage.resumed {
            let cleared = events::clear(dir);
            trackers.check(cleared);
        }
        for to in report_to {
            match to {
                ReportTo::TensorBoard => {
                    let made = event_file(dir, stage, logs, SystemTime::now());
                    trackers.events = trackers.check(made);
                }
                ReportTo::Mlflow(uri) => {
                    trackers.mlflow = Some(Mlflow::open(uri, dir, stage, logs));
                }
            }
        }
        trackers
    }

    /// Takes a line of `metrics.jsonl`.
    pub fn metrics(&mut self, step: usize, values: &[(&str, f64)]) {
        self.event(|file| file.scalars(step, "", values));
        if let Some(mlflow) = &mut self.mlflow {
            mlflow.metrics(step, values);
        }
    }

    /// Takes a line of `timing.jsonl`.
    pub fn timing(&mut self, step: usize, values: &[(&str, f64)]) {
        self.event(|file| file.scalars(step, TIMING, values));
        if let Some(mlflow) = &mut self.mlflow {
            mlflow.timing(step, values);
        }
    }

    /// Takes a line of `samples.jsonl`.
    pub fn sample(&mut self, sample: &Sample) {
        self.event(|file| file.sample(sample));
    }

    /// Ends the stage.
    pub fn close(&mut self, ending: Ending) {
        if let Some(mut mlflow) = self.mlflow.take() {
            self.said.extend(mlflow.close(ending));
        }
        self.events = None;
    }

    /// What went wrong since the last call, in words.
    pub fn said(&mut self) -> Vec<String> {
        std::mem::take(&mut self.said)
    }

    /// Writes to the event file, if there is one; after a failure it is closed.
    fn event(&mut self, write: impl FnOnce(&mut EventFile) -> Result<()>) {
        let Some(mut file) = self.events.take() else {
            return;
        };
        let written = write(&mut file);
        self.events = self.check(written).map(|()| file);
    }

    fn check<T>(&mut self, outcome: Result<T>) -> Option<T> {
        match outcome {
            Ok(value) => Some(value),
            Err(error) => {
                self.said.push(format!(
                    "TensorBoard's event file ends here: {error}; `temper report RUN --tensorboard` writes it from the logs"
                ));
                None
            }
        }
    }
}

/// An interrupted stage, or one that failed, is closed without [`Trackers::close`].
impl Drop for Trackers {
    fn drop(&mut self) {
        self.close(Ending::Failed);
        for text in self.said() {
            eprintln!("warning: {text}");
        }
    }
}

/// Writes the event file of a stage from its logs, in place of earlier ones. `false` if it has none.
///
/// # Errors
/// Those of reading and writing.
pub fn write_events(dir: &Path, stage: &TrackedStage) -> Result<bool> {
    let logs = StageLogs::read_whole(dir)?;
    if logs.metrics.is_empty() {
        return Ok(false);
    }
    let modified = std::fs::metadata(dir.join("metrics.jsonl")).and_then(|found| found.modified());
    event_file(
        dir,
        stage,
        &logs,
        modified.unwrap_or(SystemTime::UNIX_EPOCH),
    )?;
    Ok(true)
}

fn event_file(
    dir: &Path,
    stage: &TrackedStage,
    logs: &StageLogs,
    end: SystemTime,
) -> Result<EventFile> {
    // Indented, Markdown shows it as it is.
    let recipe: Vec<String> = (stage.recipe.lines())
        .map(|line| format!("    {line}"))
        .collect();
    EventFile::create(dir, logs, end, &[("recipe", &recipe.join("\n"))])
}
