//! A user's program as a reward source: it reads one JSON object a line and writes one `{"score": x}` a line.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::{Completion, RewardSource};
use crate::error::{Error, Result};

/// Lines of the program's standard error that an error message quotes.
const STDERR_LINES: usize = 8;
/// How long to wait for the exit status and standard error of a program that has closed its output.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// An external scorer, started at its first use and running until dropped.
///
/// An input line is `{"prompt": .., "completion": <the response>, "row": {<the row's columns>}}`; columns are nested under `row`
/// so that a column named `completion` is not lost. The program writes one line for each input line, in the same order.
pub(super) struct External {
    name: String,
    command: Vec<String>,
    timeout: Duration,
    process: Option<Process>,
}

impl External {
    /// A source that runs `command` (program and arguments; at least one entry).
    pub(super) fn new(name: String, command: Vec<String>, timeout: Duration) -> Self {
        Self {
            name,
            command,
            timeout,
            process: None,
        }
    }

    fn ask(&mut self, completions: &[Completion]) -> Result<Vec<f32>, String> {
        let process = match &mut self.process {
            Some(process) => process,
            vacant => vacant.insert(Process::start(&self.command)?),
        };
        process.refuse_surplus()?;
        for completion in completions {
            let line = json!({
                "prompt": completion.prompt,
                "completion": completion.response,
                "row": completion.row,
            });
            // A closed pipe means that the program has ended; reading its output gives the reason.
            let _ = process.questions.send(line.to_string());
        }
        let scores = (1..=completions.len())
            .map(|at| {
                let answer = process.answer(self.timeout)?;
                parse(&answer).map_err(|why| format!("answer {at} of {}: {why}", completions.len()))
            })
            .collect::<Result<Vec<f32>, String>>()?;
        process.refuse_surplus()?;
        Ok(scores)
    }
}

impl RewardSource for External {
    fn score(&mut self, completions: &[Completion]) -> Result<Vec<f32>> {
        self.ask(completions).map_err(|message| {
            // Input and output lines no longer correspond: the next call starts the program anew.
            self.process = None;
            Error::Reward {
                name: self.name.clone(),
                message,
            }
        })
    }
}

/// The score in a line such as `{"score": 0.5}`.
fn parse(line: &str) -> Result<f32, String> {
    let expected = "expected {\"score\": <number>}";
    let answer: Value = serde_json::from_str(line)
        .map_err(|error| format!("{expected}, got {} ({error})", quoted(line)))?;
    let score = answer
        .get("score")
        .and_then(Value::as_f64)
        .ok_or_else(|| format!("{expected}, got {}", quoted(line)))? as f32;
    if score.is_finite() {
        Ok(score)
    } else {
        Err(format!("{} is not a finite 32-bit number", quoted(line)))
    }
}

fn quoted(line: &str) -> String {
    let shown: String = line.chars().take(120).collect();
    let dots = if shown.len() < line.len() { " ..." } else { "" };
    format!("`{shown}`{dots}")
}

/// A running program with one thread per stream, so that neither side can block the other.
struct Process {
    child: Child,
    questions: Sender<String>,
    answers: Receiver<String>,
    stderr: Arc<Mutex<Vec<String>>>,
    stderr_closed: Receiver<()>,
}

impl Process {
    fn start(command: &[String]) -> Result<Self, String> {
        let (program, arguments) = command.split_first().ok_or("the command is empty")?;
        let mut child = Command::new(program)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|error| format!("cannot start {program}: {error}"))?;
        let (Some(mut stdin), Some(stdout), Some(stderr)) =
            (child.stdin.take(), child.stdout.take(), child.stderr.take())
        else {
            return Err(format!("{program} was started without its three streams"));
        };

