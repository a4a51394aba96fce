//! The `temper` binary: allocator, threads and exit code.

use std::error::Error as _;
use std::process::ExitCode;

use clap::Parser;
use tempering::cli::{self, args::Cli};
use tempering::error::Error;
use tempering::guard::{self, PLEASE_REPORT};
use tempering::{start, terminal};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    start::keep_freed_memory();
    let cli = Cli::parse();
    let run = || guard::catch(|| cli::run(&cli)).unwrap_or_else(|panic| Err(defect(&panic)));
    let outcome = start::in_pool(cli.compute.threads, run)
        .unwrap_or_else(|error| Err(Error::Usage(format!("threads: {error}"))));
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            terminal::say(&format!("error: {}", chain(&error)));
            ExitCode::from(error.exit_code())
        }
    }
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
