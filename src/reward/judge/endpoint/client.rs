//! Requests with time-outs, and repetition of what fails for a while.

use std::io::Read;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use serde_json::Value;
use ureq::Agent;

use super::answer::Answer;
use crate::error::{Error, Result};
use crate::report::Interrupt;
use crate::reward::judge::EndpointConfig;

/// Longest wait that a server may ask for, and longest pause.
const LONGEST_WAIT: Duration = Duration::from_secs(60);
/// Most bytes of an answer.
const LONGEST_ANSWER: u64 = 16 << 20;
/// How long a request may still take when the user wants to stop.
const GRACE: Duration = Duration::from_secs(2);
/// Time between two looks at what the user wants.
const POLL: Duration = Duration::from_millis(50);
/// Characters of a server's words that an error quotes.
const QUOTED: usize = 300;

/// Sends requests, and repeats them. A wait for the server ends soon after the user wants to stop.
pub(super) struct Client {
    server: Server,
    max_retries: u32,
    retry_wait: Duration,
    interrupt: Interrupt,
}

/// What a request needs.
#[derive(Clone)]
struct Server {
    agent: Agent,
    url: String,
    key: Option<String>,
}

/// Why a try failed.
#[derive(Debug)]
enum Failure {
    /// For a while: with the server's wish for a pause.
    Passing(String, Option<Duration>),
    /// A repetition would not help.
    Final(String),
    /// The user wants to stop.
    Stopped,
}

impl Client {
    /// Requests to the server of `config`.
    ///
    /// # Errors
    /// `Error::Usage` if the environment variable of the key is not set.
    pub(super) fn new(config: &EndpointConfig, interrupt: &Interrupt) -> Result<Self> {
        let key = match &config.api_key_env {
            Some(name) => Some(std::env::var(name).map_err(|_| {
                Error::Usage(format!(
                    "the environment variable {name} is not set: it has to hold the key of {}",
                    config.url
                ))
            })?),
            None => None,
        };
        let is_local = ["http://127.0.0.1", "http://localhost", "http://[::1]"]
            .iter()
            .any(|local| config.url.starts_with(local));
        let timeout = Duration::from_secs_f64(config.timeout_s);
        let builder = Agent::config_builder();
        let builder = match is_local {
            true => builder.proxy(None),
            false => builder,
        };
        let agent = builder
            .http_status_as_error(false)
            // The key goes to no other server.
            .max_redirects(0)
            .max_redirects_will_error(false)
            .user_agent(concat!("tempering/", env!("CARGO_PKG_VERSION")))
            .timeout_global(Some(timeout))
            .build()
            .new_agent();
        Ok(Self {
            server: Server {
                agent,
                url: format!("{}/chat/completions", config.url.trim_end_matches('/')),
                key: key.map(|key| key.trim().to_owned()),
            },
            interrupt: interrupt.clone(),
            max_retries: config.max_retries,
            retry_wait: Duration::from_secs_f64(config.retry_wait_s),
        })
    }

    /// The answer to a request.
    ///
    /// # Errors
    /// `Error::Endpoint` with what happened and what to do.
    pub(super) fn complete(&self, body: &Value) -> Result<Answer> {
        let mut tries = 0;
        loop {
            let (message, asked) = match self.watched(body) {
                Ok(answer) => return Ok(answer),
                Err(Failure::Final(message)) => return Err(self.error(message)),
                Err(Failure::Stopped) => return Err(self.stopped()),
                Err(Failure::Passing(message, asked)) => (message, asked),
            };
            if tries == self.max_retries {
                return Err(self.error(format!(
                    "{message}, {} times in a row. Check that the server runs and that `url` is right",
                    tries + 1
                )));
            }
            let pause = self.retry_wait * 2u32.pow(tries.min(10));
            let until = Instant::now() + asked.unwrap_or(pause).min(LONGEST_WAIT);
            while Instant::now() < until {
                if self.interrupt.requested() {
                    return Err(self.stopped());
                }
                std::thread::sleep(POLL.min(until.saturating_duration_since(Instant::now())));
            }
            tries += 1;
        }
    }

