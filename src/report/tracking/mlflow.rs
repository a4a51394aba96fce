//! Metrics for an MLflow server, by its REST interface, from a thread of their own.
//!
//! Training never waits for the server while it goes on and never fails for it: what could not be sent is counted and said. How many
//! lines of the logs were sent is kept in `mlflow.json` beside them, so that a resumed stage continues the same run of MLflow and sends
//! no step twice.
//!
//! # Source
//! MLflow's REST API 2.0: experiments/get-by-name, experiments/create, runs/create, runs/log-batch, runs/update.

use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use ureq::Agent;

use super::events::TIMING;
use super::{Ending, TrackedStage};
use crate::atomic::write_atomic;
use crate::outside;
use crate::report::{MetricsRow, StageLogs};

/// The file with the state of what was sent.
const FILE: &str = "mlflow.json";
/// Most metrics of a request, by MLflow's limits.
const BATCH: usize = 1000;
/// Time between two requests while a stage goes on.
const PERIOD: Duration = Duration::from_secs(2);
/// Longest wait after requests that failed.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// Most metrics that wait for a server which does not answer; later ones are counted and not sent.
const MOST_WAITING: usize = 200_000;
/// Longest time of a request.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Characters of a note, by MLflow's limit on tags.
const MOST_NOTE: usize = 4500;

/// What of a stage was sent.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
struct Sent {
    /// The server.
    uri: String,
    /// The run of MLflow; empty before it was made.
    run_id: String,
    /// Lines of `metrics.jsonl` sent.
    lines: usize,
    /// The last step of `timing.jsonl` sent.
    timed: usize,
}

/// A line of a log on its way.
#[derive(Debug)]
struct Line {
    /// Its number in `metrics.jsonl`, from 1; 0 for a line of `timing.jsonl`.
    number: usize,
    step: usize,
    timestamp: u64,
    values: Vec<(String, f64)>,
}

enum Item {
    Line(Line),
    End(Ending),
}

/// The sending side.
pub(super) struct Mlflow {
    sender: Sender<Item>,
    worker: Option<JoinHandle<Vec<String>>>,
    /// Lines of `metrics.jsonl` so far.
    lines: usize,
}

impl Mlflow {
    /// Begins to send a stage's metrics to the server at `uri`, those that `logs` have first.
    pub(super) fn open(uri: &str, dir: &Path, stage: &TrackedStage, logs: &StageLogs) -> Self {
        let file = dir.join(FILE);
        let earlier = outside::read_text(&file, outside::SETTINGS).ok();
        let sent = earlier.and_then(|text| serde_json::from_str(&text).ok());
        let uri = uri.trim_end_matches('/').to_owned();
        // A stage that begins anew is a new run; so is one on another server.
        let sent = sent.filter(|sent: &Sent| stage.resumed && sent.uri == uri);
        let worker = Worker {
            http: Agent::config_builder()
                .http_status_as_error(false)
                .proxy(proxy(&uri))
                .timeout_global(Some(TIMEOUT))
                .build()
                .new_agent(),
            token: std::env::var("MLFLOW_TRACKING_TOKEN").ok(),
            experiment: std::env::var("MLFLOW_EXPERIMENT_NAME")
                .unwrap_or_else(|_| stage.recipe_name.clone()),
            stage: stage.clone(),
            sent: sent.unwrap_or_else(|| Sent {
                uri,
                ..Sent::default()
            }),
            file,
            waiting: Vec::new(),
            failures: 0,
            given_up: 0,
            not_finite: 0,
            error: None,
        };
        let (sender, receiver) = channel();
        let worker = std::thread::spawn(move || worker.run(&receiver));
        let mut mlflow = Self {
            sender,
            worker: Some(worker),
            lines: 0,
        };
        for row in &logs.metrics {
            mlflow.metrics(row.step, &values(row));
        }
        for row in &logs.timing {
            mlflow.timing(row.step, &values(row));
        }
        mlflow
    }

    /// Sends a line of `metrics.jsonl`.
    pub(super) fn metrics(&mut self, step: usize, values: &[(&str, f64)]) {
        self.lines += 1;
        self.send(self.lines, step, "", values);
    }

    /// Sends a line of `timing.jsonl`.
    pub(super) fn timing(&mut self, step: usize, values: &[(&str, f64)]) {
        self.send(0, step, TIMING, values);
    }

    fn send(&self, number: usize, step: usize, prefix: &str, values: &[(&str, f64)]) {
        let values = values
            .iter()
            .map(|(name, value)| (format!("{prefix}{name}"), *value));
        // Without the thread, which has panicked, `close` says so.
        let _ = self.sender.send(Item::Line(Line {
            number,
            step,
            timestamp: milliseconds(),
            values: values.collect(),
        }));
    }

