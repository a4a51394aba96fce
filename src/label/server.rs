//! The annotators' page and what it asks for.
//!
//! The page is three files inside of this program. An annotator's address carries a token behind `#`, which browsers do not send; the page
//! shows it with each request. Annotators see the texts of a task, never who wrote them, their scores, or which tasks are shared.

use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::{CONTENT_TYPE, HeaderMap};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde::Deserialize;
use serde_json::{Value, json};

use super::answer::Answer;
use super::form::Form;
use super::store::{Annotator, HeldTask, Next, Store};
use crate::error::Result;
use crate::web::bearer;

const PAGE: &str = include_str!("page/label.html");
const STYLE: &str = include_str!("page/label.css");
const SCRIPT: &str = include_str!("page/label.js");

/// The site of a labelling project.
#[derive(Debug, Clone)]
pub(crate) struct Site {
    store: Arc<Store>,
}

impl Site {
    pub(crate) fn new(store: Arc<Store>) -> Self {
        Self { store }
    }

    /// Adds annotators and returns each one's name with the address to open; `url` is the server's.
    ///
    /// # Errors
    /// `Error::Format` if the store cannot be written.
    pub(crate) fn addresses(
        &self,
        names: &[String],
        url: &str,
    ) -> Result<Vec<(Annotator, String)>> {
        let address = |name: &String| {
            let (annotator, token) = self.store.annotator(name, now_ms())?;
            Ok((annotator, format!("{url}/#{}", token.reveal())))
        };
        names.iter().map(address).collect()
    }

    /// The routes of the page.
    pub(crate) fn routes(self) -> Router {
        let file = |kind: &'static str, text: &'static str| {
            get(move || async move { ([(CONTENT_TYPE, kind)], text) })
        };
        Router::new()
            .route("/", file("text/html; charset=utf-8", PAGE))
            .route("/label.css", file("text/css; charset=utf-8", STYLE))
            .route("/label.js", file("text/javascript; charset=utf-8", SCRIPT))
            .route("/api/next", post(next))
            .route("/api/judge", post(judge))
            .route("/api/skip", post(skip))
            .route("/api/undo", post(undo))
            .route("/api/alive", post(alive))
            .with_state(self)
    }
}

/// Milliseconds since 1970.
fn now_ms() -> i64 {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    since.as_millis() as i64
}

