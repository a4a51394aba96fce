//! An annotator over loopback: what the page in a browser asks for.

use std::io::{Read, Write};
use std::net::TcpStream;

use serde_json::{Value, json};

/// An annotator's address.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Client {
    host: String,
    token: String,
}

impl Client {
    /// The annotator who has got `url`, `http://HOST:PORT/#TOKEN`.
    pub(crate) fn at(url: &str) -> Self {
        let (host, token) = url
            .trim()
            .strip_prefix("http://")
            .unwrap()
            .split_once("/#")
            .unwrap();
        Self {
            host: host.to_owned(),
            token: token.to_owned(),
        }
    }

    /// The same annotator where `other` is.
    pub(crate) fn at_port_of(&self, other: &Self) -> Self {
        Self {
            host: other.host.clone(),
            token: self.token.clone(),
        }
    }

    /// The server's answer; `None` if it is gone.
    fn post(&self, path: &str, body: &Value) -> Option<Value> {
        let body = body.to_string();
        let mut stream = TcpStream::connect(&self.host).ok()?;
        let text = format!(
            "POST /api/{path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\nAuthorization: Bearer {}\r\n\
             Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            self.host,
            self.token,
            body.len()
        );
        stream.write_all(text.as_bytes()).ok()?;
        let mut answer = String::new();
        stream
            .read_to_string(&mut answer)
            .ok()
            .filter(|len| *len > 0)?;
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        Some(serde_json::from_str(answer.split_once("\r\n\r\n").unwrap().1).unwrap())
    }

    /// What the annotator sees, if there is a task.
    pub(crate) fn next(&self) -> Option<Value> {
        let state = self.post("next", &json!({}));
        state.filter(|state| state["state"] == "task")
    }

    /// Answers a task; returns the next one, if there is one.
    pub(crate) fn judge(&self, state: &Value, answer: &Value) -> Option<Value> {
        let nonce = &state["task"]["nonce"];
        let next = self.post(
            "judge",
            &json!({"nonce": nonce, "answer": answer, "seconds": 0.1}),
        );
        next.filter(|state| state["state"] == "task")
    }
}

/// The grade, `strength` for its side, of an annotator who prefers the shorter response.
pub(crate) fn grade_of(state: &Value, strength: i64) -> Value {
    let len = |i: usize| state["task"]["responses"][i].as_str().unwrap().len();
    json!({"grade": if len(0) < len(1) { strength } else { -strength }})
}
