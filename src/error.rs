//! The error type, by cause: each variant says where, what was expected and what was found.

use std::borrow::Cow;
use std::fmt;
use std::path::{Path, PathBuf};

/// Shorthand used throughout the crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A problem in the user's input, with its place and advice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Where: `recipes/x.ron:12:5`, `stages.ppo.kl_coef` or `data.jsonl:57`.
    pub place: String,
    /// What was expected and what was found.
    pub message: String,
    /// Advice on how to fix it, if there is any.
    pub help: Option<String>,
}

impl Problem {
    /// A problem without advice.
    pub fn new(place: impl Into<String>, message: impl Into<String>) -> Self {
        Self {
            place: place.into(),
            message: message.into(),
            help: None,
        }
    }

    /// The same problem with its place, a key, below the key `path`.
    pub fn below(mut self, path: &str) -> Self {
        self.place = match self.place.as_str() {
            "" => path.to_owned(),
            place => format!("{path}.{place}"),
        };
        self
    }

    /// The same problem with a line of advice.
    pub fn with_help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (place, message) = (shortened(&self.place, 1000), shortened(&self.message, 4000));
        write!(f, "{place}: {message}")?;
        match &self.help {
            Some(help) => write!(f, "\n    help: {}", shortened(help, 4000)),
            None => Ok(()),
        }
    }
}

/// The first `most` characters of a text, with a mark where more follow: names in a foreign file may be as long as the file.
fn shortened(text: &str, most: usize) -> Cow<'_, str> {
    match text.char_indices().nth(most) {
        Some((end, _)) => format!("{} .. (cut)", &text[..end]).into(),
        None => text.into(),
    }
}

/// All errors, by cause.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Invalid or inconsistent arguments.
    #[error("{0}")]
    Usage(String),
    /// All problems of a recipe and of the files it names, or of another input that is checked as a whole; nothing was loaded.
    #[error("{} in {}:{}", count(problems.len(), "problem"), path.display(), listing(problems))]
    Invalid {
        /// The recipe, or the input.
        path: PathBuf,
        /// Every problem found, in the order of the file.
        problems: Vec<Problem>,
    },
    /// A row of a data file cannot be used.
    #[error("{}:{line}: {message}", path.display())]
    Data {
        /// The data file.
        path: PathBuf,
        /// 1-based line; 0 when the whole file is meant.
        line: usize,
        /// Expected and found.
        message: String,
    },
    /// The operating system refused a file operation.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// A verb: "read", "write", "create".
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The system's error.
        #[source]
        source: std::io::Error,
    },
    /// A weight file does not fit the model: all missing, surplus and mis-shaped tensors at once.
    #[error("{}: {}:{}", path.display(), count(problems.len(), "problem"), listing(problems))]
    Weights {
        /// The file or folder.
        path: PathBuf,
        /// One entry per tensor; `place` is the tensor's name.
        problems: Vec<Problem>,
    },
    /// A `config.json`, tokenizer, template or adapter file cannot be used.
    #[error("{}: {message}", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// Expected and found.
        message: String,
    },
    /// The Hugging Face hub cannot be reached or fails, or what it sends is not what it announced.
    #[error("{place}: {message}")]
    Hub {
        /// The repository or file.
        place: String,
        /// What happened and what to do.
        message: String,
    },
    /// A judge's server cannot be reached or refuses.
    #[error("{place}: {message}")]
    Endpoint {
        /// Its address.
        place: String,
        /// What happened and what to do.
        message: String,
    },
    /// The backend is not compiled in, has no device, or failed while running.
    #[error("{0}")]
    Backend(String),
    /// A loss or gradient is not finite; the batch was saved.
    #[error("{stage}, step {step}: {what} is not finite; the batch was saved to {}", saved.display())]
    NonFinite {
        /// The stage's name.
        stage: String,
        /// The optimiser step.
        step: usize,
        /// Which quantity.
        what: String,
        /// Where the offending batch was written.
        saved: PathBuf,
    },
    /// A reward source failed.
    #[error("reward source {name}: {message}")]
    Reward {
        /// The source's name.
        name: String,
        /// Expected and found.
        message: String,
    },
    /// A stage failed on the way: where it was, why, and what is left of it.
    #[error("stage {stage}: {position}: {source}. {kept}")]
    Failed {
        /// The stage's name.
        stage: String,
        /// How far it came: `Sft ended after step 7, in the step that follows`.
        position: String,
        /// Why.
        #[source]
        source: Box<Error>,
        /// The newest checkpoint, the command that continues, and what to do first.
        kept: String,
    },
    /// A stage cannot run or resume.
    #[error("stage {stage}: {message}")]
    Stage {
        /// The stage's name.
        stage: String,
        /// Expected and found.
        message: String,
    },
    /// The user stopped the run; a checkpoint was written.
    #[error(
        "stopped in stage {stage} at step {step}; a checkpoint was written. Continue with: {resume}"
    )]
    Interrupted {
        /// The stage's name.
        stage: String,
        /// Steps done.
        step: usize,
        /// The command that continues.
        resume: String,
    },
}

impl Error {
    /// An [`Error::Io`] builder for `map_err`.
    pub fn io(action: &'static str, path: impl AsRef<Path>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.as_ref().to_path_buf();
        move |source| Self::Io {
            action,
            path,
            source,
        }
    }

    /// An [`Error::Format`].
    pub fn format(path: impl AsRef<Path>, message: impl Into<String>) -> Self {
        Self::Format {
            path: path.as_ref().to_path_buf(),
            message: message.into(),
        }
    }

    /// The exit code: 2 for invalid arguments, an invalid recipe or input, 1 for later failures.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Usage(_) | Self::Invalid { .. } => 2,
            Self::Failed { source, .. } => source.exit_code(),
            _ => 1,
        }
    }
}

pub(crate) fn count(n: usize, noun: &str) -> String {
    format!("{n} {noun}{}", if n == 1 { "" } else { "s" })
}

/// Names for a message: the first ones, and how many more there are.
pub(crate) fn some_of(names: &[impl AsRef<str>]) -> String {
    const SHOWN: usize = 12;
    let shown: Vec<&str> = names.iter().take(SHOWN).map(AsRef::as_ref).collect();
    match names.len().saturating_sub(SHOWN) {
        0 => shown.join(", "),
        more => format!("{} and {more} more", shown.join(", ")),
    }
}

/// Most problems to list: a wrong file can have one for each of a million entries.
const MOST_LISTED: usize = 100;

fn listing(problems: &[Problem]) -> String {
    let shown = problems.iter().take(MOST_LISTED);
    let mut text: String = shown.map(|p| format!("\n  {p}")).collect();
    if problems.len() > MOST_LISTED {
        text.push_str(&format!("\n  .. and {} more", problems.len() - MOST_LISTED));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_problem_is_shown_without_what_is_too_long_to_read() {
        let problem = Problem::new("a".repeat(2000), "é".repeat(5000)).with_help("fine");
        let text = problem.to_string();
        assert_eq!(text.matches('é').count(), 4000);
        assert_eq!(text.matches(" .. (cut)").count(), 2);
        assert!(text.starts_with(&format!("{} ..", "a".repeat(1000))));
        assert!(text.ends_with("help: fine"));
        let short = Problem::new("place", "message").to_string();
        assert_eq!(short, "place: message");
    }
}
