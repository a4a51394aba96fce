//! TensorBoard's event files beside `metrics.jsonl`.
//!
//! The logs are the truth, and the event file repeats them: a file that a stage begins or resumes with is written from them, with every
//! step once, and replaces the earlier ones. So a crash can neither lose a step nor leave one twice. A TensorBoard that is open meanwhile
//! sees the new file begin with the start of a session at step 0, and forgets what it had of the old one.

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::{event, record};
use crate::atomic::write_atomic;
use crate::error::{Error, Result};
use crate::report::{MetricsRow, Sample, StageLogs};

/// What TensorBoard finds event files by.
const MARK: &str = "tfevents";

/// The event file of a stage.
#[derive(Debug)]
pub(super) struct EventFile {
    path: PathBuf,
    file: File,
    samples: SampleTags,
}

/// Numbers the samples of one policy after one step, so that each series of texts has one tag.
#[derive(Debug, Default)]
struct SampleTags(HashMap<String, (usize, usize)>);

impl SampleTags {
    fn of(&mut self, sample: &Sample) -> String {
        let name = sample.policy.clone().unwrap_or_default();
        let place = self.0.entry(name.clone()).or_insert((sample.step, 0));
        if place.0 != sample.step {
            *place = (sample.step, 0);
        }
        place.1 += 1;
        let number = place.1;
        match name.as_str() {
            "" => format!("samples/{number}"),
            name => format!("samples/{name}/{number}"),
        }
    }
}

impl EventFile {
    /// Writes a file with all that `logs` have, in place of earlier ones in `dir`; `end`: when the last line was logged. `texts`: texts of
    /// the stage, by tag.
    ///
    /// # Errors
    /// `Error::Io`.
    pub(super) fn create(
        dir: &Path,
        logs: &StageLogs,
        end: SystemTime,
        texts: &[(&str, &str)],
    ) -> Result<Self> {
        let earlier = event_files(dir)?;
        let start = end.checked_sub(Duration::from_secs_f64(logs.seconds()));
        let start = seconds(start.unwrap_or(UNIX_EPOCH));
        // The clock at each step, as if the stage had run without a break.
        let elapsed = |row: &MetricsRow| row.get("elapsed_s").filter(|s| s.is_finite());
        let clock: HashMap<usize, f64> = (logs.timing.iter())
            .filter_map(|row| Some((row.step, start + elapsed(row)?)))
            .collect();
        let at = |step: usize| clock.get(&step).copied().unwrap_or(start);
        let mut samples = SampleTags::default();
        let mut bytes = Vec::new();
        record::append(&mut bytes, &event::version(start));
        record::append(&mut bytes, &event::session_start(start, 0));
        for (tag, text) in texts {
            record::append(&mut bytes, &event::text(start, 0, tag, text));
        }
        for (rows, prefix) in [(&logs.metrics, ""), (&logs.timing, TIMING)] {
            for row in rows {
                let values = row
                    .values
                    .keys()
                    .filter_map(|name| Some((name.as_str(), row.get(name)?)));
                append_scalars(&mut bytes, at(row.step), row.step, prefix, values);
            }
        }
        for sample in &logs.samples {
            append_sample(&mut bytes, at(sample.step), &mut samples, sample);
        }
        let path = dir.join(name(&earlier));
        write_atomic(&path, &bytes)?;
        for old in &earlier {
            fs::remove_file(old).map_err(Error::io("remove", old))?;
        }
        let file = OpenOptions::new().append(true).open(&path);
        Ok(Self {
            file: file.map_err(Error::io("write", &path))?,
            samples,
            path,
        })
    }

    /// Appends the numbers of a step; `prefix` comes before their names.
    pub(super) fn scalars(
        &mut self,
        step: usize,
        prefix: &str,
        values: &[(&str, f64)],
    ) -> Result<()> {
        let mut bytes = Vec::new();
        append_scalars(&mut bytes, now(), step, prefix, values.iter().copied());
        self.write(&bytes)
    }

    /// Appends a sample.
    pub(super) fn sample(&mut self, sample: &Sample) -> Result<()> {
        let mut bytes = Vec::new();
        append_sample(&mut bytes, now(), &mut self.samples, sample);
        self.write(&bytes)
    }

    /// With a single write, so that a reader hardly ever sees half a record.
    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        (self.file.write_all(bytes)).map_err(Error::io("write", &self.path))
    }
}

/// Prefix of what depends on the clock.
pub(super) const TIMING: &str = "timing/";

/// Removes the event files of a folder.
///
/// # Errors
/// `Error::Io`.
pub(super) fn clear(dir: &Path) -> Result<()> {
    for old in event_files(dir)? {
        fs::remove_file(&old).map_err(Error::io("remove", &old))?;
    }
    Ok(())
}

fn event_files(dir: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(dir).map_err(Error::io("read", dir))?;
    let mut found: Vec<PathBuf> = (entries.flatten())
        .map(|entry| entry.path())
        .filter(|path| file_name(path).contains(MARK))
        .collect();
    found.sort();
    Ok(found)
}

fn file_name(path: &Path) -> String {
    let name = path.file_name().unwrap_or_default();
    name.to_string_lossy().into_owned()
}

/// A name that sorts behind the earlier files, whatever the clock says.
fn name(earlier: &[PathBuf]) -> String {
    let time_of = |path: &PathBuf| -> Option<u64> {
        let name = file_name(path);
        let (_, rest) = name.split_once("tfevents.")?;
        rest.split('.').next()?.parse().ok()
    };
    let last = earlier.iter().filter_map(time_of).max();
    let time = last.map_or(0, |last| last + 1).max(now() as u64);
    format!("events.out.{MARK}.{time:010}.temper")
}

