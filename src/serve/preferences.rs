//! Preferences from the chat page: rows of a JSONL file, each on the disk before it is acknowledged.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use serde_json::{Map, Value, json};

use crate::error::{Error, Result};
use crate::outside;
use crate::serve::api::{ApiError, Fields};

/// A file of preference rows that grows.
#[derive(Debug)]
pub(crate) struct PreferenceFile {
    path: PathBuf,
    file: Mutex<File>,
}

impl PreferenceFile {
    /// Opens a file, or makes it. A last line that a crash has cut is taken off: it was never acknowledged.
    ///
    /// # Errors
    /// `Error::Io`; `Error::Data` if the file ends in something that is not the beginning of a row.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let parent = path
            .parent()
            .filter(|parent| !parent.as_os_str().is_empty());
        if let Some(parent) = parent {
            std::fs::create_dir_all(parent).map_err(Error::io("create", parent))?;
        }
        // What is there already is read to its end.
        if path.exists() {
            outside::open(path)?;
        }
        let mut file = (OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false))
        .open(path)
        .map_err(Error::io("open", path))?;
        let failed = Error::io("read", path);
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).map_err(failed)?;
        let whole = bytes
            .iter()
            .rposition(|&b| b == b'\n')
            .map_or(0, |at| at + 1);
        let rest = &bytes[whole..];
        if !rest.is_empty() {
            if serde_json::from_slice::<Value>(rest).is_ok() {
                file.write_all(b"\n").map_err(Error::io("write", path))?;
            } else if rest.starts_with(b"{\"prompt\":") {
                eprintln!(
                    "warning: {}: the last line was cut by a crash and is taken off",
                    path.display()
                );
                file.set_len(whole as u64)
                    .map_err(Error::io("shorten", path))?;
            } else {
                return Err(Error::Data {
                    path: path.to_path_buf(),
                    line: bytes[..whole].iter().filter(|&&b| b == b'\n').count() + 1,
                    message: "expected rows of preferences, one JSON object a line".into(),
                });
            }
        }
        file.seek(SeekFrom::End(0))
            .map_err(Error::io("read", path))?;
        Ok(Self {
            path: path.to_path_buf(),
            file: Mutex::new(file),
        })
    }

    /// Adds a row; it is on the disk when this returns.
    ///
    /// # Errors
    /// `Error::Io`; then nothing is added.
    pub(crate) fn add(&self, row: &Value) -> Result<()> {
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        let failed = || Error::io("write", &self.path);
        let end = file.stream_position().map_err(failed())?;
        let written =
            (file.write_all(format!("{row}\n").as_bytes())).and_then(|()| file.sync_data());
        if written.is_err() {
            // What was written of the row must not run into the next one.
            file.set_len(end).map_err(failed())?;
            file.seek(SeekFrom::Start(end)).map_err(failed())?;
        }
        written.map_err(failed())
    }
}

/// A preference row of the page's request, in the form that `Dpo` and `RewardModel` read.
///
/// # Errors
/// 400 for anything but a text or a conversation and two different answers to it.
pub(crate) fn row(body: &[u8]) -> Result<Value, ApiError> {
    let mut fields = Fields::parse(body)?;
    let prompt = fields.take("prompt");
    let text = |fields: &mut Fields, name: &'static str| {
        let text = fields.text(name)?;
        text.ok_or_else(|| ApiError::invalid(name, format!("`{name}`: expected a text")))
    };
    let (chosen, rejected) = (text(&mut fields, "chosen")?, text(&mut fields, "rejected")?);
    let models = [
        ("chosen_model", fields.text("chosen_model")?),
        ("rejected_model", fields.text("rejected_model")?),
    ];
    fields.finish()?;
    let is_message = |message: &Value| {
        let text = |key: &str| message.get(key).is_some_and(Value::is_string);
        text("role") && text("content") && message.as_object().is_some_and(|m| m.len() == 2)
    };
    let is_prompt = |prompt: &Value| match prompt {
        Value::String(text) => !text.is_empty(),
        Value::Array(messages) => !messages.is_empty() && messages.iter().all(is_message),
        _ => false,
    };
    let Some(prompt) = prompt.filter(is_prompt) else {
        return Err(ApiError::invalid(
            "prompt",
            "`prompt`: expected a text, or messages, each with `role` and `content`",
        ));
    };
    if chosen == rejected {
        return Err(ApiError::invalid(
            "rejected",
            "both answers are the same; a preference needs two",
        ));
    }
    let answer = |text: String| match prompt.is_array() {
        true => json!([{"role": "assistant", "content": text}]),
        false => Value::String(text),
    };
    let (chosen, rejected) = (answer(chosen), answer(rejected));
    let mut row = Map::from_iter([
        ("prompt".to_owned(), prompt),
        ("chosen".to_owned(), chosen),
        ("rejected".to_owned(), rejected),
    ]);
    for (name, model) in models {
        if let Some(model) = model {
            row.insert(name.to_owned(), model.into());
        }
    }
    Ok(Value::Object(row))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_added_and_a_cut_line_is_taken_off() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("new/thumbs.jsonl");
        let file = PreferenceFile::open(&path).unwrap();
        file.add(&json!({"prompt": 1})).unwrap();
        drop(file);
        let text = || std::fs::read_to_string(&path).unwrap();
        assert_eq!(text(), "{\"prompt\":1}\n");
        for (rest, expected) in [
            ("{\"prompt\":2", "{\"prompt\":1}\n{\"prompt\":3}\n"),
            (
                "{\"prompt\":2}",
                "{\"prompt\":1}\n{\"prompt\":2}\n{\"prompt\":3}\n",
            ),
        ] {
            std::fs::write(&path, format!("{{\"prompt\":1}}\n{rest}")).unwrap();
            let file = PreferenceFile::open(&path).unwrap();
            file.add(&json!({"prompt": 3})).unwrap();
            assert_eq!(text(), expected);
        }
        std::fs::write(&path, "name,age\nmine").unwrap();
        let error = PreferenceFile::open(&path).unwrap_err().to_string();
        assert!(error.contains("thumbs.jsonl:2"), "{error}");
    }

    #[test]
    fn a_row_has_a_prompt_and_two_answers() {
        let body = |value: Value| row(value.to_string().as_bytes());
        let prompt = json!([{"role": "user", "content": "a"}]);
        let found = body(json!({
            "prompt": prompt, "chosen": "b", "rejected": "c", "chosen_model": "x", "rejected_model": "y"
        }));
        assert_eq!(
            found.unwrap(),
            json!({
                "prompt": prompt,
                "chosen": [{"role": "assistant", "content": "b"}],
                "rejected": [{"role": "assistant", "content": "c"}],
                "chosen_model": "x", "rejected_model": "y"
            })
        );
        let text = json!({"prompt": "a", "chosen": " b", "rejected": " c"});
        assert_eq!(body(text.clone()).unwrap(), text);
        for wrong in [
            json!({"prompt": "", "chosen": "b", "rejected": "c"}),
            json!({"prompt": prompt, "chosen": "b", "rejected": "b"}),
            json!({"prompt": prompt, "chosen": "b"}),
            json!({"prompt": [], "chosen": "b", "rejected": "c"}),
            json!({"prompt": [{"role": "user"}], "chosen": "b", "rejected": "c"}),
            json!({"prompt": prompt, "chosen": "b", "rejected": "c", "note": "d"}),
        ] {
            assert!(body(wrong.clone()).is_err(), "{wrong}");
        }
    }
}