    /// One request, on a thread of its own: a silent server cannot keep this one from seeing that the user wants to stop.
    fn watched(&self, body: &Value) -> Result<Answer, Failure> {
        let (sender, receiver) = mpsc::channel();
        let (server, body) = (self.server.clone(), body.to_string());
        // It ends by its time-out, or with the process.
        std::thread::spawn(move || drop(sender.send(server.once(body))));
        let mut stopping = None;
        loop {
            match receiver.recv_timeout(POLL) {
                Ok(outcome) => return outcome,
                Err(RecvTimeoutError::Disconnected) => {
                    return Err(Failure::Final("the request failed".into()));
                }
                Err(RecvTimeoutError::Timeout) => {}
            }
            if self.interrupt.requested()
                && stopping.get_or_insert_with(Instant::now).elapsed() >= GRACE
            {
                return Err(Failure::Stopped);
            }
        }
    }

    fn stopped(&self) -> Error {
        self.error("stopped before it answered".into())
    }

    fn error(&self, message: String) -> Error {
        // A server may repeat what it was sent.
        let message = match self.server.key.as_deref().filter(|key| !key.is_empty()) {
            Some(key) => message.replace(key, "***"),
            None => message,
        };
        Error::Endpoint {
            place: self.server.url.clone(),
            message,
        }
    }
}

impl Server {
    fn once(&self, body: String) -> Result<Answer, Failure> {
        let mut request = (self.agent.post(&self.url)).header("content-type", "application/json");
        if let Some(key) = &self.key {
            request = request.header("authorization", format!("Bearer {key}"));
        }
        let response = match request.send(body) {
            Ok(response) => response,
            Err(error @ (ureq::Error::BadUri(_) | ureq::Error::Http(_))) => {
                return Err(Failure::Final(error.to_string()));
            }
            Err(error) => return Err(Failure::Passing(format!("no answer: {error}"), None)),
        };
        let status = response.status().as_u16();
        let wait = (response.headers().get("retry-after"))
            .and_then(|value| value.to_str().ok()?.trim().parse().ok())
            .map(Duration::from_secs);
        let location = (response.headers().get("location"))
            .map(|target| String::from_utf8_lossy(target.as_bytes()).into_owned());
        let mut text = String::new();
        let mut reader = response.into_body().into_reader().take(LONGEST_ANSWER);
        if let Err(error) = reader.read_to_string(&mut text) {
            return Err(Failure::Passing(
                format!("the answer breaks off: {error}"),
                None,
            ));
        }
        read(&Reply {
            status,
            location,
            wait,
            text,
            has_key: self.key.is_some(),
        })
    }
}

/// What came back.
#[derive(Debug, Default)]
struct Reply {
    status: u16,
    /// Where a redirect points to.
    location: Option<String>,
    /// The pause that the server asks for.
    wait: Option<Duration>,
    text: String,
    /// Whether the request had a key.
    has_key: bool,
}

/// The answer in a reply, or why there is none.
fn read(reply: &Reply) -> Result<Answer, Failure> {
    let text = &reply.text;
    let json = serde_json::from_str::<Value>(text).ok();
    // Some servers send their errors as a success.
    let named = json.as_ref().and_then(named_status);
    let named = named.filter(|_| (200..=299).contains(&reply.status));
    let said = said(reply.status, named, json.as_ref(), text);
    match named.unwrap_or(reply.status) {
        200..=299 => {
            let json = json
                .ok_or_else(|| Failure::Final(format!("expected JSON, found {}", quoted(text))))?;
            Answer::of(&json)
                .map_err(|why| Failure::Final(format!("{why}, found {}", quoted(text))))
        }
        300..=399 => {
            let target = match &reply.location {
                Some(target) => format!("points to {}", quoted(target)),
                None => "names no target".to_owned(),
            };
            Err(Failure::Final(format!(
                "{said}; it {target}, and redirects are not followed: set `url` to where the server is, without `/chat/completions`"
            )))
        }
        408 | 409 | 425 | 429 | 500 | 502 | 503 | 504 | 529 => {
            Err(Failure::Passing(said, reply.wait))
        }
        status => {
            let advice = match status {
                401 | 403 if !reply.has_key => {
                    "; name the environment variable of a key by `api_key_env`"
                }
                401 | 403 => "; check the key in the variable that `api_key_env` names",
                404 => "; check `url`, which ends with the version (`/v1`), and `model`",
                400 if text.contains("logprobs") => {
                    "; for a server without log-probabilities set `logprobs: false`"
                }
                _ => "",
            };
            Err(Failure::Final(format!("{said}{advice}")))
        }
    }
}

