//! One JSON array of objects as rows; a row's line is its number.

use std::io::{self, BufRead};
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::json;
use super::reader::{RowReader, RowText, too_long, utf8};
use super::{BOM, FileFormat, HEAD, OpenedFile};
use crate::data::RowFormat;
use crate::data::rows::{Row, json_kind};
use crate::error::{Error, Result};
use crate::outside;

/// One JSON array of objects.
pub(super) const FORMAT: FileFormat = FileFormat {
    name: "a JSON array",
    // `.json` files are read as JSONL unless they begin as an array.
    endings: &[],
    begins,
    open,
};

/// Whether a file is one JSON array of objects, and not JSONL with an array.
fn begins(head: &[u8]) -> bool {
    let head = head.strip_prefix(BOM).unwrap_or(head);
    let mut marks = head.iter().filter(|byte| !byte.is_ascii_whitespace());
    marks.next() == Some(&b'[') && matches!(marks.next(), None | Some(b'{' | b']'))
}

fn open(file: OpenedFile<'_>, _: &RowFormat) -> Result<RowReader> {
    let OpenedFile { path, text } = file;
    let elements = Elements {
        path: path.to_path_buf(),
        text,
        buffer: Vec::new(),
        at: 0,
        row: 0,
        line: 1,
        column: 0,
        ended: false,
    };
    Ok(RowReader::of_texts(path, Box::new(elements), parse))
}

/// The row of an element.
fn parse(path: &Path, row: usize, bytes: &[u8]) -> Result<Row> {
    let error = |message: String| Error::Data {
        path: path.to_path_buf(),
        line: row,
        message,
    };
    match json::element(utf8(path, row, bytes)?).map_err(error)? {
        Value::Object(columns) => Ok(Row {
            columns,
            path: path.to_path_buf(),
            line: row,
        }),
        other => Err(error(format!(
            "expected a JSON object, found {}",
            json_kind(&other)
        ))),
    }
}

/// The texts of the elements of an array, one after the other.
struct Elements {
    path: PathBuf,
    text: Box<dyn BufRead>,
    /// Bytes that were read, and how many of them were taken.
    buffer: Vec<u8>,
    at: usize,
    /// Elements so far.
    row: usize,
    /// Place of the last byte, both from 1.
    line: usize,
    column: usize,
    ended: bool,
}

impl Iterator for Elements {
    type Item = RowText;

    fn next(&mut self) -> Option<RowText> {
        if self.ended {
            return None;
        }
        let found = self.element();
        self.ended = !matches!(found, Ok(Some(_)));
        found.transpose().map(|bytes| (self.row.max(1), bytes))
    }
}

impl Elements {
    /// The text of the next element; `None` at the end of the array, after which nothing may stand.
    fn element(&mut self) -> Result<Option<Vec<u8>>> {
        let mark = match self.row {
            0 => b'[',
            _ => b',',
        };
        match self.mark()? {
            Some(b']') if self.row > 0 => return self.end(),
            Some(0xef) if self.row == 0 && self.column == 1 => {
                // A byte-order mark.
                self.byte()?;
                self.byte()?;
                self.mark()?;
            }
            Some(found) if found == mark => {}
            _ => return Err(self.error("expected `,` or `]`")),
        }
        let first = match self.mark()? {
            Some(b']') if self.row == 0 => return self.end(),
            Some(b']') => return Err(self.error("trailing comma")),
            Some(first) => first,
            None => return Err(self.error("EOF while parsing a value")),
        };
        self.row += 1;
        self.value(first).map(Some)
    }

    /// The text of a value that begins with the byte `first`.
    fn value(&mut self, first: u8) -> Result<Vec<u8>> {
        let (mut text, mut byte) = (Vec::new(), first);
        let (mut depth, mut in_string) = (0usize, false);
        loop {
            text.push(byte);
            if text.len() > outside::LINE {
                return Err(too_long(&self.path, self.row));
            }
            match byte {
                b'"' => in_string = !in_string,
                b'\\' if in_string => text.extend(self.byte()?),
                b'{' | b'[' if !in_string => depth += 1,
                b'}' | b']' if !in_string => depth = depth.saturating_sub(1),
                _ => {}
            }
            // A number or a word ends before what follows it.
            let is_word = !matches!(first, b'{' | b'[' | b'"');
            let ends = match is_word {
                true => matches!(self.peek()?, None | Some(b',' | b']' | b'}')),
                false => depth == 0 && !in_string,
            };
            if ends {
                return Ok(text);
            }
            byte = match self.byte()? {
                Some(byte) => byte,
                None => return Err(self.error("EOF while parsing a row")),
            };
        }
    }

    /// After the end of the array.
    fn end(&mut self) -> Result<Option<Vec<u8>>> {
        match self.mark()? {
            None => Ok(None),
            Some(_) => Err(self.error("trailing characters")),
        }
    }

    /// The next byte that is not white space.
    fn mark(&mut self) -> Result<Option<u8>> {
        loop {
            match self.byte()? {
                Some(byte) if byte.is_ascii_whitespace() => {}
                other => return Ok(other),
            }
        }
    }

    fn peek(&mut self) -> Result<Option<u8>> {
        if self.at == self.buffer.len() {
            self.buffer.resize(HEAD, 0);
            let read = loop {
                match self.text.read(&mut self.buffer) {
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(error) => return Err(self.error(&format!("cannot read further: {error}"))),
                    Ok(read) => break read,
                }
            };
            self.buffer.truncate(read);
            self.at = 0;
        }
        Ok(self.buffer.get(self.at).copied())
    }

    fn byte(&mut self) -> Result<Option<u8>> {
        let byte = self.peek()?;
        self.at += usize::from(byte.is_some());
        match byte {
            Some(b'\n') => (self.line, self.column) = (self.line + 1, 0),
            Some(_) => self.column += 1,
            None => {}
        }
        Ok(byte)
    }

    /// An error at the place reached.
    fn error(&self, problem: &str) -> Error {
        let message = format!(
            "begins as a JSON array of rows but cannot be parsed as one: {problem} at line {} column {}. Write one object a line",
            self.line, self.column
        );
        Error::format(&self.path, message)
    }
}
