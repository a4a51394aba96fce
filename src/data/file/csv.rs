//! CSV files as rows: the first line names the columns.

use std::collections::HashSet;
use std::io::{self, BufRead, Read};
use std::path::{Path, PathBuf};

use csv::{Position, ReaderBuilder, StringRecord};
use serde_json::{Map, Number, Value};

use super::{FileFormat, OpenedFile, RowReader, ending};
use crate::data::RowFormat;
use crate::data::rows::Row;
use crate::error::{Error, Result};
use crate::outside;

/// The numeric columns; all others are text.
const NUMBERS: [&str; 5] = [
    "margin",
    "chosen_probability",
    "rating",
    "chosen_safe",
    "rejected_safe",
];

/// Separators of fields, the usual one first.
const SEPARATORS: [u8; 4] = [b',', b'\t', b';', b'|'];

/// CSV (RFC 4180, UTF-8): all fields are text except those of [`NUMBERS`].
pub(super) const FORMAT: FileFormat = FileFormat {
    name: "CSV",
    endings: &["csv", "tsv"],
    begins: |_| false,
    open,
};

/// Fields are separated by tabs in `.tsv` files, otherwise by the separator that the first line has most of.
fn open(mut file: OpenedFile<'_>, _: &RowFormat) -> Result<RowReader> {
    let path = file.path;
    let head = file.head()?;
    let separator = match ending(path).as_str() {
        "tsv" => b'\t',
        _ => separator(head),
    };
    let line_end = head.iter().position(|&byte| byte == b'\n');
    let carriage_returns = line_end.is_some_and(|at| at > 0 && head[at - 1] == b'\r');
    let mut reader = ReaderBuilder::new()
        .delimiter(separator)
        .from_reader(Metered {
            text: file.text,
            left: outside::LINE,
        });
    let names = reader.headers().map_err(|e| csv_error(path, &e))?.clone();
    check_names(path, &names)?;
    let rows = Rows {
        path: path.to_path_buf(),
        names,
        reader,
        carriage_returns,
        ended: false,
    };
    Ok(RowReader::of(path, Box::new(rows)))
}

/// The separator that the first line has most of, outside of quotes.
fn separator(head: &[u8]) -> u8 {
    let mut counts = [0usize; SEPARATORS.len()];
    let mut quoted = false;
    for &byte in head {
        match byte {
            b'"' => quoted = !quoted,
            b'\n' if !quoted => break,
            _ if !quoted => {
                if let Some(at) = SEPARATORS.iter().position(|&mark| mark == byte) {
                    counts[at] += 1;
                }
            }
            _ => {}
        }
    }
    // The first one of several.
    let most = (0..counts.len()).rev().max_by_key(|&at| counts[at]);
    SEPARATORS[most.unwrap_or(0)]
}

/// Refuses unnamed and duplicate columns, and `.tsv` files with another separator.
fn check_names(path: &Path, names: &StringRecord) -> Result<()> {
    let error = |message: String| Err(Error::format(path, message));
    let all: Vec<&str> = names.iter().collect();
    let mut seen = HashSet::with_capacity(all.len());
    for (i, name) in all.iter().enumerate() {
        if name.trim().is_empty() {
            return error(format!("its first line gives column {} no name", i + 1));
        }
        if !seen.insert(*name) {
            return error(format!("its first line names the column `{name}` twice"));
        }
    }
    match all.as_slice() {
        [one] if one.contains([';', ',', '|']) => error(format!(
            "expected fields separated by tabs, found the one column `{}`",
            one.chars().take(200).collect::<String>().escape_debug()
        )),
        _ => Ok(()),
    }
}

struct Rows {
    path: PathBuf,
    names: StringRecord,
    reader: csv::Reader<Metered>,
    /// Whether lines end with `\r\n`: the reader then counts one line too few.
    carriage_returns: bool,
    /// Whether the rest cannot be read.
    ended: bool,
}

impl Iterator for Rows {
    type Item = Result<Row>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ended {
            return None;
        }
        let mut record = StringRecord::new();
        self.reader.get_mut().left = outside::LINE;
        match self.reader.read_record(&mut record) {
            Ok(false) => None,
            Ok(true) => Some(self.row(&record)),
            Err(error) => {
                // What follows a row without an end is no row.
                self.ended = error.is_io_error();
                Some(Err(csv_error(&self.path, &error)))
            }
        }
    }
}

/// A text of which only so much is read at once: a field in quotes that are not closed has no end.
struct Metered {
    text: Box<dyn BufRead>,
    /// Bytes that the row at hand may still have.
    left: usize,
}

