//! Storage of a reward model's score offset: in `config.json` for whole models, in a separate file for adapters.

use std::path::Path;

use serde_json::Value;

use crate::error::{Error, Result};

/// Key of the number that is subtracted from every score.
pub const SCORE_OFFSET: &str = "score_offset";

/// File beside an adapter for values that PEFT's files cannot hold.
pub const SIDECAR: &str = "tempering.json";

/// The offset in a JSON file; 0 if there is no file or no such key.
///
/// # Errors
/// `Error::Io`; `Error::Format` if the file is not JSON or the offset is not a number.
pub fn read_score_offset(file: &Path) -> Result<f64> {
    if !file.is_file() {
        return Ok(0.0);
    }
    let text = std::fs::read_to_string(file).map_err(Error::io("read", file))?;
    let json: Value = serde_json::from_str(&text)
        .map_err(|e| Error::format(file, format!("not valid JSON: {e}")))?;
    match json.get(SCORE_OFFSET) {
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
