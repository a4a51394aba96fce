//! A user's program as a reward source: it reads one JSON object a line and writes one `{"score": x}` a line.

mod process;

use std::time::Duration;

use serde_json::{Value, json};

use super::{Completion, RewardSource};
use crate::error::{Error, Result, count};
use process::{Failure, Process, quoted};

/// How long to wait before the first restart; the next ones take twice as long each, up to some seconds.
const FIRST_WAIT: Duration = Duration::from_millis(100);

/// An external scorer, started at its first use and running until dropped. A program that ends or is silent is restarted, and asked about
/// the responses that it has not scored.
///
/// An input line is `{"prompt": .., "completion": <the response>, "row": {<the row's columns>}, "id": n}`; columns are nested under
/// `row` so that a column named `completion` is not lost. The program writes one line for each input line, in the same order; if it
/// repeats the `id`, that is checked.
pub(super) struct External {
    name: String,
    command: Vec<String>,
    timeout: Duration,
    /// Restarts within one call.
    retries: usize,
    process: Option<Process>,
    /// Restarts in all calls.
    restarts: usize,
    messages: Vec<String>,
}

impl External {
    /// A source that runs `command` (program and arguments; at least one entry).
    pub(super) fn new(
        name: String,
        command: Vec<String>,
        timeout: Duration,
        retries: usize,
    ) -> Self {
        Self {
            name,
            command,
            timeout,
            retries,
            process: None,
            restarts: 0,
            messages: Vec::new(),
        }
    }

    /// Asks about `completions`, those of a call that lack `scores`, and adds the scores of those that are answered.
    fn ask(&mut self, completions: &[Completion], scores: &mut Vec<f32>) -> Result<(), Failure> {
        let process = match &mut self.process {
            Some(process) => process,
            vacant => {
                let started = Process::start(&self.command).map_err(Failure::Wrong)?;
                vacant.insert(started)
            }
        };
        process.refuse_surplus().map_err(Failure::Wrong)?;
        // The place in the call: a resumed run asks the same.
        let first = scores.len();
        for (id, completion) in (first..).zip(completions) {
            let line = json!({
                "prompt": completion.prompt,
                "completion": completion.response,
                "row": completion.row,
                "id": id,
            });
            // A closed pipe means that the program has ended; reading its output gives the reason.
            let _ = process.questions.send(line.to_string());
        }
        let count = first + completions.len();
        for id in first..count {
            let answer = process.answer(self.timeout)?;
            let score = parse(&answer, id as u64)
                .map_err(|why| Failure::Wrong(format!("answer {} of {count}: {why}", id + 1)))?;
            scores.push(score);
        }
        process.refuse_surplus().map_err(Failure::Wrong)
    }

    fn error(&self, message: String) -> Error {
        Error::Reward {
            name: self.name.clone(),
            message,
        }
    }
}

impl RewardSource for External {
    fn score(&mut self, completions: &[Completion]) -> Result<Vec<f32>> {
        let mut scores = Vec::with_capacity(completions.len());
        let mut tries = 0;
        loop {
            let left = &completions[scores.len()..];
            let failure = match self.ask(left, &mut scores) {
                Ok(()) => return Ok(scores),
                Err(failure) => failure,
            };
            // Input and output lines no longer correspond: the next call starts the program anew.
            self.process = None;
            match failure {
                Failure::Wrong(why) => return Err(self.error(why)),
                Failure::Gone(why) if tries == self.retries => {
                    let tried = match tries {
                        0 => String::new(),
                        _ => format!(" (restarted {} before)", count(tries, "time")),
                    };
                    return Err(self.error(format!("{why}{tried}")));
                }
                Failure::Gone(why) => {
                    self.messages.push(format!(
                        "reward source {}: {why}; it is restarted, {} of {}",
                        self.name,
                        tries + 1,
                        self.retries
                    ));
                    std::thread::sleep(FIRST_WAIT * (1 << tries.min(6)));
                    tries += 1;
                    self.restarts += 1;
                }
            }
        }
    }

