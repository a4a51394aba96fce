//! The part of a step that only reads the trained weights (sampling, scoring): when it fails, the steps before it are not lost.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use super::Session;
use super::journal::Journal;
use crate::collective;
use crate::error::{Error, Result};
use crate::ops::ModelBackend;

/// How a part of a step failed.
pub(super) enum Failed {
    Error(Error),
    Panic(Box<dyn Any + Send>),
}

/// Does a part of a step that changes neither weights nor optimiser; a panic in it is caught.
///
/// # Errors
/// How it failed: the caller writes a checkpoint ([`rescue`]), then goes on with [`Failed::end`].
pub(super) fn attempt<T>(work: impl FnOnce() -> Result<T>) -> Result<T, Failed> {
    match catch_unwind(AssertUnwindSafe(work)) {
        Ok(outcome) => outcome.map_err(Failed::Error),
        Err(panic) => Err(Failed::Panic(panic)),
    }
}

impl Failed {
    /// The error; a panic goes on to the one who reports it.
    pub(super) fn end(self) -> Error {
        match self {
            Self::Error(error) => error,
            Self::Panic(panic) => resume_unwind(panic),
        }
    }
}

/// Has `save` write a checkpoint of the steps before a failure, if there is none yet and the run's folder is still there, and reports it.
/// That it fails too is reported, and does not hide the first failure.
pub(super) fn rescue<B: ModelBackend>(
    session: &mut Session<'_, B>,
    journal: &mut Journal,
    save: impl FnOnce(&mut Journal) -> Result<()>,
) {
    let step = journal.position.step;
    // Of several ranks one may have failed alone, and writing takes all of them.
    if !collective::ranks().is_alone() || !journal.lacks_checkpoint() {
        return;
    }
    let message = match attempt(|| save(journal)) {
        Ok(()) => format!("a checkpoint of the {step} steps before the failure was written"),
        Err(Failed::Error(error)) => {
            format!("no checkpoint could be written after the failure: {error}")
        }
        Err(Failed::Panic(_)) => {
            "no checkpoint could be written after the failure: the weights cannot be read".into()
        }
    };
    let message = format!("{}: {message}", journal.stage());
    session.reporter.message(&message);
}
