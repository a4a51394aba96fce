//! The outputs of a stage in progress: metrics, samples, checkpoints, progress.

mod best;
mod finish;
mod logs;
mod restore;

use std::path::{Path, PathBuf};
use std::time::Instant;

use super::Session;
use super::alarms::{Alarm, Alarms};
use super::config::{AlarmsConfig, Cadence};
use super::state::Position;
use crate::checkpoint::{self, StepCheckpoint};
use crate::collective;
use crate::error::{Error, Result};
use crate::guard;
use crate::ops::ModelBackend;
use crate::report::{
    Ending, EvalReport, Interrupt, MetricsRow, Sample, StageInfo, StageRecord, StepReport, Timer,
    each_row,
};
use crate::snapshot::Snapshot;

use logs::Logs;
use restore::restore;

const METRICS: &str = "metrics.jsonl";
const SAMPLES: &str = "samples.jsonl";

/// The journal of one stage.
pub(super) struct Journal {
    stage: String,
    dir: PathBuf,
    cadence: Cadence,
    logs: Logs,
    timer: Timer,
    /// Seconds of the parts of the step in progress.
    parts: Vec<(&'static str, f64)>,
    /// Why the stage is to stop after the step in progress.
    stop: Option<String>,
    /// Steps that were done before this process began.
    first_step: usize,
    total_steps: usize,
    interrupt: Interrupt,
    /// Whether any rank has been asked to stop, when it was last agreed on.
    stopping: bool,
    /// The metrics logged at the current step.
    current: Vec<(String, f64)>,
    /// Whether the model has the weights that `keep_best` chooses.
    has_best: bool,
    /// The position of the stage.
    pub(super) position: Position,
}

/// A checkpoint's folder and contents.
pub(super) type RestoredCheckpoint = (PathBuf, StepCheckpoint<Position>);

impl Journal {
    /// Opens the journal; on resume returns the newest checkpoint too.
    pub(super) fn open<B: ModelBackend>(
        session: &mut Session<'_, B>,
        stage: &str,
        summary: &str,
        total_steps: usize,
        cadence: &Cadence,
    ) -> Result<(Self, Option<RestoredCheckpoint>)> {
        let dir = session.stage_dir(stage)?;
        let restored = if session.resume {
            // Rank 0 sets aside what is damaged.
            collective::in_turn(|| restore(session, stage, &dir))?
        } else {
            // After a crash of this run, leftovers of an earlier one would be resumed from.
            collective::on_first(|| checkpoint::clear(&dir))?;
            None
        };
        let (position, logs, earlier) = match &restored {
            Some((folder, checkpoint)) => {
                let position = checkpoint.state.clone();
                if position.step > total_steps {
                    let message = format!(
                        "is of step {}, and the stage has {total_steps}: its data have changed",
                        position.step
                    );
                    return Err(Error::format(folder, message));
                }
                // A kill between a save and its removals may have left one too many.
                checkpoint::prune(&dir, cadence.save_total_limit.max(1))?;
                let (logs, earlier) = Logs::resume(session, stage, &dir, &position)?;
                (position, logs, earlier)
            }
            None => {
                let logs = Logs::create(session, stage, &dir)?;
                (Position::default(), logs, 0.0)
            }
        };
        let journal = Self {
            stage: stage.to_owned(),
            logs,
            timer: Timer::start(position.tokens).after(earlier),
            parts: Vec::new(),
            stop: None,
            cadence: cadence.clone(),
            first_step: position.step,
            total_steps,
            interrupt: session.interrupt.clone(),
            stopping: false,
            current: Vec::new(),
            has_best: false,
            position,
            dir,
        };
        journal.start(session, summary)?;
        Ok((journal, restored))
    }

    fn start<B: ModelBackend>(&self, session: &mut Session<'_, B>, summary: &str) -> Result<()> {
        let record = StageRecord {
            summary: summary.to_owned(),
            total_steps: self.total_steps,
            ..StageRecord::default()
        };
        collective::on_first(|| record.write(&self.dir))?;
        session.reporter.stage_start(&StageInfo {
            stage: &self.stage,
            place: session.clock.place(),
            summary,
            first_step: self.position.step,
            total_steps: self.total_steps,
            first_tokens: self.position.tokens,
        });
        Ok(())
    }