    fn take_messages(&mut self) -> Vec<String> {
        std::mem::take(&mut self.messages)
    }

    fn warnings(&self) -> Vec<String> {
        let restarts = (self.restarts > 0).then(|| {
            format!(
                "{}: the program was restarted {}",
                self.name,
                count(self.restarts, "time")
            )
        });
        restarts.into_iter().collect()
    }
}

/// The score in a line such as `{"score": 0.5}`, which may repeat the response's `id`.
fn parse(line: &str, id: u64) -> Result<f32, String> {
    let expected = "expected {\"score\": <number>}";
    let answer: Value = serde_json::from_str(line)
        .map_err(|error| format!("{expected}, got {} ({error})", quoted(line)))?;
    if let Some(found) = answer.get("id").filter(|found| found.as_u64() != Some(id)) {
        return Err(format!(
            "has the id {found}, expected {id}: answers come in the order of the questions"
        ));
    }
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

#[cfg(all(test, unix))]
mod tests {
    use std::time::Instant;

    use super::*;

    fn shell(script: &str) -> External {
        let command = ["sh", "-c", script].map(String::from).to_vec();
        External::new("sh".into(), command, Duration::from_secs(20), 0)
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
            r#"{"prompt":"p","completion":"it's \"x\"","row":{"completion":"reference"},"id":0}"#;
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
    fn a_program_that_ends_is_restarted_and_asked_about_the_rest() {
        // Each process answers two lines with the text's length and ends.
        let script = "for i in 1 2; do read -r line || exit 0; echo \"{\\\"score\\\": ${#line}}\"; done; echo tired >&2; exit 7";
        let mut source = shell(script);
        source.retries = 2;
        let responses = ["a", "bb", "ccc", "dddd", "eeeee"];
        let scores = source.score(&completions(&responses)).unwrap();
        let first = scores[0];
        assert_eq!(scores, [0.0, 1.0, 2.0, 3.0, 4.0].map(|more| first + more));
        let messages = source.take_messages();
        assert_eq!(messages.len(), 2, "{messages:?}");
        for (at, part) in [
            (0, "tired; it is restarted, 1 of 2"),
            (1, "restarted, 2 of 2"),
        ] {
            assert!(messages[at].contains(part), "{part}: {messages:?}");
        }
        assert!(source.take_messages().is_empty());
        assert_eq!(source.warnings(), ["sh: the program was restarted 2 times"]);
        source.retries = 0;
        let error = source
            .score(&completions(&responses))
            .unwrap_err()
            .to_string();
        assert!(error.contains("exit status: 7"), "{error}");
        source.retries = 1;
        let error = source
            .score(&completions(&responses))
            .unwrap_err()
            .to_string();
        assert!(error.contains("(restarted 1 time before)"), "{error}");
    }

    #[test]
    fn lines_without_end_are_cut_and_other_orders_are_noticed() {
        let long = "head -c 3000000 /dev/zero | tr '\\0' x";
        let message = failure(shell(&format!("{long}; sleep 20")), &["a"]);
        assert!(
            message.contains("a line of more than 1 MiB: `xxx"),
            "{message}"
        );
        assert!(message.len() < 400, "{message}");
        // Of standard error the beginning is kept, and the program is not held up.
        let script = format!("read -r a; {long} >&2; exit 3");
        let message = failure(shell(&script), &["a"]);
        assert!(message.contains("exit status: 3"), "{message}");
        assert!(message.len() < 5000, "{}", message.len());
        let message = failure(
            shell(
                "read -r a; read -r b; for i in 1 0; do echo \"{\\\"score\\\": 1, \\\"id\\\": $i}\"; done",
            ),
            &["a", "b"],
        );
        assert!(
            message.contains("answer 1 of 2: has the id 1, expected 0"),
            "{message}"
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
        let source = External::new("x".into(), command, Duration::from_secs(1), 2);
        let message = failure(source, &["a"]);
        assert!(
            message.starts_with("reward source x: cannot start no-such-scorer: "),
            "{message}"
        );
    }
}
