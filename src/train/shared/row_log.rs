//! The file of a stage that writes rows: a line for each row that it reads, with all that came of it. It stays when the stage is done;
//! `train.jsonl` and `valid.jsonl` are made from it.

use std::io::Write;
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::atomic::write_atomic;
use crate::collective;
use crate::error::{Error, Result};
use crate::report::complete_lines;
use crate::rng::Seed;

/// How many of `count` rows are held out.
pub(crate) fn num_held_out(count: usize, fraction: f64) -> usize {
    (count as f64 * fraction).round() as usize
}

/// A file with a line for each row.
pub(crate) struct RowLog {
    path: PathBuf,
    dir: PathBuf,
}

impl RowLog {
    /// The file `name` in a stage's folder `dir`.
    pub(crate) fn new(dir: &Path, name: &str) -> Self {
        Self {
            path: dir.join(name),
            dir: dir.to_path_buf(),
        }
    }

    /// Keeps the first `count` lines, those of before the newest checkpoint. Returns whether there were as many; otherwise nothing is
    /// changed.
    pub(crate) fn keep(&self, count: usize) -> Result<bool> {
        let text = match self.path.exists() {
            true => complete_lines(&self.path)?,
            false => String::new(),
        };
        let lines: Vec<&str> = text.split_inclusive('\n').take(count).collect();
        if lines.len() < count {
            return Ok(false);
        }
        // All have read before rank 0 writes.
        collective::ranks().barrier();
        collective::on_first(|| write_atomic(&self.path, lines.concat().as_bytes()))?;
        Ok(true)
    }

    /// Appends lines; they are on disk when it returns.
    pub(crate) fn append<T: Serialize>(&self, rows: &[T]) -> Result<()> {
        let mut text = String::new();
        for row in rows {
            let line = serde_json::to_string(row);
            text += &line.map_err(|error| Error::format(&self.path, error.to_string()))?;
            text.push('\n');
        }
        collective::on_first(|| {
            let mut file = std::fs::OpenOptions::new()
                .append(true)
                .open(&self.path)
                .map_err(Error::io("open", &self.path))?;
            file.write_all(text.as_bytes())
                .map_err(Error::io("write", &self.path))?;
            file.sync_data().map_err(Error::io("write", &self.path))
        })?;
        Ok(())
    }

    /// All lines.
    pub(crate) fn rows<T: DeserializeOwned>(&self) -> Result<Vec<T>> {
        let text = complete_lines(&self.path)?;
        let row = |(index, line): (usize, &str)| {
            serde_json::from_str(line).map_err(|error| Error::Data {
                path: self.path.clone(),
                line: index + 1,
                message: format!("not a line that the stage writes: {error}"),
            })
        };
        text.lines().enumerate().map(row).collect()
    }

    /// Writes `train.jsonl` and `valid.jsonl`: the rows that come of each line, for `fraction` of the lines with any, drawn by `seed`,
    /// held out. Returns the numbers of rows.
    pub(crate) fn split<T: Serialize>(
        &self,
        rows: &[Vec<T>],
        fraction: f64,
        seed: Seed,
    ) -> Result<(usize, usize)> {
        let with_rows: Vec<usize> = (0..rows.len()).filter(|&i| !rows[i].is_empty()).collect();
        let count = num_held_out(with_rows.len(), fraction);
        let mut held_out = vec![false; rows.len()];
        for &i in &seed.permutation(with_rows.len())[..count] {
            held_out[with_rows[i]] = true;
        }
        let mut texts = [String::new(), String::new()];
        let mut counts = [0, 0];
        for (rows, held_out) in rows.iter().zip(held_out) {
            let part = usize::from(held_out);
            for row in rows {
                let line = serde_json::to_string(row);
                texts[part] +=
                    &line.map_err(|error| Error::format(&self.dir, error.to_string()))?;
                texts[part].push('\n');
                counts[part] += 1;
            }
        }
        collective::on_first(|| {
            write_atomic(self.dir.join("train.jsonl"), texts[0].as_bytes())?;
            write_atomic(self.dir.join("valid.jsonl"), texts[1].as_bytes())
        })?;
        Ok((counts[0], counts[1]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_kept_and_continued() {
        let dir = tempfile::tempdir().unwrap();
        let log = RowLog::new(dir.path(), "log.jsonl");
        assert!(log.keep(0).unwrap());
        log.append(&[1, 2, 3]).unwrap();
        assert!(!log.keep(4).unwrap());
        assert!(log.keep(2).unwrap());
        log.append(&[4]).unwrap();
        assert_eq!(log.rows::<usize>().unwrap(), [1, 2, 4]);
        // A line that was cut short does not count.
        std::fs::write(dir.path().join("log.jsonl"), "1\n2").unwrap();
        assert!(!log.keep(2).unwrap());
        assert!(log.keep(1).unwrap());
    }

    #[test]
    fn rows_of_one_line_stay_together() {
        let dir = tempfile::tempdir().unwrap();
        let log = RowLog::new(dir.path(), "log.jsonl");
        let rows = [vec![1, 2], vec![], vec![3, 4], vec![5, 6], vec![7, 8]];
        assert_eq!(log.split(&rows, 0.25, Seed::new(1)).unwrap(), (6, 2));
        let valid = std::fs::read_to_string(dir.path().join("valid.jsonl")).unwrap();
        let valid: Vec<usize> = valid.lines().map(|line| line.parse().unwrap()).collect();
        assert_eq!(valid[1], valid[0] + 1);
        assert_eq!(log.split(&rows, 0.0, Seed::new(1)).unwrap(), (8, 0));
    }
}
