//! Reads the rows of one file in batches.

use std::io::BufRead;
use std::path::{Path, PathBuf};

use rayon::prelude::*;
use serde_json::Value;

use crate::data::rows::Row;
use crate::error::{Error, Result};
use crate::outside;

/// Bytes of text parsed at once, on all cores; a longer row is parsed alone.
const BATCH_BYTES: usize = 1 << 24;
/// Rows without a text of their own that are read at once.
const BATCH_ROWS: usize = 1 << 14;

/// Parses the text of a row: path, 1-based number, bytes.
pub(super) type ParseLine = fn(&Path, usize, &[u8]) -> Result<Row>;

/// The text of a row with its number, or with the number of the row that cannot be read.
pub(super) type RowText = (usize, Result<Vec<u8>>);

/// Parsed rows, of formats whose rows have no text of their own.
pub(super) type Objects = Box<dyn Iterator<Item = Result<Row>>>;

/// Reads the rows of one file.
pub(crate) struct RowReader {
    path: PathBuf,
    source: Source,
    /// Number of rows, where the file says it.
    num_rows: Option<usize>,
    /// Whether the rows are parts of plain text.
    is_text: bool,
}

enum Source {
    Texts(Box<dyn Iterator<Item = RowText>>, ParseLine),
    Objects(Objects),
}

impl RowReader {
    /// A reader over parsed rows.
    pub(crate) fn of(path: &Path, rows: Objects) -> Self {
        Self::new(path, Source::Objects(rows))
    }

    /// A reader over the texts of rows.
    pub(super) fn of_texts(
        path: &Path,
        texts: Box<dyn Iterator<Item = RowText>>,
        parse: ParseLine,
    ) -> Self {
        Self::new(path, Source::Texts(texts, parse))
    }

    /// A reader over lines, each a row.
    pub(super) fn of_lines(path: &Path, text: Box<dyn BufRead>, parse: ParseLine) -> Self {
        let lines = Lines {
            path: path.to_path_buf(),
            text,
            line: 0,
            ended: false,
        };
        Self::of_texts(path, Box::new(lines), parse)
    }

    fn new(path: &Path, source: Source) -> Self {
        Self {
            path: path.to_path_buf(),
            source,
            num_rows: None,
            is_text: false,
        }
    }

    /// The same for plain text.
    pub(super) fn of_plain_text(self) -> Self {
        Self {
            is_text: true,
            ..self
        }
    }

    /// Whether the rows are parts of plain text.
    pub(crate) fn is_text(&self) -> bool {
        self.is_text
    }

    /// The same for a file that says how many rows it has.
    pub(super) fn with_num_rows(self, num_rows: usize) -> Self {
        Self {
            num_rows: Some(num_rows),
            ..self
        }
    }

    /// Counts the rows, without parsing lines.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub(crate) fn count_rows(mut self) -> Result<usize> {
        match self.num_rows {
            Some(count) => Ok(count),
            None => self.skip_rows(usize::MAX),
        }
    }

    /// Skips up to `count` rows without parsing their texts; returns how many there were.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub(crate) fn skip_rows(&mut self, count: usize) -> Result<usize> {
        for skipped in 0..count {
            let next = match &mut self.source {
                Source::Objects(rows) => rows.next().map(|row| row.map(drop)),
                Source::Texts(texts, _) => texts.next().map(|(_, text)| text.map(drop)),
            };
            match next {
                Some(outcome) => outcome?,
                None => return Ok(skipped),
            }
        }
        Ok(count)
    }

    /// The next rows, at most `most`, texts parsed on all cores; empty at the end of the file.
    pub(crate) fn batch(&mut self, most: usize) -> Vec<Result<Row>> {
        let mut bytes = 0;
        match &mut self.source {
            Source::Objects(rows) => {
                let mut batch = Vec::new();
                while batch.len() < most.min(BATCH_ROWS) && bytes < BATCH_BYTES {
                    let Some(row) = rows.next() else { break };
                    bytes += row
                        .as_ref()
                        .map_or(0, |row| text_bytes(row.columns.values()));
                    batch.push(row);
                }
                batch
            }
            Source::Texts(texts, parse) => {
                let mut batch = Vec::new();
                while batch.len() < most && bytes < BATCH_BYTES {
                    let Some((number, text)) = texts.next() else {
                        break;
                    };
                    bytes += text.as_ref().map_or(0, Vec::len);
                    batch.push((number, text));
                }
                let (path, parse) = (&self.path, *parse);
                (batch.into_par_iter())
                    .map(|(number, text)| parse(path, number, &text?))
                    .collect()
            }
        }
    }
}

/// Bytes of all texts in some values.
pub(crate) fn text_bytes<'a>(values: impl Iterator<Item = &'a Value>) -> usize {
    let bytes = |value: &Value| match value {
        Value::String(text) => text.len(),
        Value::Array(items) => text_bytes(items.iter()),
        Value::Object(entries) => text_bytes(entries.values()),
        _ => 0,
    };
    values.map(bytes).sum()
}

/// The lines of a text that are not blank.
struct Lines {
    path: PathBuf,
    text: Box<dyn BufRead>,
    line: usize,
    ended: bool,
}

impl Iterator for Lines {
    type Item = RowText;

    fn next(&mut self) -> Option<RowText> {
        while !self.ended {
            let mut bytes = Vec::new();
            let read = outside::read_line(&mut self.text, &mut bytes);
            self.line += 1;
            match read {
                Ok(Some(0)) => self.ended = true,
                Ok(None) => {
                    self.ended = true;
                    return Some((self.line, Err(too_long(&self.path, self.line))));
                }
                Ok(Some(_)) => {
                    if self.line == 1 && bytes.starts_with(b"\xef\xbb\xbf") {
                        bytes.drain(..3); // a byte-order mark
                    }
                    if !bytes.iter().all(u8::is_ascii_whitespace) {
                        return Some((self.line, Ok(bytes)));
                    }
                }
                Err(e) => {
                    self.ended = true;
                    let error = Error::Data {
                        path: self.path.clone(),
                        line: self.line,
                        message: format!("cannot read further: {e}"),
                    };
                    return Some((self.line, Err(error)));
                }
            }
        }
        None
    }
}

/// The error for a row whose text has no end in sight.
pub(super) fn too_long(path: &Path, line: usize) -> Error {
    Error::Data {
        path: path.to_path_buf(),
        line,
        message: format!(
            "longer than {} MiB, the most that a row may have",
            outside::LINE >> 20
        ),
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
