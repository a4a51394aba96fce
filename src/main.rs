//! The `temper` binary: allocator, threads, and what the exit code says.

use std::error::Error as _;
use std::io::Write;
use std::process::ExitCode;

use clap::Parser;
use tempering::cli::{self, args::Cli};
use tempering::error::Error;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// mimalloc's setting for how long freed memory is kept, in milliseconds.
const PURGE_DELAY: &str = "MIMALLOC_PURGE_DELAY";

fn main() -> ExitCode {
    keep_freed_memory();
    let cli = Cli::parse();
    let outcome = match set_threads(cli.compute.threads) {
        Ok(()) => cli::run(&cli),
        Err(error) => Err(error),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Nothing is left to be done when stderr is closed too.
            let _ = writeln!(std::io::stderr(), "error: {}", chain(&error));
            ExitCode::from(error.exit_code())
        }
    }
}

/// Starts this program anew with mimalloc told to keep what is freed.
///
/// By default mimalloc gives large blocks back to the system at once, and every step of a training run asks for the same
/// blocks again: zeroing the fresh pages costs a third of the speed. The setting is read from the environment before
/// `main`, and changing one's own environment is not safe code, hence the new start. A value that the user has set
/// stands, which also keeps this from happening twice.
fn keep_freed_memory() {
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

fn set_threads(threads: Option<usize>) -> Result<(), Error> {
    let Some(threads) = threads else {
        return Ok(());
    };
    rayon::ThreadPoolBuilder::new()
        .num_threads(threads)
        .build_global()
        .map_err(|error| Error::Usage(format!("--threads {threads}: {error}")))
}

/// The message and its causes; a cause that the message already quotes is not repeated.
fn chain(error: &Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let message = error.to_string();
        if !text.contains(&message) {
            text.push_str(&format!(": {message}"));
        }
        cause = error.source();
    }
    text
}
