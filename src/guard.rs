//! Guards against two hazards of the runtimes below.
//!
//! GPU runtimes swallow errors: cubecl runs work on its own threads, and a panic there is only logged while the caller continues
//! with garbage numbers. [`install`] records such panics and the runtime's log records; [`check`] turns them into an error.
//!
//! A panic of the program or of a library is a defect, and ends in an error all the same: [`catch`].
//!
//! Threads that train at the same time lose gradients; [`lock_gradients`] serialises them.

mod caught;
mod contained;

use std::cell::Cell;
use std::panic::PanicHookInfo;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, Once, PoisonError};

use burn::tensor::backend::Backend;

pub use self::caught::{PLEASE_REPORT, catch};
pub(crate) use self::contained::{Failure, contain, contain_within};
use crate::error::{Error, Result};

/// Whether anything was recorded since the last [`take`]: the common case costs one load.
static PENDING: AtomicBool = AtomicBool::new(false);
static FAILURES: Mutex<Vec<String>> = Mutex::new(Vec::new());

/// Most failures to record: one cause often repeats for every following launch.
const MOST: usize = 8;
/// Most characters of one failure.
const LONGEST: usize = 300;

/// Starts recording, once per process. Panics of other threads go to the previous panic hook. If a logger is installed already it
/// remains, and only panics are recorded.
pub fn install() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let previous = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if contained::is_contained() {
                if let Some(place) = info.location() {
                    contained::note(place.file(), place.line());
                }
            } else if on_device_thread() {
                record(describe(info));
            } else if caught::is_caught() {
                caught::note(describe(info));
                if std::env::var_os("RUST_BACKTRACE").is_some_and(|value| value != "0") {
                    previous(info);
                }
            } else {
                previous(info);
            }
        }));
        if log::set_logger(&Recorder).is_ok() {
            log::set_max_level(log::LevelFilter::Warn);
        }
    });
}

/// Exclusive right of a thread to compute gradients, until dropped.
#[derive(Debug)]
#[must_use = "the lock is released when it is dropped"]
pub struct GradientLock {
    /// Whether dropping it releases the lock: not if the thread already held it.
    releases: bool,
}

/// Whether a thread has the lock.
static TURN: Mutex<bool> = Mutex::new(false);
/// Told when the lock is released.
static FREE: Condvar = Condvar::new();

thread_local! {
    static HAS_TURN: Cell<bool> = const { Cell::new(false) };
}

/// Waits for the lock on computing gradients, to be held from the first operation of a graph to the end of its backward pass.
/// Reentrant.
///
/// burn 0.21 has one table for the graphs of all threads, and after a backward pass frees nodes of any graph that look unused. Between
/// two operations another thread's graph looks unused: its first nodes are freed, and the gradients of the parameters behind
/// them are silently lost.
pub fn lock_gradients() -> GradientLock {
    let releases = !HAS_TURN.get();
    if releases {
        take_turn();
    }
    GradientLock { releases }
}

/// Waits for something that other threads do with the lock released, and takes it again. Not between the operations of a graph.
pub(crate) fn without_gradients<T>(wait: impl FnOnce() -> T) -> T {
    if !HAS_TURN.get() {
        return wait();
    }
    give_turn();
    /// Takes the lock again, also when the wait ends in a panic: the locks around it release it.
    struct Again;
    impl Drop for Again {
        fn drop(&mut self) {
            take_turn();
        }
    }
    let _again = Again;
    wait()
}

fn take_turn() {
    // Poisoning is harmless: no code panics while it holds the mutex.
    let mut taken = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    while *taken {
        taken = FREE.wait(taken).unwrap_or_else(PoisonError::into_inner);
    }
    *taken = true;
    HAS_TURN.set(true);
}

fn give_turn() {
    HAS_TURN.set(false);
    *TURN.lock().unwrap_or_else(PoisonError::into_inner) = false;
    FREE.notify_one();
}

impl Drop for GradientLock {
    fn drop(&mut self) {
        if self.releases {
            give_turn();
        }
    }
}

/// Returns and clears the recorded failures.
pub fn take() -> Vec<String> {
    if !PENDING.swap(false, Ordering::AcqRel) {
        return Vec::new();
    }
    std::mem::take(&mut *FAILURES.lock().unwrap_or_else(PoisonError::into_inner))
}

