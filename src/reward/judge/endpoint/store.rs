//! Answers on disk, by a hash of what was asked.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::answer::Answer;
use crate::error::{Error, Result};
use crate::report::complete_lines;

/// One line of the file.
#[derive(Debug, Serialize, Deserialize)]
struct Line {
    key: String,
    answer: Answer,
}

/// The answers of a file; each is on disk before the next one is used.
pub(super) struct AnswerStore {
    path: PathBuf,
    file: File,
    answers: HashMap<String, Answer>,
}

/// The hash of a request: its address and body. The key of the account is no part of it.
pub(super) fn key(url: &str, body: &Value) -> String {
    format!("{:x}", Sha256::digest(format!("{url}\n{body}")))
}

impl AnswerStore {
    /// The answers of the file at `path`, which is made if it is not there. A last line that was cut short is left out.
    pub(super) fn open(path: &Path) -> Result<Self> {
        let mut answers = HashMap::new();
        if path.exists() {
            let text = complete_lines(path)?;
            for (index, line) in text.lines().enumerate() {
                let Line { key, answer } =
                    serde_json::from_str(line).map_err(|error| Error::Data {
                        path: path.to_path_buf(),
                        line: index + 1,
                        message: format!(
                            "expected an answer of a judge: {error}; remove the line, or the file to ask everything again"
                        ),
                    })?;
                answers.insert(key, answer);
            }
            let file = OpenOptions::new().write(true).open(path);
            let file = file.map_err(Error::io("open", path))?;
            file.set_len(text.len() as u64)
                .map_err(Error::io("cut", path))?;
        }
        let file = OpenOptions::new().create(true).append(true).open(path);
        Ok(Self {
            file: file.map_err(Error::io("open", path))?,
            path: path.to_path_buf(),
            answers,
        })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn len(&self) -> usize {
        self.answers.len()
    }

    pub(super) fn get(&self, key: &str) -> Option<&Answer> {
        self.answers.get(key)
    }

    /// Adds an answer and writes it.
    pub(super) fn add(&mut self, key: &str, answer: Answer) -> Result<()> {
        let line = Line {
            key: key.to_owned(),
            answer,
        };
        let mut text = serde_json::to_string(&line)
            .map_err(|error| Error::format(&self.path, error.to_string()))?;
        text.push('\n');
        (self.file)
            .write_all(text.as_bytes())
            .map_err(Error::io("write", &self.path))?;
        self.answers.insert(line.key, line.answer);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn answers_survive_and_a_cut_line_does_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("answers.jsonl");
        let answer = |text: &str| Answer {
            text: text.into(),
            ..Answer::default()
        };
        let mut store = AnswerStore::open(&path).unwrap();
        store.add("a", answer("1")).unwrap();
        store.add("b", answer("2")).unwrap();
        drop(store);
        let bytes = std::fs::read(&path).unwrap();
        std::fs::write(&path, &bytes[..bytes.len() - 3]).unwrap();
        let mut store = AnswerStore::open(&path).unwrap();
        assert_eq!(
            (store.len(), store.get("a").unwrap().text.as_str()),
            (1, "1")
        );
        store.add("b", answer("3")).unwrap();
        let store = AnswerStore::open(&path).unwrap();
        assert_eq!(store.get("b").unwrap().text, "3");
        std::fs::write(&path, "{}\n").unwrap();
        let message = AnswerStore::open(&path).err().unwrap().to_string();
        assert!(message.contains("answers.jsonl:1"), "{message}");
    }

    #[test]
    fn keys_are_of_the_whole_request() {
        let one = key("http://a/v1", &json!({"model": "m", "messages": []}));
        assert_eq!(
            one,
            key("http://a/v1", &json!({"model": "m", "messages": []}))
        );
        assert_ne!(
            one,
            key("http://b/v1", &json!({"model": "m", "messages": []}))
        );
        assert_ne!(
            one,
            key("http://a/v1", &json!({"model": "n", "messages": []}))
        );
    }
}
