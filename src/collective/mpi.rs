//! Processes that an MPI launcher has started.
//!
//! Sums are made by our own additions in the order of ranks, since the order of MPI's reductions depends on the algorithm that it
//! chooses: each rank receives its part of all vectors, adds, and gives the sum to all. That moves as many bytes as a ring does.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use mpi::Threading;
use mpi::datatype::{Partition, PartitionMut};
use mpi::environment::Universe;
use mpi::request::{Request, Scope};
use mpi::topology::SimpleCommunicator;
use mpi::traits::{Communicator, CommunicatorCollectives, Root};

use super::launch::Launch;
use super::watch::{Progress, Watch};
use super::{Collective, Ranks};
use crate::error::{Error, Result};
use crate::terminal;

/// Values that are summed at once: 16 MiB, so that a large gradient needs no second copy of itself.
const SUM_VALUES: usize = 4 << 20;
/// Bytes that a gathering of variable lengths moves at once; MPI counts in 32 bits.
const GATHER_BYTES: usize = 1 << 29;
/// How long a waiting rank polls before it sleeps between polls.
const POLL: Duration = Duration::from_millis(5);
/// The sleep.
const NAP: Duration = Duration::from_micros(200);
/// How long the others have to end after this process has asked MPI to end them.
const LAST_WORDS: Duration = Duration::from_secs(3);

/// What must live as long as the processes work together.
pub(super) struct MpiSession {
    universe: Universe,
    watch: Option<Watch>,
}

impl std::fmt::Debug for MpiSession {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MpiSession").finish_non_exhaustive()
    }
}

impl MpiSession {
    pub(super) fn finish(self) {
        let Self { universe, watch } = self;
        let stopped = watch.map(Watch::stop);
        wait(universe.world().immediate_barrier());
        if let Some(stopped) = stopped {
            stopped.drain();
        }
    }
}

/// Joins the other processes of `launch`.
pub(super) fn join(launch: &Launch) -> Result<(Ranks, MpiSession)> {
    let (universe, threading) = mpi::initialize_with_threading(Threading::Multiple)
        .ok_or_else(|| Error::Backend("MPI has been initialised before".into()))?;
    let world = universe.world();
    if world.size() == 1 {
        let Launch {
            launcher, world, ..
        } = launch;
        return Err(Error::Usage(format!(
            "{launcher} started {world} processes, and this build's MPI library does not see the others: it is another library than the \
             launcher's. With Slurm: `srun --mpi=pmix` (docs/cluster.md)"
        )));
    }
    let group = Mpi {
        rank: world.rank() as usize,
        world: world.size() as usize,
        hosts: Vec::new(),
        progress: Progress::default(),
    };
    let name = mpi::environment::processor_name().unwrap_or_else(|_| super::launch::hostname());
    let hosts = group.gather(name.as_bytes());
    let hosts = hosts
        .iter()
        .map(|name| String::from_utf8_lossy(name).into_owned());
    let group = Mpi {
        hosts: hosts.collect(),
        ..group
    };
    let watch = match threading {
        Threading::Multiple => Some(Watch::begin(group.clone())),
        _ if group.rank == 0 => {
            terminal::say(
                "warning: this MPI library allows one thread only: a rank that hangs will not be noticed",
            );
            None
        }
        _ => None,
    };
    Ok((Ranks::new(group), MpiSession { universe, watch }))
}

/// Ends all processes. Returns never: if MPI cannot reach the others any more, this process ends alone.
pub(super) fn abort(exit_code: i32) -> ! {
    static ENDING: AtomicBool = AtomicBool::new(false);
    if ENDING.swap(true, Ordering::SeqCst) {
        // Another thread is ending the process.
        std::thread::sleep(2 * LAST_WORDS);
        std::process::abort();
    }
    std::thread::spawn(move || {
        std::thread::sleep(LAST_WORDS);
        std::process::exit(exit_code)
    });
    std::thread::spawn(|| {
        std::thread::sleep(2 * LAST_WORDS);
        std::process::abort()
    });
    SimpleCommunicator::world().abort(exit_code)
}

/// The group of all processes of the launch.
#[derive(Debug, Clone)]
pub(super) struct Mpi {
    rank: usize,
    world: usize,
    hosts: Vec<String>,
    /// Read by the watch.
    pub(super) progress: Progress,
}

/// Waits for a request without keeping a core busy for long: other ranks may need it.
fn wait<'a, D: ?Sized, S: Scope<'a>>(mut request: Request<'a, D, S>) {
    let start = Instant::now();
    while let Err(again) = request.test() {
        request = again;
        match start.elapsed() < POLL {
            true => std::thread::yield_now(),
            false => std::thread::sleep(NAP),
        }
    }
}

