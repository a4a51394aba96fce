//! A program started once for each response: unit tests of written code, a proof checker.

use std::io::{Read, Write};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rayon::prelude::*;
use serde_json::{Value, json};

use crate::error::{Error, Result};
use crate::reward::{Completion, RewardSource};

/// Bytes of a program's output that are read; of more, the beginning is lost.
const MAX_OUTPUT: u64 = 1 << 16;
/// Between two looks at whether a program has ended.
const TICK: Duration = Duration::from_millis(2);

/// The score is that of the last output line `{"score": x}`, or else 1 if the program ends with exit status 0 and 0 if not. A program that
/// runs longer than `timeout` is ended and scores 0, which is counted.
///
/// Its standard input is `{"prompt": .., "completion": .., "row": {..}}` on one line, then its end.
pub(in crate::reward) struct Program {
    command: Vec<String>,
    timeout: Duration,
    name: String,
    /// Responses scored, and programs that were ended.
    scored: usize,
    timeouts: usize,
}

impl Program {
    /// A source that runs `command` (program and arguments; at least one entry) for each response.
    pub(in crate::reward) fn new(name: String, command: Vec<String>, timeout: Duration) -> Self {
        Self {
            command,
            timeout,
            name,
            scored: 0,
            timeouts: 0,
        }
    }

    /// The score of one response; `None` if the program took too long.
    fn run(&self, completion: &Completion) -> Result<Option<f32>, String> {
        let (program, arguments) = self.command.split_first().ok_or("the command is empty")?;
        let mut child = Command::new(program)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .map_err(|error| format!("cannot start {program}: {error}"))?;
        let question = json!({
            "prompt": completion.prompt,
            "completion": completion.response,
            "row": completion.row,
        });
        let (input, output) = (child.stdin.take(), child.stdout.take());
        // One thread per stream, so that neither side can block the other.
        let writer = std::thread::spawn(move || {
            // A program need not read its input.
            let _ = input.map(|mut input| writeln!(input, "{question}"));
        });
        let reader = std::thread::spawn(move || {
            let mut text = Vec::new();
            if let Some(output) = output {
                let _ = output.take(MAX_OUTPUT).read_to_end(&mut text);
            }
            String::from_utf8_lossy(&text).into_owned()
        });
        let Some(success) = wait(&mut child, self.timeout)? else {
            // Grandchildren may hold the streams open: the threads end with them.
            return Ok(None);
        };
        let _ = writer.join();
        let output = reader.join().map_err(|_| "its output could not be read")?;
        score_line(&output)
            .unwrap_or(Ok(f32::from(u8::from(success))))
            .map(Some)
    }
}

impl RewardSource for Program {
    fn score(&mut self, completions: &[Completion]) -> Result<Vec<f32>> {
        let scores: Result<Vec<Option<f32>>, String> = completions
            .par_iter()
            .map(|completion| self.run(completion))
            .collect();
        let scores = scores.map_err(|message| Error::Reward {
            name: self.name.clone(),
            message,
        })?;
        self.scored += scores.len();
        self.timeouts += scores.iter().filter(|score| score.is_none()).count();
        Ok(scores.into_iter().map(Option::unwrap_or_default).collect())
    }

    fn warnings(&self) -> Vec<String> {
        let (timeouts, scored) = (self.timeouts, self.scored);
        (timeouts > 0)
            .then(|| {
                format!(
                    "{}: {timeouts} of {scored} programs took longer than {} s, were ended and scored 0",
                    self.name,
                    self.timeout.as_secs_f64()
                )
            })
            .into_iter()
            .collect()
    }
}

/// Whether the program ended with exit status 0; `None` if it ran longer than `timeout` and was ended.
fn wait(child: &mut Child, timeout: Duration) -> Result<Option<bool>, String> {
    let deadline = Instant::now() + timeout;
    loop {
        match child.try_wait() {
            Ok(Some(status)) => return Ok(Some(status.success())),
            Ok(None) if Instant::now() < deadline => std::thread::sleep(TICK),
            Ok(None) => {
                // Both fail only when the program has ended already.
                let _ = child.kill();
                let _ = child.wait();
                return Ok(None);
            }
            Err(error) => return Err(format!("cannot wait for the program: {error}")),
        }
    }
}

/// The score of the last line that is a JSON object with one; an error if it is no finite number.
fn score_line(output: &str) -> Option<Result<f32, String>> {
    let line = output
        .lines()
        .rev()
        .find(|line| line.trim_start().starts_with('{'))?;
    let answer: Value = serde_json::from_str(line).ok()?;
    let score = answer.get("score")?;
    let number = score
        .as_f64()
        .map(|score| score as f32)
        .filter(|score| score.is_finite());
    Some(number.ok_or_else(|| format!("expected {{\"score\": <number>}}, got `{line}`")))
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;

    fn shell(script: &str, timeout_s: f64) -> Program {
        let command = ["sh", "-c", script].map(String::from).to_vec();
        Program::new(
            "program(sh)".into(),
            command,
            Duration::from_secs_f64(timeout_s),
        )
    }

    fn completions(responses: &[&str]) -> Vec<Completion> {
        (responses.iter())
            .map(|response| Completion {
                response: (*response).into(),
                ..Completion::default()
            })
            .collect()
    }

    #[test]
    fn exit_status_or_score() {
        let mut source = shell("grep -q right", 20.0);
        let scores = source.score(&completions(&["right", "wrong", "all right"]));
        assert_eq!(scores.unwrap(), [1.0, 0.0, 1.0]);
        let mut source = shell("echo note; echo '{\"score\": 0.25}'; exit 1", 20.0);
        assert_eq!(source.score(&completions(&["a"])).unwrap(), [0.25]);
        assert!(source.warnings().is_empty());
    }

    #[test]
    fn a_program_that_hangs_scores_nothing_and_is_counted() {
        let mut source = shell(
            "read -r line; case \"$line\" in *slow*) exec sleep 60;; esac",
            0.5,
        );
        let started = Instant::now();
        assert_eq!(
            source.score(&completions(&["slow", "fast"])).unwrap(),
            [0.0, 1.0]
        );
        assert!(started.elapsed() < Duration::from_secs(20));
        assert_eq!(
            source.warnings(),
            ["program(sh): 1 of 2 programs took longer than 0.5 s, were ended and scored 0"]
        );
    }

    #[test]
    fn bad_scores_and_missing_programs_are_errors() {
        let message =
            |mut source: Program| source.score(&completions(&["a"])).unwrap_err().to_string();
        assert!(
            message(shell("echo '{\"score\": \"high\"}'", 20.0))
                .contains("expected {\"score\": <number>}")
        );
        let command = vec!["no-such-program".to_owned()];
        let source = Program::new("program(x)".into(), command, Duration::from_secs(1));
        assert!(
            message(source).starts_with("reward source program(x): cannot start no-such-program: ")
        );
    }
}
