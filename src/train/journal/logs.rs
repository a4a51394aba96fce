//! The logs of a stage in progress, and the trackers that repeat them.

use std::path::Path;

use super::{METRICS, SAMPLES};
use crate::collective;
use crate::error::Result;
use crate::ops::ModelBackend;
use crate::report::{
    Ending, LogMark, MetricsLog, Sample, SamplesLog, StageLogs, TrackedStage, Trackers,
};
use crate::train::Session;
use crate::train::state::Position;

/// `metrics.jsonl`, `timing.jsonl`, `samples.jsonl`, and trackers.
pub(super) struct Logs {
    metrics: MetricsLog,
    samples: SamplesLog,
    trackers: Trackers,
}

impl Logs {
    /// Empty logs; old ones are replaced.
    ///
    /// # Errors
    /// When a file cannot be created.
    pub(super) fn create<B: ModelBackend>(
        session: &Session<'_, B>,
        stage: &str,
        dir: &Path,
    ) -> Result<Self> {
        Ok(Self {
            metrics: MetricsLog::create(dir.join(METRICS))?,
            samples: SamplesLog::create(dir.join(SAMPLES))?,
            trackers: trackers(session, stage, dir, None),
        })
    }

    /// The logs as they were at `position`, and the seconds until then.
    ///
    /// # Errors
    /// As [`MetricsLog::resume`].
    pub(super) fn resume<B: ModelBackend>(
        session: &Session<'_, B>,
        stage: &str,
        dir: &Path,
        position: &Position,
    ) -> Result<(Self, f64)> {
        let [of_metrics, of_samples] = &position.logs;
        let metrics = MetricsLog::resume(dir.join(METRICS), position.step, of_metrics)?;
        let samples = SamplesLog::resume(dir.join(SAMPLES), of_samples)?;
        // Trackers write all lines again.
        let earlier = match session.report_to.is_empty() {
            true => StageLogs::read(dir)?,
            false => StageLogs::read_whole(dir)?,
        };
        let logs = Self {
            metrics,
            samples,
            trackers: trackers(session, stage, dir, Some(&earlier)),
        };
        Ok((logs, earlier.seconds()))
    }

    /// Writes a line of `metrics.jsonl`.
    ///
    /// # Errors
    /// When it cannot be written.
    pub(super) fn log(&mut self, step: usize, values: &[(&str, f64)]) -> Result<()> {
        self.trackers.metrics(step, values);
        self.metrics.log(step, values)
    }

    /// Writes a line of `timing.jsonl`.
    ///
    /// # Errors
    /// When it cannot be written.
    pub(super) fn log_timing(&mut self, step: usize, values: &[(&str, f64)]) -> Result<()> {
        self.trackers.timing(step, values);
        self.metrics.log_timing(step, values)
    }

    /// Writes a line of `samples.jsonl`.
    ///
    /// # Errors
    /// When it cannot be written.
    pub(super) fn sample(&mut self, sample: &Sample) -> Result<()> {
        self.trackers.sample(sample);
        self.samples.log(sample)
    }

    /// Returns once every line is on the disk.
    ///
    /// # Errors
    /// When the system reports a failure.
    pub(super) fn sync(&mut self) -> Result<()> {
        self.metrics.sync()?;
        self.samples.sync()
    }

    /// Checks that the run's folder is where it was.
    ///
    /// # Errors
    /// As [`MetricsLog::check_place`].
    pub(super) fn check_place(&self) -> Result<()> {
        self.metrics.check_place()
    }

    /// The present ends of the logs.
    pub(super) fn marks(&self) -> [LogMark; 2] {
        [self.metrics.mark(), self.samples.mark()]
    }

    /// Ends what the trackers send.
    pub(super) fn close(&mut self, ending: Ending) {
        self.trackers.close(ending);
    }

    /// Passes on what went wrong with trackers.
    pub(super) fn report<B: ModelBackend>(&mut self, session: &mut Session<'_, B>, stage: &str) {
        for text in self.trackers.said() {
            (session.reporter).message(&format!("warning: {stage}: {text}"));
        }
    }
}

/// The trackers that the recipe asks for; `earlier`: the lines until the checkpoint that the stage continues from.
fn trackers<B: ModelBackend>(
    session: &Session<'_, B>,
    stage: &str,
    dir: &Path,
    earlier: Option<&StageLogs>,
) -> Trackers {
    let tracked = TrackedStage {
        recipe_name: session.recipe.clone(),
        // A run by the library may have written none.
        recipe: session.run.read_recipe().unwrap_or_default(),
        stage: stage.to_owned(),
        resumed: earlier.is_some(),
    };
    let none = StageLogs::default();
    let report_to: &[_] = match collective::ranks().is_first() {
        true => &session.report_to,
        false => &[],
    };
    Trackers::open(report_to, dir, &tracked, earlier.unwrap_or(&none))
}
