//! Files of one JSON object a line that a resumed run can continue exactly.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::error::{Error, Result};

/// An append-only file of JSON objects, each with a `step`.
#[derive(Debug)]
pub(crate) struct JsonlLog {
    path: PathBuf,
    file: File,
}

impl JsonlLog {
    /// Opens `path`: empty, or with the lines up to and including `resume_step`.
    pub(crate) fn open(path: &Path, resume_step: Option<usize>) -> Result<Self> {
        match resume_step {
            Some(step) if path.exists() => cut_after(path, step)?,
            _ => drop(File::create(path).map_err(Error::io("create", path))?),
        }
        let file = OpenOptions::new()
            .append(true)
            .open(path)
            .map_err(Error::io("write", path))?;
        Ok(Self {
            path: path.to_path_buf(),
            file,
        })
    }

    /// Appends one line with a single write, so that a reader never sees half of it.
    pub(crate) fn write(&mut self, row: &impl Serialize) -> Result<()> {
        let mut line = serde_json::to_vec(row)
            .map_err(|e| Error::format(&self.path, format!("cannot be written as JSON: {e}")))?;
        line.push(b'\n');
        self.file
            .write_all(&line)
            .map_err(Error::io("write", &self.path))
    }

    /// Returns once every line is on the disk.
    pub(crate) fn sync(&mut self) -> Result<()> {
        self.file
            .sync_data()
            .map_err(Error::io("write", &self.path))
    }
}

/// All rows of a file; empty if there is no such file. A last line that was cut short by a crash is left out.
pub(crate) fn read_rows<T: DeserializeOwned>(path: &Path) -> Result<Vec<T>> {
    if !path.exists() {
        return Ok(Vec::new());
    }
    let text = fs::read_to_string(path).map_err(Error::io("read", path))?;
    complete_lines(&text)
        .enumerate()
        .map(|(i, line)| serde_json::from_str(line).map_err(|e| bad_line(path, i, &e)))
        .collect()
}

/// Removes the lines of later steps and a half-written last line, by writing a new file and renaming it.
fn cut_after(path: &Path, step: usize) -> Result<()> {
    let text = fs::read_to_string(path).map_err(Error::io("read", path))?;
    let mut kept = String::with_capacity(text.len());
    for (i, line) in complete_lines(&text).enumerate() {
        let row: Value = serde_json::from_str(line).map_err(|e| bad_line(path, i, &e))?;
        let Some(line_step) = row.get("step").and_then(Value::as_u64) else {
            return Err(Error::Data {
                path: path.to_path_buf(),
                line: i + 1,
                message: "expected a whole number `step`, found none".into(),
            });
        };
        if line_step <= step as u64 {
            kept.push_str(line);
            kept.push('\n');
        }
    }
    if kept == text {
        return Ok(());
    }
    let temporary = path.with_extension("jsonl.tmp");
    let mut file = File::create(&temporary).map_err(Error::io("create", &temporary))?;
    file.write_all(kept.as_bytes())
        .and_then(|()| file.sync_all())
        .map_err(Error::io("write", &temporary))?;
    fs::rename(&temporary, path).map_err(Error::io("replace", path))
}

fn complete_lines(text: &str) -> impl Iterator<Item = &str> {
    let end = text.rfind('\n').map_or(0, |i| i + 1);
    text[..end].lines()
}

fn bad_line(path: &Path, index: usize, error: &serde_json::Error) -> Error {
    Error::Data {
        path: path.to_path_buf(),
        line: index + 1,
        message: format!("not a line of this log: {error}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn resuming_cuts_later_steps_and_a_torn_line() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.jsonl");
        fs::write(&path, "{\"step\":1}\n{\"step\":2}\n{\"step\":3}\n{\"st").unwrap();
        let mut log = JsonlLog::open(&path, Some(2)).unwrap();
        log.write(&json!({"step": 3, "again": true})).unwrap();
        assert_eq!(
            fs::read_to_string(&path).unwrap(),
            "{\"step\":1}\n{\"step\":2}\n{\"step\":3,\"again\":true}\n"
        );
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_fresh_log_replaces_an_old_one() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.jsonl");
        fs::write(&path, "{\"step\":1}\n").unwrap();
        JsonlLog::open(&path, None).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "");
    }

    #[test]
    fn a_foreign_line_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.jsonl");
        fs::write(&path, "{\"step\":1}\nhello\n").unwrap();
        let error = JsonlLog::open(&path, Some(1)).unwrap_err().to_string();
        assert!(error.contains("x.jsonl:2:"), "{error}");
        fs::write(&path, "{\"loss\":1}\n").unwrap();
        let error = JsonlLog::open(&path, Some(1)).unwrap_err().to_string();
        assert!(
            error.ends_with("x.jsonl:1: expected a whole number `step`, found none"),
            "{error}"
        );
    }
}
