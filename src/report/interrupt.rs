//! Ctrl-C: the first one makes a run stop after its current step, the second one ends the process.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::error::{Error, Result};

/// Exit code of a process ended by Ctrl-C: 128 plus the number of SIGINT.
pub(crate) const ENDED_BY_SIGINT: i32 = 130;

/// A request to stop one run, shared by its clones: the run polls it, any holder of a clone sets it. Every run of a process
/// has its own.
#[derive(Debug, Clone, Default)]
pub struct Interrupt(Arc<AtomicBool>);

impl Interrupt {
    /// An interrupt that Ctrl-C, SIGTERM and SIGHUP set from now on; a second signal ends the process.
    ///
    /// # Errors
    /// When the system refuses, or the process has a handler already.
    pub fn on_signal() -> Result<Self> {
        let interrupt = Self::default();
        let signalled = interrupt.clone();
        // Runs on a thread of the ctrlc crate, not inside the signal handler: printing is safe.
        ctrlc::set_handler(move || {
            if signalled.request() {
                std::process::exit(ENDED_BY_SIGINT);
            }
            eprintln!("\nstopping after this step with a checkpoint; Ctrl-C again quits at once");
        })
        .map_err(|e| Error::Usage(format!("cannot take over Ctrl-C: {e}")))?;
        Ok(interrupt)
    }

    /// Requests that the run stops. Returns whether that had been requested before.
    pub fn request(&self) -> bool {
        self.0.swap(true, Ordering::Relaxed)
    }

    /// Whether the run is to stop. Stages check this after every step, write a checkpoint and return.
    pub fn requested(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clones_share_a_request_and_others_do_not() {
        let (mine, other) = (Interrupt::default(), Interrupt::default());
        let shared = mine.clone();
        assert!(!mine.request());
        assert!(shared.requested() && shared.request());
        assert!(!other.requested());
    }
}
