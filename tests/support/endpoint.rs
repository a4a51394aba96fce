//! A server with OpenAI's chat completions on this machine.

#[path = "http.rs"]
mod http;

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use serde_json::{Value, json};

use self::http::Head;

/// A request as it came.
#[derive(Debug, Clone)]
pub(crate) struct SeenQuestion {
    /// The path.
    pub(crate) path: String,
    /// The `Authorization` header.
    pub(crate) key: Option<String>,
    pub(crate) body: Value,
}

/// Answers a request to a path, given how many came before it: a status and the JSON of the answer.
type Handler = dyn Fn(&str, &Value, usize) -> (u16, Value) + Send + Sync;

/// The server.
pub(crate) struct LoopbackEndpoint {
    /// The address for a recipe.
    pub(crate) url: String,
    seen: Arc<Mutex<Vec<SeenQuestion>>>,
}

impl LoopbackEndpoint {
    /// Serves `handler`'s answers until the process ends.
    pub(crate) fn serve(
        handler: impl Fn(&Value, usize) -> (u16, Value) + Send + Sync + 'static,
    ) -> Self {
        let mut server = Self::serve_paths(move |_, body, before| handler(body, before));
        server.url.push_str("/v1");
        server
    }

    /// Serves answers by path; the address has none.
    pub(crate) fn serve_paths(
        handler: impl Fn(&str, &Value, usize) -> (u16, Value) + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let seen = Arc::new(Mutex::new(Vec::new()));
        let (log, handler): (_, Arc<Handler>) = (Arc::clone(&seen), Arc::new(handler));
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (log, handler) = (Arc::clone(&log), Arc::clone(&handler));
                std::thread::spawn(move || answer(stream.unwrap(), &log, handler.as_ref()));
            }
        });
        Self { url, seen }
    }

    /// All requests so far.
    pub(crate) fn seen(&self) -> Vec<SeenQuestion> {
        self.seen.lock().unwrap().clone()
    }
}

/// The address of a server that is down.
pub(crate) fn nobody() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    format!("http://{}/v1", listener.local_addr().unwrap())
}

/// A chat completion whose first token has these probabilities; none if it is empty.
pub(crate) fn completion(text: &str, first: &[(&str, f64)]) -> Value {
    let listed = first
        .iter()
        .map(|(token, p)| json!({"token": token, "logprob": p.ln()}));
    let logprobs = match first.first() {
        Some((token, p)) => json!({"content": [
            {"token": token, "logprob": p.ln(), "top_logprobs": listed.collect::<Vec<_>>()}
        ]}),
        None => Value::Null,
    };
    json!({
        "choices": [{"message": {"role": "assistant", "content": text}, "logprobs": logprobs}],
        "usage": {"prompt_tokens": 100, "completion_tokens": 2},
    })
}

/// The content of the last message of a request.
pub(crate) fn last_message(body: &Value) -> &str {
    let messages = body["messages"].as_array().unwrap();
    messages.last().unwrap()["content"].as_str().unwrap()
}

fn answer(mut stream: TcpStream, log: &Mutex<Vec<SeenQuestion>>, handler: &Handler) {
    let Some(head) = Head::read(&mut stream) else {
        return;
    };
    let length: usize = head
        .header("content-length")
        .map_or(0, |length| length.parse().unwrap());
    let mut body = vec![0; length];
    stream.read_exact(&mut body).unwrap();
    let body: Value = match body.is_empty() {
        true => Value::Null,
        false => serde_json::from_slice(&body).unwrap(),
    };
    let path = head.request().1;
    let before = {
        let mut log = log.lock().unwrap();
        log.push(SeenQuestion {
            path: path.to_owned(),
            key: head.header("authorization").map(str::to_owned),
            body: body.clone(),
        });
        log.len() - 1
    };
    let (status, answer) = handler(path, &body, before);
    let text = answer.to_string();
    let response = format!(
        "HTTP/1.1 {status} Status\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{text}",
        text.len()
    );
    // The client may have gone.
    drop(stream.write_all(response.as_bytes()));
}
