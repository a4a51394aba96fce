//! The `temper` binary: allocator, threads and exit code.

use std::error::Error as _;
use std::process::ExitCode;

use clap::Parser;
use tempering::cli::{self, args::Cli};
use tempering::collective::{self, Ranks, launch};
use tempering::error::Error;
use tempering::guard::{self, PLEASE_REPORT};
use tempering::start;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    start::keep_freed_memory();
    let cli = Cli::parse();
    // Without it a limit on files ends the process without a message; nothing else changes.
    let _ = start::survive_file_size_limits();
    let started = match collective::start() {
        Ok(started) => started,
        Err(error) => return failed(&Ranks::default(), &error),
    };
    let ranks = started.ranks.clone();
    let run = || {
        let _scope = collective::enter(ranks.clone());
        guard::catch(|| cli::run(&cli)).unwrap_or_else(|panic| Err(defect(&panic)))
    };
    let threads = cli.compute.threads.or_else(launch::threads);
    let outcome = start::in_pool(threads, run)
        .unwrap_or_else(|error| Err(Error::Usage(format!("threads: {error}"))));
    match outcome {
        Ok(()) => {
            started.finish();
            ExitCode::SUCCESS
        }
        Err(error) => failed(&ranks, &error),
    }
}

/// Reports an error; with other ranks, ends their processes too.
fn failed(ranks: &Ranks, error: &Error) -> ExitCode {
    collective::end_with(ranks, &chain(error), error.exit_code());
    ExitCode::from(error.exit_code())
}

/// The error for a panic.
fn defect(panic: &str) -> Error {
    Error::Backend(format!(
        "this is a defect of this program or of a library: {panic}. {PLEASE_REPORT}"
    ))
}

/// The message with its causes, except causes that the message already contains.
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
