//! What the launchers of several processes (mpirun, srun, torchrun) leave in the environment.

use std::ffi::OsString;

/// The place of a process among those that a launcher has started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Launch {
    /// Who started them.
    pub launcher: &'static str,
    /// Whether it speaks MPI.
    pub by_mpi: bool,
    /// This process, from 0.
    pub rank: usize,
    /// Number of processes.
    pub world: usize,
}

/// Launchers: name, whether they speak MPI, variables of the rank and of the number of processes. Open MPI's and MPICH's come first,
/// because their processes may be started by srun.
const LAUNCHERS: &[(&str, bool, &str, &str)] = &[
    (
        "mpirun",
        true,
        "OMPI_COMM_WORLD_RANK",
        "OMPI_COMM_WORLD_SIZE",
    ),
    ("mpirun", true, "PMI_RANK", "PMI_SIZE"),
    // `SLURM_NTASKS` is set in batch scripts too, of which there is one process.
    ("srun", true, "SLURM_PROCID", "SLURM_STEP_NUM_TASKS"),
    ("torchrun", false, "RANK", "WORLD_SIZE"),
];
/// Variables of the rank on this host.
const LOCAL_RANK: [&str; 5] = [
    "OMPI_COMM_WORLD_LOCAL_RANK",
    "MPI_LOCALRANKID",
    "PMI_LOCAL_RANK",
    "SLURM_LOCALID",
    "LOCAL_RANK",
];
/// Variables of the number of processes on this host.
const LOCAL_SIZE: [&str; 4] = [
    "OMPI_COMM_WORLD_LOCAL_SIZE",
    "MPI_LOCALNRANKS",
    "PMI_LOCAL_SIZE",
    "LOCAL_WORLD_SIZE",
];

impl Launch {
    /// The launch of this process, if it was started as one of several.
    pub fn of_process() -> Option<Self> {
        Self::of(|name| std::env::var_os(name))
    }

    fn of(variable: impl Fn(&str) -> Option<OsString>) -> Option<Self> {
        let number = |name: &str| variable(name)?.to_str()?.trim().parse::<usize>().ok();
        LAUNCHERS
            .iter()
            .find_map(|&(launcher, by_mpi, rank, world)| {
                let (rank, world) = (number(rank)?, number(world)?);
                (world > 1).then_some(Self {
                    launcher,
                    by_mpi,
                    rank,
                    world,
                })
            })
    }
}

/// The first of these variables that holds a number.
fn first_number(names: &[&str]) -> Option<usize> {
    (names.iter()).find_map(|name| std::env::var(name).ok()?.trim().parse().ok())
}

/// The rank among those on this host, which chooses the device.
pub fn local_rank() -> usize {
    first_number(&LOCAL_RANK).unwrap_or(0)
}

/// CPU threads of a process where the user has not chosen: its part of the cores, if the launcher has not bound it to some of them.
/// `None` leaves it to rayon, which respects a binding.
pub fn threads() -> Option<usize> {
    let local = first_number(&LOCAL_SIZE).filter(|&local| local > 1)?;
    let available = std::thread::available_parallelism().ok()?.get();
    let cores = std::fs::read_to_string("/proc/cpuinfo").ok()?;
    let cores = cores
        .lines()
        .filter(|line| line.starts_with("processor"))
        .count();
    (available * local > cores).then(|| (cores / local).clamp(1, available))
}

/// The name of this host.
pub fn hostname() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").ok();
    let name = name.or_else(|| std::env::var("HOSTNAME").ok());
    name.map_or("this host".to_owned(), |name| name.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn launchers_are_recognised_by_their_variables() {
        let of = |variables: &[(&str, &str)]| {
            Launch::of(|name| {
                let found = variables.iter().find(|(known, _)| *known == name);
                found.map(|(_, value)| value.into())
            })
            .map(|launch| (launch.launcher, launch.by_mpi, launch.rank, launch.world))
        };
        assert_eq!(of(&[]), None);
        let open_mpi = [("OMPI_COMM_WORLD_RANK", "1"), ("OMPI_COMM_WORLD_SIZE", "4")];
        assert_eq!(of(&open_mpi), Some(("mpirun", true, 1, 4)));
        assert_eq!(
            of(&[("SLURM_PROCID", "0"), ("SLURM_STEP_NUM_TASKS", "8")]),
            Some(("srun", true, 0, 8))
        );
        // A batch script is one process, whatever its allocation holds.
        assert_eq!(of(&[("SLURM_PROCID", "0"), ("SLURM_NTASKS", "8")]), None);
        assert_eq!(
            of(&[("RANK", "3"), ("WORLD_SIZE", "4")]),
            Some(("torchrun", false, 3, 4))
        );
        assert_eq!(of(&[("RANK", "0"), ("WORLD_SIZE", "1")]), None);
        assert_eq!(of(&[("RANK", "x"), ("WORLD_SIZE", "4")]), None);
    }
}
