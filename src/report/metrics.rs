//! `metrics.jsonl`: the numbers of a stage, one object a line, the same bytes for the same recipe, seed and backend.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::jsonl::{JsonlLog, LogMark, read_rows};
use crate::error::Result;

/// Writes a stage's `metrics.jsonl` and, beside it, `timing.jsonl`.
///
/// What depends on the clock (`tokens_per_s`, `elapsed_s`) goes to `timing.jsonl`, so that `metrics.jsonl` is
/// reproducible to the byte. Numbers are written with enough digits to be read back exactly, non-finite ones as `null`.
#[derive(Debug)]
pub struct MetricsLog {
    metrics: JsonlLog,
    timing: JsonlLog,
}

impl MetricsLog {
    /// Starts empty logs; old ones are replaced.
    ///
    /// # Errors
    /// When a file cannot be created.
    pub fn create(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        Ok(Self {
            metrics: JsonlLog::create(path)?,
            timing: JsonlLog::create(&timing_of(path))?,
        })
    }

    /// Continues the logs from a checkpoint of `step` with this [`MetricsLog::mark`]. Later lines are cut off, so that
    /// `metrics.jsonl` ends up as in an uninterrupted run. `timing.jsonl`, on which no result depends, may lack lines.
    ///
    /// # Errors
    /// When `metrics.jsonl` has changed since the mark, a file cannot be read or replaced, or a line of `timing.jsonl` is not
    /// a log line.
    pub fn resume(path: impl AsRef<Path>, step: usize, mark: &LogMark) -> Result<Self> {
        let path = path.as_ref();
        Ok(Self {
            metrics: JsonlLog::resume(path, mark)?,
            timing: JsonlLog::resume_at(&timing_of(path), step)?,
        })
    }

    /// The present end of `metrics.jsonl`.
    pub fn mark(&self) -> LogMark {
        self.metrics.mark()
    }

    /// Appends `{"step": .., name: value, ..}` in the order given.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn log(&mut self, step: usize, values: &[(&str, f64)]) -> Result<()> {
        self.metrics.write(&row(step, values))
    }

    /// Appends values that depend on the clock.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn log_timing(&mut self, step: usize, values: &[(&str, f64)]) -> Result<()> {
        self.timing.write(&row(step, values))
    }

    /// Checks that `metrics.jsonl` is still at its path.
    ///
    /// # Errors
    /// `Error::Io` if the run's folder was removed, moved or replaced.
    pub fn check_place(&self) -> Result<()> {
        self.metrics.check_place()
    }

    /// Returns once every line is on the disk. Call before a checkpoint is marked complete: the lines before a checkpoint must
    /// survive as long as it does.
    ///
    /// # Errors
    /// When the system reports a failure.
    pub fn sync(&mut self) -> Result<()> {
        self.metrics.sync()?;
        self.timing.sync()
    }
}

/// One line of `metrics.jsonl`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MetricsRow {
    /// The optimiser step (for PPO: the update).
    pub step: usize,
    /// Value by name, in the order of the file; null where the number was not finite.
    #[serde(flatten)]
    pub values: Map<String, Value>,
}

/// Prefix of the alarms among metrics.
const ALARM: &str = "alarm/";

/// Alarms that went off, by step and name.
pub(super) fn alarms(rows: &[MetricsRow]) -> impl Iterator<Item = (usize, &str)> {
    rows.iter().flat_map(|row| {
        let names = row.values.keys();
        names.filter_map(|name| Some((row.step, name.strip_prefix(ALARM)?)))
    })
}

impl MetricsRow {
    /// The value called `name`: absent, or NaN where the number was not finite.
    pub fn get(&self, name: &str) -> Option<f64> {
        match self.values.get(name)? {
            Value::Null => Some(f64::NAN),
            value => value.as_f64(),
        }
    }
}

/// All lines of a `metrics.jsonl` or `timing.jsonl`; none if there is no such file.
///
/// # Errors
/// When the file cannot be read or a line is not a log line.
pub fn read_metrics(path: impl AsRef<Path>) -> Result<Vec<MetricsRow>> {
    read_rows(path.as_ref())
}

