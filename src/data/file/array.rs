//! One JSON array of objects as rows; a row's line is its number.

use serde_json::Value;

use super::json::Strict;
use super::reader::RowReader;
use super::{BOM, FileFormat, OpenedFile};
use crate::data::RowFormat;
use crate::data::rows::{Row, json_kind};
use crate::error::{Error, Result};

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
    let OpenedFile { path, mut text } = file;
    let mut bytes = Vec::new();
    (text.read_to_end(&mut bytes)).map_err(Error::io("read", path))?;
    let bytes = bytes.strip_prefix(BOM).unwrap_or(&bytes);
    let values: Vec<Strict> = serde_json::from_slice(bytes).map_err(|e| {
        let message = format!(
            "begins as a JSON array of rows but cannot be parsed as one: {e}. Write one object a line"
        );
        Error::format(path, message)
    })?;
    let owned = path.to_path_buf();
    let rows = values.into_iter().enumerate();
    let rows = rows.map(move |(i, Strict(value))| match value {
        Value::Object(columns) => Ok(Row {
            columns,
            path: owned.clone(),
            line: i + 1,
        }),
        other => Err(Error::Data {
            path: owned.clone(),
            line: i + 1,
            message: format!("expected a JSON object, found {}", json_kind(&other)),
        }),
    });
    Ok(RowReader::of(path, Box::new(rows)))
}
