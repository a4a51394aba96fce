//! The file beside an adapter for values that PEFT's files cannot hold.

use std::path::Path;

use serde_json::{Map, Value};

use super::offset::SIDECAR;
use crate::atomic::write_atomic;
use crate::error::{Error, Result};
use crate::outside;

/// The values of an adapter's folder, none if there is no file.
///
/// # Errors
/// `Error::Io`; `Error::Format` if the file is not a JSON object.
pub(super) fn read_sidecar(folder: &Path) -> Result<Map<String, Value>> {
    let file = folder.join(SIDECAR);
    if !file.is_file() {
        return Ok(Map::new());
    }
    let text = outside::read_text(&file, outside::SETTINGS)?;
    serde_json::from_str(&text)
        .map_err(|e| Error::format(&file, format!("expected a JSON object: {e}")))
}

/// Adds a value to an adapter's folder, or replaces it.
///
/// # Errors
/// As [`read_sidecar`].
pub(super) fn note_in_sidecar(folder: &Path, key: &str, value: Value) -> Result<()> {
    let mut values = read_sidecar(folder)?;
    values.insert(key.into(), value);
    write_atomic(
        folder.join(SIDECAR),
        Value::Object(values).to_string().as_bytes(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_added_and_replaced() {
        let folder = tempfile::tempdir().unwrap();
        assert!(read_sidecar(folder.path()).unwrap().is_empty());
        note_in_sidecar(folder.path(), "a", 1.into()).unwrap();
        note_in_sidecar(folder.path(), "b", "x".into()).unwrap();
        note_in_sidecar(folder.path(), "a", 2.into()).unwrap();
        let text = std::fs::read_to_string(folder.path().join(SIDECAR)).unwrap();
        assert_eq!(text, r#"{"a":2,"b":"x"}"#);
        std::fs::write(folder.path().join(SIDECAR), "[]").unwrap();
        assert!(read_sidecar(folder.path()).is_err());
    }
}
