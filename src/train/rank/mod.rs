//! K responses per prompt, ranked by a reward source.

mod config;
mod spec;

pub use config::RankConfig;

use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

use serde_json::json;

use crate::atomic::write_atomic;
use crate::data::{Prompt, Prompts};
use crate::error::{Error, Result};
use crate::generate::generate;
use crate::ops::ModelBackend;
use crate::report::{Histogram, RolloutReport, StageRecord, complete_lines};
use crate::rng::Seed;
use crate::snapshot::Snapshot;
use crate::train::Session;
use crate::train::evaluate::{completions, sample};
use crate::train::generation::Generation;
use crate::train::journal::Journal;
use crate::train::session::{Outcome, data_files};

/// Prompts processed between two writes: at most this many are lost in a crash.
const PROMPTS_PER_STEP: usize = 32;

/// Generates and ranks responses; writes `train.jsonl` and `valid.jsonl`.
///
/// # Errors
/// Those of data, models and the reward source; `Error::Interrupted`.
pub(super) fn rank<B: ModelBackend>(
    session: &mut Session<'_, B>,
    config: &RankConfig,
) -> Result<Outcome> {
    let device = session.device.clone();
    let policy = session.policy(&config.init)?;
    let encoding = Prompts {
        max_length: config.max_prompt_length,
    };
    let prompts = session.token_rows("prompts", &config.data, &policy.tokenizer, &encoding)?;
    let data = (
        data_files(&config.data, session.run.path()),
        prompts.num_read(),
    );
    session.record(
        &config.name,
        &format!("{:?}", config.init),
        &policy.files,
        &[data],
    )?;
    let mut source = session.reward_source(&config.reward, &policy.tokenizer)?;
    let seed = session.stage_seed(&config.name);
    let options = Generation {
        response_length: config.response_length,
        sampling: config.sampling.clone(),
        truncate: config.truncate.as_ref(),
        batch_size: config.generation_batch_size,
    }
    .options(&policy.tokenizer)?;
    let steps = prompts.len().div_ceil(PROMPTS_PER_STEP);
    let summary = format!(
        "{} responses to each of {} prompts",
        config.num_responses,
        prompts.len()
    );
    // A step is a few prompts. Their rows are appended to `partial.jsonl`, so that every step can be a checkpoint.
    let cadence = crate::train::config::Cadence {
        save_steps: Some(1),
        save_total_limit: 1,
        ..Default::default()
    };
    let (mut journal, _) = Journal::open(session, &config.name, &summary, steps, &cadence)?;
    let files = Files::of(journal.dir());
    let held_out = held_out(prompts.len(), config.valid_fraction, seed.fork("split"));
    let mut written = (journal.position.step * PROMPTS_PER_STEP).min(prompts.len());
    match files.earlier_lines(written, &held_out)? {
        Some(lines) => write_atomic(&files.partial, lines.as_bytes())?,
        None => {
            let why = format!("{} lacks lines of earlier work", files.partial.display());
            journal.begin_again(session, &summary, &why)?;
            written = 0;
        }
    }
    if written == 0 {
        files.begin()?;
    }
    while journal.position.step < steps {
        let step = journal.position.step;
        let first = step * PROMPTS_PER_STEP;
        let chunk = prompts.get(first..(first + PROMPTS_PER_STEP).min(prompts.len()))?;
        let repeated: Vec<Prompt> = chunk
            .iter()
            .flat_map(|p| std::iter::repeat_n(p.as_ref().clone(), config.num_responses))
            .collect();
        let ids: Vec<&[u32]> = repeated.iter().map(|p| p.ids.as_slice()).collect();
        let total = ids.len();
        let reporter = &mut *session.reporter;
        let responses = generate(
            &policy.model,
            &ids,
            &options,
            seed.fork_index(step as u64),
            &device,
            &mut |done, tokens| {
                reporter.rollout(&RolloutReport {
                    what: "responses",
                    done,
                    total,
                    tokens,
                });
            },
        );
        let completions = completions(&repeated, &responses, &policy.tokenizer)?;
        let scores = source.score(&completions)?;
        if step == 0 {
            for i in 0..journal.num_samples().min(completions.len()) {
                let mut shown = sample(&completions[i], responses[i].stopped, 0);
                shown.scores.insert("score".into(), f64::from(scores[i]));
                journal.sample(&shown)?;
            }
        }
        let mut text = String::new();
        for (i, prompt) in chunk.iter().enumerate() {
            let part = i * config.num_responses..(i + 1) * config.num_responses;
            let row = json!({
                "prompt": prompt.text,
                "prompt_ids": prompt.ids,
                "responses": completions[part.clone()].iter().map(|c| &c.response).collect::<Vec<_>>(),
                "response_ids": responses[part.clone()].iter().map(|r| &r.ids).collect::<Vec<_>>(),
                "scores": &scores[part],
                "tie_margin": config.tie_margin,
            });
            text.push_str(&row.to_string());
            text.push('\n');
        }
        append(&files.partial, &text)?;
        written += chunk.len();
        let tokens: u64 = responses.iter().map(|r| r.ids.len() as u64).sum();
        let ended = responses.iter().filter(|r| r.stopped).count() as f64 / responses.len() as f64;
        let metrics = [
            ("score", crate::rl::mean(&scores)),
            ("score_var", crate::rl::variance(&scores)),
            ("eos_rate", ended),
        ];
        journal.step(session, tokens, &metrics)?;
        if journal.must_save() {
            let nothing = Snapshot::default();
            journal.save(session, &nothing, &nothing)?;
        }
    }
    files.split(&held_out)?;
    let valid = held_out.iter().filter(|&&held_out| held_out).count();
    let train = held_out.len() - valid;
    session.warn_of_sources([&source]);
    let results = StageRecord {
        summary: format!("{written} prompts ranked: {train} for training, {valid} held out"),
        scores: Histogram::of_ranked(&files.scores()?),
        ..StageRecord::default()
    };
    let outcome = journal.finish(session, results)?;
    remove(&files.partial)?;
    Ok(outcome)
}