/// The `(step, value)` points of one metric, without those that are not finite.
pub fn series(rows: &[MetricsRow], name: &str) -> Vec<(usize, f64)> {
    rows.iter()
        .filter_map(|row| Some((row.step, row.get(name)?)))
        .filter(|(_, value)| value.is_finite())
        .collect()
}

fn timing_of(metrics: &Path) -> PathBuf {
    metrics.with_file_name("timing.jsonl")
}

fn row(step: usize, values: &[(&str, f64)]) -> Map<String, Value> {
    let mut row = Map::with_capacity(values.len() + 1);
    row.insert("step".into(), step.into());
    for &(name, value) in values {
        // `From<f64>` gives null for what is not finite.
        let clash = row.insert(name.into(), value.into());
        assert!(clash.is_none(), "two values called {name} in one line");
    }
    row
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn a_line_has_its_values_in_order_and_exactly() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("metrics.jsonl");
        let mut log = MetricsLog::create(&path).unwrap();
        let odd = f64::from(0.1f32) / 3.0;
        log.log(
            1,
            &[
                ("lr", 2e-4),
                ("loss", odd),
                ("bad", f64::NAN),
                ("worse", f64::INFINITY),
                ("n", 3.0),
            ],
        )
        .unwrap();
        log.log_timing(1, &[("tokens_per_s", 328.0)]).unwrap();
        log.sync().unwrap();
        assert_eq!(
            fs::read_to_string(&path).unwrap(),
            format!(
                "{{\"step\":1,\"lr\":0.0002,\"loss\":{odd},\"bad\":null,\"worse\":null,\"n\":3.0}}\n"
            )
        );
        assert_eq!(
            fs::read_to_string(dir.path().join("timing.jsonl")).unwrap(),
            "{\"step\":1,\"tokens_per_s\":328.0}\n"
        );
        let rows = read_metrics(&path).unwrap();
        assert_eq!(rows[0].step, 1);
        assert_eq!(rows[0].get("loss").unwrap().to_bits(), odd.to_bits());
        assert!(rows[0].get("bad").unwrap().is_nan());
        assert_eq!(rows[0].get("absent"), None);
        assert_eq!(series(&rows, "bad"), vec![]);
        assert_eq!(series(&rows, "n"), vec![(1, 3.0)]);
    }

    #[test]
    fn every_double_survives_writing_and_reading() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("metrics.jsonl");
        let mut log = MetricsLog::create(&path).unwrap();
        let seed = crate::rng::Seed::new(7);
        let values: Vec<f64> = (0..2000)
            .map(|i| f64::from_bits(seed.bits(i)))
            .filter(|v| v.is_finite())
            .collect();
        for (step, &value) in values.iter().enumerate() {
            log.log(step, &[("x", value)]).unwrap();
        }
        let rows = read_metrics(&path).unwrap();
        assert_eq!(rows.len(), values.len());
        for (row, value) in rows.iter().zip(&values) {
            assert_eq!(row.get("x").unwrap().to_bits(), value.to_bits(), "{value}");
        }
    }

    #[test]
    fn a_resumed_log_equals_an_uninterrupted_one() {
        let dir = tempfile::tempdir().unwrap();
        let write = |log: &mut MetricsLog, steps: std::ops::RangeInclusive<usize>| {
            for step in steps {
                log.log(step, &[("loss", 1.0 / step as f64)]).unwrap();
                log.log_timing(step, &[("elapsed_s", step as f64)]).unwrap();
            }
        };
        let whole = dir.path().join("whole");
        let parts = dir.path().join("parts");
        fs::create_dir(&whole).unwrap();
        fs::create_dir(&parts).unwrap();
        write(
            &mut MetricsLog::create(whole.join("metrics.jsonl")).unwrap(),
            1..=6,
        );
        let path = parts.join("metrics.jsonl");
        let mut log = MetricsLog::create(&path).unwrap();
        write(&mut log, 1..=3);
        let mark = log.mark();
        write(&mut log, 4..=5);
        let mut log = MetricsLog::resume(&path, 3, &mark).unwrap();
        write(&mut log, 4..=6);
        for file in ["metrics.jsonl", "timing.jsonl"] {
            assert_eq!(
                fs::read(whole.join(file)).unwrap(),
                fs::read(parts.join(file)).unwrap(),
                "{file}"
            );
        }
    }
}
