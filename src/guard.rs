//! Errors that a GPU runtime swallows: cubecl runs its work on threads of its own, and a task that panics there is only
//! logged, while the caller goes on with garbage numbers.
//!
//! [`install`] records such panics and the runtime's log records; [`check`] turns them into an error. [`gradients`] keeps
//! threads that train from spoiling each other's gradients.

use std::cell::Cell;
use std::panic::PanicHookInfo;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, Once, PoisonError};

use burn::tensor::backend::Backend;

use crate::error::{Error, Result};

/// Whether anything was recorded since the last [`take`]: the usual answer costs one load.
static PENDING: AtomicBool = AtomicBool::new(false);
static FAILURES: Mutex<Vec<String>> = Mutex::new(Vec::new());

/// Failures kept: one cause often repeats for every launch that follows.
const MOST: usize = 8;
/// Characters kept of one failure.
const LONGEST: usize = 300;

/// Starts recording, once per process. Panics of other threads go to the panic hook that was there before; a logger that
/// was there before stays, and then only panics are recorded.
pub fn install() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let previous = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if on_device_thread() {
                record(describe(info));
            } else {
                previous(info);
            }
        }));
        if log::set_logger(&Recorder).is_ok() {
            log::set_max_level(log::LevelFilter::Warn);
        }
    });
}

/// A thread's turn at computing gradients; the next one's begins when it is dropped.
#[derive(Debug)]
#[must_use = "the turn ends when it is dropped"]
pub struct Turn {
    /// `None` within a turn that the thread has already.
    held: Option<MutexGuard<'static, ()>>,
}

thread_local! {
    static HAS_TURN: Cell<bool> = const { Cell::new(false) };
}

/// Waits for this thread's turn at computing gradients: to be held from the first operation of a graph to the end of its
/// backward pass. A thread that has it goes on.
///
/// burn 0.21 keeps the graphs of all threads in one table, and after a backward pass it frees what looks unused in any of
/// them. The graph of a thread that is between two operations looks so: its first operations vanish, and with them, without
/// an error, the gradients of the parameters behind them.
pub fn gradients() -> Turn {
    static TURN: Mutex<()> = Mutex::new(());
    let held = (!HAS_TURN.get()).then(|| {
        // Whoever panicked left nothing behind that the next one reads.
        TURN.lock().unwrap_or_else(PoisonError::into_inner)
    });
    HAS_TURN.set(true);
    Turn { held }
}

impl Drop for Turn {
    fn drop(&mut self) {
        if self.held.is_some() {
            HAS_TURN.set(false);
        }
    }
}

/// What failed since the last call, and forgets it.
pub fn take() -> Vec<String> {
    if !PENDING.swap(false, Ordering::AcqRel) {
        return Vec::new();
    }
    std::mem::take(&mut *FAILURES.lock().unwrap_or_else(PoisonError::into_inner))
}

/// Waits for the device and reports what failed since the last check. Free on CPU backends, which have nothing to wait
/// for.
///
/// # Errors
/// `Error::Backend` with the first causes, in one line each.
pub fn check<B: Backend>(device: &B::Device) -> Result<()> {
    // The wait itself panics when the device thread is gone.
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

/// One line, cut to a readable length.
fn shorten(message: &str) -> String {
    let words = message.split_whitespace().collect::<Vec<_>>().join(" ");
    match words.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{}..", &words[..end]),
        None => words,
    }
}

struct Recorder;

impl log::Log for Recorder {
    /// Warnings of the layers that swallow errors. wgpu itself warns about mere properties of an adapter: only its
    /// errors count.
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
    fn threads_take_turns_and_a_thread_with_a_turn_goes_on() {
        let turn = gradients();
        drop(gradients());
        let (sender, receiver) = mpsc::channel();
        let other = std::thread::spawn(move || {
            let _turn = gradients();
            sender.send(()).unwrap();
        });
        let wait = Duration::from_millis(50);
        assert!(receiver.recv_timeout(wait).is_err(), "not its turn yet");
        drop(turn);
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
