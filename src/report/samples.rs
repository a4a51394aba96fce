//! `samples.jsonl`: generated responses for people to read.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Deserializer, Serialize};

use super::jsonl::{JsonlLog, LogMark, read_rows};
use crate::error::Result;

/// One generated response with its prompt.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Sample {
    /// The optimiser step (for PPO: the update) after which it was generated.
    pub step: usize,
    /// The policy that generated it, where a file holds responses of more than one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy: Option<String>,
    /// Prompt text.
    pub prompt: String,
    /// Response text without special tokens.
    pub response: String,
    /// The data row's own completion.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reference: Option<String>,
    /// Whether the response ended with EOS.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended: Option<bool>,
    /// Scores by name; null in the file (NaN here) where one is not finite.
    #[serde(
        default,
        skip_serializing_if = "BTreeMap::is_empty",
        deserialize_with = "scores"
    )]
    pub scores: BTreeMap<String, f64>,
}

/// Writes a stage's `samples.jsonl`.
#[derive(Debug)]
pub struct SamplesLog(JsonlLog);

impl SamplesLog {
    /// Starts an empty log; an old one is replaced.
    ///
    /// # Errors
    /// When the file cannot be created.
    pub fn create(path: impl AsRef<Path>) -> Result<Self> {
        JsonlLog::create(path.as_ref()).map(Self)
    }

    /// Continues the log from a checkpoint with this [`SamplesLog::mark`]; later lines are cut off.
    ///
    /// # Errors
    /// When the log has changed since the mark, or the file cannot be read or cut.
    pub fn resume(path: impl AsRef<Path>, mark: &LogMark) -> Result<Self> {
        JsonlLog::resume(path.as_ref(), mark).map(Self)
    }

    /// The present end of the log.
    pub fn mark(&self) -> LogMark {
        self.0.mark()
    }

    /// Appends one sample.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn log(&mut self, sample: &Sample) -> Result<()> {
        self.0.write(sample)
    }

    /// Returns once every line is on the disk.
    ///
    /// # Errors
    /// When the system reports a failure.
    pub fn sync(&mut self) -> Result<()> {
        self.0.sync()
    }
}

/// All samples of a file; none if there is no such file.
///
/// # Errors
/// When the file cannot be read or a line is not a sample.
pub fn read_samples(path: impl AsRef<Path>) -> Result<Vec<Sample>> {
    read_rows(path.as_ref())
}

fn scores<'de, D: Deserializer<'de>>(from: D) -> Result<BTreeMap<String, f64>, D::Error> {
    let read = BTreeMap::<String, Option<f64>>::deserialize(from)?;
    Ok(read
        .into_iter()
        .map(|(name, score)| (name, score.unwrap_or(f64::NAN)))
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn samples_are_written_without_empty_fields_and_read_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("samples.jsonl");
        let bare = Sample {
            step: 0,
            prompt: "a \"b\"\n".into(),
            response: "c".into(),
            ..Sample::default()
        };
        let full = Sample {
            step: 2,
            policy: Some("ppo".into()),
            reference: Some("r".into()),
            ended: Some(true),
            scores: BTreeMap::from([("gold".into(), 0.5)]),
            ..bare.clone()
        };
        let mut log = SamplesLog::create(&path).unwrap();
        log.log(&bare).unwrap();
        let mark = log.mark();
        log.log(&full).unwrap();
        log.sync().unwrap();
        assert_eq!(
            fs::read_to_string(&path).unwrap(),
            concat!(
                r#"{"step":0,"prompt":"a \"b\"\n","response":"c"}"#,
                "\n",
                r#"{"step":2,"policy":"ppo","prompt":"a \"b\"\n","response":"c","reference":"r","ended":true,"scores":{"gold":0.5}}"#,
                "\n"
            )
        );
        assert_eq!(
            read_samples(&path).unwrap(),
            vec![bare.clone(), full.clone()]
        );
        SamplesLog::resume(&path, &mark).unwrap();
        assert_eq!(read_samples(&path).unwrap(), vec![bare]);
    }

    #[test]
    fn a_score_that_is_not_finite_survives_as_null() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("samples.jsonl");
        let sample = Sample {
            scores: BTreeMap::from([("gold".into(), f64::NAN)]),
            ..Sample::default()
        };
        SamplesLog::create(&path).unwrap().log(&sample).unwrap();
        assert!(
            fs::read_to_string(&path)
                .unwrap()
                .contains(r#""gold":null"#)
        );
        assert!(read_samples(&path).unwrap()[0].scores["gold"].is_nan());
    }
}
