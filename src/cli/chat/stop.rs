//! Ctrl-C in a conversation: it ends an answer, and between answers the program.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::error::{Error, Result};
use crate::report::ENDED_BY_SIGINT;

/// Whether a model is answering, and whether it was asked to stop.
#[derive(Debug, Clone, Default)]
pub(super) struct Stop {
    answering: Arc<AtomicBool>,
    asked: Arc<AtomicBool>,
}

impl Stop {
    /// Takes over Ctrl-C, SIGTERM and SIGHUP.
    ///
    /// # Errors
    /// When the system refuses.
    pub(super) fn on_signal() -> Result<Self> {
        let stop = Self::default();
        let signalled = stop.clone();
        ctrlc::set_handler(move || {
            let answering = signalled.answering.load(Ordering::Relaxed);
            if !answering || signalled.asked.swap(true, Ordering::Relaxed) {
                std::process::exit(ENDED_BY_SIGINT);
            }
        })
        .map_err(|e| Error::Usage(format!("cannot take over Ctrl-C: {e}")))?;
        Ok(stop)
    }

    /// Runs `answer`, which a signal from now on ends early.
    pub(super) fn during<T>(&self, answer: impl FnOnce(&Self) -> T) -> T {
        self.asked.store(false, Ordering::Relaxed);
        self.answering.store(true, Ordering::Relaxed);
        let answered = answer(self);
        self.answering.store(false, Ordering::Relaxed);
        answered
    }

    /// Whether the answer is to end.
    pub(super) fn asked(&self) -> bool {
        self.asked.load(Ordering::Relaxed)
    }
}
