//! The padding token of an exported reward model.
//!
//! transformers reads a classifier's score at the last token that is not `pad_token_id`, and refuses batches without one. If padding
//! and EOS are the same token, the score is silently read one token too early.

use std::path::Path;

use serde_json::{Map, Value, json};

use crate::atomic::write_atomic;
use crate::data::Tokenizer;
use crate::error::{Error, Result};
use crate::model::ModelConfig;
use crate::outside;

/// Text of a new padding token, added if no existing token can be used.
const NEW_TOKEN: &str = "<|pad|>";

/// A padding token that no response ends with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Padding {
    pub(super) id: u32,
    pub(super) text: String,
    /// Whether it must be added to the vocabulary.
    pub(super) is_new: bool,
}

impl Padding {
    /// Chooses the padding token of the model's files if it can be used, otherwise an unused special token of the vocabulary,
    /// otherwise a new token.
    pub(super) fn choose(tokenizer: &Tokenizer, config: &ModelConfig) -> Self {
        let is_end = |id: u32| tokenizer.stop_ids().contains(&id) || config.eos_ids().contains(&id);
        let configured = config.raw().get("pad_token_id").and_then(Value::as_u64);
        let own = tokenizer.pad_id().into_iter();
        let own = own.chain(configured.and_then(|id| u32::try_from(id).ok()));
        let special: Vec<u32> = (0..config.vocab_size() as u32)
            .filter(|&id| tokenizer.is_special(id) && Some(id) != tokenizer.bos_id())
            .collect();
        let named = |words: &'static [&'static str]| {
            special.iter().copied().filter(move |&id| {
                let text = tokenizer.token_str(id).unwrap_or_default().to_lowercase();
                words.iter().any(|word| text.contains(word))
            })
        };
        let meaningless = ["reserved", "unused", "extra_id", "unk"].as_slice();
        let found = own
            .chain(named(&["pad"]))
            .chain(named(meaningless))
            .filter(|&id| !is_end(id))
            .find_map(|id| Some((id, tokenizer.token_str(id)?)));
        match found {
            Some((id, text)) => Self {
                id,
                text,
                is_new: false,
            },
            None => Self {
                id: tokenizer.id_limit(),
                text: NEW_TOKEN.into(),
                is_new: true,
            },
        }
    }

    /// Sets it as the padding token in the tokenizer files in `folder`.
    ///
    /// # Errors
    /// `Error::Io`; `Error::Format` for files that are not JSON objects.
    pub(super) fn write_tokenizer(&self, folder: &Path) -> Result<()> {
        let token = json!({
            "id": self.id, "content": self.text, "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true
        });
        let name = |object: &mut Map<String, Value>| {
            object.insert("pad_token".into(), json!(self.text));
        };
        edit(&folder.join("tokenizer_config.json"), |config| {
            name(config);
            if let (true, Some(Value::Object(added))) =
                (self.is_new, config.get_mut("added_tokens_decoder"))
            {
                let mut token = token.clone();
                token.as_object_mut().map(|token| token.shift_remove("id"));
                added.insert(self.id.to_string(), token);
            }
        })?;
        edit(&folder.join("special_tokens_map.json"), name)?;
        if self.is_new {
            edit(&folder.join("tokenizer.json"), |tokenizer| {
                if let Some(Value::Array(added)) = tokenizer.get_mut("added_tokens") {
                    added.push(token.clone());
                }
            })?;
            edit(&folder.join("added_tokens.json"), |added| {
                added.insert(self.text.clone(), json!(self.id));
            })?;
        }
        Ok(())
    }
}

/// Changes a JSON object in a file, if there is one.
fn edit(file: &Path, change: impl FnOnce(&mut Map<String, Value>)) -> Result<()> {
    if !file.is_file() {
        return Ok(());
    }
    let text = outside::read_text(file, outside::TABLES)?;
    let mut object: Map<String, Value> =
        serde_json::from_str(&text).map_err(|e| Error::format(file, e.to_string()))?;
    change(&mut object);
    write_atomic(file, format!("{:#}\n", Value::Object(object)).as_bytes())
}
