//! EOS and stop tokens: finding them, and changing them consistently for training, generation and written files.

use serde_json::{Map, Value, json};

use super::Tokenizer;
use super::files::{Files, GENERATION_CONFIG, MODEL_CONFIG, SPECIAL_TOKENS_MAP, TOKENIZER_CONFIG};
use crate::error::{Error, Result};

const EOS_TOKEN: &str = "eos_token";
const EOS_TOKEN_ID: &str = "eos_token_id";

/// The EOS token if the tokenizer's own files name none: from the model's configuration or its generation configuration.
///
/// # Errors
/// If there is none, or it is not in the vocabulary.
pub(super) fn eos_of_the_model(
    inner: &tokenizers::Tokenizer,
    files: &Files,
) -> Result<(u32, String)> {
    let named = [MODEL_CONFIG, GENERATION_CONFIG].map(|file| eos_ids(files, file));
    let [model, generation] = named;
    let id = model?.into_iter().chain(generation?).next().ok_or_else(|| {
        Error::format(
            files.origin(),
            "no EOS token: expected `eos_token` in tokenizer_config.json or `eos_token_id` in config.json. \
             Without one a model cannot learn where to stop",
        )
    })?;
    let text = inner.id_to_token(id).ok_or_else(|| {
        Error::format(
            files.origin(),
            format!("{EOS_TOKEN_ID} is {id}, which is not in the vocabulary"),
        )
    })?;
    Ok((id, text))
}

/// All stop ids: the tokenizer's EOS, then those of `generation_config.json`, then those of `config.json`.
///
/// # Errors
/// If one of these is not a JSON object.
pub(super) fn stop_ids(eos_id: u32, files: &Files) -> Result<Vec<u32>> {
    let mut ids = vec![eos_id];
    for file in [GENERATION_CONFIG, MODEL_CONFIG] {
        for id in eos_ids(files, file)? {
            if !ids.contains(&id) {
                ids.push(id);
            }
        }
    }
    Ok(ids)
}

/// The EOS ids of a configuration (a number or a list), also of its text model.
fn eos_ids(files: &Files, file: &str) -> Result<Vec<u32>> {
    let config = files.object(file)?;
    let text = config.get("text_config").and_then(Value::as_object);
    let objects = [Some(&config), text].into_iter().flatten();
    Ok(objects.flat_map(ids).collect())
}

fn ids(config: &Map<String, Value>) -> Vec<u32> {
    let id = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
    match config.get(EOS_TOKEN_ID) {
        Some(Value::Array(ids)) => ids.iter().filter_map(id).collect(),
        Some(value) => id(value).into_iter().collect(),
        None => Vec::new(),
    }
}

impl Tokenizer {
    /// The same tokenizer with another EOS token: rows end with it, templates get it as `eos_token`, and [`Tokenizer::save`] writes it
    /// to the files. It becomes the first stop token; the previous ones remain.
    ///
    /// # Errors
    /// If the text is not a token of the vocabulary.
    ///
    /// # Source
    /// TRL 1.16, `SFTConfig.eos_token`: the tokenizer's EOS is replaced, and the new one is put before those of the
    /// generation configuration.
    pub fn with_eos_token(&self, text: &str) -> Result<Self> {
        if self.eos_text == text {
            return Ok(self.clone());
        }
        let Some(id) = self.inner.token_to_id(text) else {
            return Err(Error::Usage(format!(
                "eos_token: {text:?} is not a token of the vocabulary in {}",
                self.files.origin().display()
            )));
        };
        let mut files = (*self.files).clone();
        let mut config = files.object(TOKENIZER_CONFIG)?;
        config.insert(EOS_TOKEN.into(), text.into());
        files.set(TOKENIZER_CONFIG, config);
        let mut older = files.object(SPECIAL_TOKENS_MAP)?;
        if older.contains_key(EOS_TOKEN) {
            older.insert(EOS_TOKEN.into(), text.into());
            files.set(SPECIAL_TOKENS_MAP, older);
        }
        let others = self.stop_ids.iter().copied().filter(|&stop| stop != id);
        stop_at(&mut files, [id].into_iter().chain(others).collect())?;
        Self::of(files)
    }

    /// Adds the EOS id to a model's configuration, if it is missing.
    pub fn name_eos(&self, config: &mut Map<String, Value>) {
        if !ids(config).contains(&self.eos_id()) {
            config.insert(EOS_TOKEN_ID.into(), self.eos_id().into());
        }
    }

    /// The same tokenizer with the further stop token `id`, also in its `generation_config.json`.
    ///
    /// # Errors
    /// If that file is not a JSON object.
    pub fn stopping_at(&self, id: u32) -> Result<Self> {
        let mut changed = self.clone();
        if !changed.stop_ids.contains(&id) {
            changed.stop_ids.push(id);
            let mut files = (*self.files).clone();
            stop_at(&mut files, changed.stop_ids.clone())?;
            changed.files = files.into();
        }
        Ok(changed)
    }
}

/// Sets the stop ids in the generation configuration.
fn stop_at(files: &mut Files, ids: Vec<u32>) -> Result<()> {
    let mut config = files.object(GENERATION_CONFIG)?;
    // The values no longer derive from the model's configuration.
    config.shift_remove("_from_model_config");
    config.insert(EOS_TOKEN_ID.into(), json!(ids));
    files.set(GENERATION_CONFIG, config);
    Ok(())
}