/// What the page sends with an answer.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Judged {
    nonce: i64,
    answer: Answer,
    seconds: f64,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Skipped {
    nonce: i64,
    reason: String,
    seconds: f64,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Alive {
    nonce: i64,
}

async fn next(State(site): State<Site>, headers: HeaderMap) -> Response {
    site.with_annotator(headers, state).await
}

async fn judge(State(site): State<Site>, headers: HeaderMap, Json(sent): Json<Judged>) -> Response {
    site.with_annotator(headers, move |store, annotator| {
        match store.judge(annotator, sent.nonce, sent.answer, sent.seconds, now_ms())? {
            Ok(()) => state(store, annotator),
            Err(refused) => Ok(refusal(&refused)),
        }
    })
    .await
}

async fn skip(State(site): State<Site>, headers: HeaderMap, Json(sent): Json<Skipped>) -> Response {
    site.with_annotator(headers, move |store, annotator| {
        match store.skip(annotator, sent.nonce, &sent.reason, sent.seconds, now_ms())? {
            Ok(()) => state(store, annotator),
            Err(refused) => Ok(refusal(&refused)),
        }
    })
    .await
}

async fn undo(State(site): State<Site>, headers: HeaderMap) -> Response {
    site.with_annotator(headers, |store, annotator| {
        match store.undo(annotator, now_ms())? {
            true => state(store, annotator),
            false => Ok(refusal("there is nothing to undo")),
        }
    })
    .await
}

async fn alive(State(site): State<Site>, headers: HeaderMap, Json(sent): Json<Alive>) -> Response {
    site.with_annotator(headers, move |store, annotator| {
        let held = store.renew(annotator, sent.nonce, now_ms())?;
        Ok(Json(json!({"held": held})).into_response())
    })
    .await
}

impl Site {
    /// Runs `body` on a thread that may wait for the disk, for the annotator whose token the request shows.
    async fn with_annotator(
        &self,
        headers: HeaderMap,
        body: impl FnOnce(&Store, &Annotator) -> Result<Response> + Send + 'static,
    ) -> Response {
        let store = self.store.clone();
        let answer = move || -> Result<Response> {
            let annotator = match bearer(&headers) {
                Some(secret) => store.by_token(secret)?,
                None => None,
            };
            match annotator {
                Some(annotator) => body(&store, &annotator),
                None => Ok(failure(
                    StatusCode::UNAUTHORIZED,
                    "this address is not valid (any more): open the one that `temper label` has printed for you",
                )),
            }
        };
        match tokio::task::spawn_blocking(answer).await {
            Ok(Ok(response)) => response,
            Ok(Err(error)) => failure(StatusCode::INTERNAL_SERVER_ERROR, &error.to_string()),
            Err(_) => failure(
                StatusCode::INTERNAL_SERVER_ERROR,
                "the server has failed; its terminal says more",
            ),
        }
    }
}

fn failure(status: StatusCode, message: &str) -> Response {
    (status, Json(json!({"error": message}))).into_response()
}

/// The answer does not fit, or is of a task that the annotator no longer has.
fn refusal(message: &str) -> Response {
    failure(StatusCode::CONFLICT, message)
}

/// What an annotator sees next.
fn state(store: &Store, annotator: &Annotator) -> Result<Response> {
    let next = store.next(annotator, now_ms())?;
    let form = &store.terms().form;
    let (state, task) = match &next {
        Next::Task(held) => ("task", shown(held)),
        Next::Wait => ("wait", Value::Null),
        Next::Done => ("done", Value::Null),
    };
    Ok(Json(json!({
        "state": state,
        "annotator": annotator.name,
        "progress": store.progress(annotator)?,
        "form": form_shown(form),
        "task": task,
    }))
    .into_response())
}

/// A task as its annotator may see it.
fn shown(held: &HeldTask) -> Value {
    let task = &held.task;
    let in_order = |texts: &[String]| -> Vec<String> {
        held.shown.iter().map(|&i| texts[i].clone()).collect()
    };
    let turns: Vec<Value> = (task.turns.iter())
        .map(|turn| {
            let continued = held.shown.iter().position(|&i| i == turn.continued);
            json!({"prompt": turn.prompt, "responses": in_order(&turn.responses), "continued": continued})
        })
        .collect();
    json!({
        "nonce": held.nonce,
        "prompt": match &task.prompt {
            Value::Array(messages) => Value::Array(messages.clone()),
            _ => Value::String(task.prompt_text()),
        },
        "responses": match task.turns.is_empty() {
            true => in_order(&task.responses),
            false => Vec::new(),
        },
        "turns": turns,
        "draft": held.draft,
    })
}

/// A form as the page draws it.
fn form_shown(form: &Form) -> Value {
    let kind = match form {
        Form::Pairwise { .. } => "pairwise",
        Form::Rank { .. } => "rank",
        Form::InstructGpt | Form::Rate(_) => "rate",
        Form::Dialogue { .. } => "dialogue",
    };
    let rate = form.rate();
    let fields = rate.as_ref().map(|rate| &rate.fields);
    json!({
        "kind": kind,
        "grades": form.grades(),
        "ties": form.takes_ties(),
        "fields": fields,
        "instructions": rate.as_ref().map(|rate| &rate.instructions),
        "rank": matches!(form, Form::Rank { .. }) || rate.as_ref().is_some_and(|rate| rate.rank),
    })
}

/// Opens an address in the user's browser; whether that works is not known.
pub(crate) fn open_browser(url: &str) {
    let program = if cfg!(target_os = "macos") {
        "open"
    } else {
        "xdg-open"
    };
    let opened = Command::new(program)
        .arg(url)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn();
    if opened.is_err() {
        log::info!("no {program}: open {url} by hand");
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{SocketAddr, TcpStream};
    use std::time::Duration;

    use super::*;
    use crate::label::store::Terms;
    use crate::label::task::{NewTask, Task};
    use crate::web::{Bind, Limits, Running, Server};

    /// Markup and script of hostile data.
    const HOSTILE: &str =
        "</textarea><script>alert(1)</script><img src=x onerror=alert(1)>\u{202e}";

    struct Project {
        _folder: tempfile::TempDir,
        store: Arc<Store>,
        server: Running,
        tokens: Vec<String>,
    }

    /// Three tasks of hostile texts, two annotators.
    fn project(limits: Limits) -> Project {
        let folder = tempfile::tempdir().unwrap();
        let terms = Terms {
            form: Form::default(),
            seed: 1,
            overlap: 0.0,
        };
        let store = Arc::new(Store::begin(&folder.path().join("labels.db"), &terms).unwrap());
        let task = |i: usize| NewTask {
            task: Task {
                prompt: json!(format!("{HOSTILE} {i}")),
                responses: vec![HOSTILE.to_owned(), "b".to_owned()],
                policies: vec!["secret-one".into(), "secret-two".into()],
                scores: vec![0.125, 0.25],
                ..Task::default()
            },
            gold: (i == 0).then(|| vec![1, 2]),
        };
        store.add(&(0..3).map(task).collect::<Vec<_>>()).unwrap();
        let site = Site::new(store.clone());
        let names = ["ann".to_owned(), "bob".to_owned()];
        let addresses = site.addresses(&names, "http://x").unwrap();
        let token = |(_, address): &(Annotator, String)| {
            address.strip_prefix("http://x/#").unwrap().to_owned()
        };
        let tokens = addresses.iter().map(token).collect();
        let server = Server::bind(Bind::default(), limits).unwrap();
        Project {
            _folder: folder,
            store,
            server: server.spawn(site.routes()).unwrap(),
            tokens,
        }
    }

    /// Sends a request as it is and reads the answer to its end.
    fn send(address: SocketAddr, text: &str) -> String {
        let mut stream = TcpStream::connect(address).unwrap();
        stream
            .set_read_timeout(Some(Duration::from_secs(20)))
            .unwrap();
        stream.write_all(text.as_bytes()).unwrap();
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        String::from_utf8_lossy(&answer).into_owned()
    }

    impl Project {
        fn post(&self, token: &str, path: &str, body: &Value, headers: &str) -> (u16, Value) {
            let body = body.to_string();
            let text = format!(
                "POST /api/{path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nAuthorization: Bearer {token}\r\n\
                 Content-Type: application/json\r\nContent-Length: {}\r\n{headers}\r\n{body}",
                body.len()
            );
            let answer = send(self.server.address(), &text);
            let status = answer.split(' ').nth(1).unwrap().parse().unwrap();
            let body = answer.split_once("\r\n\r\n").unwrap().1;
            (
                status,
                serde_json::from_str(body).unwrap_or_else(|_| json!(body)),
            )
        }

        fn next(&self, who: usize) -> Value {
            let (status, state) = self.post(&self.tokens[who], "next", &json!({}), "");
            assert_eq!(status, 200, "{state}");
            state
        }
    }

    #[test]
    fn a_task_is_judged_and_the_next_one_comes() {
        let project = project(Limits::default());
        let state = project.next(0);
        assert_eq!(
            (&state["state"], &state["annotator"]),
            (&json!("task"), &json!("ann"))
        );
        let text = state.to_string();
        // Blind: no policies, no scores, nothing of the known answer.
        for secret in ["secret", "0.125", "gold", "shared", "policies"] {
            assert!(!text.contains(secret), "{secret}: {text}");
        }
        let nonce = &state["task"]["nonce"];
        let answer = json!({"nonce": nonce, "answer": {"grade": 1}, "seconds": 1.5});
        let (status, after) = project.post(&project.tokens[0], "judge", &answer, "");
        assert_eq!((status, &after["progress"]["mine"]), (200, &json!(1)));
        assert_ne!(&after["task"]["nonce"], nonce);
        assert_eq!(project.store.entries().unwrap().len(), 1);
        let (status, alive) = project.post(
            &project.tokens[0],
            "alive",
            &json!({"nonce": after["task"]["nonce"]}),
            "",
        );
        assert_eq!((status, &alive["held"]), (200, &json!(true)));
        let (status, back) = project.post(&project.tokens[0], "undo", &json!({}), "");
        assert_eq!(
            (status, &back["task"]["draft"]),
            (200, &json!({"grade": 1}))
        );
        let skip = json!({"nonce": back["task"]["nonce"], "reason": HOSTILE, "seconds": 0});
        assert_eq!(project.post(&project.tokens[0], "skip", &skip, "").0, 200);
        assert_eq!(
            project.store.entries().unwrap()[0].skipped.as_deref(),
            Some(HOSTILE)
        );
    }

    #[test]
    fn other_tokens_other_sites_and_wrong_answers_store_nothing() {
        let project = project(Limits::default());
        let (ann, bob) = (&project.tokens[0], &project.tokens[1]);
        let nonce = project.next(0)["task"]["nonce"].clone();
        project.next(1);
        let answer = json!({"nonce": nonce, "answer": {"grade": 1}, "seconds": 1});
        for (token, body, headers, expected) in [
            ("", &answer, "", 401),
            ("0123456789abcdef0123456789abcdef", &answer, "", 401),
            // Another annotator's task.
            (bob.as_str(), &answer, "", 409),
            (ann, &answer, "Origin: http://evil.example\r\n", 403),
            (ann, &answer, "Sec-Fetch-Site: cross-site\r\n", 403),
            (ann, &answer, "Origin: null\r\n", 403),
            (
                ann,
                &json!({"nonce": nonce, "answer": {"grade": 7}, "seconds": 1}),
                "",
                409,
            ),
            (
                ann,
                &json!({"nonce": nonce, "answer": {"ranks": [1, 2]}, "seconds": 1}),
                "",
                409,
            ),
            (
                ann,
                &json!({"nonce": nonce, "answer": {"grade": 1}, "seconds": 1, "x": 1}),
                "",
                422,
            ),
            (
                ann,
                &json!({"nonce": "1", "answer": {"grade": 1}, "seconds": 1}),
                "",
                422,
            ),
            (ann, &json!([1]), "", 422),
        ] {
            let (status, said) = project.post(token, "judge", body, headers);
            assert_eq!(status, expected, "{body} {headers} {said}");
        }
        // A form of another site cannot send JSON.
        let body = answer.to_string();
        let plain = format!(
            "POST /api/judge HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nAuthorization: Bearer {ann}\r\n\
             Content-Type: text/plain\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        let plain = send(project.server.address(), &plain);
        assert!(plain.starts_with("HTTP/1.1 415"), "{plain}");
        assert_eq!(project.store.entries().unwrap(), []);
        assert_eq!(
            project
                .post(ann, "judge", &answer, "Origin: http://localhost\r\n")
                .0,
            200
        );
    }

    #[test]
    fn the_page_is_three_files_without_a_way_to_others() {
        let project = project(Limits::default());
        let get = |path: &str| {
            let text =
                format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
            send(project.server.address(), &text)
        };
        for (path, part) in [
            ("/", "<!doctype html>"),
            ("/label.js", "use strict"),
            ("/label.css", "color-scheme"),
        ] {
            let answer = get(path);
            assert!(
                answer.starts_with("HTTP/1.1 200") && answer.contains(part),
                "{answer}"
            );
            assert!(
                answer.contains("content-security-policy: default-src 'none'; script-src 'self'"),
                "{answer}"
            );
        }
        for path in [
            "/labels.db",
            "/../labels.db",
            "/..%2flabels.db",
            "/%2e%2e/%2e%2e/etc/passwd",
            "//etc/passwd",
            "/label.js/../../labels.db",
            "/api/next",
        ] {
            let answer = get(path);
            assert!(answer.starts_with("HTTP/1.1 4"), "{path}: {answer}");
        }
        // Nothing inline, nothing from elsewhere, no way from a text to markup.
        for text in [PAGE, STYLE, SCRIPT] {
            for word in [
                "http:",
                "https:",
                "innerHTML",
                "outerHTML",
                "insertAdjacent",
                "document.write",
                "eval(",
                "onclick",
                "style=",
                "<script>",
            ] {
                assert!(!text.contains(word), "{word}");
            }
        }
    }

    #[test]
    fn large_bodies_and_slow_clients_do_not_hold_others() {
        let project = project(Limits {
            read: Duration::from_millis(500),
            ..Limits::default()
        });
        let address = project.server.address();
        let large = "POST /api/judge HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: 100000000\r\n\r\n";
        assert!(send(address, large).starts_with("HTTP/1.1 413"));
        // Clients that say half a request and then nothing.
        let mut slow: Vec<TcpStream> = (0..20)
            .map(|_| TcpStream::connect(address).unwrap())
            .collect();
        for stream in &mut slow {
            stream
                .write_all(b"POST /api/judge HTTP/1.1\r\nHost: loc")
                .unwrap();
        }
        assert_eq!(project.next(0)["state"], "task");
        let mut rest = Vec::new();
        slow[0]
            .set_read_timeout(Some(Duration::from_secs(10)))
            .unwrap();
        let _ = slow[0].read_to_end(&mut rest);
        assert!(
            rest.is_empty() || rest.starts_with(b"HTTP/1.1 408"),
            "{}",
            String::from_utf8_lossy(&rest)
        );
        assert_eq!(project.store.entries().unwrap(), []);
    }
}
