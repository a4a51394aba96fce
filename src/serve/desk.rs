//! Where requests wait for the engine: bounded, and left by whoever goes away.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

use crate::generate::TokenLogprobs;
use crate::generate::continuous::Job;

/// A policy of the engine: its scheduler, and its place there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PolicyPlace {
    /// Models of one base share a scheduler.
    pub(crate) base: usize,
    /// Its number among them.
    pub(crate) model: usize,
}

/// Something for the engine to do.
pub(crate) enum Work {
    /// A response.
    Generate {
        /// The scheduler.
        base: usize,
        /// The job for it.
        job: Job,
    },
    /// Log-probabilities of a row's tokens but the first.
    Measure {
        policy: PolicyPlace,
        ids: Arc<[u32]>,
        num_top: usize,
        reply: oneshot::Sender<Vec<TokenLogprobs>>,
        ticket: Ticket,
    },
    /// The score at a row's last token.
    Score {
        reward: usize,
        ids: Vec<u32>,
        reply: oneshot::Sender<f32>,
        ticket: Ticket,
    },
}

/// Why work is not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// So many wait already.
    Full(usize),
    /// The server is about to end.
    Closed,
}

/// The queue between the server's thread and the engine's.
#[derive(Default)]
pub(crate) struct Desk {
    queue: Mutex<Queue>,
    wake: Condvar,
    /// What waits, in the queue or in a scheduler.
    waiting: Arc<AtomicUsize>,
    limit: usize,
}

#[derive(Default)]
struct Queue {
    work: VecDeque<Work>,
    closed: bool,
}

/// A place in the queue, which is free again when this is dropped.
#[derive(Debug)]
pub(crate) struct Ticket(Arc<AtomicUsize>);

impl Drop for Ticket {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Desk {
    /// A queue for at most `limit` responses, rows to measure and rows to score.
    pub(crate) fn new(limit: usize) -> Self {
        Self {
            limit,
            ..Self::default()
        }
    }

    /// Most that may wait.
    pub(crate) fn limit(&self) -> usize {
        self.limit
    }

    /// How many wait.
    pub(crate) fn waiting(&self) -> usize {
        self.waiting.load(Ordering::Relaxed)
    }

    /// Places for `count` pieces of work, or none.
    ///
    /// # Errors
    /// If there are not as many.
    pub(crate) fn reserve(&self, count: usize) -> Result<Vec<Ticket>, Refusal> {
        let queue = self.lock();
        if queue.closed {
            return Err(Refusal::Closed);
        }
        // Under the lock, so that two requests do not share the last places.
        let waiting = self.waiting();
        if waiting + count > self.limit {
            return Err(Refusal::Full(waiting));
        }
        self.waiting.fetch_add(count, Ordering::Relaxed);
        Ok((0..count).map(|_| Ticket(self.waiting.clone())).collect())
    }

    /// Adds work whose places have been reserved.
    ///
    /// # Errors
    /// If the server is about to end.
    pub(crate) fn submit(&self, work: Vec<Work>) -> Result<(), Refusal> {
        let mut queue = self.lock();
        if queue.closed {
            return Err(Refusal::Closed);
        }
        queue.work.extend(work);
        drop(queue);
        self.wake.notify_one();
        Ok(())
    }

    /// All work that has come, for the engine. Waits for some while it `is_idle`; `None` once the desk is closed, nothing came and the
    /// engine is idle.
    pub(crate) fn take(&self, is_idle: bool) -> Option<VecDeque<Work>> {
        let mut queue = self.lock();
        while queue.work.is_empty() && is_idle {
            if queue.closed {
                return None;
            }
            queue = self
                .wake
                .wait(queue)
                .unwrap_or_else(PoisonError::into_inner);
        }
        Some(std::mem::take(&mut queue.work))
    }

    /// Takes no more work; the engine ends when what it has is done.
    pub(crate) fn close(&self) {
        self.lock().closed = true;
        self.wake.notify_all();
    }

    /// A panic of another thread leaves the queue as it was: entries are added and taken whole.
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn score(ticket: Ticket) -> Work {
        Work::Score {
            reward: 0,
            ids: vec![1],
            reply: oneshot::channel().0,
            ticket,
        }
    }

    #[test]
    fn places_are_bounded_and_given_back() {
        let desk = Desk::new(3);
        let mut two = desk.reserve(2).unwrap();
        assert_eq!(desk.reserve(2).unwrap_err(), Refusal::Full(2));
        let one = desk.reserve(1).unwrap();
        assert_eq!(desk.reserve(1).unwrap_err(), Refusal::Full(3));
        drop(one);
        desk.submit(vec![score(two.pop().unwrap())]).unwrap();
        assert_eq!(desk.waiting(), 2);
        let work = desk.take(true).unwrap();
        assert_eq!((work.len(), desk.waiting()), (1, 2));
        drop((work, two));
        assert_eq!(desk.waiting(), 0);
    }

    #[test]
    fn what_came_before_the_end_is_done() {
        let desk = Desk::new(3);
        let mut tickets = desk.reserve(2).unwrap();
        desk.submit(vec![score(tickets.pop().unwrap())]).unwrap();
        desk.close();
        assert_eq!(
            desk.submit(vec![score(tickets.pop().unwrap())]),
            Err(Refusal::Closed)
        );
        assert_eq!(desk.reserve(1).unwrap_err(), Refusal::Closed);
        assert_eq!(desk.take(true).unwrap().len(), 1);
        // Work in progress: the engine does not wait.
        assert_eq!(desk.take(false).unwrap().len(), 0);
        assert!(desk.take(true).is_none());
    }
}
