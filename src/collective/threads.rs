//! Ranks that are threads of one process: all that ranks do can be tested and measured without MPI.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::{Collective, Ranks, enter};
use crate::guard;

/// How long a rank waits for the others.
const PATIENCE: Duration = Duration::from_secs(120);

/// A rank that is a thread. All take turns with the lock on computing gradients, which one that waits for others releases.
#[derive(Debug, Clone)]
pub struct Threads {
    rank: usize,
    world: usize,
    meeting: Arc<Meeting>,
}

/// Where the ranks of a group meet.
#[derive(Debug, Default)]
struct Meeting {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// Operations done.
    done: usize,
    /// What has been brought to the operation in progress.
    brought: Vec<(usize, Vec<u8>)>,
    /// What came of the last operation.
    result: Arc<Vec<Vec<u8>>>,
    /// Whether a rank has panicked.
    is_broken: bool,
}

impl Meeting {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Threads {
    /// Runs `work` on `world` threads, each with its rank; returns their results in order.
    ///
    /// # Panics
    /// If a thread panics.
    pub fn run<T: Send>(world: usize, work: impl Fn(usize) -> T + Sync) -> Vec<T> {
        let meeting = Arc::new(Meeting::default());
        let of_rank = |rank| Self {
            rank,
            world,
            meeting: meeting.clone(),
        };
        std::thread::scope(|scope| {
            let (work, of_rank) = (&work, &of_rank);
            let threads: Vec<_> = (0..world)
                .map(|rank| {
                    scope.spawn(move || {
                        let own = of_rank(rank);
                        let _broken = Breaks(own.meeting.clone());
                        let _scope = enter(Ranks::new(own));
                        work(rank)
                    })
                })
                .collect();
            let ended: Vec<_> = threads.into_iter().map(|thread| thread.join()).collect();
            (ended.into_iter())
                .map(|outcome| outcome.unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
                .collect()
        })
    }

    fn meet(&self, own: &[u8]) -> Arc<Vec<Vec<u8>>> {
        let mut state = self.meeting.state();
        let operation = state.done;
        state.brought.push((self.rank, own.to_vec()));
        if state.brought.len() == self.world {
            let mut brought = std::mem::take(&mut state.brought);
            brought.sort_by_key(|(rank, _)| *rank);
            state.result = Arc::new(brought.into_iter().map(|(_, bytes)| bytes).collect());
            state.done += 1;
            self.meeting.changed.notify_all();
        }
        let start = Instant::now();
        while state.done == operation {
            assert!(!state.is_broken, "another rank has panicked");
            assert!(start.elapsed() < PATIENCE, "a rank does not come");
            let wait = Duration::from_millis(200);
            let waited = self.meeting.changed.wait_timeout(state, wait);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        state.result.clone()
    }
}

/// Tells the others when its thread panics.
struct Breaks(Arc<Meeting>);

impl Drop for Breaks {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.state().is_broken = true;
            self.0.changed.notify_all();
        }
    }
}

impl Collective for Threads {
    fn rank(&self) -> usize {
        self.rank
    }

    fn world(&self) -> usize {
        self.world
    }

    fn gather(&self, own: &[u8]) -> Vec<Vec<u8>> {
        guard::without_gradients(|| self.meet(own)).to_vec()
    }

    fn sum_in_place(&self, values: &mut [f32]) {
        let all = guard::without_gradients(|| self.meet(bytemuck::cast_slice(values)));
        values.fill(0.0);
        for bytes in all.iter() {
            for (sum, four) in values.iter_mut().zip(bytes.chunks_exact(4)) {
                *sum += f32::from_ne_bytes([four[0], four[1], four[2], four[3]]);
            }
        }
    }

    fn broadcast(&self, bytes: Vec<u8>) -> Vec<u8> {
        let own = match self.rank {
            0 => bytes,
            _ => Vec::new(),
        };
        self.gather(&own).swap_remove(0)
    }

    fn host(&self, rank: usize) -> String {
        format!("thread {rank}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::collective::{agree, any, on_first, ranks};
    use crate::error::Error;

    #[test]
    fn sums_are_in_the_order_of_ranks() {
        let found = Threads::run(3, |rank| {
            // In f32, 1 + 1e8 - 1e8 is 0 and another order gives 1.
            let mut values = vec![[1.0, 1e8, -1e8][rank], rank as f32];
            ranks().sum_in_place(&mut values);
            values
        });
        assert!(
            found.iter().all(|values| *values == [0.0, 3.0]),
            "{found:?}"
        );
    }

    #[test]
    fn rank_0_works_and_decides() {
        let found = Threads::run(3, |rank| {
            let work = || match rank {
                0 => Ok(7),
                _ => Err(Error::Usage("not this rank's".into())),
            };
            let worked = on_first(work).unwrap();
            let failed = on_first(|| Err::<(), _>(Error::Usage("full disk".into())));
            let failed = failed.unwrap_err().to_string();
            (worked, failed, agree(rank == 0), any(rank == 2), any(false))
        });
        assert_eq!(found[0], (Some(7), "full disk".into(), true, true, false));
        assert_eq!(found[1].0, None);
        assert_eq!((&*found[2].1, found[2].2), ("rank 0: full disk", true));
        assert!(found[1].3 && !found[1].4);
    }

    #[test]
    #[should_panic(expected = "the first")]
    fn a_rank_that_panics_ends_the_others() {
        Threads::run(2, |rank| {
            assert!(rank == 1, "the first");
            ranks().barrier();
        });
    }
}