/// The files of a Rank stage, with one line per prompt.
struct Files {
    /// The rows of all prompts so far, in order; removed when the stage is done.
    partial: PathBuf,
    train: PathBuf,
    valid: PathBuf,
}

impl Files {
    fn of(dir: &Path) -> Self {
        Self {
            partial: dir.join("partial.jsonl"),
            train: dir.join("train.jsonl"),
            valid: dir.join("valid.jsonl"),
        }
    }

    /// Creates the files of a stage that begins.
    fn begin(&self) -> Result<()> {
        // Files of an earlier run would be taken for this one's.
        remove(&self.train)?;
        remove(&self.valid)?;
        write_atomic(&self.partial, b"")
    }

    /// The lines of the first `count` prompts, from the partial file or, once that is removed, from the two parts. `None` if lines
    /// are missing.
    fn earlier_lines(&self, count: usize, held_out: &[bool]) -> Result<Option<String>> {
        let first = |lines: &mut dyn Iterator<Item = &str>| {
            let kept: Vec<&str> = lines.take(count).collect();
            (kept.len() == count).then(|| kept.iter().flat_map(|line| [*line, "\n"]).collect())
        };
        let partial = lines_of(&self.partial)?;
        if let Some(lines) = first(&mut partial.lines()) {
            return Ok(Some(lines));
        }
        let (train, valid) = (lines_of(&self.train)?, lines_of(&self.valid)?);
        if train.lines().count() + valid.lines().count() != held_out.len() {
            return Ok(None);
        }
        let (mut train, mut valid) = (train.lines(), valid.lines());
        let mut joined = held_out.iter().map_while(|&held_out| match held_out {
            true => valid.next(),
            false => train.next(),
        });
        Ok(first(&mut joined))
    }

    /// The scores of the responses to each prompt, in the partial file.
    fn scores(&self) -> Result<Vec<Vec<f64>>> {
        let text = lines_of(&self.partial)?;
        let of_line = |(index, line): (usize, &str)| {
            let row: Scores = serde_json::from_str(line).map_err(|error| Error::Data {
                path: self.partial.clone(),
                line: index + 1,
                message: format!("expected the scores of responses: {error}"),
            })?;
            Ok(row.scores.into_iter().flatten().collect())
        };
        text.lines().enumerate().map(of_line).collect()
    }

    /// Splits the lines of the partial file into the two parts; the partial file remains.
    fn split(&self, held_out: &[bool]) -> Result<()> {
        let text = lines_of(&self.partial)?;
        let part = |wanted: bool| -> String {
            (text.lines().zip(held_out))
                .filter(|(_, held_out)| **held_out == wanted)
                .flat_map(|(line, _)| [line, "\n"])
                .collect()
        };
        write_atomic(&self.train, part(false).as_bytes())?;
        write_atomic(&self.valid, part(true).as_bytes())
    }
}

/// The scores of a row that this stage has written.
#[derive(serde::Deserialize)]
struct Scores {
    scores: Vec<Option<f64>>,
}

/// Chooses at random which of `count` prompts are held out.
fn held_out(count: usize, fraction: f64, seed: Seed) -> Vec<bool> {
    let number = (count as f64 * fraction).round() as usize;
    let mut held_out = vec![false; count];
    for &i in &seed.permutation(count)[..number] {
        held_out[i] = true;
    }
    held_out
}

/// The complete lines of a file; empty if there is no such file.
fn lines_of(path: &Path) -> Result<String> {
    match path.exists() {
        true => complete_lines(path),
        false => Ok(String::new()),
    }
}

fn remove(path: &Path) -> Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        outcome => outcome.map_err(Error::io("remove", path)),
    }
}

fn append(path: &Path, text: &str) -> Result<()> {
    let mut file = std::fs::OpenOptions::new()
        .append(true)
        .open(path)
        .map_err(Error::io("open", path))?;
    file.write_all(text.as_bytes())
        .map_err(Error::io("write", path))?;
    file.sync_data().map_err(Error::io("write", path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_division_can_be_joined_again() {
        let dir = tempfile::tempdir().unwrap();
        let files = Files::of(dir.path());
        let held_out = held_out(10, 0.3, Seed::new(1));
        assert_eq!(held_out.iter().filter(|&&held| held).count(), 3);
        let lines: String = (0..10).map(|i| format!("{i}\n")).collect();
        write_atomic(&files.partial, lines.as_bytes()).unwrap();
        files.split(&held_out).unwrap();
        let earlier = |count| files.earlier_lines(count, &held_out).unwrap();
        assert_eq!(earlier(10).as_deref(), Some(&*lines));
        remove(&files.partial).unwrap();
        assert_eq!(earlier(10).as_deref(), Some(&*lines));
        assert_eq!(earlier(4).as_deref(), Some("0\n1\n2\n3\n"));
        // Cut short within a line, also within a character.
        std::fs::write(&files.partial, b"0\n1\n2\n\xc3").unwrap();
        assert_eq!(earlier(3).as_deref(), Some("0\n1\n2\n"));
        remove(&files.valid).unwrap();
        assert_eq!(earlier(4), None);
        assert_eq!(earlier(0).as_deref(), Some(""));
    }
}
