//! What PEFT's files have no place for: the centre of a reward model, which is in `config.json` beside whole weights, and the
//! precision of the base that an adapter was trained on. Beside an adapter both are in a file of its own.

use std::path::Path;

use serde::Deserialize;
use serde_json::{Value, json};

use super::sidecar::read_sidecar;
use crate::atomic::write_atomic;
use crate::error::{Error, Result};
use crate::ops::Precision;
use crate::outside;

/// Key of the number that is subtracted from every score.
pub const SCORE_OFFSET: &str = "score_offset";

/// Key of the precision that an adapter's base was kept in.
const BASE_PRECISION: &str = "base_precision";

/// File beside an adapter that has what PEFT's files have no place for.
pub const SIDECAR: &str = "tempering.json";

/// Adds to the file beside an adapter, if there is something to say.
///
/// # Errors
/// `Error::Io`; `Error::Format` for a file that is there and no JSON object.
pub fn write_sidecar(folder: &Path, base: Precision, score_offset: Option<f64>) -> Result<()> {
    let mut keys = read_sidecar(folder)?;
    if let Some(offset) = score_offset {
        keys.insert(SCORE_OFFSET.into(), json!(offset));
    }
    // The others hold what the file holds.
    if !matches!(base, Precision::F32 | Precision::Stored) {
        keys.insert(BASE_PRECISION.into(), json!(base));
    }
    match keys.is_empty() {
        true => Ok(()),
        false => write_atomic(
            folder.join(SIDECAR),
            Value::from(keys).to_string().as_bytes(),
        ),
    }
}

/// The precision of the base that an adapter was trained on; f32 if its folder does not say.
///
/// # Errors
/// `Error::Io`; `Error::Format` for what is no JSON, and for an unknown precision.
pub fn read_base_precision(folder: &Path) -> Result<Precision> {
    let file = folder.join(SIDECAR);
    match read(&file)?.get(BASE_PRECISION) {
        None | Some(Value::Null) => Ok(Precision::F32),
        Some(value) => Precision::deserialize(value).map_err(|_| {
            Error::format(
                &file,
                format!("\"{BASE_PRECISION}\": {value} is no precision"),
            )
        }),
    }
}

/// A JSON file; null if there is none.
fn read(file: &Path) -> Result<Value> {
    if !file.is_file() {
        return Ok(Value::Null);
    }
    let text = outside::read_text(file, outside::SETTINGS)?;
    serde_json::from_str(&text).map_err(|e| Error::format(file, format!("not valid JSON: {e}")))
}

/// The offset in a JSON file; 0 if there is no file or no such key.
///
/// # Errors
/// `Error::Io`; `Error::Format` if the file is not JSON or the offset is not a number.
pub fn read_score_offset(file: &Path) -> Result<f64> {
    match read(file)?.get(SCORE_OFFSET) {
        None | Some(Value::Null) => Ok(0.0),
        Some(value) => value.as_f64().ok_or_else(|| {
            Error::format(
                file,
                format!("\"{SCORE_OFFSET}\": expected a number, found {value}"),
            )
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_beside_an_adapter_says_what_its_base_was() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join(SIDECAR);
        for exact in [Precision::F32, Precision::Stored] {
            write_sidecar(folder.path(), exact, None).unwrap();
            assert!(!file.exists());
        }
        write_sidecar(folder.path(), Precision::Nf4, Some(1.5)).unwrap();
        let text = std::fs::read_to_string(&file).unwrap();
        assert_eq!(text, r#"{"score_offset":1.5,"base_precision":"nf4"}"#);
        assert_eq!(read_base_precision(folder.path()).unwrap(), Precision::Nf4);
        assert_eq!(read_score_offset(&file).unwrap(), 1.5);
        std::fs::write(&file, r#"{"base_precision": "int3"}"#).unwrap();
        let message = read_base_precision(folder.path()).unwrap_err().to_string();
        assert!(message.contains("\"int3\" is no precision"), "{message}");
    }

    #[test]
    fn what_is_no_number_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join(SIDECAR);
        assert_eq!(read_score_offset(&file).unwrap(), 0.0);
        for (text, expected) in [
            ("{}", Ok(0.0)),
            (r#"{"score_offset": null}"#, Ok(0.0)),
            (r#"{"score_offset": -1.5}"#, Ok(-1.5)),
            (
                r#"{"score_offset": "1.5"}"#,
                Err("expected a number, found \"1.5\""),
            ),
            ("{", Err("not valid JSON")),
        ] {
            std::fs::write(&file, text).unwrap();
            match (read_score_offset(&file), expected) {
                (Ok(got), Ok(expected)) => assert_eq!(got, expected, "{text}"),
                (Err(error), Err(expected)) => {
                    assert!(error.to_string().contains(expected), "{error}");
                }
                (got, _) => panic!("{text}: {got:?}"),
            }
        }
    }
}
