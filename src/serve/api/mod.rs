//! OpenAI's API: completions of text and of chats, the list of models, and scores of reward models.

mod answer;
mod chat;
mod completions;
mod error;
mod fields;
mod request;
mod score;
mod settings;
mod stream;

use std::sync::Arc;

use axum::Json;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use tokio::time::{Instant, timeout_at};

pub(crate) use self::answer::Kind;
use self::answer::Writer;
pub(crate) use self::chat::chat;
pub(crate) use self::completions::completions;
pub(crate) use self::error::ApiError;
pub(crate) use self::fields::Fields;
use self::request::Request;
pub(crate) use self::score::score;
use super::app::App;

/// The model of an answer, for the metrics.
#[derive(Debug, Clone)]
pub(crate) struct ModelName(pub(crate) String);

/// The error of a request that took too long.
fn timed_out() -> ApiError {
    ApiError::with_status(
        StatusCode::GATEWAY_TIMEOUT,
        "timeout",
        "the request took longer than the server allows (--request-timeout)",
    )
}

/// A refusal of the server before the routes: another site, too large a body, too slow a client.
pub(crate) fn refusal(status: StatusCode, message: String) -> Response {
    let code = match status {
        StatusCode::PAYLOAD_TOO_LARGE => "body_too_large",
        StatusCode::FORBIDDEN => "other_site",
        StatusCode::REQUEST_TIMEOUT => "slow_client",
        _ => "refused",
    };
    ApiError::with_status(status, code, message).into_response()
}

/// Runs what computes or waits for a disk on another thread than the server's.
///
/// # Errors
/// Those of `work`; 500 if it panics.
pub(crate) async fn elsewhere<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ApiError> + Send + 'static,
) -> Result<T, ApiError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(outcome) => outcome,
        Err(_) => Err(ApiError::failed(
            "a defect of this program; its message is on the server's stderr",
        )),
    }
}

/// Has the engine answer a request: at once or piece by piece, as it asks.
///
/// # Errors
/// As [`Request::submit`]; 504 if it takes too long, 500 if the engine fails.
async fn respond(app: Arc<App>, request: Request, kind: Kind) -> Result<Response, ApiError> {
    let deadline = Instant::now() + app.limits.time;
    let mut answers = request.submit(&app)?;
    let name = ModelName(request.served.name.clone());
    let (streams, echo, generates) = (
        request.settings.stream,
        request.echo,
        request.max_tokens > 0,
    );
    let mut writer = Writer::new(request, kind);
    if echo {
        let mut measured = Vec::with_capacity(answers.prompts.len());
        for answer in std::mem::take(&mut answers.prompts) {
            match timeout_at(deadline, answer).await {
                Ok(Ok(logprobs)) => measured.push(logprobs),
                Ok(Err(_)) => return Err(ApiError::failed("the engine has ended")),
                Err(_) => return Err(timed_out()),
            }
        }
        if measured
            .iter()
            .flatten()
            .any(|token| !token.logprob.is_finite())
        {
            return Err(ApiError::failed(
                "the model gives log-probabilities that are not finite",
            ));
        }
        writer.echo(measured)?;
    }
    if !generates {
        writer.end();
    }
    let mut response = match streams {
        true => stream::respond(writer, answers.pieces, deadline, !generates),
        false => {
            let mut open = generates;
            while open {
                match timeout_at(deadline, answers.pieces.recv()).await {
                    Ok(Some(mut piece)) => open = !writer.take(&mut piece)?,
                    Ok(None) => return Err(ApiError::failed("the engine has ended")),
                    Err(_) => return Err(timed_out()),
                }
            }
            Json(writer.whole()).into_response()
        }
    };
    response.extensions_mut().insert(name);
    Ok(response)
}
