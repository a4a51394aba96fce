//! `temper watch`: the report of a run, live in a browser.

mod live;
mod routes;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;

use super::output;
use crate::error::{Error, Result};
use crate::recipe::find_run;
use crate::report::Interrupt;
use crate::web::{Bind, Limits, Server, Token};
use live::Live;

/// The port if none is named, the same every time for a tunnel.
const PORT: u16 = 8127;

/// `temper watch`.
#[derive(Debug, Clone, Args)]
#[command(after_help = "Examples:
  temper watch runs/smollm2                              then open the address that it prints
  ssh -L 8127:127.0.0.1:8127 trainer                     on your machine: http://127.0.0.1:8127 there is then the trainer's
  temper watch runs/smollm2 --host 0.0.0.0               for others on the network, who need the token of the printed address

The page changes while the run goes on, and stays when it is over. Watching does not touch the run.")]
pub struct WatchArgs {
    /// The run folder
    #[arg(value_name = "RUN")]
    pub run: PathBuf,
    /// Where to listen.
    #[command(flatten)]
    pub bind: Bind,
}

/// Serves the page until Ctrl-C.
///
/// # Errors
/// `Error::Usage` if the folder holds no run, or the address cannot be listened on.
pub(super) fn run(args: &WatchArgs) -> Result<()> {
    find_run(&args.run)?;
    let bind = args.bind.or_port(PORT);
    let token = match bind.is_loopback() {
        true => None,
        false => Some(Token::random()?),
    };
    let limits = Limits {
        // Nobody waits for an event at the end.
        drain: Duration::from_secs(1),
        body: 1 << 10,
        ..Limits::default()
    };
    let server = Server::bind(bind, limits)?;
    let query = token
        .as_ref()
        .map_or(String::new(), |token| format!("/?token={}", token.reveal()));
    let stop = Interrupt::default();
    let signalled = stop.clone();
    ctrlc::set_handler(move || {
        signalled.request();
    })
    .map_err(|e| Error::Usage(format!("cannot take over Ctrl-C: {e}")))?;
    output::print(&format!("{}{query}\n", server.url()))?;
    eprintln!(
        "{}: open this address; Ctrl-C ends the page, not the run",
        args.run.display()
    );
    let live = Arc::new(Live::new(&args.run)?);
    let reader = live.follow(&stop);
    let outcome = server.serve(routes::routes(live, token.map(|token| token.hash())), &stop);
    stop.request();
    // The thread ends within its period.
    let _ = reader.join();
    outcome
}
