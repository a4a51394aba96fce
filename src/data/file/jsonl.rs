//! JSONL as rows: one JSON object a line.

use std::path::Path;

use serde::de::IgnoredAny;
use serde_json::Value;

use super::reader::{RowReader, utf8};
use super::{BOM, FileFormat, JSON_EXPECTED, OpenedFile, json};
use crate::data::RowFormat;
use crate::data::rows::Row;
use crate::error::{Error, Result};

/// One JSON object a line.
pub(super) const FORMAT: FileFormat = FileFormat {
    name: "JSONL",
    endings: &["jsonl", "ndjson", "json"],
    begins,
    open,
};

/// Whether the first line is an object; one that goes on after `head` may be.
fn begins(head: &[u8]) -> bool {
    let head = head.strip_prefix(BOM).unwrap_or(head);
    let start = (head.iter()).position(|byte| !byte.is_ascii_whitespace());
    let head = &head[start.unwrap_or(head.len())..];
    match head.iter().position(|&byte| byte == b'\n') {
        Some(end) => head[0] == b'{' && serde_json::from_slice::<IgnoredAny>(&head[..end]).is_ok(),
        None => head.starts_with(b"{"),
    }
}

fn open(mut file: OpenedFile<'_>, _: &RowFormat) -> Result<RowReader> {
    let path = file.path;
    match not_json(path, file.head()?) {
        Some(error) => Err(error),
        None => Ok(RowReader::of_lines(path, file.text, parse)),
    }
}

/// The row of a line.
fn parse(path: &Path, line: usize, bytes: &[u8]) -> Result<Row> {
    let text = utf8(path, line, bytes)?;
    let columns = json::object(text.trim_end()).map_err(|message| Error::Data {
        path: path.to_path_buf(),
        line,
        message,
    })?;
    Ok(Row {
        columns,
        path: path.to_path_buf(),
        line,
    })
}

/// The error for a text that begins like this, if it is not JSON.
fn not_json(path: &Path, head: &[u8]) -> Option<Error> {
    let text = String::from_utf8_lossy(head);
    let first = (text.trim_start_matches('\u{feff}').lines())
        .map(str::trim)
        .find(|line| !line.is_empty())?;
    if first.starts_with('{') && spans_lines(text.trim_start_matches('\u{feff}')) {
        let message =
            format!("{JSON_EXPECTED}, found one over several lines (`jq -c` writes each on one)");
        return Some(Error::format(path, message));
    }
    if first.starts_with(['{', '[']) {
        return None;
    }
    let what = if first.starts_with('<') {
        "a web page or XML"
    } else if serde_json::from_str::<Value>(first).is_ok() {
        return None; // Some other JSON value: the row's own error says which.
    } else if [',', '\t', ';'].iter().any(|&comma| first.contains(comma)) {
        "what looks like CSV: its first line is"
    } else {
        "text that is not JSON: its first line is"
    };
    let shown: String = first.chars().take(60).collect();
    let advice = match what.contains("CSV") {
        true => "; read it with `source: Csv(..)`",
        false => "",
    };
    let shown = shown.escape_debug();
    let message = format!("{JSON_EXPECTED}, found {what} `{shown}`{advice}");
    Some(Error::format(path, message))
}

/// Whether the first JSON object of a text spans several lines.
fn spans_lines(text: &str) -> bool {
    let text = text.trim_start();
    let mut values = serde_json::Deserializer::from_str(text).into_iter::<IgnoredAny>();
    match values.next() {
        Some(Ok(_)) => text[..values.byte_offset()].contains('\n'),
        // It may end after the bytes in `head`.
        _ => text.lines().next().is_some_and(|line| line.trim() == "{"),
    }
}