        let (questions, to_write) = mpsc::channel::<String>();
        std::thread::spawn(move || {
            while let Ok(line) = to_write.recv() {
                if writeln!(stdin, "{line}")
                    .and_then(|()| stdin.flush())
                    .is_err()
                {
                    return;
                }
            }
        });
        let (answered, answers) = mpsc::channel();
        std::thread::spawn(move || {
            let mut stdout = BufReader::new(stdout);
            while let Some(line) = next_line(&mut stdout) {
                if answered.send(line).is_err() {
                    return;
                }
            }
        });
        let tail = Arc::new(Mutex::new(Vec::new()));
        let (closing, stderr_closed) = mpsc::channel();
        let kept = Arc::clone(&tail);
        std::thread::spawn(move || {
            let mut stderr = BufReader::new(stderr);
            while let Some(line) = next_line(&mut stderr) {
                if let Ok(mut lines) = kept.lock() {
                    lines.push(line);
                    let surplus = lines.len().saturating_sub(STDERR_LINES);
                    lines.drain(..surplus);
                }
            }
            // The receiver is gone if the source was dropped.
            let _ = closing.send(());
        });
        Ok(Self {
            child,
            questions,
            answers,
            stderr: tail,
            stderr_closed,
        })
    }

    fn answer(&mut self, timeout: Duration) -> Result<String, String> {
        match self.answers.recv_timeout(timeout) {
            Ok(line) => Ok(line),
            Err(RecvTimeoutError::Timeout) => Err(format!(
                "no score within {} s (expected one flushed line for each input line){}",
                timeout.as_secs_f64(),
                self.stderr_tail()
            )),
            Err(RecvTimeoutError::Disconnected) => Err(self.exit_reason()),
        }
    }

    fn refuse_surplus(&self) -> Result<(), String> {
        match self.answers.try_recv() {
            Ok(line) => Err(format!("wrote more lines than it read: {}", quoted(&line))),
            Err(_) => Ok(()),
        }
    }

    /// Why the program's output ended.
    fn exit_reason(&mut self) -> String {
        let deadline = Instant::now() + LAST_WORDS;
        let mut status = self.child.try_wait().ok().flatten();
        while status.is_none() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(5));
            status = self.child.try_wait().ok().flatten();
        }
        // All of it if the stream closes in time, otherwise what has arrived.
        let _ = self.stderr_closed.recv_timeout(LAST_WORDS);
        let how = match status {
            Some(status) => format!("the program ended early ({status})"),
            None => "the program closed its output but runs on".into(),
        };
        format!("{how}{}", self.stderr_tail())
    }

    fn stderr_tail(&self) -> String {
        let lines = self
            .stderr
            .lock()
            .map(|lines| lines.join("\n  "))
            .unwrap_or_default();
        if lines.is_empty() {
            String::new()
        } else {
            format!("; its standard error ends:\n  {lines}")
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Both fail only when the program has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The next line without its line break; invalid UTF-8 is replaced. `None` at the end of the stream.
fn next_line(stream: &mut impl BufRead) -> Option<String> {
    let mut line = Vec::new();
    match stream.read_until(b'\n', &mut line) {
        Ok(read) if read > 0 => Some(String::from_utf8_lossy(&line).trim_end().to_string()),
        _ => None,
    }
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;

    fn shell(script: &str) -> External {
        let command = ["sh", "-c", script].map(String::from).to_vec();
        External::new("sh".into(), command, Duration::from_secs(20))
    }

    fn completions(responses: &[&str]) -> Vec<Completion> {
        responses
            .iter()
            .map(|response| Completion {
                prompt: "p".into(),
                response: (*response).into(),
                row: json!({"completion": "reference"})
                    .as_object()
                    .unwrap()
                    .clone(),
                ..Completion::default()
            })
            .collect()
    }

    fn failure(mut source: External, responses: &[&str]) -> String {
        source
            .score(&completions(responses))
            .unwrap_err()
            .to_string()
    }

    #[test]
    fn one_process_answers_all_calls_in_order() {
        // Counts its lines over both calls: a second process would write 1 again.
        let mut source =
            shell("n=0; while read -r line; do n=$((n+1)); echo \"{\\\"score\\\": $n}\"; done");
        assert_eq!(source.score(&completions(&["a", "b"])).unwrap(), [1.0, 2.0]);
        assert_eq!(source.score(&completions(&["c"])).unwrap(), [3.0]);
        assert_eq!(source.score(&[]).unwrap(), [0.0f32; 0]);
    }

    #[test]
    fn the_line_holds_prompt_response_and_row() {
        let expected =
            r#"{"prompt":"p","completion":"it's \"x\"","row":{"completion":"reference"}}"#;
        let script = format!(
            "read -r line; case \"$line\" in '{}') echo '{{\"score\": -0.25}}';; *) echo \"$line\" >&2;; esac",
            expected.replace('\'', "'\\''")
        );
        let mut source = shell(&script);
        assert_eq!(
            source.score(&completions(&["it's \"x\""])).unwrap(),
            [-0.25]
        );
    }

    #[test]
    fn more_than_a_pipe_holds_does_not_lock_up() {
        // Reads all its input before it writes: 2 MB, far more than a pipe's 64 KiB.
        let long = "x".repeat(10_000);
        let mut source = shell("head -n 200 | sed 's/.*/{\"score\": 1}/'; sleep 30");
        let scores = source
            .score(&completions(&vec![long.as_str(); 200]))
            .unwrap();
        assert_eq!(scores, vec![1.0; 200]);
    }

    #[test]
    fn an_early_end_quotes_the_last_words() {
        let message = failure(
            shell("read -r a; echo '{\"score\": 1}'; echo 'no such model' >&2; exit 3"),
            &["a", "b"],
        );
        assert_eq!(
            message,
            "reward source sh: the program ended early (exit status: 3); its standard error ends:\n  no such model"
        );
    }

    #[test]
    fn silence_is_cut_off() {
        let mut source = shell("sleep 60");
        source.timeout = Duration::from_millis(100);
        let started = Instant::now();
        let message = failure(source, &["a"]);
        assert!(message.contains("no score within 0.1 s"), "{message}");
        assert!(
            started.elapsed() < Duration::from_secs(20),
            "the program was not killed"
        );
    }

    #[test]
    fn answers_that_are_no_score_are_errors() {
        let cases = [
            (
                "{\"score\": null}",
                "answer 1 of 1: expected {\"score\": <number>}, got `{\"score\": null}`",
            ),
            ("{\"reward\": 1}", "expected {\"score\": <number>}"),
            ("{\"score\": NaN}", "expected {\"score\": <number>}"),
            (
                "{\"score\": 1e39}",
                "`{\"score\": 1e39}` is not a finite 32-bit number",
            ),
            ("0.5", "got `0.5`"),
        ];
        for (answer, expected) in cases {
            let message = failure(
                shell(&format!("read -r a; echo '{answer}'; read -r a")),
                &["a"],
            );
            assert!(message.contains(expected), "{answer}: {message}");
        }
    }

    #[test]
    fn more_answers_than_questions_are_an_error() {
        let mut source =
            shell("while read -r a; do echo '{\"score\": 1}'; echo '{\"score\": 2}'; done");
        // The surplus line may arrive after the first call has returned; the second call sees it.
        let first = source.score(&completions(&["a"]));
        std::thread::sleep(Duration::from_millis(300));
        let error = first
            .err()
            .unwrap_or_else(|| source.score(&completions(&["b"])).unwrap_err());
        assert!(
            error.to_string().contains("wrote more lines than it read"),
            "{error}"
        );
    }

    #[test]
    fn a_missing_program_is_named() {
        let command = vec!["no-such-scorer".to_string()];
        let source = External::new("x".into(), command, Duration::from_secs(1));
        let message = failure(source, &["a"]);
        assert!(
            message.starts_with("reward source x: cannot start no-such-scorer: "),
            "{message}"
        );
    }
}