/// Where each of parts of these lengths begins.
fn starts(counts: &[i32]) -> Vec<i32> {
    let mut at = 0;
    let next = |count: &i32| {
        at += count;
        at - count
    };
    counts.iter().map(next).collect()
}

impl Mpi {
    fn all_gather(&self, own: &[u8], counts: &[i32]) -> Vec<u8> {
        let total: i32 = counts.iter().sum();
        let mut all = vec![0; total as usize];
        let mut parts = PartitionMut::new(&mut all[..], counts, starts(counts));
        mpi::request::scope(|scope| {
            let world = SimpleCommunicator::world();
            wait(world.immediate_all_gather_varcount_into(scope, own, &mut parts));
        });
        all
    }

    /// At most [`SUM_VALUES`] values.
    fn sum_part(&self, values: &mut [f32]) {
        let per_rank = values.len().div_ceil(self.world);
        let counts: Vec<i32> = (0..self.world)
            .map(|rank| {
                let first = (rank * per_rank).min(values.len());
                (per_rank.min(values.len() - first)) as i32
            })
            .collect();
        let firsts = starts(&counts);
        let len = counts[self.rank] as usize;
        let mut received = vec![0.0f32; len * self.world];
        let each = vec![len as i32; self.world];
        let world = SimpleCommunicator::world();
        let sent = Partition::new(&values[..], &counts[..], &firsts[..]);
        let mut into = PartitionMut::new(&mut received[..], &each[..], starts(&each));
        mpi::request::scope(|scope| {
            wait(world.immediate_all_to_all_varcount_into(scope, &sent, &mut into));
        });
        let mut sum = vec![0.0f32; len];
        for of_rank in received.chunks_exact(len.max(1)) {
            for (sum, value) in sum.iter_mut().zip(of_rank) {
                *sum += value;
            }
        }
        let mut into = PartitionMut::new(values, &counts[..], &firsts[..]);
        mpi::request::scope(|scope| {
            wait(world.immediate_all_gather_varcount_into(scope, &sum[..], &mut into));
        });
    }
}

impl Collective for Mpi {
    fn rank(&self) -> usize {
        self.rank
    }

    fn world(&self) -> usize {
        self.world
    }

    fn gather(&self, own: &[u8]) -> Vec<Vec<u8>> {
        let _waiting = self.progress.begin();
        let mut lens = vec![0u64; self.world];
        let len = [own.len() as u64];
        mpi::request::scope(|scope| {
            let world = SimpleCommunicator::world();
            wait(world.immediate_all_gather_into(scope, &len[..], &mut lens[..]));
        });
        let most = (GATHER_BYTES / self.world).max(1);
        let longest = lens.iter().copied().max().unwrap_or(0) as usize;
        let mut all: Vec<Vec<u8>> = vec![Vec::new(); self.world];
        for first in (0..longest).step_by(most) {
            let part = |len: u64| {
                let first = first.min(len as usize);
                first..(first + most).min(len as usize)
            };
            let counts: Vec<i32> = lens.iter().map(|&len| part(len).len() as i32).collect();
            let received = self.all_gather(&own[part(own.len() as u64)], &counts);
            let mut rest = received.as_slice();
            for (all, count) in all.iter_mut().zip(counts) {
                let (part, tail) = rest.split_at(count as usize);
                all.extend_from_slice(part);
                rest = tail;
            }
        }
        all
    }

    fn sum_in_place(&self, values: &mut [f32]) {
        let _waiting = self.progress.begin();
        for part in values.chunks_mut(SUM_VALUES) {
            self.sum_part(part);
        }
    }

    fn broadcast(&self, bytes: Vec<u8>) -> Vec<u8> {
        let _waiting = self.progress.begin();
        let world = SimpleCommunicator::world();
        let root = world.process_at_rank(0);
        let mut len = [bytes.len() as u64];
        mpi::request::scope(|scope| {
            wait(root.immediate_broadcast_into(scope, &mut len[..]));
        });
        let mut bytes = match self.rank {
            0 => bytes,
            _ => vec![0; len[0] as usize],
        };
        for part in bytes.chunks_mut(GATHER_BYTES) {
            mpi::request::scope(|scope| wait(root.immediate_broadcast_into(scope, part)));
        }
        bytes
    }

    fn barrier(&self) {
        let _waiting = self.progress.begin();
        wait(SimpleCommunicator::world().immediate_barrier());
    }

    fn host(&self, rank: usize) -> String {
        self.hosts.get(rank).cloned().unwrap_or_default()
    }
}
