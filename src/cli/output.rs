//! Output of results: to stdout, atomically to a file, or to a device or FIFO.

use std::io::{ErrorKind, IsTerminal, Write};
use std::path::Path;

use serde::Serialize;

use crate::atomic::{file_problem, write_output};
use crate::error::{Error, Result};
use crate::terminal::escaped;

/// Whether `path` means stdout. Opening it by its name in `/dev` would overwrite earlier output in a redirected file.
pub(super) fn is_stdout(path: &Path) -> bool {
    path == Path::new("-") || path == Path::new("/dev/stdout")
}

/// Refuses an output that no file can be written to, before anything is computed: a folder, a socket, a disk, a device that is full
/// or not one for text, and a file without an existing folder.
///
/// # Errors
/// `Error::Usage`.
pub(super) fn check(path: &Path) -> Result<()> {
    match file_problem(path).filter(|_| !is_stdout(path)) {
        None => Ok(()),
        Some(problem) => Err(Error::Usage(format!(
            "--output {}: {problem}",
            path.display()
        ))),
    }
}

/// Writes `text` to stdout; to a terminal without control characters. A closed pipe (`| head`) is not an error.
///
/// # Errors
/// `Error::Io`.
pub(super) fn print(text: &str) -> Result<()> {
    match std::io::stdout().is_terminal() {
        true => print_coloured(&escaped(text)),
        false => print_coloured(text),
    }
}

/// Writes `text`, which has escape sequences of ours and none of others, to stdout.
///
/// # Errors
/// As [`print`].
pub(super) fn print_coloured(text: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        outcome => outcome.map_err(Error::io("write", "stdout")),
    }
}

/// Writes one JSON object a line to a file, or to stdout if the path is `-` or `/dev/stdout`.
///
/// # Errors
/// `Error::Io`; a file at `path` is unchanged then.
pub(super) fn write_lines<T: Serialize>(path: &Path, rows: &[T]) -> Result<()> {
    let mut text = String::new();
    for row in rows {
        text.push_str(&json(path, row)?);
        text.push('\n');
    }
    write_text(path, &text)
}

/// Writes one JSON object over several lines.
///
/// # Errors
/// As [`write_lines`].
pub(super) fn write_object<T: Serialize>(path: &Path, value: &T) -> Result<()> {
    let text =
        serde_json::to_string_pretty(value).map_err(|e| Error::format(path, e.to_string()))?;
    write_text(path, &format!("{text}\n"))
}

fn json<T: Serialize>(path: &Path, row: &T) -> Result<String> {
    serde_json::to_string(row).map_err(|e| Error::format(path, e.to_string()))
}

fn write_text(path: &Path, text: &str) -> Result<()> {
    if is_stdout(path) {
        print(text)
    } else {
        write_output(path, text.as_bytes())
    }
}
