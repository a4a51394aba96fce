//! JSONL log files that a resumed run continues exactly.

use std::fs::{File, OpenOptions};
use std::io::{BufReader, Read, Write};
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::atomic::write_atomic_with;
use crate::collective;
use crate::error::{Error, Result};
use crate::outside;

/// Bytes that are read at once.
const BUFFER: usize = 1 << 20;

/// Length and hash of a log at a checkpoint: a log that has lost or changed lines since then is not continued.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogMark {
    /// Length of the log.
    pub bytes: u64,
    /// SHA-256 of these bytes, in hexadecimal.
    pub sha256: String,
}

impl LogMark {
    /// Checks that the log at `path` still begins with the marked bytes.
    ///
    /// # Errors
    /// `Error::Format` if it does not; `Error::Io`.
    pub fn check(&self, path: impl AsRef<Path>) -> Result<()> {
        self.hash_of(path.as_ref()).map(drop)
    }

    /// The hash state over the marked part of the log at `path`, after checking that part.
    fn hash_of(&self, path: &Path) -> Result<Sha256> {
        let lost = |what| Error::format(path, format!("{what} from before the checkpoint"));
        let mut hash = Sha256::new();
        let mut left = self.bytes;
        if left > 0 && !path.exists() {
            return Err(lost("lacks lines"));
        }
        if left > 0 {
            let mut file = outside::open(path)?;
            let mut buffer = vec![0; BUFFER];
            while left > 0 {
                let most = usize::try_from(left).map_or(BUFFER, |left| left.min(BUFFER));
                match file
                    .read(&mut buffer[..most])
                    .map_err(Error::io("read", path))?
                {
                    0 => return Err(lost("lacks lines")),
                    count => {
                        hash.update(&buffer[..count]);
                        left -= count as u64;
                    }
                }
            }
        }
        if hex(&hash) != self.sha256 {
            return Err(lost("has changed lines"));
        }
        Ok(hash)
    }
}

fn hex(hash: &Sha256) -> String {
    format!("{:x}", hash.clone().finalize())
}

/// An append-only file of JSON objects, each with a `step`. Of several ranks the first writes it; all know what it holds.
#[derive(Debug)]
pub(crate) struct JsonlLog {
    path: PathBuf,
    /// `None` on the other ranks.
    file: Option<File>,
    bytes: u64,
    hash: Sha256,
}

impl JsonlLog {
    /// An empty log; an old one is replaced.
    pub(crate) fn create(path: &Path) -> Result<Self> {
        if collective::ranks().is_first() {
            File::create(path).map_err(Error::io("create", path))?;
        }
        Self::append(path, 0, Sha256::new())
    }

    /// The log as it was at `mark`; what was written after it is cut off.
    pub(crate) fn resume(path: &Path, mark: &LogMark) -> Result<Self> {
        let hash = mark.hash_of(path)?;
        let log = Self::append(path, mark.bytes, hash)?;
        if let Some(file) = &log.file {
            file.set_len(mark.bytes).map_err(Error::io("cut", path))?;
        }
        Ok(log)
    }

    /// The log up to and including `step`; a missing file counts as empty.
    pub(crate) fn resume_at(path: &Path, step: usize) -> Result<Self> {
        let is_first = collective::ranks().is_first();
        if is_first && !path.exists() {
            return Self::create(path);
        }
        if is_first {
            cut_after(path, step)?;
        }
        Self::append(path, 0, Sha256::new())
    }

    fn append(path: &Path, bytes: u64, hash: Sha256) -> Result<Self> {
        let open = || {
            let mut options = OpenOptions::new();
            options.append(true).create(true).open(path)
        };
        let file = match collective::ranks().is_first() {
            true => Some(open().map_err(Error::io("write", path))?),
            false => None,
        };
        Ok(Self {
            path: path.to_path_buf(),
            file,
            bytes,
            hash,
        })
    }

    /// The mark at its present end, for logs opened by [`JsonlLog::create`] or [`JsonlLog::resume`].
    pub(crate) fn mark(&self) -> LogMark {
        LogMark {
            bytes: self.bytes,
            sha256: hex(&self.hash),
        }
    }

    /// Appends one line with a single write, so that a reader never sees half of it.
    pub(crate) fn write(&mut self, row: &impl Serialize) -> Result<()> {
        let mut line = serde_json::to_vec(row)
            .map_err(|e| Error::format(&self.path, format!("cannot be written as JSON: {e}")))?;
        line.push(b'\n');
        if let Some(file) = &mut self.file {
            (file.write_all(&line)).map_err(Error::io("write", &self.path))?;
        }
        self.bytes += line.len() as u64;
        self.hash.update(&line);
        Ok(())
    }