impl Read for Metered {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let read = self.text.read(out)?;
        self.left = (self.left.checked_sub(read)).ok_or_else(|| {
            let message = format!(
                "longer than {} MiB, the most that a row may have",
                outside::LINE >> 20
            );
            io::Error::new(io::ErrorKind::InvalidData, message)
        })?;
        Ok(read)
    }
}

impl Rows {
    fn row(&self, record: &StringRecord) -> Result<Row> {
        let mut row = Row {
            columns: Map::new(),
            path: self.path.clone(),
            line: line_of(record.position()) + usize::from(self.carriage_returns),
        };
        for (name, field) in self.names.iter().zip(record) {
            let value = match name {
                number if NUMBERS.contains(&number) && field.trim().is_empty() => Value::Null,
                number if NUMBERS.contains(&number) => {
                    let number = field.trim().parse().ok().and_then(Number::from_f64);
                    Value::Number(number.ok_or_else(|| {
                        row.error(format!(
                            "column `{name}`: expected a number, found `{}`",
                            field.escape_debug()
                        ))
                    })?)
                }
                _ => Value::String(field.to_owned()),
            };
            row.columns.insert(name.to_owned(), value);
        }
        Ok(row)
    }
}

fn line_of(position: Option<&Position>) -> usize {
    position.map_or(0, |at| usize::try_from(at.line()).unwrap_or(usize::MAX))
}

/// The error of a record, with its line.
fn csv_error(path: &Path, error: &csv::Error) -> Error {
    let message = match error.kind() {
        csv::ErrorKind::UnequalLengths {
            expected_len, len, ..
        } => format!("expected {expected_len} fields as in the first line, found {len}"),
        csv::ErrorKind::Utf8 { .. } => "expected UTF-8, found other bytes".to_owned(),
        _ => error.to_string(),
    };
    Error::Data {
        path: path.to_path_buf(),
        line: line_of(error.position()),
        message,
    }
}

#[cfg(test)]
mod tests {
    use crate::data::{DataConfig, DataContext, DataSource, read_rows};
    use crate::error::Result;

    /// Rows of a file of that name as `line: columns`.
    fn rows(name: &str, bytes: &[u8]) -> Result<Vec<String>> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        let config = DataConfig {
            skip: 1,
            limit: Some(3),
            ..DataConfig::of(DataSource::Csv(path))
        };
        let rows = read_rows(&config, &DataContext::default())?;
        let shown = |row: &crate::data::Row| {
            format!(
                "{}: {}",
                row.line,
                serde_json::Value::Object(row.columns.clone())
            )
        };
        Ok(rows.iter().map(shown).collect())
    }

    #[test]
    fn fields_are_text_by_column() {
        // Python's csv.DictReader gives the same fields: quotes, commas and line breaks inside of them, an empty one.
        let text = "\u{feff}prompt,completion\r\nleft,out\r\n\"a, \"\"b\"\"\nc\", 007\r\n,NA\r\n\u{e9},x\r\nbeyond,limit\r\n";
        assert_eq!(
            rows("d.csv", text.as_bytes()).unwrap(),
            [
                r#"3: {"prompt":"a, \"b\"\nc","completion":" 007"}"#,
                r#"5: {"prompt":"","completion":"NA"}"#,
                r#"6: {"prompt":"é","completion":"x"}"#,
            ]
        );
        assert_eq!(
            rows("d.tsv", b"a\tmargin\nx\t1\n1,2\t0.5\ny\t\n").unwrap(),
            [
                r#"3: {"a":"1,2","margin":0.5}"#,
                r#"4: {"a":"y","margin":null}"#
            ]
        );
    }

    #[test]
    fn a_table_of_tabs_has_tabs() {
        let found = rows("d.tsv", b"a,b\n1,2\n").unwrap_err().to_string();
        let message = "d.tsv: expected fields separated by tabs, found the one column `a,b`";
        assert!(found.ends_with(message), "{found}");
    }

    #[test]
    fn bad_files_are_named() {
        for (bytes, message) in [
            (
                &b"a,b\n1,2\n3\n"[..],
                "d.csv:3: expected 2 fields as in the first line, found 1",
            ),
            (
                b"a,b\n1,2\n3,\xff\n",
                "d.csv:3: expected UTF-8, found other bytes",
            ),
            (b"a,a\n", "d.csv: its first line names the column `a` twice"),
            (b"a,,b\n", "d.csv: its first line gives column 2 no name"),
            (
                b"a,margin\n1,2\n3,x\n",
                "d.csv:3: column `margin`: expected a number, found `x`",
            ),
            (b"", "d.csv: no rows: the file is empty"),
            (
                b"a,b\n",
                "d.csv: no rows after the first 1, which `skip` leaves out",
            ),
        ] {
            let found = rows("d.csv", bytes).unwrap_err().to_string();
            assert!(found.ends_with(message), "{found}");
        }
    }
}
