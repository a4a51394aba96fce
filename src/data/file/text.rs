//! Plain text as rows with the column `text`.

use std::io::BufRead;
use std::path::Path;

use serde_json::{Map, Value};

use super::reader::{RowReader, too_long, utf8};
use super::{FileFormat, OpenedFile};
use crate::data::rows::Row;
use crate::data::{RowFormat, SampleBy};
use crate::error::Result;
use crate::outside;

/// Plain text.
pub(super) const FORMAT: FileFormat = FileFormat {
    name: "plain text",
    endings: &["txt", "text", "md"],
    begins: |_| false,
    open,
};

/// Rows of lines, paragraphs or the whole file, by `sample_by`. Blank lines are left out.
fn open(file: OpenedFile<'_>, format: &RowFormat) -> Result<RowReader> {
    let OpenedFile { path, text } = file;
    let reader = match format.sample_by {
        SampleBy::Line => RowReader::of_lines(path, text, line),
        SampleBy::Paragraph => RowReader::of(path, Box::new(Blocks::new(path, text, true))),
        SampleBy::Document => RowReader::of(path, Box::new(Blocks::new(path, text, false))),
    };
    Ok(reader.of_plain_text())
}

fn line(path: &Path, line: usize, bytes: &[u8]) -> Result<Row> {
    let text = utf8(path, line, bytes)?;
    let end = text.trim_end_matches(['\r', '\n']).len();
    Ok(row(path, line, text[..end].to_owned()))
}

fn row(path: &Path, line: usize, text: String) -> Row {
    Row {
        columns: Map::from_iter([("text".to_owned(), Value::String(text))]),
        path: path.to_path_buf(),
        line,
    }
}

/// Blocks of lines: paragraphs, which blank lines separate, or the whole text. Line ends become `\n`; a block has none at its end.
struct Blocks {
    path: std::path::PathBuf,
    /// The lines, without those that are blank.
    lines: RowReader,
    paragraphs: bool,
    /// The line after the last block.
    next: Option<Row>,
    /// Whether a block was too long.
    ended: bool,
}

impl Blocks {
    fn new(path: &Path, text: Box<dyn BufRead>, paragraphs: bool) -> Self {
        Self {
            path: path.to_path_buf(),
            lines: RowReader::of_lines(path, text, line),
            paragraphs,
            next: None,
            ended: false,
        }
    }

    fn next_line(&mut self) -> Option<Result<Row>> {
        match self.next.take() {
            Some(row) => Some(Ok(row)),
            None => self.lines.batch(1).pop(),
        }
    }
}

impl Iterator for Blocks {
    type Item = Result<Row>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ended {
            return None;
        }
        let first = match self.next_line()? {
            Ok(row) => row,
            Err(error) => return Some(Err(error)),
        };
        let (start, mut last, mut text) = (first.line, first.line, text_of(first));
        while let Some(line) = self.next_line() {
            let line = match line {
                Ok(row) => row,
                Err(error) => return Some(Err(error)),
            };
            let blank = line.line - last - 1;
            if blank > 0 && self.paragraphs {
                self.next = Some(line);
                break;
            }
            last = line.line;
            text.push_str(&"\n".repeat(blank + 1));
            text.push_str(&text_of(line));
            if text.len() > outside::LINE {
                // What follows would begin in the middle of a row.
                self.ended = true;
                return Some(Err(too_long(&self.path, start)));
            }
        }
        Some(Ok(row(&self.path, start, text)))
    }
}

/// The text of a row that [`line`] made.
fn text_of(mut row: Row) -> String {
    match row.columns.remove("text") {
        Some(Value::String(text)) => text,
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use crate::data::file::tests::shown;
    use crate::data::{RowFormat, SampleBy};

    #[test]
    fn lines_paragraphs_and_documents_are_rows() {
        let text = b"\xef\xbb\xbfone\r\n two\r\n\r\n\r\nthree\r\n";
        let by = |sample_by| {
            let format = RowFormat {
                sample_by,
                ..RowFormat::default()
            };
            shown("d.txt", text, &format).unwrap()
        };
        assert_eq!(
            by(SampleBy::Line),
            [
                r#"1: {"text":"one"}"#,
                r#"2: {"text":" two"}"#,
                r#"5: {"text":"three"}"#
            ]
        );
        assert_eq!(
            by(SampleBy::Paragraph),
            [r#"1: {"text":"one\n two"}"#, r#"5: {"text":"three"}"#]
        );
        assert_eq!(
            by(SampleBy::Document),
            [r#"1: {"text":"one\n two\n\n\nthree"}"#]
        );
    }
}
