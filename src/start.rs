//! Process start-up: allocator settings and the thread pool.

/// mimalloc's delay before freed memory is returned to the system, in milliseconds.
const PURGE_DELAY: &str = "MIMALLOC_PURGE_DELAY";

/// Restarts the process with mimalloc set to retain freed memory.
///
/// By default mimalloc returns large blocks to the system at once. Every training step allocates the same blocks again, and
/// zeroing fresh pages costs a third of the speed. mimalloc reads its settings from the environment before `main`, and changing
/// the environment of a running process is not safe; hence the restart. A value set by the user is respected, which also prevents
/// a second restart.
pub fn keep_freed_memory() {
    #[cfg(unix)]
    if std::env::var_os(PURGE_DELAY).is_none()
        && let Ok(program) = std::env::current_exe()
    {
        use std::os::unix::process::CommandExt;
        let mut arguments = std::env::args_os();
        let mut command = std::process::Command::new(program);
        if let Some(name) = arguments.next() {
            command.arg0(name);
        }
        // `exec` returns only on failure; the process then continues at lower speed.
        let _ = command.args(arguments).env(PURGE_DELAY, "-1").exec();
    }
}

/// Lets a write beyond a file-size limit (`ulimit -f`) fail with an error: by default the system ends the process without one.
///
/// # Errors
/// When the system refuses.
pub fn survive_file_size_limits() -> std::io::Result<()> {
    #[cfg(unix)]
    {
        use signal_hook::{consts::SIGXFSZ, flag};
        use std::sync::{Arc, atomic::AtomicBool};
        flag::register(SIGXFSZ, Arc::new(AtomicBool::new(false)))?;
    }
    Ok(())
}

/// Stack size of a worker thread: that of a main thread.
const STACK: usize = 8 << 20;

/// Runs `work` on a worker of rayon's global pool, with `threads` threads or one per core.
///
/// On a thread outside the pool every parallel loop sleeps and wakes a worker, which costs tens of microseconds, hundreds of times
/// per generated token. A worker starts a loop itself.
///
/// # Errors
/// If the pool exists already or cannot be created.
pub fn in_pool<R: Send>(
    threads: Option<usize>,
    work: impl FnOnce() -> R + Send,
) -> Result<R, rayon::ThreadPoolBuildError> {
    rayon::ThreadPoolBuilder::new()
        .num_threads(threads.unwrap_or(0))
        .stack_size(STACK)
        .build_global()?;
    Ok(rayon::scope(|_| work()))
}