    /// Ends the run of MLflow and returns what went wrong, in words.
    pub(super) fn close(&mut self, ending: Ending) -> Vec<String> {
        let _ = self.sender.send(Item::End(ending));
        match self.worker.take().map(JoinHandle::join) {
            None => Vec::new(),
            Some(Ok(said)) => said,
            Some(Err(_)) => vec!["mlflow: the thread that sends metrics has panicked".into()],
        }
    }
}

fn values(row: &MetricsRow) -> Vec<(&str, f64)> {
    let names = row.values.keys();
    names
        .filter_map(|name| Some((name.as_str(), row.get(name)?)))
        .collect()
}

/// The proxy of the environment, except for this machine.
fn proxy(uri: &str) -> Option<ureq::Proxy> {
    let host = uri.split_once("://").map_or(uri, |(_, rest)| rest);
    let local = ["127.", "localhost", "[::1]"];
    match local.iter().any(|local| host.starts_with(local)) {
        true => None,
        false => ureq::Proxy::try_from_env(),
    }
}

fn milliseconds() -> u64 {
    let elapsed = SystemTime::now().duration_since(UNIX_EPOCH);
    elapsed.map_or(0, |elapsed| elapsed.as_millis() as u64)
}

struct Worker {
    http: Agent,
    token: Option<String>,
    experiment: String,
    stage: TrackedStage,
    sent: Sent,
    file: PathBuf,
    waiting: Vec<Line>,
    /// Requests in a row that failed.
    failures: u32,
    /// Metrics that were given up.
    given_up: usize,
    not_finite: usize,
    error: Option<String>,
}

impl Worker {
    /// Sends what comes until the end; returns what went wrong.
    fn run(mut self, receiver: &Receiver<Item>) -> Vec<String> {
        let mut next = Instant::now() + PERIOD;
        let ending = loop {
            let wait = next.saturating_duration_since(Instant::now());
            match receiver.recv_timeout(wait) {
                Ok(Item::Line(line)) => self.take(line),
                Ok(Item::End(ending)) => break ending,
                Err(RecvTimeoutError::Disconnected) => break Ending::Failed,
                Err(RecvTimeoutError::Timeout) => {
                    self.flush();
                    let pause = PERIOD * 2u32.pow(self.failures.min(5));
                    next = Instant::now() + pause.min(LONGEST_PAUSE);
                }
            }
        };
        self.flush();
        // One more try, as a server may just have been restarted.
        if self.failures > 0 {
            std::thread::sleep(PERIOD / 4);
            self.flush();
        }
        let mut said = self.unsent();
        if !self.sent.run_id.is_empty() && self.failures == 0 {
            let status = match ending {
                Ending::Done => "FINISHED",
                Ending::Interrupted => "KILLED",
                Ending::Failed => "FAILED",
            };
            let update =
                json!({"run_id": self.sent.run_id, "status": status, "end_time": milliseconds()});
            if let Err(error) = self.post("runs/update", &update) {
                said.push(format!("mlflow: the run there was not ended: {error}"));
            }
        }
        said
    }

    fn take(&mut self, line: Line) {
        let known = match line.number {
            0 => line.step <= self.sent.timed,
            number => number <= self.sent.lines,
        };
        if known {
            return;
        }
        match self.waiting.len() < MOST_WAITING {
            true => self.waiting.push(line),
            false => self.given_up += line.values.len(),
        }
    }

    /// Sends all that waits; what fails waits on.
    fn flush(&mut self) {
        while !self.waiting.is_empty() {
            if let Err(error) = self.send_some() {
                self.failures += 1;
                self.error = Some(error);
                return;
            }
            self.failures = 0;
        }
    }

    /// Sends the first lines that fit into a request.
    fn send_some(&mut self) -> Result<(), String> {
        if self.sent.run_id.is_empty() {
            self.sent.run_id = self.create_run()?;
        }
        let mut metrics = Vec::new();
        let (mut count, mut not_finite) = (0, 0);
        let mut after = self.sent.clone();
        for line in &self.waiting {
            if count > 0 && metrics.len() + line.values.len() > BATCH {
                break;
            }
            for (name, value) in &line.values {
                if !value.is_finite() {
                    not_finite += 1;
                    continue;
                }
                metrics.push(json!({"key": allowed(name), "value": value, "timestamp": line.timestamp, "step": line.step}));
            }
            match line.number {
                0 => after.timed = line.step,
                number => after.lines = number,
            }
            count += 1;
        }
        let batch = json!({"run_id": self.sent.run_id, "metrics": metrics});
        self.post("runs/log-batch", &batch)?;
        self.waiting.drain(..count);
        self.not_finite += not_finite;
        self.sent = after;
        let text = serde_json::to_string(&self.sent).unwrap_or_default();
        write_atomic(&self.file, format!("{text}\n").as_bytes()).map_err(|error| error.to_string())
    }

