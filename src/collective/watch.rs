//! Notices ranks that have died with their host, hang, or cannot be reached.
//!
//! A thread of every rank sends a beat each second, rank 0 to all and the others to rank 0. A rank whose process is stopped, whose
//! host is gone or whose cable is cut sends none; one that hangs in its own work does not come to an operation that the others have
//! begun, which its beats say.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use mpi::topology::SimpleCommunicator;
use mpi::traits::{Communicator, Destination, Source};

use super::Collective;
use super::mpi::{Mpi, abort};
use crate::terminal;

/// Time between two beats.
const BEAT: Duration = Duration::from_secs(1);
/// How often a thread looks for beats.
const LOOK: Duration = Duration::from_millis(100);
/// Seconds without a beat after which a rank counts as lost, and the variable that says otherwise.
const SILENCE: (&str, f64) = ("TEMPER_RANK_SILENCE_S", 20.0);
/// Seconds that the others wait for a rank that beats, and the variable that says otherwise: a reward program or a checkpoint of rank 0
/// may take long.
const PATIENCE: (&str, f64) = ("TEMPER_RANK_PATIENCE_S", 1800.0);
/// Tag of beats.
const TAG: i32 = 7301;

/// How far a rank has come.
#[derive(Debug, Clone, Default)]
pub(super) struct Progress(Arc<Counts>);

#[derive(Debug, Default)]
struct Counts {
    begun: AtomicU64,
    ended: AtomicU64,
}

/// An operation in progress.
pub(super) struct Waiting<'a>(&'a Counts);

impl Progress {
    /// Notes that an operation begins; it ends when the result is dropped.
    pub(super) fn begin(&self) -> Waiting<'_> {
        self.0.begun.fetch_add(1, Ordering::Relaxed);
        Waiting(&self.0)
    }

    fn beat(&self) -> [u64; 2] {
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        [count(&self.0.begun), count(&self.0.ended)]
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.ended.fetch_add(1, Ordering::Relaxed);
    }
}

/// The thread that beats and listens.
pub(super) struct Watch {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<()>,
    peers: Vec<usize>,
}

/// A watch whose thread has ended.
pub(super) struct Stopped {
    peers: Vec<usize>,
}

/// Seconds by a variable of the environment.
fn seconds((variable, default): (&str, f64)) -> Duration {
    let set = std::env::var(variable)
        .ok()
        .and_then(|text| text.parse().ok());
    let valid = set.filter(|seconds: &f64| (1.0..=1e7).contains(seconds));
    Duration::from_secs_f64(valid.unwrap_or(default))
}

/// What is known of another rank.
#[derive(Debug, Clone, Copy)]
struct Peer {
    rank: usize,
    heard: Instant,
    /// Operations begun and ended.
    beat: [u64; 2],
}

impl Watch {
    /// Begins to watch the ranks of `group`.
    pub(super) fn begin(group: Mpi) -> Self {
        let peers: Vec<usize> = match group.rank() {
            0 => (1..group.world()).collect(),
            _ => vec![0],
        };
        let stop = Arc::new(AtomicBool::new(false));
        let (stopping, of_thread) = (stop.clone(), peers.clone());
        let thread = std::thread::spawn(move || watch(&group, &of_thread, &stopping));
        Self {
            stop,
            thread,
            peers,
        }
    }

    /// Ends the thread.
    pub(super) fn stop(self) -> Stopped {
        self.stop.store(true, Ordering::Relaxed);
        // A panic of the thread has been printed.
        let _ = self.thread.join();
        Stopped { peers: self.peers }
    }
}

impl Stopped {
    /// Receives what others have still sent, once they have stopped too.
    pub(super) fn drain(self) {
        for peer in self.peers {
            while receive(peer).is_some() {}
        }
    }
}

/// The newest beat of a rank, if one has come.
fn receive(peer: usize) -> Option<[u64; 2]> {
    let world = SimpleCommunicator::world();
    let source = world.process_at_rank(peer as i32);
    source.immediate_probe_with_tag(TAG)?;
    let mut beat = [0u64; 2];
    source.receive_into_with_tag(&mut beat[..], TAG);
    Some(beat)
}

fn watch(group: &Mpi, peers: &[usize], stop: &AtomicBool) {
    let (silence, patience) = (seconds(SILENCE), seconds(PATIENCE));
    let now = Instant::now();
    let mut known: Vec<Peer> = (peers.iter())
        .map(|&rank| Peer {
            rank,
            heard: now,
            beat: [0; 2],
        })
        .collect();
    let mut sent: Option<Instant> = None;
    // Since when an operation is in progress, by its number.
    let mut waiting: Option<(u64, Instant)> = None;
    while !stop.load(Ordering::Relaxed) {
        let own = group.progress.beat();
        if sent.is_none_or(|at| at.elapsed() >= BEAT) {
            sent = Some(Instant::now());
            for &peer in peers {
                let world = SimpleCommunicator::world();
                world
                    .process_at_rank(peer as i32)
                    .send_with_tag(&own[..], TAG);
            }
        }
        for peer in &mut known {
            while let Some(beat) = receive(peer.rank) {
                (peer.heard, peer.beat) = (Instant::now(), beat);
            }
            if peer.heard.elapsed() > silence {
                let why = format!(
                    "has given no sign for {:.0} s: its process is stopped, or its host or the network is gone",
                    silence.as_secs_f64()
                );
                end(group, peer.rank, &why);
            }
        }
        // Those who have not begun what others wait for.
        let furthest = known.iter().map(|peer| peer.beat[0]).chain([own[0]]).max();
        let furthest = furthest.unwrap_or(0);
        let late = (known.iter().find(|peer| peer.beat[0] < furthest)).map(|peer| peer.rank);
        let late = late.or((own[0] < furthest).then(|| group.rank()));
        match (&waiting, late) {
            (Some((number, since)), Some(late)) if *number == furthest => {
                // The others leave it to rank 0, which knows all.
                let grace = match group.rank() {
                    0 => patience,
                    _ => patience + silence,
                };
                if since.elapsed() > grace {
                    let why = format!(
                        "has kept the others waiting for {:.0} s; {} sets how long they wait",
                        patience.as_secs_f64(),
                        PATIENCE.0
                    );
                    end(group, late, &why);
                }
            }
            (_, Some(_)) => waiting = Some((furthest, Instant::now())),
            (_, None) => waiting = None,
        }
        std::thread::sleep(LOOK);
    }
}

/// Ends the run because of a rank.
fn end(group: &Mpi, rank: usize, why: &str) -> ! {
    terminal::say(&format!(
        "error: rank {rank} of {} on {} {why}. The run ends; its last checkpoint is whole, and --resume goes on from there, with \
         any number of ranks",
        group.world(),
        group.host(rank)
    ));
    abort(1)
}
