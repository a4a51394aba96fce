//! The beginning and the end of a process that may be one of several.

use super::Ranks;
use super::launch::Launch;
use crate::error::{Error, Result};
use crate::terminal;

/// The ranks of this process, and what must live as long as they do.
#[derive(Debug)]
pub struct Started {
    /// The ranks.
    pub ranks: Ranks,
    #[cfg(feature = "mpi")]
    session: Option<super::mpi::MpiSession>,
}

impl Started {
    fn alone() -> Self {
        Self {
            ranks: Ranks::default(),
            #[cfg(feature = "mpi")]
            session: None,
        }
    }

    /// Takes leave of the other ranks. Not after an error: see [`end_with`].
    pub fn finish(self) {
        #[cfg(feature = "mpi")]
        if let Some(session) = self.session {
            session.finish();
        }
    }
}

/// Joins the other processes, if a launcher has started this one among several.
///
/// # Errors
/// `Error::Usage` if this build or the launcher has no MPI: the processes would know nothing of each other, and write over each
/// other's results.
pub fn start() -> Result<Started> {
    let Some(launch) = Launch::of_process() else {
        return Ok(Started::alone());
    };
    #[cfg(feature = "mpi")]
    if launch.by_mpi {
        let (ranks, session) = super::mpi::join(&launch)?;
        return Ok(Started {
            ranks,
            session: Some(session),
        });
    }
    Err(Error::Usage(refusal(&launch)))
}

/// Why the processes of `launch` cannot work together.
fn refusal(launch: &Launch) -> String {
    let Launch {
        launcher,
        by_mpi,
        rank,
        world,
    } = launch;
    let why = match (by_mpi, cfg!(feature = "mpi")) {
        (true, _) => {
            "this build has no MPI. Build it with `cargo build --release --features mpi` (docs/cluster.md)"
        }
        (false, true) => "which speaks no MPI. Start them with mpirun or srun (docs/cluster.md)",
        (false, false) => {
            "and temper works with MPI alone. Build it with `cargo build --release --features mpi` and start it with mpirun or srun \
             (docs/cluster.md)"
        }
    };
    format!(
        "this is process {rank} of {world} started by {launcher}, {why}, or start one process: {world} processes that know nothing of \
         each other would write over each other's results"
    )
}

/// Ends this process and with it the whole run, after the message has been written. An error that all ranks have is rank 0's to
/// report, so the others wait for it.
pub fn end_with(ranks: &Ranks, message: &str, exit_code: u8) {
    if ranks.is_alone() {
        report("", message);
        return;
    }
    if !ranks.is_first() {
        std::thread::sleep(GRACE);
    }
    report(&format!("{}: ", ranks.name(ranks.rank())), message);
    #[cfg(feature = "mpi")]
    super::mpi::abort(i32::from(exit_code));
    #[cfg(not(feature = "mpi"))]
    std::process::exit(i32::from(exit_code));
}

/// How long other ranks leave it to rank 0 to report an error.
const GRACE: std::time::Duration = std::time::Duration::from_secs(3);

fn report(who: &str, message: &str) {
    terminal::say(&format!("error: {who}{message}"));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processes_without_mpi_are_refused_with_the_way_out() {
        let launch = |launcher, by_mpi| Launch {
            launcher,
            by_mpi,
            rank: 1,
            world: 4,
        };
        let text = refusal(&launch("mpirun", true));
        assert!(
            text.starts_with("this is process 1 of 4 started by mpirun"),
            "{text}"
        );
        assert!(text.contains("--features mpi"), "{text}");
        let text = refusal(&launch("torchrun", false));
        assert!(
            text.contains("start") && text.contains("mpirun or srun"),
            "{text}"
        );
    }
}
