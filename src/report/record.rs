//! `stage.json`: what a stage is doing or has found, for reports.

use std::fs;
use std::io::ErrorKind;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::calibration::Calibration;
use super::comparison::{Comparison, responses_text};
use super::findings::Finding;
use super::histogram::Histogram;
use super::metrics::{MetricsRow, read_metrics};
use super::samples::{Sample, read_samples};
use super::table::Table;
use super::thinned::{first_and_last, thinned};
use crate::atomic::write_atomic;
use crate::error::{Error, Result};
use crate::outside;

const FILE: &str = "stage.json";

/// What is known of a stage. Written when it begins, and whole when it is done.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct StageRecord {
    /// What it is about, or when it is done what came of it: one line.
    pub summary: String,
    /// Steps of the whole stage.
    pub total_steps: usize,
    /// Tokens processed.
    pub tokens: u64,
    /// Time taken in seconds, that before a resume included.
    pub seconds: f64,
    /// Peak resident memory of the process during the stage, in bytes, where the system says it; after a resume since then.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub peak_bytes: Option<u64>,
    /// Accuracy by group and the like.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub table: Option<Table>,
    /// How far a reward model's scores can be trusted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub calibration: Option<Calibration>,
    /// Policies on the same prompts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub comparison: Option<Comparison>,
    /// The scores of ranked responses.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scores: Option<Histogram>,
    /// Notes and warnings.
    pub findings: Vec<Finding>,
    /// Whether it made its model much worse.
    pub diverged: bool,
}

impl StageRecord {
    /// The record in a stage's folder; `None` if there is none.
    ///
    /// # Errors
    /// When the file cannot be read or is not a record.
    pub fn read(folder: &Path) -> Result<Option<Self>> {
        let path = folder.join(FILE);
        if !path.exists() {
            return Ok(None);
        }
        let text = outside::read_text(&path, outside::SETTINGS)?;
        serde_json::from_str(&text)
            .map(Some)
            .map_err(|e| Error::format(&path, format!("not the record of a stage: {e}")))
    }

    /// Writes the record into the stage's folder.
    ///
    /// # Errors
    /// `Error::Io`.
    pub fn write(&self, folder: &Path) -> Result<()> {
        let path = folder.join(FILE);
        let mut text =
            serde_json::to_vec_pretty(self).map_err(|e| Error::format(&path, e.to_string()))?;
        text.push(b'\n');
        write_atomic(path, &text)
    }

    /// Removes the record of a stage that begins again.
    ///
    /// # Errors
    /// `Error::Io`.
    pub fn remove(folder: &Path) -> Result<()> {
        let path = folder.join(FILE);
        match fs::remove_file(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
            outcome => outcome.map_err(Error::io("remove", path)),
        }
    }

    /// The stage's table for a terminal, and below it the `samples`, if it compares policies; empty if it has no table.
    pub fn closing_text(&self, samples: &[Sample]) -> String {
        if let Some(comparison) = &self.comparison {
            return format!("{}\n{}\n", comparison.text(), responses_text(samples));
        }
        self.table
            .as_ref()
            .map(Table::to_string)
            .unwrap_or_default()
    }
}

/// The logs of a stage. Of long ones, some lines: memory is bounded, however many there are.
#[derive(Debug, Clone, Default)]
pub struct StageLogs {
    /// `metrics.jsonl`.
    pub metrics: Vec<MetricsRow>,
    /// `timing.jsonl`.
    pub timing: Vec<MetricsRow>,
    /// `samples.jsonl`.
    pub samples: Vec<Sample>,
    /// Lines of `metrics.jsonl` that are left out.
    pub left_out: usize,
}

impl StageLogs {
    /// Reads the logs in a stage's folder; those that are not there are empty.
    ///
    /// # Errors
    /// When a file cannot be read or is not a log.
    pub fn read(folder: &Path) -> Result<Self> {
        let metrics = thinned(&folder.join("metrics.jsonl"))?;
        Ok(Self {
            left_out: metrics.total - metrics.rows.len(),
            metrics: metrics.rows,
            timing: thinned(&folder.join("timing.jsonl"))?.rows,
            samples: first_and_last(&folder.join("samples.jsonl"))?,
        })
    }

    /// Reads all lines of the logs in a stage's folder, whatever memory they take.
    ///
    /// # Errors
    /// As [`StageLogs::read`].
    pub fn read_whole(folder: &Path) -> Result<Self> {
        Ok(Self {
            metrics: read_metrics(folder.join("metrics.jsonl"))?,
            timing: read_metrics(folder.join("timing.jsonl"))?,
            samples: read_samples(folder.join("samples.jsonl"))?,
            left_out: 0,
        })
    }

    /// Steps done.
    pub fn steps(&self) -> usize {
        self.timing.last().map_or(0, |row| row.step)
    }

    /// Seconds until the last step.
    pub fn seconds(&self) -> f64 {
        let last = self.timing.last().and_then(|row| row.get("elapsed_s"));
        last.filter(|seconds| seconds.is_finite()).unwrap_or(0.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::Severity;

    #[test]
    fn a_record_is_read_back() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(StageRecord::read(dir.path()).unwrap(), None);
        let record = StageRecord {
            summary: "3 steps".into(),
            total_steps: 3,
            table: Some(Table::new(&["a"], &[vec!["1"]])),
            findings: vec![Finding {
                severity: Severity::Warning,
                text: "hot".into(),
            }],
            ..StageRecord::default()
        };
        record.write(dir.path()).unwrap();
        assert_eq!(StageRecord::read(dir.path()).unwrap(), Some(record.clone()));
        StageRecord::remove(dir.path()).unwrap();
        StageRecord::remove(dir.path()).unwrap();
        assert_eq!(StageRecord::read(dir.path()).unwrap(), None);
        assert_eq!(record.closing_text(&[]), "|   a |\n|----:|\n|   1 |\n");
        fs::write(dir.path().join(FILE), "[]x").unwrap();
        let message = StageRecord::read(dir.path()).unwrap_err().to_string();
        assert!(message.contains("stage.json"), "{message}");
    }
}