    /// Discards the state of a checkpoint because of `why`, and begins at the first step.
    pub(super) fn begin_again<B: ModelBackend>(
        &mut self,
        session: &mut Session<'_, B>,
        summary: &str,
        why: &str,
    ) -> Result<()> {
        (session.reporter).message(&format!("{}: {why}; the stage begins again", self.stage));
        collective::on_first(|| checkpoint::clear(&self.dir))?;
        self.position = Position::default();
        self.logs.close(Ending::Failed);
        self.logs = Logs::create(session, &self.stage, &self.dir)?;
        self.timer = Timer::start(0);
        self.first_step = 0;
        self.start(session, summary)
    }

    /// The stage's name.
    pub(super) fn stage(&self) -> &str {
        &self.stage
    }

    /// The stage's folder.
    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Whether an evaluation is due after the steps done so far.
    pub(super) fn evaluates(&self) -> bool {
        let step = self.position.step;
        step == self.total_steps
            || self
                .cadence
                .eval_steps
                .is_some_and(|every| step.is_multiple_of(every))
    }

    /// Number of samples at each evaluation.
    pub(super) fn num_samples(&self) -> usize {
        self.cadence.num_samples
    }

    /// Counts a step as done and writes its metrics.
    pub(super) fn step<B: ModelBackend>(
        &mut self,
        session: &mut Session<'_, B>,
        tokens: u64,
        metrics: &[(&str, f64)],
    ) -> Result<()> {
        // GPU runtimes swallow errors: a step counts as done only if none was recorded.
        guard::check::<B>(&session.device)?;
        // An open log in a folder that is no longer there would swallow all that follows.
        self.logs.check_place()?;
        self.position.step += 1;
        self.current.clear();
        self.note(metrics);
        self.position.tokens += tokens;
        let (step, tokens) = (self.position.step, self.position.tokens);
        self.logs.log(step, metrics)?;
        let rate = self.timer.tokens_per_s(tokens);
        let mut timing = vec![
            ("tokens_per_s", rate),
            ("elapsed_s", self.timer.elapsed_s()),
        ];
        timing.append(&mut self.parts);
        self.logs.log_timing(step, &timing)?;
        session.reporter.step(&StepReport {
            stage: &self.stage,
            step,
            total_steps: self.total_steps,
            tokens,
            metrics,
            run_left_s: self.run_left_s(session),
        });
        self.logs.report(session, &self.stage);
        Ok(())
    }

    /// Notes the seconds since `start` as a part of the step in progress, for `timing.jsonl`.
    pub(super) fn time(&mut self, part: &'static str, start: Instant) {
        self.parts.push((part, start.elapsed().as_secs_f64()));
    }

    /// Estimated seconds until the end of the run.
    fn run_left_s<B: ModelBackend>(&self, session: &Session<'_, B>) -> Option<f64> {
        let total = self.total_steps.max(1) as f64;
        let share = self.position.step.saturating_sub(self.first_step) as f64 / total;
        let left = self.total_steps.saturating_sub(self.position.step) as f64 / total;
        (session.clock).left(share, left, self.timer.since_start_s())
    }

    /// The alarms of `config`, as the lines of `metrics.jsonl` so far leave them.
    ///
    /// # Errors
    /// When it cannot be read.
    pub(super) fn alarms(&mut self, config: &AlarmsConfig) -> Result<Alarms> {
        let logs = &mut self.logs;
        collective::on_first(|| logs.sync())?;
        let mut alarms = Alarms::new(config);
        each_row(&self.dir.join(METRICS), |row: MetricsRow| alarms.log(&row))?;
        // Rank 0 writes again once all have read.
        collective::ranks().barrier();
        Ok(alarms)
    }

    /// The value of `name` at the evaluation before the first step, which an earlier process may have done.
    ///
    /// # Errors
    /// When the log cannot be read.
    pub(super) fn first(&mut self, name: &str) -> Result<Option<f64>> {
        self.logs.sync()?;
        let mut first = None;
        each_row(&self.dir.join(METRICS), |row: MetricsRow| {
            if row.step == 0 && first.is_none() {
                first = row.get(name);
            }
        })?;
        Ok(first)
    }

