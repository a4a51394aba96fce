//! `/v1/completions`.

use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::State;
use axum::response::Response;
use serde_json::{Value, json};

use super::answer::Kind;
use super::error::ApiError;
use super::fields::{Fields, expected};
use super::request::{PromptIds, Request, encode_text};
use super::settings::Settings;
use super::{elsewhere, respond};
use crate::serve::app::App;
use crate::serve::catalog::Served;

/// Most new tokens without `max_tokens`, as in OpenAI's API.
const MAX_TOKENS: usize = 16;
/// Most of the most probable tokens.
pub(super) const MAX_TOP: usize = 20;

/// Continues texts or tokens.
///
/// # Errors
/// Of the request's fields; as [`respond`].
pub(crate) async fn completions(
    State(app): State<Arc<App>>,
    body: Bytes,
) -> Result<Response, ApiError> {
    let theirs = app.clone();
    let request = elsewhere(move || read(&theirs, &body)).await?;
    respond(app, request, Kind::Text).await
}

fn read(app: &App, body: &[u8]) -> Result<Request, ApiError> {
    let mut fields = Fields::parse(body)?;
    let (served, place) = app.policy(fields.text("model")?.as_deref())?;
    let prompt = fields.take("prompt");
    let echo = fields.flag("echo")?;
    let max_tokens = fields
        .count("max_tokens", 0, usize::MAX)?
        .unwrap_or(MAX_TOKENS);
    let num_top = fields.count("logprobs", 0, MAX_TOP)?;
    let settings = Settings::take(&mut fields, served.vocab_size)?;
    fields.unsupported("best_of", &[json!(1)])?;
    fields.unsupported("suffix", &[json!("")])?;
    fields.finish()?;
    if max_tokens == 0 && !echo {
        return Err(ApiError::invalid(
            "max_tokens",
            "`max_tokens`: 0 without `echo` asks for nothing",
        ));
    }
    let prompts = prompts(prompt, &served, echo)?;
    let request = Request {
        served,
        place,
        prompts,
        settings,
        max_tokens,
        num_top,
        echo,
        number: app.number(),
    };
    request.check("prompt")?;
    Ok(request)
}

/// The prompts: a text, texts, token ids, or lists of token ids. `echo`: whether the texts of ids are needed.
fn prompts(value: Option<Value>, served: &Served, echo: bool) -> Result<Vec<PromptIds>, ApiError> {
    let what = "a text, texts, a list of token ids, or lists of token ids";
    let wrong = |found: &Value| expected("prompt", what, found);
    let of_ids = |list: &[Value]| -> Result<PromptIds, ApiError> {
        let id = |value: &Value| {
            let id = value.as_u64().and_then(|id| u32::try_from(id).ok());
            id.ok_or_else(|| wrong(value))
        };
        let ids = list.iter().map(id).collect::<Result<Vec<u32>, _>>()?;
        let text = match echo {
            // As responses: without special tokens.
            true => served.tokenizer.decode(&ids, true)?,
            false => String::new(),
        };
        Ok(PromptIds {
            ids: ids.into(),
            text,
        })
    };
    match value {
        None => Err(ApiError::invalid(
            "prompt",
            format!("`prompt`: expected {what}"),
        )),
        Some(Value::String(text)) => Ok(vec![encode_text(
            &served.tokenizer,
            text,
            served.max_length,
        )?]),
        Some(Value::Array(list)) => match list.first() {
            Some(Value::Number(_)) => Ok(vec![of_ids(&list)?]),
            Some(Value::String(_) | Value::Array(_)) => list
                .into_iter()
                .map(|entry| match entry {
                    Value::String(text) => encode_text(&served.tokenizer, text, served.max_length),
                    Value::Array(ids) => of_ids(&ids),
                    other => Err(wrong(&other)),
                })
                .collect(),
            _ => Err(wrong(&Value::Array(list))),
        },
        Some(other) => Err(wrong(&other)),
    }
}