/// The status that an error names in the place of an answer.
fn named_status(json: &Value) -> Option<u16> {
    if json["choices"].get(0).is_some() {
        return None;
    }
    let code = &json["error"]["code"];
    let code = code.as_u64().or_else(|| code.as_str()?.parse().ok())?;
    u16::try_from(code)
        .ok()
        .filter(|code| (400..=599).contains(code))
}

/// A status, and the one that an error beside it names, with the server's words.
fn said(status: u16, named: Option<u16>, json: Option<&Value>, text: &str) -> String {
    let status = match named {
        Some(named) => format!("{status} with the error {named}"),
        None => status.to_string(),
    };
    let error = json.map(|json| &json["error"]);
    let words = error.and_then(|error| error["message"].as_str().or(error.as_str()));
    match words.unwrap_or(text).trim() {
        "" => format!("answers {status}"),
        words => format!("answers {status}: {}", quoted(words)),
    }
}

fn quoted(text: &str) -> String {
    let shown: String = text.trim().chars().take(QUOTED).collect();
    format!("{shown:?}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failure(status: u16, location: Option<&str>, text: &str) -> (bool, String) {
        let reply = Reply {
            status,
            location: location.map(str::to_owned),
            text: text.into(),
            ..Reply::default()
        };
        match read(&reply) {
            Err(Failure::Passing(message, _)) => (true, message),
            Err(Failure::Final(message)) => (false, message),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn redirects_say_where_they_point_to() {
        let (again, message) = failure(307, Some("https://h/v1/chat/completions"), "");
        assert!(!again);
        assert!(
            message.starts_with(
                "answers 307; it points to \"https://h/v1/chat/completions\", and redirects are not followed: set `url`"
            ),
            "{message}"
        );
        let (_, message) = failure(301, None, "gone");
        assert!(
            message.starts_with("answers 301: \"gone\"; it names no target"),
            "{message}"
        );
    }

    #[test]
    fn an_error_sent_as_a_success_counts_as_the_status_that_it_names() {
        for (text, again, expected) in [
            (
                r#"{"error":{"message":"overloaded","code":503}}"#,
                true,
                "answers 200 with the error 503: \"overloaded\"",
            ),
            (
                r#"{"error":{"message":"slow down","code":"429"},"choices":[]}"#,
                true,
                "answers 200 with the error 429",
            ),
            (
                r#"{"error":{"message":"who?","code":401}}"#,
                false,
                "answers 200 with the error 401: \"who?\"; name the environment variable",
            ),
            (
                r#"{"error":{"message":"odd","code":"overloaded"}}"#,
                false,
                "expected an object `choices[0].message` of a chat completion, found",
            ),
            ("<html>", false, "expected JSON, found \"<html>\""),
        ] {
            let (passing, message) = failure(200, None, text);
            assert_eq!(passing, again, "{text}");
            assert!(message.starts_with(expected), "{message}");
        }
        let (passing, message) = failure(400, None, r#"{"error":{"message":"no","code":503}}"#);
        assert_eq!((passing, message.as_str()), (false, "answers 400: \"no\""));
    }
}
