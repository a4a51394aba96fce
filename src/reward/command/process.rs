//! The running program of a `Command` reward.

use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// Lines of the program's standard error that an error message quotes.
const STDERR_LINES: usize = 8;
/// How long to wait for the exit status and standard error of a program that has closed its output.
const LAST_WORDS: Duration = Duration::from_secs(1);
/// Longest line of its output: a score takes a few bytes.
const LONGEST_ANSWER: usize = 1 << 20;
/// Longest part of a line of its standard error that is kept.
const LONGEST_ERROR: usize = 1 << 12;
/// Answers that may wait to be read: the program waits then.
const MOST_WAITING: usize = 1 << 14;

/// Why there are no scores.
pub(super) enum Failure {
    /// The program has ended, closed its output, or is silent: it may do better once more.
    Gone(String),
    /// It answers what is no answer.
    Wrong(String),
}

/// A running program with one thread per stream, so that neither side can block the other.
pub(super) struct Process {
    child: Child,
    pub(super) questions: Sender<String>,
    answers: Receiver<Result<String, String>>,
    stderr: Arc<Mutex<Vec<String>>>,
    stderr_closed: Receiver<()>,
}

impl Process {
    pub(super) fn start(command: &[String]) -> Result<Self, String> {
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
        let (answered, answers) = mpsc::sync_channel(MOST_WAITING);
        std::thread::spawn(move || {
            let mut stdout = BufReader::new(stdout);
            while let Some((line, is_whole)) = next_line(&mut stdout, LONGEST_ANSWER, false) {
                let answer = match is_whole {
                    true => Ok(line),
                    false => Err(format!(
                        "wrote a line of more than {} MiB: {}",
                        LONGEST_ANSWER >> 20,
                        quoted(&line)
                    )),
                };
                if answered.send(answer).is_err() {
                    return;
                }
            }
        });
        let tail = Arc::new(Mutex::new(Vec::new()));
        let (closing, stderr_closed) = mpsc::channel();
        let kept = Arc::clone(&tail);
        std::thread::spawn(move || {
            let mut stderr = BufReader::new(stderr);
            while let Some((line, _)) = next_line(&mut stderr, LONGEST_ERROR, true) {
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

    pub(super) fn answer(&mut self, timeout: Duration) -> Result<String, Failure> {
        match self.answers.recv_timeout(timeout) {
            Ok(answer) => answer.map_err(Failure::Wrong),
            Err(RecvTimeoutError::Timeout) => Err(Failure::Gone(format!(
                "no score within {} s (expected one flushed line for each input line){}",
                timeout.as_secs_f64(),
                self.stderr_tail()
            ))),
            Err(RecvTimeoutError::Disconnected) => Err(Failure::Gone(self.exit_reason())),
        }
    }

    pub(super) fn refuse_surplus(&self) -> Result<(), String> {
        match self.answers.try_recv() {
            Ok(line) => Err(format!(
                "wrote more lines than it read: {}",
                quoted(&line.unwrap_or_else(|why| why))
            )),
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

/// The next line without its line break, and whether it is whole: of a longer one than `longest` bytes, only so many are kept, and the
/// rest is skipped if `skips` is set, else left in the stream. Invalid UTF-8 is replaced. `None` at the end of the stream.
fn next_line(stream: &mut impl BufRead, longest: usize, skips: bool) -> Option<(String, bool)> {
    let (mut line, mut is_whole, mut read) = (Vec::new(), true, 0);
    loop {
        let bytes = match stream.fill_buf() {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(_) => break,
        };
        if bytes.is_empty() {
            break;
        }
        let end = bytes.iter().position(|&byte| byte == b'\n');
        let part = &bytes[..end.unwrap_or(bytes.len())];
        let kept = part.len().min(longest - line.len());
        line.extend_from_slice(&part[..kept]);
        is_whole &= kept == part.len();
        let used = part.len() + usize::from(end.is_some());
        read += used;
        stream.consume(used);
        if end.is_some() || !is_whole && !skips {
            break;
        }
    }
    let text = || String::from_utf8_lossy(&line).trim_end().to_string();
    (read > 0).then(|| (text(), is_whole))
}

/// A line in a message, cut to a readable length.
pub(super) fn quoted(line: &str) -> String {
    let shown: String = line.chars().take(120).collect();
    let dots = if shown.len() < line.len() { " ..." } else { "" };
    format!("`{shown}`{dots}")
}
