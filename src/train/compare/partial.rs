//! The responses of a comparison in progress, a line for each: one that was stopped or killed goes on with those that it lacks.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::atomic::write_atomic;
use crate::collective;
use crate::error::{Error, Result};
use crate::generate::Response;
use crate::report::complete_lines;

/// The file; removed when the stage is done.
const FILE: &str = "partial.jsonl";

/// A response as a line.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Line {
    /// Index of the policy among `policies`.
    policy: usize,
    /// Index of the prompt, repeated ones counted.
    prompt: usize,
    ids: Vec<u32>,
    /// The bits of each log-probability: decimal digits could lose the last one.
    logprobs: Vec<u32>,
    stopped: bool,
    /// SHA-256 of all the rest, its first 16 digits.
    check: String,
}

impl Line {
    fn new(policy: usize, prompt: usize, response: &Response) -> Self {
        let mut line = Self {
            policy,
            prompt,
            ids: response.ids.clone(),
            logprobs: response.logprobs.iter().map(|p| p.to_bits()).collect(),
            stopped: response.stopped,
            check: String::new(),
        };
        line.check = line.sum();
        line
    }

    fn sum(&self) -> String {
        let (ids, logprobs) = (&self.ids, &self.logprobs);
        let text = format!(
            "{} {} {ids:?} {logprobs:?} {}",
            self.policy, self.prompt, self.stopped
        );
        let hash = format!("{:x}", Sha256::digest(text));
        hash[..16].to_owned()
    }

    fn is_whole(&self) -> bool {
        self.check == self.sum() && self.ids.len() == self.logprobs.len()
    }

    fn response(self) -> Response {
        Response {
            ids: self.ids,
            logprobs: self.logprobs.into_iter().map(f32::from_bits).collect(),
            stopped: self.stopped,
        }
    }
}

/// The responses so far, and the file that gets new ones.
pub(super) struct Partial {
    path: PathBuf,
    /// Rank 0 alone writes.
    file: Option<File>,
    known: BTreeMap<(usize, usize), Response>,
    /// Lines that could not be read: their responses are generated again.
    pub(super) damaged: usize,
}

impl Partial {
    /// The responses in a stage's folder, if the stage goes on; none if it begins.
    ///
    /// # Errors
    /// `Error::Io`.
    pub(super) fn open(dir: &Path, goes_on: bool) -> Result<Self> {
        collective::in_turn(|| Self::of(dir, goes_on))
    }

    fn of(dir: &Path, goes_on: bool) -> Result<Self> {
        let path = dir.join(FILE);
        let text = match goes_on && path.exists() {
            true => complete_lines(&path)?,
            false => String::new(),
        };
        let (mut known, mut kept, mut damaged) = (BTreeMap::new(), String::new(), 0);
        for line in text.lines() {
            match serde_json::from_str::<Line>(line) {
                Ok(found) if found.is_whole() => {
                    kept.extend([line, "\n"]);
                    known.insert((found.policy, found.prompt), found.response());
                }
                _ => damaged += 1,
            }
        }
        let mut file = None;
        if collective::ranks().is_first() {
            // Without a line that was cut short, which the next one would continue.
            write_atomic(&path, kept.as_bytes())?;
            let opened = OpenOptions::new().append(true).open(&path);
            file = Some(opened.map_err(Error::io("open", &path))?);
        }
        Ok(Self {
            file,
            path,
            known,
            damaged,
        })
    }

    /// The response of `policy` to `prompt`, if it is known.
    pub(super) fn get(&self, policy: usize, prompt: usize) -> Option<&Response> {
        self.known.get(&(policy, prompt))
    }

    /// Adds a response.
    ///
    /// # Errors
    /// `Error::Io`.
    pub(super) fn add(&mut self, policy: usize, prompt: usize, response: &Response) -> Result<()> {
        let line = serde_json::to_string(&Line::new(policy, prompt, response));
        let line = line.map_err(|error| Error::format(&self.path, error.to_string()))?;
        if let Some(file) = &mut self.file {
            file.write_all(format!("{line}\n").as_bytes())
                .map_err(Error::io("write", &self.path))?;
        }
        self.known.insert((policy, prompt), response.clone());
        Ok(())
    }

    /// Removes the file of a stage that is done.
    ///
    /// # Errors
    /// `Error::Io`.
    pub(super) fn remove(self) -> Result<()> {
        if self.file.is_none() {
            return Ok(());
        }
        match std::fs::remove_file(&self.path) {
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
            outcome => outcome.map_err(Error::io("remove", &self.path)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn responses_read_back_and_damaged_lines_do_not() {
        let dir = tempfile::tempdir().unwrap();
        let response = |id: u32| Response {
            ids: vec![id, 0],
            logprobs: vec![-0.1 / 3.0, f32::MIN_POSITIVE],
            stopped: true,
        };
        let mut partial = Partial::open(dir.path(), true).unwrap();
        for (policy, prompt, id) in [(0, 0, 5), (0, 1, 6), (1, 0, 7)] {
            partial.add(policy, prompt, &response(id)).unwrap();
        }
        // One digit changed, and a last line cut short.
        let path = dir.path().join(FILE);
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.contains("[6,0]"), "{text}");
        let text = text.replace("[6,0]", "[8,0]") + "{\"policy\":1,\"pro";
        std::fs::write(&path, text).unwrap();
        let mut partial = Partial::open(dir.path(), true).unwrap();
        assert_eq!((partial.known.len(), partial.damaged), (2, 1));
        assert_eq!(partial.get(0, 0), Some(&response(5)));
        assert_eq!(partial.get(0, 1), None);
        partial.add(0, 1, &response(6)).unwrap();
        let partial = Partial::open(dir.path(), true).unwrap();
        assert_eq!((partial.known.len(), partial.damaged), (3, 0));
        // A stage that begins has none.
        assert_eq!(Partial::open(dir.path(), false).unwrap().known.len(), 0);
        partial.remove().unwrap();
        assert!(!path.exists());
    }
}
