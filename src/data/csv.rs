//! CSV files as rows: the first line names the columns.

use std::io::BufRead;
use std::path::{Path, PathBuf};

use csv::{Position, ReaderBuilder, StringRecord};
use serde_json::{Map, Number, Value};

use crate::data::file::{RowReader, text};
use crate::data::rows::Row;
use crate::error::{Error, Result};

/// The only numeric column; all others are text.
const NUMBER: &str = "margin";

/// Opens a CSV file (RFC 4180, UTF-8, optionally gzipped): fields are separated by commas, in `.tsv` and `.tsv.gz` files by tabs.
/// All fields are text except those of the column `margin`.
///
/// # Errors
/// `Error::Io`; `Error::Format` if the file is not text or its first line does not name columns.
pub(crate) fn open(path: &Path) -> Result<RowReader> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let is_tsv = [".tsv", ".tsv.gz"].iter().any(|end| name.ends_with(end));
    let mut text = text(path)?;
    let start = text.fill_buf().map_err(Error::io("read", path))?;
    let line_end = start.iter().position(|&byte| byte == b'\n');
    let carriage_returns = line_end.is_some_and(|at| at > 0 && start[at - 1] == b'\r');
    let mut reader = ReaderBuilder::new()
        .delimiter(if is_tsv { b'\t' } else { b',' })
        .from_reader(text);
    let names = reader.headers().map_err(|e| csv_error(path, &e))?.clone();
    check_names(path, &names)?;
    let rows = Rows {
        path: path.to_path_buf(),
        names,
        reader,
        carriage_returns,
    };
    Ok(RowReader::of(path, Box::new(rows)))
}

/// Refuses unnamed and duplicate columns, and files with another separator.
fn check_names(path: &Path, names: &StringRecord) -> Result<()> {
    let error = |message: String| Err(Error::format(path, message));
    let all: Vec<&str> = names.iter().collect();
    for (i, name) in all.iter().enumerate() {
        if name.trim().is_empty() {
            return error(format!("its first line gives column {} no name", i + 1));
        }
        if all[..i].contains(name) {
            return error(format!("its first line names the column `{name}` twice"));
        }
    }
    match all.as_slice() {
        [one] if one.contains([';', '\t', '|']) => error(format!(
            "expected fields separated by commas (tabs in .tsv files), found the one column `{}`",
            one.escape_debug()
        )),
        _ => Ok(()),
    }
}

struct Rows {
    path: PathBuf,
    names: StringRecord,
    reader: csv::Reader<Box<dyn BufRead>>,
    /// Whether lines end with `\r\n`: the reader then counts one line too few.
    carriage_returns: bool,
}

impl Iterator for Rows {
    type Item = Result<Row>;

    fn next(&mut self) -> Option<Self::Item> {
        let mut record = StringRecord::new();
        match self.reader.read_record(&mut record) {
            Ok(false) => None,
            Ok(true) => Some(self.row(&record)),
            Err(error) => Some(Err(csv_error(&self.path, &error))),
        }
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
                NUMBER if field.trim().is_empty() => Value::Null,
                NUMBER => {
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
    use crate::data::{DataConfig, DataContext, DataSource, RowFormat, read_rows};
    use crate::error::Result;

    /// Rows of a file of that name as `line: columns`.
    fn rows(name: &str, bytes: &[u8]) -> Result<Vec<String>> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        let config = DataConfig {
            source: DataSource::Csv(path),
            format: RowFormat::default(),
            skip: 1,
            limit: Some(3),
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
                b"a;b\n1;2\n",
                "d.csv: expected fields separated by commas (tabs in .tsv files), found the one column `a;b`",
            ),
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
