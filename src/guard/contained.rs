//! Calls into libraries that panic on bad input, or do not end on it.

use std::any::Any;
use std::cell::{Cell, RefCell};
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::Duration;

use super::install;

thread_local! {
    /// How many contained calls run on this thread, one within the other.
    static DEPTH: Cell<usize> = const { Cell::new(0) };
    /// Where the last contained panic was: the source file and line.
    static PLACE: RefCell<Option<(String, u32)>> = const { RefCell::new(None) };
    /// The thread that runs this thread's watched calls.
    static WORKER: RefCell<Option<Sender<Job>>> = const { RefCell::new(None) };
}

type Job = Box<dyn FnOnce() + Send>;

/// Stack of a watched call. The main thread's usual size.
const STACK: usize = 8 << 20;

/// How a contained call failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Failure {
    /// It panicked.
    Panic {
        /// The panic's message.
        message: String,
        /// The source file with the panic.
        file: String,
        /// Its line.
        line: u32,
    },
    /// It did not return in time. It still runs.
    TimeOut(Duration),
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Panic {
                message,
                file,
                line,
            } => {
                let name = file.rsplit('/').next().unwrap_or_default();
                write!(f, "{message} ({name}:{line})")
            }
            Self::TimeOut(limit) => write!(f, "it took more than {} s", limit.as_secs()),
        }
    }
}

/// Whether a contained call runs on this thread: its panics are not reported.
pub(super) fn is_contained() -> bool {
    DEPTH.get() > 0
}

/// Remembers where a contained call panicked.
pub(super) fn note(file: &str, line: u32) {
    PLACE.set(Some((file.to_owned(), line)));
}

/// Calls `f`; a panic is an error, and nothing is printed.
pub(crate) fn contain<T>(f: impl FnOnce() -> T) -> Result<T, Failure> {
    install();
    DEPTH.set(DEPTH.get() + 1);
    let outcome = catch_unwind(AssertUnwindSafe(f));
    DEPTH.set(DEPTH.get() - 1);
    outcome.map_err(|payload| {
        let (file, line) = PLACE.take().unwrap_or_default();
        Failure::Panic {
            message: text(payload.as_ref()),
            file,
            line,
        }
    })
}

/// [`contain`] on another thread of this thread's, for at most `limit`. A thread cannot be ended: a call that takes longer runs on,
/// and the next one gets another thread.
pub(crate) fn contain_within<T: Send + 'static>(
    limit: Duration,
    f: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Failure> {
    let (sender, outcome) = channel();
    let job: Job = Box::new(move || {
        // The caller may have given up.
        drop(sender.send(contain(f)));
    });
    WORKER.with_borrow_mut(|worker| {
        let refused = match worker {
            Some(jobs) => jobs.send(job).err().map(|error| error.0),
            None => Some(job),
        };
        if let Some(job) = refused {
            let (jobs, queue) = channel();
            let thread = std::thread::Builder::new().stack_size(STACK);
            // Without a thread the job is dropped, which the caller sees as the end of its channel.
            *worker = thread.spawn(move || work(&queue)).ok().map(|_| jobs);
            if let Some(jobs) = worker {
                drop(jobs.send(job));
            }
        }
    });
    match outcome.recv_timeout(limit) {
        Ok(outcome) => outcome,
        Err(RecvTimeoutError::Timeout) => {
            WORKER.set(None);
            Err(Failure::TimeOut(limit))
        }
        Err(RecvTimeoutError::Disconnected) => {
            WORKER.set(None);
            Err(Failure::Panic {
                message: "the system gives no further thread".to_owned(),
                file: String::new(),
                line: 0,
            })
        }
    }
}

fn work(queue: &Receiver<Job>) {
    while let Ok(job) = queue.recv() {
        job();
    }
}

fn text(payload: &(dyn Any + Send)) -> String {
    let text = payload.downcast_ref::<&str>().copied();
    let text = text.or_else(|| payload.downcast_ref::<String>().map(String::as_str));
    super::shorten(text.unwrap_or("panic without a message"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_an_error_with_its_place() {
        let failure = contain(|| -> u32 { panic!("no {}", 7) }).unwrap_err();
        let Failure::Panic { message, file, .. } = failure else {
            panic!("{failure:?}");
        };
        assert_eq!(message, "no 7");
        assert!(file.ends_with("contained.rs"), "{file}");
        assert_eq!(contain(|| 3), Ok(3));
        assert!(!is_contained());
    }

    #[test]
    fn a_call_without_end_is_left_behind() {
        let limit = Duration::from_millis(20);
        let stuck = contain_within(limit, || {
            loop {
                std::thread::sleep(Duration::from_secs(3600));
            }
        });
        assert_eq!(stuck, Err::<(), _>(Failure::TimeOut(limit)));
        let limit = Duration::from_secs(30);
        assert_eq!(contain_within(limit, || 3), Ok(3));
        assert!(contain_within(limit, || panic!("no")).is_err_and(
            |failure: Failure| matches!(failure, Failure::Panic { message, .. } if message == "no")
        ));
        assert_eq!(contain_within(limit, || 4), Ok(4));
    }
}
