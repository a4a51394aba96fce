//! The files of a stage that samples: one line a prompt, in one file while the stage runs, in two when it is done.

use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

use crate::atomic::write_atomic;
use crate::error::{Error, Result};
use crate::report::complete_lines;
use crate::rng::Seed;
use crate::train::shared::num_held_out;

/// The files of a stage, with one line per prompt.
pub(super) struct Files {
    /// The rows of all prompts so far, in order; removed when the stage is done.
    pub(super) partial: PathBuf,
    train: PathBuf,
    valid: PathBuf,
}

impl Files {
    pub(super) fn of(dir: &Path) -> Self {
        Self {
            partial: dir.join("partial.jsonl"),
            train: dir.join("train.jsonl"),
            valid: dir.join("valid.jsonl"),
        }
    }

    /// Creates the files of a stage that begins.
    pub(super) fn begin(&self) -> Result<()> {
        // Files of an earlier run would be taken for this one's.
        remove(&self.train)?;
        remove(&self.valid)?;
        write_atomic(&self.partial, b"")
    }

    /// The lines of the first `count` prompts, from the partial file or, once that is removed, from the two parts. `None` if lines
    /// are missing.
    pub(super) fn earlier_lines(&self, count: usize, held_out: &[bool]) -> Result<Option<String>> {
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
    pub(super) fn scores(&self) -> Result<Vec<Vec<f64>>> {
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
    pub(super) fn split(&self, held_out: &[bool]) -> Result<()> {
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
pub(super) fn held_out(count: usize, fraction: f64, seed: Seed) -> Vec<bool> {
    let mut held_out = vec![false; count];
    for &i in &seed.permutation(count)[..num_held_out(count, fraction)] {
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

pub(super) fn remove(path: &Path) -> Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        outcome => outcome.map_err(Error::io("remove", path)),
    }
}

pub(super) fn append(path: &Path, text: &str) -> Result<()> {
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
