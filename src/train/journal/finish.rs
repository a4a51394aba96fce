//! How a stage ends: with its results, or with numbers that are not finite.

use super::Journal;
use crate::collective;
use crate::error::{Error, Result};
use crate::ops::ModelBackend;
use crate::report::{
    Ending, StageLogs, StageRecord, StageReport, diverged, findings, recent_peak_rss_bytes,
    write_stage_report,
};
use crate::train::{Outcome, Session};

impl Journal {
    /// The error for a value `what` that is not finite; saves the rows that caused it.
    pub(in crate::train) fn non_finite(&self, what: &str, rows: &[&[u32]]) -> Error {
        let step = self.position.step + 1;
        let saved = self.dir.join(format!("nonfinite-step-{step:06}.json"));
        let text = serde_json::json!({ "step": step, "what": what, "rows": rows }).to_string();
        let written = || crate::atomic::write_atomic(&saved, text.as_bytes());
        match collective::on_first(written) {
            Ok(_) => Error::NonFinite {
                stage: self.stage.clone(),
                step,
                what: what.to_owned(),
                saved,
            },
            Err(error) => error,
        }
    }

    /// Ends the stage: syncs the logs, and writes `stage.json` and `report.html`. `results`: its summary, tables and pictures.
    pub(in crate::train) fn finish<B: ModelBackend>(
        mut self,
        session: &mut Session<'_, B>,
        results: StageRecord,
    ) -> Result<Outcome> {
        if self.cadence.keep_best.is_some() && !self.has_best {
            return Err(Error::Stage {
                stage: self.stage.clone(),
                message:
                    "cadence.keep_best: this kind of stage does not choose among its checkpoints"
                        .into(),
            });
        }
        let summary = format!("{}{}", results.summary, self.kept());
        let record = StageRecord { summary, ..results };
        // An error of rank 0 ends all.
        let written = collective::on_first(|| self.write_results(session, record.clone()))?;
        Ok(written.unwrap_or(Outcome {
            table: String::new(),
            record,
        }))
    }

    /// Writes the record and the report of a stage that is done.
    fn write_results<B: ModelBackend>(
        &mut self,
        session: &mut Session<'_, B>,
        results: StageRecord,
    ) -> Result<Outcome> {
        self.logs.check_place()?;
        self.logs.sync()?;
        let logs = StageLogs::read(&self.dir)?;
        let record = StageRecord {
            total_steps: self.total_steps,
            tokens: self.position.tokens,
            seconds: self.timer.elapsed_s(),
            peak_bytes: recent_peak_rss_bytes(),
            findings: findings(&logs.metrics),
            diverged: diverged(&logs.metrics),
            ..results
        };
        record.write(&self.dir)?;
        let run = session.run.path().display().to_string();
        // A stage that compares or ranks leaves no model.
        let leaves = ["adapter", "model"]
            .iter()
            .any(|name| self.dir.join(name).exists());
        let next = match leaves {
            true => format!(
                "temper export --run {run} --stage {} --to exported/{}",
                self.stage, self.stage
            ),
            false => String::new(),
        };
        write_stage_report(
            &self.dir,
            &StageReport {
                title: &format!("{} of recipe {}", self.stage, session.recipe),
                record: &record,
                logs: &logs,
                next_command: &next,
            },
        )?;
        self.logs.close(Ending::Done);
        self.logs.report(session, &self.stage);
        session.reporter.stage_end(&record.summary);
        Ok(Outcome {
            table: record.closing_text(&logs.samples),
            record,
        })
    }
}