    /// Checks that the open file is still the one at its path.
    ///
    /// # Errors
    /// `Error::Io` if it was removed, moved or replaced: what is written to it would be lost.
    pub(crate) fn check_place(&self) -> Result<()> {
        let Some(file) = &self.file else {
            return Ok(());
        };
        let gone = |why: String| {
            let source = std::io::Error::new(std::io::ErrorKind::NotFound, why);
            Error::io("go on writing", &self.path)(source)
        };
        let at_path = std::fs::metadata(&self.path).map_err(|error| {
            gone(format!(
                "the run's folder was removed, moved or replaced while the run was going on ({error}). If it was moved, the run goes \
                 on from its newest checkpoint with --resume and --output NEW_PLACE"
            ))
        })?;
        #[cfg(unix)]
        {
            use std::os::unix::fs::MetadataExt;
            let open = file.metadata().map_err(Error::io("read", &self.path))?;
            if (open.dev(), open.ino()) != (at_path.dev(), at_path.ino()) {
                return Err(gone("another file has taken its place".into()));
            }
        }
        let _ = (at_path, file);
        Ok(())
    }

    /// Returns once every line is on the disk.
    pub(crate) fn sync(&mut self) -> Result<()> {
        match &self.file {
            Some(file) => file.sync_data().map_err(Error::io("write", &self.path)),
            None => Ok(()),
        }
    }
}

/// All rows of a file; empty if there is no such file. A last line that a crash cut short is left out.
pub(crate) fn read_rows<T: DeserializeOwned>(path: &Path) -> Result<Vec<T>> {
    let mut rows = Vec::new();
    each_row(path, |row| rows.push(row))?;
    Ok(rows)
}

/// The rows of a file, one by one, as [`read_rows`].
///
/// # Errors
/// `Error::Io`; `Error::Data` at a line of another form or of more than [`outside::LINE`] bytes.
pub(crate) fn each_row<T: DeserializeOwned>(path: &Path, mut take: impl FnMut(T)) -> Result<()> {
    each_line(path, |index, line| {
        let row = serde_json::from_slice(line).map_err(|e| bad_line(path, index, &e))?;
        take(row);
        Ok(())
    })
}

/// Calls `take` with the index and the text of each complete line, its line break included; with none if there is no such file.
fn each_line(path: &Path, mut take: impl FnMut(usize, &[u8]) -> Result<()>) -> Result<()> {
    if !path.exists() {
        return Ok(());
    }
    let mut text = BufReader::with_capacity(BUFFER, outside::open(path)?);
    let mut line = Vec::new();
    for index in 0.. {
        line.clear();
        let read = outside::read_line(&mut text, &mut line).map_err(Error::io("read", path))?;
        let problem = match read {
            None => format!("a line of more than {} MiB", outside::LINE >> 20),
            // The end, or a line that a crash cut short, maybe within a character.
            Some(_) if !line.ends_with(b"\n") => return Ok(()),
            Some(_) if std::str::from_utf8(&line).is_err() => "it is not UTF-8".into(),
            Some(_) => {
                take(index, &line)?;
                continue;
            }
        };
        return Err(Error::Data {
            path: path.to_path_buf(),
            line: index + 1,
            message: format!("not a line of this log: {problem}"),
        });
    }
    Ok(())
}

/// Removes the lines of later steps and a half-written last line, by writing a new file and renaming it.
fn cut_after(path: &Path, step: usize) -> Result<()> {
    #[derive(Deserialize)]
    struct Step {
        step: Option<Value>,
    }
    write_atomic_with(path, |out| {
        each_line(path, |index, line| {
            let row: Step = serde_json::from_slice(line).map_err(|e| bad_line(path, index, &e))?;
            let Some(line_step) = row.step.as_ref().and_then(Value::as_u64) else {
                return Err(Error::Data {
                    path: path.to_path_buf(),
                    line: index + 1,
                    message: "expected a whole number `step`, found none".into(),
                });
            };
            match line_step <= step as u64 {
                true => out.write_all(line).map_err(Error::io("write", path)),
                false => Ok(()),
            }
        })
    })
}

