//! Ctrl-C: the first one asks a run to stop after its step, the second one ends the process.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::error::{Error, Result};

/// Exit code of a process ended by Ctrl-C: 128 plus the number of SIGINT.
const ENDED_BY_SIGINT: i32 = 130;

/// The wish that one run stops. Clones share it: the run asks, whoever holds a clone requests. Another run of the same
/// process has its own.
#[derive(Debug, Clone, Default)]
pub struct Interrupt(Arc<AtomicBool>);

impl Interrupt {
    /// An interrupt that Ctrl-C, SIGTERM and SIGHUP request from now on; a second signal ends the process.
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

    /// Asks the run to stop. Returns whether it had been asked before.
    pub fn request(&self) -> bool {
        self.0.swap(true, Ordering::Relaxed)
    }

    /// Whether the run shall stop. Stages ask after every step, write a checkpoint and return.
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
