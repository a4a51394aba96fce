//! Which rank takes which rows.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::ops::Range;

use super::ranks;

/// Deals out items with these weights, such as rows with their numbers of tokens, so that every rank has about the same to do: the
/// heaviest first, each to the rank that has least, which is the first of equals. Every rank's items, ascending.
///
/// # Source
/// Graham 1969, "Bounds on multiprocessing timing anomalies": at most 4/3 of the best division.
pub fn deal(weights: &[usize]) -> Vec<Vec<usize>> {
    let world = ranks().world();
    if world == 1 {
        return vec![(0..weights.len()).collect()];
    }
    let mut order: Vec<usize> = (0..weights.len()).collect();
    order.sort_by_key(|&item| Reverse(weights[item])); // stable: equal weights keep their order
    let mut loads: BinaryHeap<Reverse<(usize, usize)>> =
        (0..world).map(|rank| Reverse((0, rank))).collect();
    let mut dealt = vec![Vec::new(); world];
    for item in order {
        if let Some(Reverse((load, rank))) = loads.pop() {
            dealt[rank].push(item);
            // An item without tokens costs something, too.
            loads.push(Reverse((load + weights[item].max(1), rank)));
        }
    }
    dealt.iter_mut().for_each(|items| items.sort_unstable());
    dealt
}

/// The items among `0..count` that this rank takes where nothing is known of their weights: they are dealt out one by one.
pub fn own(count: usize) -> impl Iterator<Item = usize> {
    let ranks = ranks();
    (ranks.rank()..count).step_by(ranks.world())
}

/// The micro-batches of one step, of all ranks in their order. For one process they are those that `split` makes of all items.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parts<T = Vec<usize>> {
    all: Vec<T>,
    own: Range<usize>,
    /// Of each of this rank's, its index among those that one process would make, for [`Parts::whole`]; else its place.
    indices: Vec<usize>,
}

impl Parts {
    /// [Deals](deal) out items with these weights; `split` makes micro-batches of some of them, as indices into those that it is given.
    pub fn new(weights: &[usize], split: impl Fn(&[usize]) -> Vec<Vec<usize>>) -> Self {
        Self::of(deal(weights), |items| {
            (split(items).into_iter())
                .map(|part| part.into_iter().map(|i| items[i]).collect())
                .collect()
        })
    }

    /// Deals out the micro-batches that one process would make of all `count` items. For passes with dropout, whose masks belong to
    /// places in a micro-batch: they are the same for any number of ranks. There should be at least as many as ranks.
    pub fn whole(count: usize, split: impl Fn(&[usize]) -> Vec<Vec<usize>>) -> Self {
        let items: Vec<usize> = (0..count).collect();
        let parts = split(&items);
        let ranks = ranks();
        let (mut all, mut own) = (Vec::new(), 0..0);
        for rank in 0..ranks.world() {
            let first = all.len();
            all.extend(parts.iter().skip(rank).step_by(ranks.world()).cloned());
            if rank == ranks.rank() {
                own = first..all.len();
            }
        }
        let indices = (ranks.rank()..parts.len()).step_by(ranks.world());
        Self {
            indices: indices.collect(),
            all,
            own,
        }
    }
}

impl<T> Parts<T> {
    /// [Deals](deal) out `units` with these weights, the items of which stay together; `split` makes micro-batches of some items.
    pub fn of_units(
        units: &[Vec<usize>],
        weights: &[usize],
        split: impl Fn(&[usize]) -> Vec<T>,
    ) -> Self {
        let mut of_ranks = Vec::new();
        for of_rank in deal(weights) {
            let items = of_rank.iter().flat_map(|&unit| &units[unit]);
            of_ranks.push(items.copied().collect());
        }
        Self::of(of_ranks, split)
    }

    /// The micro-batches of the items of every rank.
    fn of(of_ranks: Vec<Vec<usize>>, split: impl Fn(&[usize]) -> Vec<T>) -> Self {
        let ranks = ranks();
        let (mut all, mut own) = (Vec::new(), 0..0);
        for (rank, items) in of_ranks.iter().enumerate() {
            let first = all.len();
            if !items.is_empty() {
                all.extend(split(items));
            }
            if rank == ranks.rank() {
                own = first..all.len();
            }
        }
        Self {
            indices: own.clone().collect(),
            all,
            own,
        }
    }

    /// Those of all ranks.
    pub fn all(&self) -> &[T] {
        &self.all
    }

    /// Those of this rank.
    pub fn own(&self) -> &[T] {
        &self.all[self.own.clone()]
    }

    /// Those of this rank, each with the index that randomness depends on.
    pub fn own_indexed(&self) -> impl Iterator<Item = (usize, &T)> {
        self.indices.iter().copied().zip(self.own())
    }

    /// Whether this rank computes the micro-batch at `place`.
    pub fn has(&self, place: usize) -> bool {
        self.own.contains(&place)
    }
}

#[cfg(test)]
mod tests {
    use super::super::Threads;
    use super::*;

    fn pairs(items: &[usize]) -> Vec<Vec<usize>> {
        let places: Vec<usize> = (0..items.len()).collect();
        places.chunks(2).map(<[usize]>::to_vec).collect()
    }

    #[test]
    fn rows_are_dealt_out_and_every_rank_knows_all_parts() {
        let alone = Parts::new(&[1; 5], pairs);
        assert_eq!(alone.all(), [vec![0, 1], vec![2, 3], vec![4]]);
        assert_eq!(alone.own(), alone.all());
        let found = Threads::run(2, |_| {
            let parts = Parts::new(&[1; 5], pairs);
            let whole = Parts::whole(5, pairs);
            (parts, whole, own(5).collect::<Vec<_>>())
        });
        let all = [vec![0, 2], vec![4], vec![1, 3]];
        for (rank, own_parts) in [&all[..2], &all[2..]].into_iter().enumerate() {
            let (parts, whole, _) = &found[rank];
            assert_eq!(parts.all(), all);
            assert_eq!(parts.own(), own_parts);
            assert_eq!(whole.all(), [vec![0, 1], vec![4], vec![2, 3]]);
        }
        assert_eq!(found[1].1.own(), [vec![2, 3]]);
        let indices = |parts: &Parts| parts.own_indexed().map(|(index, _)| index).collect();
        let indices: [Vec<usize>; 2] = [indices(&found[0].1), indices(&found[1].1)];
        assert_eq!(indices, [vec![0, 2], vec![1]]);
        assert_eq!(
            (found[0].2.as_slice(), found[1].2.as_slice()),
            (&[0, 2, 4][..], &[1, 3][..])
        );
        // A rank may have nothing to do.
        let found = Threads::run(3, |_| Parts::new(&[1], pairs));
        assert_eq!(found[2].all(), [vec![0]]);
        assert!(found[2].own().is_empty() && found[0].has(0) && !found[1].has(0));
    }

    #[test]
    fn units_stay_on_one_rank_and_the_work_is_even() {
        let units = [vec![0, 1, 2], vec![3], vec![4, 5]];
        let found = Threads::run(2, |_| {
            Parts::of_units(&units, &[30, 8, 20], |items| vec![items.to_vec()])
        });
        assert_eq!(found[0].own(), [vec![0, 1, 2]]);
        assert_eq!(found[1].own(), [vec![3, 4, 5]]);
        // 9, 7 and 5 + 3 in two parts: 9 + 3 and 7 + 5.
        assert_eq!(
            Threads::run(2, |_| deal(&[3, 5, 7, 9])).remove(1),
            [vec![0, 3], vec![1, 2]]
        );
        assert_eq!(deal(&[3, 5]), [vec![0, 1]]);
    }
}
