//! Small files of texts: principles, examples.

use std::path::Path;

use serde::de::DeserializeOwned;

use crate::error::{Error, Result};
use crate::outside;

/// The texts of a file, one a line; blank lines and those that begin with `#` are left out.
///
/// # Errors
/// `Error::Io`; `Error::Format` if there are none.
pub fn texts(path: &Path) -> Result<Vec<String>> {
    let text = outside::read_text(path, outside::TABLES)?;
    let texts: Vec<String> = (text.lines().map(str::trim))
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .map(str::to_owned)
        .collect();
    match texts.is_empty() {
        true => Err(Error::format(
            path,
            "has no principle; expected one a line (blank lines and lines that begin with # do not count)",
        )),
        false => Ok(texts),
    }
}

/// The objects of a file, one JSON object a line with the keys that `expected` names; blank lines are left out.
///
/// # Errors
/// `Error::Io`; `Error::Data` at the first line that is no such object; `Error::Format` if there are none.
pub fn jsonl<T: DeserializeOwned>(path: &Path, expected: &str) -> Result<Vec<T>> {
    let text = outside::read_text(path, outside::TABLES)?;
    let lines = text.lines().enumerate();
    let objects: Vec<T> = lines
        .filter(|(_, line)| !line.trim().is_empty())
        .map(|(index, line)| {
            serde_json::from_str(line).map_err(|error| Error::Data {
                path: path.to_path_buf(),
                line: index + 1,
                message: format!("expected one JSON object with {expected}: {error}"),
            })
        })
        .collect::<Result<_>>()?;
    match objects.is_empty() {
        true => Err(Error::format(
            path,
            format!("is empty; expected one JSON object a line with {expected}"),
        )),
        false => Ok(objects),
    }
}
