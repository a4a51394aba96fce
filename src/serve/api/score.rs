//! `/v1/score`: scores of a reward model.

use std::path::PathBuf;
use std::sync::Arc;

use axum::Json;
use axum::body::Bytes;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use serde_json::{Map, Value, json};
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout_at};

use super::error::ApiError;
use super::fields::{Fields, expected};
use super::request::check_bytes;
use super::{ModelName, elsewhere, timed_out};
use crate::data::{Row, RowFormat, check_ids, encode_completions, encode_text, text_bytes};
use crate::error::Error;
use crate::serve::app::App;
use crate::serve::catalog::{Place, Served};
use crate::serve::desk::Work;

/// Rows of a request, read and tokenised.
struct Rows {
    served: Arc<Served>,
    reward: usize,
    rows: Vec<Vec<u32>>,
}

/// Scores rows as `temper score` does: at the last token; EOS is appended to text.
///
/// # Errors
/// Of the request's fields; as [`respond`](super::respond).
pub(crate) async fn score(State(app): State<Arc<App>>, body: Bytes) -> Result<Response, ApiError> {
    let deadline = Instant::now() + app.limits.time;
    let theirs = app.clone();
    let Rows {
        served,
        reward,
        rows,
    } = elsewhere(move || read(&theirs, &body)).await?;
    let tokens: usize = rows.iter().map(Vec::len).sum();
    let (mut work, mut answers) = (Vec::new(), Vec::new());
    let tickets = app.desk.reserve(rows.len())?;
    for (ids, ticket) in rows.into_iter().zip(tickets) {
        let (reply, answer) = oneshot::channel();
        answers.push(answer);
        work.push(Work::Score {
            reward,
            ids,
            reply,
            ticket,
        });
    }
    app.desk.submit(work)?;
    let mut data = Vec::with_capacity(answers.len());
    for (index, answer) in answers.into_iter().enumerate() {
        let score = match timeout_at(deadline, answer).await {
            Ok(Ok(score)) => score,
            Ok(Err(_)) => return Err(ApiError::failed("the engine has ended")),
            Err(_) => return Err(timed_out()),
        };
        if !score.is_finite() {
            return Err(ApiError::failed(format!(
                "row {index}: the model gives a score of {score}"
            )));
        }
        data.push(json!({"object": "score", "index": index, "score": score}));
    }
    let mut response = Json(json!({
        "object": "list",
        "model": served.name,
        "data": data,
        "usage": {"prompt_tokens": tokens, "completion_tokens": 0, "total_tokens": tokens}
    }))
    .into_response();
    let name = ModelName(served.name.clone());
    response.extensions_mut().insert(name);
    Ok(response)
}

fn read(app: &App, body: &[u8]) -> Result<Rows, ApiError> {
    let mut fields = Fields::parse(body)?;
    let served = app.model(fields.text("model")?.as_deref())?;
    let Place::Reward(reward) = served.place else {
        return Err(ApiError::invalid(
            "model",
            format!(
                "model `{}` is a policy and has no score head; its log-probabilities are at /v1/completions",
                served.name
            ),
        ));
    };
    let what =
        "a row or a list of rows, each with `prompt` and `completion`, `text`, or `input_ids`";
    let rows = match fields.take("input") {
        Some(Value::Array(rows)) if !rows.is_empty() => rows,
        Some(row @ Value::Object(_)) => vec![row],
        other => return Err(expected("input", what, &other.unwrap_or_default())),
    };
    fields.finish()?;
    if rows.len() > app.desk.limit() {
        return Err(ApiError::invalid(
            "input",
            format!(
                "{} rows at once; the server's queue takes {} (--max-queue)",
                rows.len(),
                app.desk.limit()
            ),
        ));
    }
    let encode = |(at, row): (usize, Value)| match row {
        Value::Object(columns) => encode(&served, at, columns),
        other => Err(expected("input", what, &other)),
    };
    let rows = rows.into_iter().enumerate().map(encode);
    let rows = rows.collect::<Result<Vec<_>, _>>()?;
    Ok(Rows {
        served,
        reward,
        rows,
    })
}

/// Tokens of a row; text ends with EOS.
fn encode(served: &Served, at: usize, columns: Map<String, Value>) -> Result<Vec<u32>, ApiError> {
    let wrong = |message: String| {
        ApiError::invalid("input", format!("`input[{at}]`: {message}"))
            .with_param(format!("input[{at}]"))
    };
    let ids = match columns.get("input_ids") {
        Some(Value::Array(list)) => {
            let id = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
            let ids = list.iter().map(id).collect::<Option<Vec<u32>>>();
            ids.filter(|ids| !ids.is_empty())
                .ok_or_else(|| wrong("`input_ids`: expected token ids".into()))?
        }
        Some(_) => return Err(wrong("`input_ids`: expected token ids".into())),
        None => {
            let bytes = text_bytes(columns.values());
            check_bytes(bytes, served.max_length, "input")?;
            let is_text = columns.contains_key("text") && !columns.contains_key("completion");
            let row = [Row {
                columns,
                path: PathBuf::from("input"),
                line: at,
            }];
            let format = RowFormat {
                append_eos: true,
                ..RowFormat::default()
            };
            let encoded = match is_text {
                true => encode_text(&row, &served.tokenizer, &format, usize::MAX),
                false => encode_completions(&row, &served.tokenizer, &format, usize::MAX, true),
            };
            let encoded = encoded.map_err(|error| match error {
                Error::Data { message, .. } | Error::Format { message, .. } => wrong(message),
                other => wrong(other.to_string()),
            })?;
            let row = encoded.items.into_iter().next();
            row.ok_or_else(|| wrong("no tokens".into()))?.ids
        }
    };
    check_ids(&ids, served.vocab_size).map_err(wrong)?;
    match ids.len() > served.max_length {
        true => Err(wrong(format!(
            "{} tokens; the model takes at most {}",
            ids.len(),
            served.max_length
        ))
        .with_code("context_length_exceeded")),
        false => Ok(ids),
    }
}
