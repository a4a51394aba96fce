//! Encodes the rows of `--data` and checks them against the model before its weights are loaded.

use std::path::Path;

use rayon::prelude::*;
use serde_json::Value;

use super::model::UnloadedModel;
use crate::data::{
    self, DataConfig, DataContext, DataSource, Prompt, Row, RowFormat, Tokenizer,
    encode_completions, encode_prompts, encode_text, read_rows,
};
use crate::error::{Error, Result};

/// Most tokens of a forward pass, unless one row has more.
pub(super) const BATCH_TOKENS: usize = 4096;

/// A row as token ids.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct IdsRow {
    /// All tokens.
    pub(super) ids: Vec<u32>,
    /// Whether each token is measured; never the first one, which nothing predicts.
    pub(super) measured: Vec<bool>,
}

/// How rows with text are encoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TextRows {
    /// The text without EOS.
    Plain,
    /// With EOS, as in training.
    WithEos,
}

/// All rows of a file, folder or pattern, of any format.
///
/// # Errors
/// As [`read_rows`].
pub(super) fn read(path: &Path) -> Result<Vec<Row>> {
    let config = DataConfig::of(DataSource::File(path.to_path_buf()));
    read_rows(&config, &DataContext::default())
}

/// The tokenizer, if a row needs one.
///
/// # Errors
/// If one is needed and cannot be loaded.
pub(super) fn tokenizer_for(rows: &[Row], model: &UnloadedModel) -> Result<Option<Tokenizer>> {
    if rows
        .iter()
        .any(|row| !row.columns.contains_key("input_ids"))
    {
        return model.tokenizer().map(Some);
    }
    // Rows without text do not need the tokenizer.
    Ok(model.tokenizer().ok())
}

/// Token ids of rows with `input_ids`, `text`, `prompt` and `completion`, or `messages`.
///
/// # Errors
/// `Error::Data` at the first row that cannot be used: other columns, no tokens, unknown ids, more tokens than the context, an empty
/// completion.
pub(super) fn encode(
    rows: &[Row],
    tokenizer: Option<&Tokenizer>,
    model: &UnloadedModel,
    text: TextRows,
) -> Result<Vec<IdsRow>> {
    let format = RowFormat {
        append_eos: text == TextRows::WithEos,
        ..RowFormat::default()
    };
    rows.par_iter()
        .map(|row| {
            let encoded = match row.columns.get("input_ids") {
                Some(value) => {
                    let ids = ids_of(row, value)?;
                    let measured = (0..ids.len()).map(|i| i > 0).collect();
                    IdsRow { ids, measured }
                }
                None => {
                    check_text(row, model)?;
                    encode_text_row(row, needed(row, tokenizer)?, &format)?
                }
            };
            check_ids(row, &encoded.ids, model, 0)?;
            Ok(encoded)
        })
        .collect()
}

/// Prompts given as text, messages or `input_ids`; they must leave room for `max_new_tokens`.
///
/// # Errors
/// As [`encode`].
pub(super) fn prompts(
    rows: &[Row],
    tokenizer: Option<&Tokenizer>,
    model: &UnloadedModel,
    max_new_tokens: usize,
) -> Result<Vec<Prompt>> {
    rows.par_iter()
        .map(|row| {
            let prompt = match row.columns.get("input_ids") {
                Some(value) => {
                    let ids = ids_of(row, value)?;
                    let text = match tokenizer {
                        Some(tokenizer) => tokenizer.decode(&ids, false)?,
                        None => String::new(),
                    };
                    Prompt {
                        ids,
                        text,
                        conversation: None,
                        row: row.columns.clone(),
                    }
                }
                None => {
                    check_text(row, model)?;
                    let rows = std::slice::from_ref(row);
                    let mut encoded = encode_prompts(
                        rows,
                        needed(row, tokenizer)?,
                        &RowFormat::default(),
                        usize::MAX,
                    )?;
                    encoded
                        .items
                        .pop()
                        .ok_or_else(|| row.error("the prompt has no tokens"))?
                }
            };
            check_ids(row, &prompt.ids, model, max_new_tokens)?;
            Ok(prompt)
        })
        .collect()
}

fn needed<'a>(row: &Row, tokenizer: Option<&'a Tokenizer>) -> Result<&'a Tokenizer> {
    tokenizer.ok_or_else(|| row.error("the row holds text, and the model has no tokenizer"))
}

fn encode_text_row(row: &Row, tokenizer: &Tokenizer, format: &RowFormat) -> Result<IdsRow> {
    if row.columns.get("completion").and_then(Value::as_str) == Some("") {
        return Err(row.error("the completion is empty"));
    }
    let rows = std::slice::from_ref(row);
    let is_text = row.columns.contains_key("text") && !row.columns.contains_key("completion");
    let encoded = if is_text {
        encode_text(rows, tokenizer, format, usize::MAX)
    } else {
        encode_completions(rows, tokenizer, format, usize::MAX, true)
    };
    match encoded {
        Ok(encoded) => match encoded.items.into_iter().next() {
            Some(example) => Ok(IdsRow {
                ids: example.ids,
                measured: example.trained,
            }),
            None => Err(row.error("the row has no tokens")),
        },
        // Problems of the row itself are `Error::Data`; other errors mean that no token is measured.
        Err(Error::Format { .. }) => {
            Err(row.error("no token of the text has another one before it"))
        }
        Err(error) => Err(error),
    }
}

fn ids_of(row: &Row, value: &Value) -> Result<Vec<u32>> {
    let list = value.as_array().ok_or_else(|| {
        row.error(format!(
            "input_ids: expected a list of token ids, found {value}"
        ))
    })?;
    list.iter()
        .map(|id| {
            id.as_u64()
                .and_then(|id| u32::try_from(id).ok())
                .ok_or_else(|| row.error(format!("input_ids: expected token ids, found {id}")))
        })
        .collect()
}

/// Bytes of the longest tokens of usual vocabularies: runs of spaces.
const TOKEN_BYTES: usize = 128;

/// Bytes of text that any row may have.
const FREE_BYTES: usize = 1 << 20;

/// Refuses a text that the model's context cannot hold before it is encoded, which takes hundreds of bytes for each of the text's.
fn check_text(row: &Row, model: &UnloadedModel) -> Result<()> {
    let tokens = model.max_row_tokens;
    let most = tokens.saturating_mul(TOKEN_BYTES).max(FREE_BYTES);
    let columns = ["text", "prompt", "completion", "messages"].map(|name| row.columns.get(name));
    let bytes = data::text_bytes(columns.into_iter().flatten());
    match bytes > most {
        true => Err(row.error(format!(
            "{} MiB of text; the model takes at most {tokens} tokens",
            bytes >> 20
        ))),
        false => Ok(()),
    }
}

fn check_ids(row: &Row, ids: &[u32], model: &UnloadedModel, room: usize) -> Result<()> {
    let vocab = model.config.vocab_size();
    if ids.is_empty() {
        return Err(row.error("input_ids is empty; expected at least one token"));
    }
    data::check_ids(ids, vocab).map_err(|message| row.error(message))?;
    let (len, most) = (ids.len(), model.max_row_tokens);
    if len.saturating_add(room) > most {
        let and_room = if room > 0 {
            format!(" and {room} new ones")
        } else {
            String::new()
        };
        return Err(row.error(format!(
            "{len} tokens{and_room}; the model takes at most {most}"
        )));
    }
    Ok(())
}
