//! The batches of a stage as pure functions of the step, so that a run resumes at any step without replaying earlier ones.

use std::cell::RefCell;

use crate::collective::Parts;
use crate::rng::Seed;

/// The batches of a stage: every row once per epoch, shuffled in each epoch or in the order of the data.
#[derive(Debug, Clone)]
pub struct Batches {
    num_rows: usize,
    batch_size: usize,
    epochs: usize,
    steps: Option<usize>,
    seed: Option<Seed>,
    /// The last shuffled epoch and its order: that of millions of rows takes as long as a step on a GPU.
    order: RefCell<Option<(usize, Vec<usize>)>>,
}

impl Batches {
    /// `epochs` passes over `num_rows` rows in batches of `batch_size`; an epoch's last batch may be smaller. `seed` shuffles;
    /// without it rows come in the order of the data.
    ///
    /// # Panics
    /// If `batch_size` is zero.
    pub fn new(num_rows: usize, batch_size: usize, epochs: usize, seed: Option<Seed>) -> Self {
        assert!(batch_size > 0, "a batch needs at least one row");
        Self {
            num_rows,
            batch_size,
            epochs,
            steps: None,
            seed,
            order: RefCell::new(None),
        }
    }

    /// The same with a number of steps in place of epochs, if one is given.
    pub fn with_steps(self, steps: Option<usize>) -> Self {
        Self { steps, ..self }
    }

    /// Steps of one epoch.
    pub fn steps_per_epoch(&self) -> usize {
        self.num_rows.div_ceil(self.batch_size)
    }

    /// Steps of all epochs, or as many as were asked for.
    pub fn num_steps(&self) -> usize {
        (self.steps).unwrap_or(self.steps_per_epoch().saturating_mul(self.epochs))
    }

    /// Rows of step `step`, counted from 0.
    ///
    /// Steps beyond [`Batches::num_steps`] continue with further epochs, for loops that count episodes instead.
    ///
    /// # Panics
    /// If there are no rows.
    pub fn batch(&self, step: usize) -> Vec<usize> {
        assert!(self.num_rows > 0, "a batch needs rows");
        let (epoch, within) = (step / self.steps_per_epoch(), step % self.steps_per_epoch());
        let first = within * self.batch_size;
        let batch = first..(first + self.batch_size).min(self.num_rows);
        let Some(seed) = self.seed else {
            return batch.collect();
        };
        let mut order = self.order.borrow_mut();
        let (_, order) = match order.take() {
            Some((known, rows)) if known == epoch => order.insert((known, rows)),
            _ => {
                let rows = seed.fork_index(epoch as u64).permutation(self.num_rows);
                order.insert((epoch, rows))
            }
        };
        order[batch].to_vec()
    }
}

/// Splits a batch into micro-batches: indices into `lens` (tokens), each index once, with a total of at most `max_tokens` per
/// micro-batch unless a single row exceeds it.
///
/// Rows are sorted by length, longest first: attention costs the square of a row's length, and a batch that does not fit in
/// memory fails at once rather than at its end.
pub fn micro_batches(lens: &[usize], max_tokens: usize) -> Vec<Vec<usize>> {
    let mut order: Vec<usize> = (0..lens.len()).collect();
    order.sort_by_key(|&row| std::cmp::Reverse(lens[row])); // stable: equal lengths keep their order
    let mut parts: Vec<Vec<usize>> = Vec::new();
    let mut total = 0;
    for row in order {
        match parts.last_mut() {
            Some(part) if total + lens[row] <= max_tokens => {
                part.push(row);
                total += lens[row];
            }
            _ => {
                parts.push(vec![row]);
                total = lens[row];
            }
        }
    }
    parts
}

/// [`micro_batches`] of the rows that this rank takes of a global batch, whose results the ranks then
/// [share](crate::collective::share); with one process, of all.
pub fn own_micro_batches(lens: &[usize], max_tokens: usize) -> Vec<Vec<usize>> {
    step_parts(lens, max_tokens).own().to_vec()
}

/// The micro-batches of an optimiser step, of all ranks.
pub fn step_parts(lens: &[usize], max_tokens: usize) -> Parts {
    Parts::new(lens, of_rows(lens, max_tokens))
}

/// The same for passes with `dropout`, whose masks belong to places in a micro-batch: where there is some, whole micro-batches are
/// dealt out.
pub fn step_parts_with(lens: &[usize], max_tokens: usize, dropout: bool) -> Parts {
    match dropout {
        true => Parts::whole(lens.len(), of_rows(lens, max_tokens)),
        false => step_parts(lens, max_tokens),
    }
}

fn of_rows(lens: &[usize], max_tokens: usize) -> impl Fn(&[usize]) -> Vec<Vec<usize>> + '_ {
    move |rows| {
        let lens: Vec<usize> = rows.iter().map(|&row| lens[row]).collect();
        micro_batches(&lens, max_tokens)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn an_epoch_ends_with_a_smaller_batch() {
        let batches = Batches::new(7, 3, 2, Some(Seed::new(1)));
        assert_eq!((batches.steps_per_epoch(), batches.num_steps()), (3, 6));
        let lens: Vec<usize> = (0..6).map(|step| batches.batch(step).len()).collect();
        assert_eq!(lens, [3, 3, 1, 3, 3, 1]);
    }

    #[test]
    fn epochs_and_seeds_differ_in_order() {
        let rows = |seed, epoch| Batches::new(50, 50, 2, Some(Seed::new(seed))).batch(epoch);
        assert_eq!(rows(1, 0), rows(1, 0));
        assert_ne!(rows(1, 0), rows(1, 1));
        assert_ne!(rows(1, 0), rows(2, 0));
    }

    #[test]
    fn without_a_seed_rows_keep_their_order() {
        assert_eq!(
            Batches::new(5, 2, 2, None).with_steps(Some(4)).num_steps(),
            4
        );
        let batches = Batches::new(5, 2, 2, None).with_steps(None);
        let rows: Vec<usize> = (0..6).flat_map(|step| batches.batch(step)).collect();
        assert_eq!(rows, [0, 1, 2, 3, 4, 0, 1, 2, 3, 4]);
    }

    #[test]
    fn micro_batches_go_from_long_to_short() {
        assert_eq!(
            micro_batches(&[2, 9, 4, 30, 4], 12),
            vec![vec![3], vec![1], vec![2, 4, 0]]
        );
        assert!(micro_batches(&[], 12).is_empty());
    }

    proptest! {
        #[test]
        fn every_row_once_an_epoch(rows in 1usize..60, size in 1usize..20, seed in 0u64..100, epoch in 0usize..3) {
            let batches = Batches::new(rows, size, 3, (seed > 0).then(|| Seed::new(seed)));
            let steps = batches.steps_per_epoch();
            let mut seen: Vec<usize> = (epoch * steps..(epoch + 1) * steps).flat_map(|s| batches.batch(s)).collect();
            seen.sort_unstable();
            prop_assert_eq!(seen, (0..rows).collect::<Vec<_>>());
        }

        #[test]
        fn micro_batches_fit_and_lose_nothing(lens in prop::collection::vec(0usize..50, 0..40), max in 1usize..80) {
            let parts = micro_batches(&lens, max);
            for part in &parts {
                let total: usize = part.iter().map(|&row| lens[row]).sum();
                prop_assert!(!part.is_empty() && (total <= max || part.len() == 1));
            }
            let mut seen = parts.concat();
            seen.sort_unstable();
            prop_assert_eq!(seen, (0..lens.len()).collect::<Vec<_>>());
        }
    }
}
