//! Reads the rows of one file in batches.

use std::io::BufRead;
use std::path::{Path, PathBuf};

use rayon::prelude::*;

use crate::data::rows::Row;
use crate::error::{Error, Result};

/// Bytes of text parsed at once, on all cores; a longer row is parsed alone.
const BATCH_BYTES: usize = 1 << 24;
/// Rows of a format that is not line-based that are read at once.
const BATCH_ROWS: usize = 1 << 14;

/// Parses a line: path, 1-based number, bytes.
pub(super) type ParseLine = fn(&Path, usize, &[u8]) -> Result<Row>;

/// Rows from formats that are not line-based.
pub(super) type Objects = Box<dyn Iterator<Item = Result<Row>>>;

/// Reads the rows of one file.
pub(crate) struct RowReader {
    path: PathBuf,
    line: usize,
    source: Source,
}

enum Source {
    Lines(Box<dyn BufRead>, ParseLine),
    Objects(Objects),
    Ended,
}

impl RowReader {
    /// A reader over parsed rows.
    pub(crate) fn of(path: &Path, rows: Objects) -> Self {
        Self::new(path, Source::Objects(rows))
    }

    /// A reader over lines, each a row.
    pub(super) fn of_lines(path: &Path, text: Box<dyn BufRead>, parse: ParseLine) -> Self {
        Self::new(path, Source::Lines(text, parse))
    }

    fn new(path: &Path, source: Source) -> Self {
        Self {
            path: path.to_path_buf(),
            line: 0,
            source,
        }
    }

    /// Skips up to `count` rows without parsing lines; returns how many there were.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub(crate) fn skip_rows(&mut self, count: usize) -> Result<usize> {
        for skipped in 0..count {
            let next = match &mut self.source {
                Source::Objects(rows) => rows.next().map(|row| row.map(drop)),
                _ => self.next_line().map(|line| line.map(drop)),
            };
            match next {
                Some(outcome) => outcome?,
                None => return Ok(skipped),
            }
        }
        Ok(count)
    }

    /// The next rows, at most `most`, parsed on all cores; empty at the end of the file.
    pub(crate) fn batch(&mut self, most: usize) -> Vec<Result<Row>> {
        let parse = match &mut self.source {
            Source::Objects(rows) => return rows.take(most.min(BATCH_ROWS)).collect(),
            Source::Lines(_, parse) => *parse,
            Source::Ended => return Vec::new(),
        };
        let (mut lines, mut bytes) = (Vec::new(), 0);
        while lines.len() < most && bytes < BATCH_BYTES {
            let Some(line) = self.next_line() else { break };
            bytes += line.as_ref().map_or(0, Vec::len);
            lines.push((self.line, line));
        }
        let path = &self.path;
        (lines.into_par_iter())
            .map(|(number, line)| parse(path, number, &line?))
            .collect()
    }

    /// The next line that is not blank.
    fn next_line(&mut self) -> Option<Result<Vec<u8>>> {
        loop {
            let Source::Lines(reader, _) = &mut self.source else {
                return None;
            };
            let mut bytes = Vec::new();
            let read = reader.read_until(b'\n', &mut bytes);
            self.line += 1;
            match read {
                Ok(0) => {
                    self.source = Source::Ended;
                    return None;
                }
                Ok(_) => {
                    if self.line == 1 && bytes.starts_with(b"\xef\xbb\xbf") {
                        bytes.drain(..3); // a byte-order mark
                    }
                    if !bytes.iter().all(u8::is_ascii_whitespace) {
                        return Some(Ok(bytes));
                    }
                }
                Err(e) => {
                    self.source = Source::Ended;
                    return Some(Err(Error::Data {
                        path: self.path.clone(),
                        line: self.line,
                        message: format!("cannot read further: {e}"),
                    }));
                }
            }
        }
    }
}

/// The text of a line.
///
/// # Errors
/// `Error::Data` if it is not UTF-8.
pub(super) fn utf8<'a>(path: &Path, line: usize, bytes: &'a [u8]) -> Result<&'a str> {
    std::str::from_utf8(bytes).map_err(|e| {
        let at = e.valid_up_to();
        Error::Data {
            path: path.to_path_buf(),
            line,
            message: format!(
                "expected UTF-8, found byte 0x{:02x} at byte {}",
                bytes[at],
                at + 1
            ),
        }
    })
}