/// The text of a file up to its last line break: a crash may cut the last line short, even within a character.
pub(crate) fn complete_lines(path: &Path) -> Result<String> {
    let mut bytes = outside::read(path, outside::LOGS)?;
    let end = bytes.iter().rposition(|&byte| byte == b'\n');
    bytes.truncate(end.map_or(0, |end| end + 1));
    String::from_utf8(bytes).map_err(|e| {
        let valid = e.utf8_error().valid_up_to();
        let before = &e.as_bytes()[..valid];
        Error::Data {
            path: path.to_path_buf(),
            line: before.iter().filter(|&&byte| byte == b'\n').count() + 1,
            message: "not a line of this log: it is not UTF-8".into(),
        }
    })
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
    use std::fs;

    use super::*;
    use serde_json::json;

    fn text(path: &Path) -> String {
        fs::read_to_string(path).unwrap()
    }

    #[test]
    fn resuming_cuts_later_steps_and_a_torn_line() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.jsonl");
        fs::write(&path, "{\"step\":1}\n{\"step\":2}\n{\"step\":3}\n{\"st").unwrap();
        let mut log = JsonlLog::resume_at(&path, 2).unwrap();
        log.write(&json!({"step": 3, "again": true})).unwrap();
        assert_eq!(
            text(&path),
            "{\"step\":1}\n{\"step\":2}\n{\"step\":3,\"again\":true}\n"
        );
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        fs::remove_file(&path).unwrap();
        JsonlLog::resume_at(&path, 2).unwrap();
        assert_eq!(text(&path), "");
    }

    #[test]
    fn a_log_goes_on_from_its_mark() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.jsonl");
        let mut log = JsonlLog::create(&path).unwrap();
        log.write(&json!({"step": 1})).unwrap();
        let mark = log.mark();
        log.write(&json!({"step": 2, "text": "\u{e9}"})).unwrap();
        // A line that a crash cut short within a character.
        let whole = fs::read(&path).unwrap();
        fs::write(&path, &whole[..whole.len() - 4]).unwrap();
        let mut log = JsonlLog::resume(&path, &mark).unwrap();
        assert_eq!(log.mark(), mark);
        log.write(&json!({"step": 2})).unwrap();
        assert_eq!(text(&path), "{\"step\":1}\n{\"step\":2}\n");
        JsonlLog::resume(&path, &log.mark()).unwrap();
        // An uninterrupted log has the same mark.
        let other = dir.path().join("y.jsonl");
        let mut whole = JsonlLog::create(&other).unwrap();
        whole.write(&json!({"step": 1})).unwrap();
        whole.write(&json!({"step": 2})).unwrap();
        assert_eq!(whole.mark(), log.mark());
    }

    #[cfg(unix)]
    #[test]
    fn a_log_that_was_moved_or_replaced_is_noticed() {
        let dir = tempfile::tempdir().unwrap();
        let (run, path) = (dir.path().join("run"), dir.path().join("run/x.jsonl"));
        fs::create_dir(&run).unwrap();
        let log = JsonlLog::create(&path).unwrap();
        log.check_place().unwrap();
        fs::rename(&run, dir.path().join("elsewhere")).unwrap();
        let message = log.check_place().unwrap_err().to_string();
        assert!(message.contains("removed, moved or replaced"), "{message}");
        fs::create_dir(&run).unwrap();
        fs::write(&path, "").unwrap();
        let message = log.check_place().unwrap_err().to_string();
        assert!(message.contains("another file"), "{message}");
    }

    #[test]
    fn a_log_that_lost_or_changed_lines_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.jsonl");
        let mut log = JsonlLog::create(&path).unwrap();
        log.write(&json!({"step": 1})).unwrap();
        log.write(&json!({"step": 2})).unwrap();
        let mark = log.mark();
        for (damage, part) in [
            ("{\"step\":1}\n", "lacks lines"),
            ("", "lacks lines"),
            (
                "{\"step\":2}\n{\"step\":2}\n{\"step\":3}\n",
                "has changed lines",
            ),
        ] {
            fs::write(&path, damage).unwrap();
            let message = JsonlLog::resume(&path, &mark).unwrap_err().to_string();
            assert!(message.contains(part), "{message}");
            assert_eq!(text(&path), damage, "what is refused is left as it is");
        }
        fs::remove_file(&path).unwrap();
        assert!(mark.check(&path).is_err());
    }

    #[test]
    fn a_fresh_log_replaces_an_old_one() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.jsonl");
        fs::write(&path, "{\"step\":1}\n").unwrap();
        JsonlLog::create(&path).unwrap();
        assert_eq!(text(&path), "");
    }

    #[test]
    fn a_foreign_line_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.jsonl");
        let error = |text: &[u8]| {
            fs::write(&path, text).unwrap();
            JsonlLog::resume_at(&path, 1).unwrap_err().to_string()
        };
        let found = error(b"{\"step\":1}\nhello\n");
        assert!(found.contains("x.jsonl:2:"), "{found}");
        let found = error(b"{\"step\":1}\n\xff\n");
        assert!(found.contains("x.jsonl:2:"), "{found}");
        let found = error(b"{\"loss\":1}\n");
        assert!(
            found.ends_with("x.jsonl:1: expected a whole number `step`, found none"),
            "{found}"
        );
    }
}
