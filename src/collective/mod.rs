//! Several processes that train one model: the few operations that they share, and who takes which rows.
//!
//! All ranks run the same program on the same global batches. What computes with a model - backward passes, forward passes over rows,
//! generation - takes a rank's own rows only ([`Parts`], [`own`]), and what comes of it is given to all ([`share`], [`numbers`]); the
//! gradients of an optimiser step are summed over ranks. Everything else (advantages, statistics, control of the KL term, metrics) is
//! computed by each rank from the same numbers, as one process would. Rank 0 alone writes files and reports ([`on_first`]).
//!
//! A thread has the ranks that [`enter`] gave it, and is alone without; a collective operation of one that is alone costs nothing.
//! Operations do not fail: where a rank is lost, the whole run ends with a message, as MPI has it.

mod alone;
mod broadcast;
pub mod launch;
#[cfg(feature = "mpi")]
mod mpi;
mod parts;
mod share;
mod start;
mod threads;
#[cfg(feature = "mpi")]
mod watch;

use std::cell::RefCell;
use std::fmt::Debug;
use std::sync::Arc;

pub use alone::Alone;
pub use broadcast::{agree, any, in_turn, on_first};
pub use parts::{Parts, deal, own};
pub use share::{Numbers, Words, numbers, share, sum_f64, tensors, total};
pub use start::{Started, end_with, start};
pub use threads::Threads;

/// A group of processes, each with a rank from 0. Every operation is called by all ranks, in the same order.
pub trait Collective: Debug + Send + Sync {
    /// This process.
    fn rank(&self) -> usize;

    /// Number of processes.
    fn world(&self) -> usize;

    /// The bytes of every rank, in the order of ranks.
    fn gather(&self, own: &[u8]) -> Vec<Vec<u8>>;

    /// The sum over ranks of each value, added in the order of ranks: two runs of as many ranks have the same bits.
    fn sum_in_place(&self, values: &mut [f32]);

    /// The bytes of rank 0.
    fn broadcast(&self, bytes: Vec<u8>) -> Vec<u8>;

    /// Returns once every rank has called it.
    fn barrier(&self) {
        self.gather(&[]);
    }

    /// Where a rank runs.
    fn host(&self, rank: usize) -> String;
}

/// The ranks of this thread. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Ranks(Arc<dyn Collective>);

impl Default for Ranks {
    fn default() -> Self {
        Self(Arc::new(Alone))
    }
}

impl Ranks {
    /// The ranks of a group.
    pub fn new(collective: impl Collective + 'static) -> Self {
        Self(Arc::new(collective))
    }

    /// Whether this is the only process.
    pub fn is_alone(&self) -> bool {
        self.world() == 1
    }

    /// Whether this is the rank that writes and reports.
    pub fn is_first(&self) -> bool {
        self.rank() == 0
    }

    /// `rank 1 of 4 on host`.
    pub fn name(&self, rank: usize) -> String {
        format!("rank {rank} of {} on {}", self.world(), self.host(rank))
    }
}

impl std::ops::Deref for Ranks {
    type Target = dyn Collective;

    fn deref(&self) -> &Self::Target {
        &*self.0
    }
}

thread_local! {
    static HERE: RefCell<Ranks> = RefCell::default();
}

/// The ranks of this thread: one alone unless [`enter`] said otherwise.
pub fn ranks() -> Ranks {
    HERE.with_borrow(Ranks::clone)
}

/// Gives this thread `ranks` until the scope is dropped.
pub fn enter(ranks: Ranks) -> Scope {
    Scope {
        before: HERE.replace(ranks),
    }
}

/// Restores the ranks that a thread had before [`enter`].
#[derive(Debug)]
#[must_use = "the ranks are those of before once it is dropped"]
pub struct Scope {
    before: Ranks,
}

impl Drop for Scope {
    fn drop(&mut self) {
        HERE.set(std::mem::take(&mut self.before));
    }
}