/// Waits for the device and reports failures since the last check. Free on CPU backends.
///
/// # Errors
/// `Error::Backend` with the first causes, one line each.
pub fn check<B: Backend>(device: &B::Device) -> Result<()> {
    // The wait itself panics if the device thread has ended.
    let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| B::sync(device)));
    let mut failures = take();
    match outcome {
        Ok(Ok(())) => {}
        Ok(Err(error)) => failures.push(shorten(&error.to_string())),
        Err(_) => failures.push("the device thread is gone".to_owned()),
    }
    if failures.is_empty() {
        return Ok(());
    }
    Err(Error::Backend(format!(
        "the device failed: {}",
        failures.join("; ")
    )))
}

/// cubecl names its device threads `DSD-<type>-<index>`.
fn on_device_thread() -> bool {
    std::thread::current()
        .name()
        .is_some_and(|name| name.starts_with("DSD-"))
}

fn record(failure: String) {
    let mut failures = FAILURES.lock().unwrap_or_else(PoisonError::into_inner);
    if failures.len() < MOST && !failures.contains(&failure) {
        failures.push(failure);
    }
    PENDING.store(true, Ordering::Release);
}

fn describe(info: &PanicHookInfo<'_>) -> String {
    let message = info.payload_as_str().unwrap_or("panic without a message");
    match info.location() {
        Some(place) => {
            let file = place.file().rsplit('/').next().unwrap_or_default();
            format!("{} ({file}:{})", shorten(message), place.line())
        }
        None => shorten(message),
    }
}

/// The message on one line, cut to a readable length.
fn shorten(message: &str) -> String {
    let words = message.split_whitespace().collect::<Vec<_>>().join(" ");
    match words.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{}..", &words[..end]),
        None => words,
    }
}

struct Recorder;

impl log::Log for Recorder {
    /// Warnings of the layers that swallow errors; of wgpu, which also warns about properties of adapters, errors only.
    fn enabled(&self, metadata: &log::Metadata<'_>) -> bool {
        let from = |prefixes: &[&str]| {
            prefixes
                .iter()
                .any(|prefix| metadata.target().starts_with(prefix))
        };
        match metadata.level() {
            log::Level::Error => from(&["cubecl", "cubek", "burn_cubecl", "wgpu"]),
            log::Level::Warn => from(&["cubecl", "cubek", "burn_cubecl"]),
            _ => false,
        }
    }

    fn log(&self, line: &log::Record<'_>) {
        if self.enabled(line.metadata()) {
            record(shorten(&format!("{}: {}", line.target(), line.args())));
        }
    }

    fn flush(&self) {}
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::time::Duration;

    use super::*;

    #[test]
    fn gradients_are_computed_by_one_thread_at_a_time_and_the_lock_is_reentrant() {
        let lock = lock_gradients();
        drop(lock_gradients());
        let (sender, receiver) = mpsc::channel();
        let other = std::thread::spawn(move || {
            let _lock = lock_gradients();
            sender.send(()).unwrap();
        });
        let wait = Duration::from_millis(50);
        assert!(receiver.recv_timeout(wait).is_err(), "not its turn yet");
        drop(lock);
        receiver.recv().unwrap();
        other.join().unwrap();
    }

    /// One test, because the record is global to the process.
    #[test]
    fn device_panics_and_warnings_become_errors() {
        type B = burn::backend::NdArray;
        install();
        install();
        take();
        check::<B>(&Default::default()).unwrap();
        // Not a device: recorded nowhere.
        log::warn!(target: "hyper::client", "ignored");
        log::info!(target: "cubecl_runtime", "ignored");
        log::warn!(target: "wgpu_hal::vulkan", "ignored");
        check::<B>(&Default::default()).unwrap();
        let device = std::thread::Builder::new().name("DSD-0-0".into());
        let task = device.spawn(|| panic!("can't allocate\n  buffer")).unwrap();
        task.join().unwrap_err();
        log::warn!(target: "cubecl_common::device", "Task failed: {}", "x".repeat(400));
        let error = check::<B>(&Default::default()).unwrap_err().to_string();
        assert!(
            error.starts_with("the device failed: can't allocate buffer (guard.rs:"),
            "{error}"
        );
        assert!(
            error.contains("; cubecl_common::device: Task failed: xxx"),
            "{error}"
        );
        assert!(error.ends_with("xxx.."), "{error}");
        assert!(error.len() < 500, "{error}");
        check::<B>(&Default::default()).unwrap();
    }
}
