//! Which path is answered by what, and who may ask.

use std::sync::Arc;

use axum::Json;
use axum::Router;
use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, Path, Request, State};
use axum::http::header::CONTENT_TYPE;
use axum::http::{StatusCode, Uri};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use serde_json::{Value, json};

use super::api::{ApiError, ModelName, chat, completions, elsewhere, score};
use super::app::App;
use super::preferences;
use crate::web::{TokenHash, bearer};

/// The chat page: its HTML, style and script, all from this server.
const PAGE: [(&str, &str, &str); 3] = [
    (
        "/",
        "text/html; charset=utf-8",
        include_str!("page/index.html"),
    ),
    (
        "/page.css",
        "text/css; charset=utf-8",
        include_str!("page/page.css"),
    ),
    (
        "/page.js",
        "text/javascript; charset=utf-8",
        include_str!("page/page.js"),
    ),
];

/// All routes.
pub(crate) fn routes(app: &Arc<App>) -> Router {
    let guarded = Router::new()
        .route("/v1/models", get(models))
        .route("/v1/models/{*id}", get(model))
        .route("/v1/chat/completions", post(chat))
        .route("/v1/completions", post(completions))
        .route("/v1/score", post(score))
        .route("/preferences", get(takes_preferences).post(prefer))
        .route("/metrics", get(metrics))
        .layer(from_fn_with_state(app.clone(), gate));
    let mut open = Router::new().route("/health", get(health));
    for (path, kind, text) in PAGE {
        open = open.route(
            path,
            get(move || async move { ([(CONTENT_TYPE, kind)], text) }),
        );
    }
    guarded
        .merge(open)
        .fallback(no_such_path)
        .method_not_allowed_fallback(wrong_method)
        // The server before these routes bounds bodies.
        .layer(DefaultBodyLimit::disable())
        .with_state(app.clone())
}

/// Asks for the key, and counts the answer.
async fn gate(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    let endpoint = match request.uri().path() {
        "/v1/chat/completions" => "chat.completions",
        "/v1/completions" => "completions",
        "/v1/score" => "score",
        "/preferences" => "preferences",
        "/metrics" => "metrics",
        _ => "models",
    };
    // Hashes are compared: the time that it takes says nothing about the key.
    let shown = bearer(request.headers()).map(TokenHash::of);
    let response = match app.key.is_none() || shown == app.key {
        true => next.run(request).await,
        false => ApiError::with_status(
            StatusCode::UNAUTHORIZED,
            "invalid_api_key",
            "this server asks for its key: `Authorization: Bearer KEY`",
        )
        .into_response(),
    };
    let name = response.extensions().get::<ModelName>();
    let name = name.map_or("", |name| name.0.as_str());
    app.metrics
        .answered(endpoint, name, response.status().as_u16());
    response
}

async fn models(State(app): State<Arc<App>>) -> Json<Value> {
    let models: Vec<Value> = app
        .catalog
        .iter()
        .map(|model| app.describe(model))
        .collect();
    Json(json!({"object": "list", "data": models}))
}

async fn model(
    State(app): State<Arc<App>>,
    Path(id): Path<String>,
) -> Result<Json<Value>, ApiError> {
    let model = app.model(Some(&id))?;
    Ok(Json(app.describe(&model)))
}

/// 200 while requests are taken, 503 once the server is about to end.
async fn health(State(app): State<Arc<App>>) -> Response {
    match app.stop.requested() {
        false => Json(json!({"status": "ok"})).into_response(),
        true => {
            let body = Json(json!({"status": "ending"}));
            (StatusCode::SERVICE_UNAVAILABLE, body).into_response()
        }
    }
}

async fn metrics(State(app): State<Arc<App>>) -> Response {
    let text = app.metrics.text(app.desk.waiting());
    (
        [(CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")],
        text,
    )
        .into_response()
}

/// Tells the page whether thumbs lead anywhere.
async fn takes_preferences(State(app): State<Arc<App>>) -> Json<Value> {
    Json(json!({"takes": app.preferences.is_some()}))
}

async fn prefer(State(app): State<Arc<App>>, body: Bytes) -> Result<Json<Value>, ApiError> {
    elsewhere(move || {
        let Some(file) = &app.preferences else {
            return Err(ApiError::with_status(
                StatusCode::NOT_FOUND,
                "no_preferences",
                "this server keeps no preferences; start it with --preferences FILE.jsonl",
            ));
        };
        let row = preferences::row(&body)?;
        file.add(&row)
            .map_err(|error| ApiError::failed(error.to_string()))?;
        Ok(Json(json!({"kept": true})))
    })
    .await
}

async fn no_such_path(uri: Uri) -> ApiError {
    ApiError::with_status(
        StatusCode::NOT_FOUND,
        "unknown_path",
        format!(
            "there is no {}; this server has /v1/models, /v1/chat/completions, /v1/completions, /v1/score, /health and /metrics",
            uri.path()
        ),
    )
}

async fn wrong_method(uri: Uri) -> ApiError {
    ApiError::with_status(
        StatusCode::METHOD_NOT_ALLOWED,
        "wrong_method",
        format!("{}: this method is not allowed here", uri.path()),
    )
}
