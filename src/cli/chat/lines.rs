//! The user's lines: edited on a terminal, with a history that survives, or read from a pipe.

use std::io::{BufRead, IsTerminal};
use std::path::PathBuf;

use rustyline::DefaultEditor;
use rustyline::error::ReadlineError;

use crate::error::{Error, Result};

/// Where lines come from.
pub(super) enum Lines {
    /// A terminal; the file keeps earlier lines.
    Edited {
        editor: Box<DefaultEditor>,
        file: PathBuf,
    },
    /// Anything else.
    Piped,
}

impl Lines {
    /// The lines of stdin. `file`: earlier lines, for the arrow keys.
    ///
    /// # Errors
    /// If the terminal cannot be used.
    pub(super) fn open(file: PathBuf) -> Result<Self> {
        if !std::io::stdin().is_terminal() {
            return Ok(Self::Piped);
        }
        let mut editor = Box::new(DefaultEditor::new().map_err(failed)?);
        // There is none at first.
        let _ = editor.load_history(&file);
        Ok(Self::Edited { editor, file })
    }

    /// The next line; `None` at the end of the input, or at Ctrl-C.
    ///
    /// # Errors
    /// Those of reading.
    pub(super) fn next(&mut self) -> Result<Option<String>> {
        match self {
            Self::Piped => {
                let mut line = String::new();
                let read = std::io::stdin().lock().read_line(&mut line);
                let read = read.map_err(Error::io("read", "stdin"))?;
                Ok((read > 0).then_some(line))
            }
            Self::Edited { editor, file } => match editor.readline("> ") {
                Ok(line) => {
                    // A history that cannot be kept is no reason to end.
                    if editor.add_history_entry(&line).unwrap_or(false) {
                        let _ = editor.save_history(file);
                    }
                    Ok(Some(line))
                }
                Err(ReadlineError::Eof | ReadlineError::Interrupted) => Ok(None),
                Err(error) => Err(failed(error)),
            },
        }
    }
}

fn failed(error: ReadlineError) -> Error {
    Error::Usage(format!("the terminal cannot be read: {error}"))
}
