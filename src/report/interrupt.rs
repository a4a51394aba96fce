//! Ctrl-C: the first one asks the stage to stop after its step, the second one ends the process.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::error::{Error, Result};

static REQUESTED: AtomicBool = AtomicBool::new(false);
static INSTALLED: OnceLock<Result<(), String>> = OnceLock::new();

/// Exit code of a process ended by Ctrl-C: 128 plus the number of SIGINT.
const ENDED_BY_SIGINT: i32 = 130;

/// Takes over Ctrl-C, SIGTERM and SIGHUP for this process; calling it again does nothing.
///
/// # Errors
/// When the system refuses, or another handler is in place.
pub fn install() -> Result<()> {
    INSTALLED
        .get_or_init(|| ctrlc::set_handler(on_signal).map_err(|e| e.to_string()))
        .clone()
        .map_err(|e| Error::Usage(format!("cannot take over Ctrl-C: {e}")))
}

/// True once the user wants the run to stop. Stages ask after every step, write a checkpoint and return.
pub fn interrupted() -> bool {
    REQUESTED.load(Ordering::Relaxed)
}

/// Asks the run to stop, as a first Ctrl-C does. Returns whether it had been asked before.
pub fn request() -> bool {
    REQUESTED.swap(true, Ordering::Relaxed)
}

/// Forgets a request.
pub fn clear() {
    REQUESTED.store(false, Ordering::Relaxed);
}

// Runs on a thread of the ctrlc crate, not inside the signal handler: printing is safe.
fn on_signal() {
    if request() {
        std::process::exit(ENDED_BY_SIGINT);
    }
    eprintln!("\nstopping after this step with a checkpoint; Ctrl-C again quits at once");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_holds_until_it_is_cleared() {
        clear();
        assert!(!interrupted());
        assert!(!request());
        assert!(interrupted());
        assert!(request());
        clear();
        assert!(!interrupted());
    }
}