    /// The id of a new run in the experiment, which is made if there is none.
    fn create_run(&self) -> Result<String, String> {
        let name = escaped(&self.experiment);
        let path = format!("experiments/get-by-name?experiment_name={name}");
        let experiment = match self.get(&path)? {
            Some(found) => text_of(&found["experiment"]["experiment_id"])?,
            None => {
                let made = self.post("experiments/create", &json!({"name": self.experiment}))?;
                text_of(&made["experiment_id"])?
            }
        };
        let stage = &self.stage;
        let note: String = stage.recipe.chars().take(MOST_NOTE).collect();
        let cut = match note.len() < stage.recipe.len() {
            true => "\n.. (cut; the whole recipe is recipe.ron of the run folder)",
            false => "",
        };
        let run = json!({
            "experiment_id": experiment,
            "run_name": format!("{}/{}", stage.recipe_name, stage.stage),
            "start_time": milliseconds(),
            "tags": [
                {"key": "mlflow.source.name", "value": "temper"},
                {"key": "mlflow.note.content", "value": format!("```\n{note}{cut}\n```")},
                {"key": "recipe", "value": stage.recipe_name},
                {"key": "stage", "value": stage.stage},
            ],
        });
        let made = self.post("runs/create", &run)?;
        text_of(&made["run"]["info"]["run_id"])
    }

    fn get(&self, path: &str) -> Result<Option<Value>, String> {
        let request = self.http.get(self.address(path));
        let request = match &self.token {
            Some(token) => request.header("authorization", format!("Bearer {token}")),
            None => request,
        };
        let answer = request.call().map_err(|error| self.unreachable(&error))?;
        match answer.status().as_u16() {
            404 => Ok(None),
            _ => self.read(path, answer).map(Some),
        }
    }

    fn post(&self, path: &str, body: &Value) -> Result<Value, String> {
        let request = self.http.post(self.address(path));
        let request = match &self.token {
            Some(token) => request.header("authorization", format!("Bearer {token}")),
            None => request,
        };
        let request = request.header("content-type", "application/json");
        let answer = request.send(body.to_string());
        let answer = answer.map_err(|error| self.unreachable(&error))?;
        self.read(path, answer)
    }

    fn address(&self, path: &str) -> String {
        format!("{}/api/2.0/mlflow/{path}", self.sent.uri)
    }

    fn unreachable(&self, error: &ureq::Error) -> String {
        format!("{} cannot be reached: {error}", self.sent.uri)
    }

    fn read(&self, path: &str, answer: ureq::http::Response<ureq::Body>) -> Result<Value, String> {
        let status = answer.status().as_u16();
        let mut body = answer.into_body();
        let text = body
            .read_to_string()
            .map_err(|error| self.unreachable(&error))?;
        if status == 200 {
            return serde_json::from_str(&text).map_err(|error| {
                format!("{} answers {path} with no JSON: {error}", self.sent.uri)
            });
        }
        let said: Value = serde_json::from_str(&text).unwrap_or_default();
        let said = said["message"].as_str().unwrap_or_default();
        let said: String = said.chars().take(200).collect();
        Err(format!(
            "{} answers {path} with {status} {said}",
            self.sent.uri
        ))
    }

    /// What was not sent, in words.
    fn unsent(&self) -> Vec<String> {
        let left: usize = self.waiting.iter().map(|line| line.values.len()).sum();
        let count = left + self.given_up;
        let mut said = Vec::new();
        if count > 0 {
            // It may have failed for a while, and everything been sent in the end.
            let why = self.error.as_deref().unwrap_or("too many waited");
            said.push(format!("mlflow: {count} metrics were not sent: {why}"));
        }
        if self.not_finite > 0 {
            let count = self.not_finite;
            said.push(format!(
                "mlflow: {count} values that are not finite were left out"
            ));
        }
        said
    }
}

/// The name with what MLflow does not allow in it replaced.
fn allowed(name: &str) -> String {
    let keep = |c: char| c.is_alphanumeric() || matches!(c, '_' | '-' | '.' | ' ' | '/');
    let replace = |c| if keep(c) { c } else { '_' };
    name.chars().map(replace).collect()
}

fn text_of(value: &Value) -> Result<String, String> {
    let text = value.as_str().map(str::to_owned);
    text.ok_or_else(|| "the server's answer has no id; is it MLflow?".to_owned())
}

/// `text` in a query.
fn escaped(text: &str) -> String {
    let byte = |byte: u8| match byte {
        b if b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.') => {
            char::from(b).to_string()
        }
        b => format!("%{b:02X}"),
    };
    text.bytes().map(byte).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_queries_have_only_what_is_allowed() {
        assert_eq!(allowed("eval/pass@4"), "eval/pass_4");
        assert_eq!(escaped("a b/ü"), "a%20b%2F%C3%BC");
    }
}
