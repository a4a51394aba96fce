//! The command line: its definition ([`args`]), and one file per subcommand.

pub mod args;
mod card;
mod chat;
mod classify;
mod combine;
mod completions;
mod doctor;
mod elo;
mod eval;
mod eval_stages;
mod export;
mod export_gguf;
mod generate;
mod inspect;
mod label;
mod layers;
mod logprobs;
mod model;
mod models;
mod new;
mod output;
mod padding;
mod parity;
mod precision;
mod probe;
mod progress;
mod push;
mod ranks;
mod recipe;
mod report;
mod respond;
mod rows;
mod score;
mod serve;
mod size;
mod stage_result;
mod watch;

use crate::backend;
use crate::collective;
use crate::error::{Error, Result};
use args::{Cli, Command};

/// Runs a subcommand.
///
/// # Errors
/// Those of the subcommand; [`crate::error::Error::exit_code`] gives the exit code.
pub fn run(cli: &Cli) -> Result<()> {
    let ranks = collective::ranks();
    let mut compute = cli.compute.clone();
    if !ranks.is_alone() {
        if !matches!(cli.command, Command::Recipe(_) | Command::Doctor(_)) {
            return Err(Error::Usage(format!(
                "{} processes were started: only `temper recipe` and `temper doctor` work on several; start one for everything else",
                ranks.world()
            )));
        }
        let local = collective::launch::local_rank();
        compute.device = backend::device_of(compute.backend, compute.device, local);
    }
    let compute = &compute;
    match &cli.command {
        Command::Recipe(args) => recipe::run(args, compute),
        Command::Report(args) => report::run(args),
        Command::Watch(args) => watch::run(args),
        Command::Elo(args) => elo::run(args),
        Command::New(args) => new::run(args, compute),
        Command::Logprobs(args) => logprobs::run(args, compute),
        Command::Score(args) => score::run(args, compute),
        Command::Generate(args) => generate::run(args, compute),
        Command::Chat(args) => chat::run(args, compute),
        Command::Serve(args) => serve::run(args, compute),
        Command::Eval(args) => eval::run(args, compute),
        Command::Inspect(args) => inspect::run(args),
        Command::Label(args) => label::run(args, compute),
        Command::Export(args) => export::run(args, compute),
        Command::Doctor(args) => doctor::run(args, compute),
        Command::Models(args) => models::run(args),
        Command::Completions(args) => completions::run(args),
    }
}