fn append_scalars<'a>(
    out: &mut Vec<u8>,
    wall_time: f64,
    step: usize,
    prefix: &str,
    values: impl Iterator<Item = (&'a str, f64)>,
) {
    let values: Vec<(String, f64)> = values
        .map(|(name, value)| (format!("{prefix}{name}"), value))
        .collect();
    if !values.is_empty() {
        record::append(out, &event::scalars(wall_time, step, &values));
    }
}

fn append_sample(out: &mut Vec<u8>, wall_time: f64, tags: &mut SampleTags, sample: &Sample) {
    let tag = tags.of(sample);
    record::append(
        out,
        &event::text(wall_time, sample.step, &tag, &markdown(sample)),
    );
}

/// A sample in Markdown: texts indented, which shows them as they are.
fn markdown(sample: &Sample) -> String {
    let block = |text: &str| -> String {
        let lines: Vec<String> = text
            .trim_end()
            .lines()
            .map(|line| format!("    {line}"))
            .collect();
        lines.join("\n")
    };
    let mut text = format!(
        "prompt\n\n{}\n\nresponse\n\n{}\n",
        block(&sample.prompt),
        block(&sample.response)
    );
    if let Some(reference) = &sample.reference {
        text.push_str(&format!("\nreference\n\n{}\n", block(reference)));
    }
    if !sample.scores.is_empty() {
        let scores = sample
            .scores
            .iter()
            .map(|(name, score)| format!("{name} {score}"));
        text.push_str(&format!("\n{}\n", scores.collect::<Vec<_>>().join(", ")));
    }
    text
}

fn seconds(time: SystemTime) -> f64 {
    time.duration_since(UNIX_EPOCH)
        .map_or(0.0, |elapsed| elapsed.as_secs_f64())
}

fn now() -> f64 {
    seconds(SystemTime::now())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::{MetricsLog, SamplesLog};
    use event::testing::{Events, read};

    fn events(dir: &Path) -> Events {
        let files = event_files(dir).unwrap();
        let [file] = files.as_slice() else {
            panic!("expected one file, found {files:?}")
        };
        read(&record::read(&fs::read(file).unwrap()))
    }

    fn sample(step: usize, response: &str) -> Sample {
        Sample {
            step,
            prompt: "p\nq".into(),
            response: response.into(),
            ..Sample::default()
        }
    }

    #[test]
    fn a_resumed_file_has_every_step_once() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path();
        let mut log = MetricsLog::create(dir.join("metrics.jsonl")).unwrap();
        let mut samples = SamplesLog::create(dir.join("samples.jsonl")).unwrap();
        let texts = [("recipe", "(name)")];
        let mut file =
            EventFile::create(dir, &StageLogs::default(), SystemTime::now(), &texts).unwrap();
        let mut step = |file: &mut EventFile, step: usize| {
            let values = [("loss", 1.0 / step as f64), ("bad", f64::NAN)];
            log.log(step, &values).unwrap();
            log.log_timing(step, &[("elapsed_s", step as f64)]).unwrap();
            file.scalars(step, "", &values).unwrap();
            file.scalars(step, TIMING, &[("elapsed_s", step as f64)])
                .unwrap();
        };
        step(&mut file, 1);
        for response in ["a", "b"] {
            samples.log(&sample(1, response)).unwrap();
            file.sample(&sample(1, response)).unwrap();
        }
        step(&mut file, 2);
        // Step 3 is in the event file alone, and a record is torn: the checkpoint was of step 2.
        file.scalars(3, "", &[("loss", 9.0)]).unwrap();
        file.write(&[1, 2, 3]).unwrap();
        drop(file);
        let logs = StageLogs::read(dir).unwrap();
        let mut file = EventFile::create(dir, &logs, SystemTime::now(), &texts).unwrap();
        step(&mut file, 3);
        file.sample(&sample(3, "c")).unwrap();
        let found = events(dir);
        let of = |tag: &str| -> Vec<(u64, f32)> {
            let all = found.scalars.iter().filter(|(_, name, _)| name == tag);
            all.map(|(step, _, value)| (*step, *value)).collect()
        };
        assert_eq!(of("loss"), [(1, 1.0), (2, 0.5), (3, 1.0 / 3.0)]);
        assert_eq!(of("timing/elapsed_s"), [(1, 1.0), (2, 2.0), (3, 3.0)]);
        assert_eq!(of("bad").len(), 3);
        let tags: Vec<(u64, &str)> = (found.texts.iter())
            .map(|(step, tag, _)| (*step, tag.as_str()))
            .collect();
        assert_eq!(
            tags,
            [
                (0, "recipe"),
                (1, "samples/1"),
                (1, "samples/2"),
                (3, "samples/1")
            ]
        );
        assert_eq!(
            found.texts[1].2,
            "prompt\n\n    p\n    q\n\nresponse\n\n    a\n"
        );
        assert_eq!(found.starts, 1);
        clear(dir).unwrap();
        assert!(event_files(dir).unwrap().is_empty());
    }

    #[test]
    fn names_rise_though_the_clock_goes_back() {
        let late = PathBuf::from("events.out.tfevents.9999999998.temper");
        assert_eq!(name(&[late]), "events.out.tfevents.9999999999.temper");
        assert!(*name(&[]) > *"events.out.tfevents.1700000000.temper");
    }
}
