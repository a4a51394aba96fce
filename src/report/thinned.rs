//! Logs of long stages in bounded memory: lines of a kind thinned evenly, samples of the first and of the last steps.

use std::collections::{HashMap, VecDeque};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::Path;

use super::jsonl::each_row;
use super::metrics::MetricsRow;
use super::samples::Sample;
use crate::error::Result;

/// Most lines of a kind, five times the points of a chart; half as many at least, where there are more.
const MOST: usize = 2048;
/// Most kinds; further ones share one.
const KINDS: usize = 32;
/// Most steps with samples at either end.
const STEPS: usize = 32;

/// Lines of a log, and how many there are.
#[derive(Debug, Default)]
pub(super) struct Thinned {
    pub(super) rows: Vec<MetricsRow>,
    /// Lines of the file.
    pub(super) total: usize,
}

/// Lines that have values of the same names: those of steps, of evaluations, of an alarm, ..
#[derive(Default)]
struct Kind {
    seen: usize,
    /// Every so many-th line is kept.
    stride: usize,
    kept: Vec<(usize, MetricsRow)>,
    /// The newest line, if it is not kept.
    last: Option<(usize, MetricsRow)>,
}

impl Kind {
    fn add(&mut self, at: usize, row: MetricsRow) {
        let stride = self.stride.max(1);
        let is_due = self.seen.is_multiple_of(stride);
        self.seen += 1;
        if !is_due {
            self.last = Some((at, row));
            return;
        }
        self.last = None;
        self.kept.push((at, row));
        if self.kept.len() > MOST {
            let mut index = 0;
            self.kept.retain(|_| {
                index += 1;
                index % 2 == 1
            });
            self.stride = stride * 2;
        }
    }
}

/// The lines of a `metrics.jsonl` or `timing.jsonl`: all, or of a kind with more than [`MOST`] lines every so many-th, its first and its
/// last one included. A line with a number that is not finite is of a kind of its own.
///
/// # Errors
/// As [`each_row`].
pub(super) fn thinned(path: &Path) -> Result<Thinned> {
    let mut kinds: HashMap<u64, Kind> = HashMap::new();
    let mut total = 0;
    each_row(path, |row: MetricsRow| {
        let mut hasher = DefaultHasher::new();
        for (name, value) in &row.values {
            (name, value.is_null()).hash(&mut hasher);
        }
        let mut key = hasher.finish();
        if kinds.len() >= KINDS && !kinds.contains_key(&key) {
            key = 0;
        }
        kinds.entry(key).or_default().add(total, row);
        total += 1;
    })?;
    let lines = kinds
        .into_values()
        .flat_map(|kind| kind.kept.into_iter().chain(kind.last));
    let mut lines: Vec<(usize, MetricsRow)> = lines.collect();
    lines.sort_unstable_by_key(|(at, _)| *at);
    let rows = lines.into_iter().map(|(_, row)| row).collect();
    Ok(Thinned { rows, total })
}

/// The lines of a `samples.jsonl`: all, or those of the first and of the last [`STEPS`] steps.
///
/// # Errors
/// As [`each_row`].
pub(super) fn first_and_last(path: &Path) -> Result<Vec<Sample>> {
    let (mut first, mut last) = (Vec::new(), VecDeque::<Vec<Sample>>::new());
    let (mut step, mut steps) = (None, 0);
    each_row(path, |sample: Sample| {
        if step != Some(sample.step) {
            step = Some(sample.step);
            steps += 1;
            if steps > STEPS {
                last.push_back(Vec::new());
            }
            if last.len() > STEPS {
                last.pop_front();
            }
        }
        match last.back_mut() {
            Some(of_step) => of_step.push(sample),
            None => first.push(sample),
        }
    })?;
    first.extend(last.into_iter().flatten());
    Ok(first)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::report::{MetricsLog, SamplesLog, read_metrics, read_samples};

    #[test]
    fn a_short_log_is_whole() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("metrics.jsonl");
        let mut log = MetricsLog::create(&path).unwrap();
        for step in 1..=2 * MOST / 4 {
            log.log(step, &[("loss", 1.0 / step as f64)]).unwrap();
            log.log(step, &[("eval/loss", 2.0)]).unwrap();
        }
        let found = thinned(&path).unwrap();
        assert_eq!(found.rows, read_metrics(&path).unwrap());
        assert_eq!(found.total, found.rows.len());
        assert_eq!(thinned(&dir.path().join("absent")).unwrap().total, 0);
    }

    #[test]
    fn a_long_log_is_thinned_by_kind() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("metrics.jsonl");
        let mut text = String::from("{\"step\":0,\"eval/loss\":3.0}\n");
        for step in 1..=10_000 {
            text += &match step {
                777 => "{\"step\":777,\"loss\":null}\n".to_owned(),
                step => format!("{{\"step\":{step},\"loss\":{step}.5}}\n"),
            };
        }
        text += "{\"step\":10000,\"alarm/kl\":9.0}\n{\"step\":1,\"lo";
        fs::write(&path, text).unwrap();
        let Thinned { rows, total } = thinned(&path).unwrap();
        assert_eq!(total, 10_002);
        let losses: Vec<usize> = (rows
            .iter()
            .filter(|row| row.get("loss").is_some_and(f64::is_finite)))
        .map(|row| row.step)
        .collect();
        // Every eighth of 9,999 lines, and the last one.
        assert_eq!(losses.len(), 1251);
        assert_eq!((losses[0], losses[1], losses[1250]), (1, 9, 10_000));
        assert!(losses.is_sorted());
        // What is rare stays.
        assert_eq!(rows[0].get("eval/loss"), Some(3.0));
        assert!(
            rows.iter()
                .any(|row| row.step == 777 && row.get("loss").is_some_and(f64::is_nan))
        );
        assert_eq!(rows[rows.len() - 1].get("alarm/kl"), Some(9.0));
    }

    #[test]
    fn samples_of_both_ends_stay() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("samples.jsonl");
        let mut log = SamplesLog::create(&path).unwrap();
        let sample = |step, prompt: &str| Sample {
            step,
            prompt: prompt.into(),
            ..Sample::default()
        };
        for step in 0..2 * STEPS + 1 {
            if step == 2 * STEPS {
                // As many steps as are kept.
                assert_eq!(first_and_last(&path).unwrap(), read_samples(&path).unwrap());
            }
            log.log(&sample(step, "a")).unwrap();
            log.log(&sample(step, "b")).unwrap();
        }
        let steps: Vec<usize> = (first_and_last(&path).unwrap().iter())
            .map(|s| s.step)
            .collect();
        assert_eq!(steps.len(), 4 * STEPS);
        assert!(!steps.contains(&STEPS));
        assert_eq!(
            (steps[2 * STEPS - 1], steps[2 * STEPS]),
            (STEPS - 1, STEPS + 1)
        );
    }
}
