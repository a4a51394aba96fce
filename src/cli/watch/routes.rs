//! The addresses of the page: the run, its stages, what changed.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{Path, State};
use axum::http::header::{CONTENT_TYPE, COOKIE, LOCATION, SET_COOKIE};
use axum::http::{HeaderMap, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use tokio::time::timeout;

use super::live::Live;
use crate::report::{page_style, text_of_html};
use crate::web::{TokenHash, bearer, event_stream};

const SCRIPT: &str = include_str!("watch.js");
/// Time between signs of life to a quiet connection.
const ALIVE: Duration = Duration::from_secs(15);
/// The cookie with the token.
const COOKIE_NAME: &str = "temper_watch";

struct Watch {
    live: Arc<Live>,
    /// The token that clients must show, if the server is not on loopback.
    token: Option<TokenHash>,
}

type Shared = State<Arc<Watch>>;

/// The routes of the page.
pub(super) fn routes(live: Arc<Live>, token: Option<TokenHash>) -> Router {
    Router::new()
        .route("/", get(run_page))
        .route("/report", get(run_content))
        .route("/{stage}/report.html", get(stage_page))
        .route("/{stage}/report", get(stage_content))
        .route("/events", get(events))
        .route("/style.css", get(style))
        .route("/watch.js", get(script))
        .with_state(Arc::new(Watch { live, token }))
}

impl Watch {
    /// Refuses who does not show the token: in the cookie, or as a program does.
    fn check(&self, headers: &HeaderMap) -> Result<(), Box<Response>> {
        let Some(token) = &self.token else {
            return Ok(());
        };
        let cookies = headers.get_all(COOKIE).into_iter();
        let cookies = cookies.filter_map(|cookies| cookies.to_str().ok());
        let mut shown = cookies
            .flat_map(|cookies| cookies.split(';'))
            .filter_map(|cookie| cookie.trim().strip_prefix(COOKIE_NAME)?.strip_prefix('='))
            .chain(bearer(headers));
        match shown.any(|shown| TokenHash::of(shown) == *token) {
            true => Ok(()),
            false => {
                let text = "open the address that `temper watch` has printed, with its token";
                Err(Box::new((StatusCode::UNAUTHORIZED, text).into_response()))
            }
        }
    }

    fn page(&self, page: &str) -> Response {
        let Some(body) = self.live.body(page) else {
            return not_found();
        };
        let (title, source) = match page {
            "" => (self.live.title.clone(), "/report".to_owned()),
            stage => (
                format!("{stage} of {}", self.live.title),
                format!("/{stage}/report"),
            ),
        };
        let back = match page {
            "" => "",
            _ => "<a href=\"/\">the whole run</a> · ",
        };
        html(format!(
            "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" content=\"width=device-width,initial-scale=1\">\
             <meta name=\"color-scheme\" content=\"light dark\"><title>{} · tempering</title><link rel=\"icon\" href=\"data:,\">\
             <link rel=\"stylesheet\" href=\"/style.css\">\
             <script src=\"/watch.js\" defer></script></head>\n<body>\n<header class=\"soft\">{back}<span id=\"state\" role=\"status\">connecting</span></header>\n\
             <main id=\"report\" data-source=\"{}\">\n{body}</main></body></html>\n",
            text_of_html(&title),
            text_of_html(&source)
        ))
    }

    fn content(&self, page: &str) -> Response {
        match self.live.body(page) {
            Some(body) => html(body.to_string()),
            None => not_found(),
        }
    }
}

async fn run_page(State(watch): Shared, uri: Uri, headers: HeaderMap) -> Response {
    // The token goes from the address into a cookie, so that it is in no link and no history of later pages.
    let shown = uri.query().and_then(|query| {
        let pairs = query.split('&');
        pairs
            .into_iter()
            .find_map(|pair| pair.strip_prefix("token="))
    });
    if let (Some(token), Some(shown)) = (&watch.token, shown)
        && TokenHash::of(shown) == *token
    {
        let cookie = format!("{COOKIE_NAME}={shown}; HttpOnly; SameSite=Strict; Path=/");
        let headers = [(SET_COOKIE, cookie), (LOCATION, "/".to_owned())];
        return (StatusCode::SEE_OTHER, headers).into_response();
    }
    match watch.check(&headers) {
        Ok(()) => watch.page(""),
        Err(refusal) => *refusal,
    }
}

async fn run_content(State(watch): Shared, headers: HeaderMap) -> Response {
    match watch.check(&headers) {
        Ok(()) => watch.content(""),
        Err(refusal) => *refusal,
    }
}

async fn stage_page(
    State(watch): Shared,
    Path(stage): Path<String>,
    headers: HeaderMap,
) -> Response {
    match watch.check(&headers) {
        Ok(()) if !stage.is_empty() => watch.page(&stage),
        Ok(()) => not_found(),
        Err(refusal) => *refusal,
    }
}

async fn stage_content(
    State(watch): Shared,
    Path(stage): Path<String>,
    headers: HeaderMap,
) -> Response {
    match watch.check(&headers) {
        Ok(()) if !stage.is_empty() => watch.content(&stage),
        Ok(()) => not_found(),
        Err(refusal) => *refusal,
    }
}

/// Says that the report has changed: at once, and whenever it does.
async fn events(State(watch): Shared, headers: HeaderMap) -> Response {
    if let Err(refusal) = watch.check(&headers) {
        return *refusal;
    }
    let (sender, response) = event_stream();
    let mut changes = watch.live.changes();
    tokio::spawn(async move {
        let version = *changes.borrow_and_update();
        let mut open = sender.event("changed", &version.to_string()).await;
        while open {
            open = match timeout(ALIVE, changes.changed()).await {
                Ok(Ok(())) => {
                    let version = *changes.borrow_and_update();
                    sender.event("changed", &version.to_string()).await
                }
                Ok(Err(_)) => false,
                Err(_) => sender.keep_alive().await,
            };
        }
    });
    response
}

async fn style() -> Response {
    ([(CONTENT_TYPE, "text/css")], page_style()).into_response()
}

async fn script() -> Response {
    ([(CONTENT_TYPE, "text/javascript")], SCRIPT).into_response()
}

fn html(text: String) -> Response {
    ([(CONTENT_TYPE, "text/html; charset=utf-8")], text).into_response()
}

fn not_found() -> Response {
    (StatusCode::NOT_FOUND, "no such page").into_response()
}
