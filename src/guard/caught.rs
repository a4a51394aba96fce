//! Panics as errors: a panic of this program or of a library is a defect, and the run ends with an error all the same.

use std::cell::{Cell, RefCell};
use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use super::{install, shorten};

/// What to do about a defect.
pub const PLEASE_REPORT: &str =
    "Please report it with this message, the version (`temper --version`) and what was run";

/// Calls of [`catch`] that are at work.
static CATCHING: AtomicUsize = AtomicUsize::new(0);
/// The first panic of a worker since the outermost of them began.
static OF_WORKERS: Mutex<Option<String>> = Mutex::new(None);

thread_local! {
    static IS_CATCHING: Cell<bool> = const { Cell::new(false) };
    /// The last panic of this thread.
    static OWN: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// Does `work`; a panic in it, or in rayon's workers for it, is returned as its message and place instead of being printed.
///
/// # Errors
/// The message of the panic. What `work` was changing may be left half done.
pub fn catch<T>(work: impl FnOnce() -> T) -> Result<T, String> {
    install();
    let outer = IS_CATCHING.replace(true);
    OWN.set(None);
    if CATCHING.fetch_add(1, Ordering::AcqRel) == 0 {
        take_of_workers();
    }
    let outcome = std::panic::catch_unwind(AssertUnwindSafe(work));
    CATCHING.fetch_sub(1, Ordering::AcqRel);
    IS_CATCHING.set(outer);
    outcome.map_err(|payload| {
        let noted = OWN.take().or_else(take_of_workers);
        noted.unwrap_or_else(|| match payload.downcast_ref::<&str>() {
            Some(message) => shorten(message),
            None => "a panic without a message".to_owned(),
        })
    })
}

/// Whether a panic of this thread reaches a call of [`catch`]: rayon passes those of its workers on.
pub(super) fn is_caught() -> bool {
    let is_worker = || rayon::current_thread_index().is_some();
    IS_CATCHING.get() || CATCHING.load(Ordering::Acquire) > 0 && is_worker()
}

pub(super) fn note(message: String) {
    match IS_CATCHING.get() {
        true => OWN.set(Some(message)),
        false => {
            let mut first = OF_WORKERS.lock().unwrap_or_else(PoisonError::into_inner);
            first.get_or_insert(message);
        }
    }
}

fn take_of_workers() -> Option<String> {
    (OF_WORKERS.lock().unwrap_or_else(PoisonError::into_inner)).take()
}

#[cfg(test)]
mod tests {
    use rayon::prelude::*;

    use super::*;

    #[test]
    fn panics_become_messages_with_their_place() {
        assert_eq!(catch(|| 3), Ok(3));
        let message = catch(|| panic!("index {} is\n  wrong", 7)).unwrap_err();
        assert!(
            message.starts_with("index 7 is wrong (caught.rs:"),
            "{message}"
        );
        // Of a worker.
        let outcome = catch(|| {
            (0..64)
                .into_par_iter()
                .for_each(|i| assert!(i != 33, "no {i}"))
        });
        let message = outcome.unwrap_err();
        assert!(message.starts_with("no 33 (caught.rs:"), "{message}");
        // Inside of another one.
        let outer = catch(|| catch(|| panic!("inner")).unwrap_err().len());
        assert!(outer.unwrap() > 5);
    }
}
