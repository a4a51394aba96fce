//! What a program does first.

/// mimalloc's setting for how long freed memory is kept, in milliseconds.
const PURGE_DELAY: &str = "MIMALLOC_PURGE_DELAY";

/// Starts this program anew with mimalloc told to keep what is freed.
///
/// By default mimalloc gives large blocks back to the system at once, and every step of a training run asks for the same
/// blocks again: zeroing the fresh pages costs a third of the speed. The setting is read from the environment before
/// `main`, and changing one's own environment is not safe code, hence the new start. A value that the user has set
/// stands, which also keeps this from happening twice.
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
        // Returns only when it failed; then this process goes on, slower.
        let _ = command.args(arguments).env(PURGE_DELAY, "-1").exec();
    }
}

/// Stack of a worker: as much as a program's first thread has.
const STACK: usize = 8 << 20;

/// Runs `work` on a thread of rayon's pool, of `threads` or as many as there are cores.
///
/// From a thread outside, each parallel loop puts that thread to sleep and wakes another one: tens of microseconds, hundreds of
/// times for a token that is drawn. A worker begins at once by itself.
///
/// # Errors
/// If the pool exists already, or cannot be made.
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