    /// Logs and reports alarms. One by which the recipe stops the stage does so when the step's checkpoint is written.
    pub(super) fn raise<B: ModelBackend>(
        &mut self,
        session: &mut Session<'_, B>,
        alarms: Vec<Alarm>,
    ) -> Result<()> {
        let step = self.position.step;
        for alarm in alarms {
            self.logs.log(step, &[(&alarm.metric(), alarm.value)])?;
            let (stage, name) = (&self.stage, alarm.kind.name());
            let message = format!("{stage}, update {step}: alarm `{name}`: {}", alarm.message);
            session.reporter.message(&message);
            if alarm.stops && step < self.total_steps {
                let why = format!("alarm `{name}` at update {step}: {}", alarm.message);
                self.stop.get_or_insert(why);
            }
        }
        Ok(())
    }

    /// Logs and reports the result of an evaluation.
    pub(super) fn eval<B: ModelBackend>(
        &mut self,
        session: &mut Session<'_, B>,
        metrics: &[(&str, f64)],
    ) -> Result<()> {
        let step = self.position.step;
        self.note(metrics);
        self.logs.log(step, metrics)?;
        session.reporter.eval(&EvalReport {
            stage: &self.stage,
            step,
            total_steps: self.total_steps,
            metrics,
        });
        Ok(())
    }

    fn note(&mut self, metrics: &[(&str, f64)]) {
        let named = metrics
            .iter()
            .map(|(name, value)| ((*name).to_owned(), *value));
        self.current.extend(named);
    }

    /// Writes to `samples.jsonl`.
    pub(super) fn sample(&mut self, sample: &Sample) -> Result<()> {
        self.logs.sample(sample)
    }

    /// Whether a checkpoint is due, or the user wants to stop, by a signal to any rank.
    pub(super) fn must_save(&mut self) -> bool {
        self.stopping = collective::any(self.interrupt.requested());
        let step = self.position.step;
        let due = self
            .cadence
            .save_steps
            .is_some_and(|every| step > 0 && step.is_multiple_of(every));
        (due && step < self.total_steps) || self.must_stop() || self.stop.is_some()
    }

    fn must_stop(&self) -> bool {
        // A process that is alone may be stopped while it writes a checkpoint too.
        let requested = match collective::ranks().is_alone() {
            true => self.interrupt.requested(),
            false => self.stopping,
        };
        requested && self.position.step < self.total_steps
    }

    /// Whether the steps done so far would be lost: there is no checkpoint of them. Before the first step there is nothing to lose.
    pub(super) fn lacks_checkpoint(&self) -> bool {
        let step = self.position.step;
        let newest = checkpoint::latest(&self.dir);
        let newest = newest.and_then(|folder| checkpoint::step::step_of(&folder));
        step > 0 && self.dir.is_dir() && newest != Some(step)
    }

    /// Writes a checkpoint of the steps done so far.
    ///
    /// # Errors
    /// `Error::Io`.
    pub(super) fn keep(&mut self, weights: &Snapshot<'_>, optim: &Snapshot<'_>) -> Result<()> {
        // Writing would make the folder anew.
        self.logs.check_place()?;
        // The logs first: they must hold every step of a complete checkpoint.
        self.logs.sync()?;
        self.position.logs = self.logs.marks();
        collective::on_first(|| {
            let step = self.position.step;
            checkpoint::save(&self.dir, step, weights, optim, &self.position)?;
            checkpoint::prune(&self.dir, self.cadence.save_total_limit.max(1))
        })?;
        Ok(())
    }

    /// Writes a checkpoint; if the user wants to stop, returns `Error::Interrupted`.
    pub(super) fn save<B: ModelBackend>(
        &mut self,
        session: &Session<'_, B>,
        weights: &Snapshot<'_>,
        optim: &Snapshot<'_>,
    ) -> Result<()> {
        self.keep(weights, optim)?;
        if self.must_stop() {
            self.logs.close(Ending::Interrupted);
            return Err(self.interrupted(session));
        }
        if let Some(why) = self.stop.take() {
            let resume = &session.resume_command;
            return Err(Error::Stage {
                stage: self.stage.clone(),
                message: format!(
                    "stopped by {why}. The checkpoint of update {} is kept; `alarms: (stop: ..)` of the recipe asks for this, and \
                     `{resume}` goes on all the same",
                    self.position.step
                ),
            });
        }
        Ok(())
    }

    /// The error of a stage that the user stops.
    pub(super) fn interrupted<B: ModelBackend>(&self, session: &Session<'_, B>) -> Error {
        Error::Interrupted {
            stage: self.stage.clone(),
            step: self.position.step,
            resume: session.resume_command.clone(),
        }
    }
}
