//! Rows with one query in one group, whose tokens a pass computes once.

use std::collections::HashMap;

use crate::collective::{self, Parts};
use crate::data::micro_batches;
use crate::tokens::packed_len;

/// The micro-batches of `order`, of all ranks, each made as [`passes`] does. Rows with one query are on one rank where they `share` it.
pub(super) fn step_passes(
    rows: &[&[u32]],
    query_lens: &[usize],
    order: &[usize],
    tokens: usize,
    share: bool,
) -> Parts<Vec<Vec<usize>>> {
    let of_rank = |rows_of_rank: &[usize]| {
        let order = rows_of_rank.iter().copied();
        passes(rows, query_lens, order, tokens, share)
    };
    if collective::ranks().is_alone() {
        return Parts::of_units(&[order.to_vec()], &[1], of_rank);
    }
    let query = |row: usize| &rows[row][..query_lens[row]];
    let mut units: Vec<Vec<usize>> = Vec::new();
    let mut places: HashMap<&[u32], usize> = HashMap::new();
    for &row in order {
        let place = match share {
            true => *places.entry(query(row)).or_insert(units.len()),
            false => units.len(),
        };
        if place == units.len() {
            units.push(Vec::new());
        }
        units[place].push(row);
    }
    let weight =
        |unit: &Vec<usize>| packed_len(&unit.iter().map(|&row| rows[row]).collect::<Vec<_>>());
    let weights: Vec<usize> = units.iter().map(weight).collect();
    Parts::of_units(&units, &weights, of_rank)
}

/// Splits `order`, indices into `rows`, into the micro-batches of passes of at most `tokens` tokens, each a list of groups. With
/// `share` rows with one query are together; a group that is too long for a pass is split. Without it each row is a group.
pub(super) fn passes(
    rows: &[&[u32]],
    query_lens: &[usize],
    order: impl IntoIterator<Item = usize>,
    tokens: usize,
    share: bool,
) -> Vec<Vec<Vec<usize>>> {
    let len = |group: &[usize]| packed_len(&group.iter().map(|&row| rows[row]).collect::<Vec<_>>());
    let query = |row: usize| &rows[row][..query_lens[row]];
    let mut groups: Vec<Vec<usize>> = Vec::new();
    // The newest group of each query.
    let mut newest: HashMap<&[u32], usize> = HashMap::new();
    for row in order {
        if let Some(&at) = newest.get(query(row)).filter(|_| share) {
            groups[at].push(row);
            if len(&groups[at]) <= tokens {
                continue;
            }
            groups[at].pop();
        }
        newest.insert(query(row), groups.len());
        groups.push(vec![row]);
    }
    let lens: Vec<usize> = groups.iter().map(|group| len(group)).collect();
    (micro_batches(&lens, tokens).into_iter())
        .map(|part| part.into_iter().map(|at| groups[at].clone()).collect())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_with_one_query_share_a_pass_as_far_as_it_goes() {
        // Queries 1 1 1 and 2 2; responses of 2 tokens, told apart by their first.
        let rows: [&[u32]; 5] = [
            &[1, 1, 1, 3, 9],
            &[2, 2, 4, 9],
            &[1, 1, 1, 5, 9],
            &[2, 2, 6, 9],
            &[1, 1, 1, 7, 9],
        ];
        let lens = [3, 2, 3, 2, 3];
        let passes = |tokens, share| passes(&rows, &lens, 0..5, tokens, share);
        // 3 + 3 * 2 and 2 + 2 * 2 tokens.
        assert_eq!(passes(15, true), [vec![vec![0, 2, 4], vec![1, 3]]]);
        assert_eq!(passes(9, true), [vec![vec![0, 2, 4]], vec![vec![1, 3]]]);
        // 7 tokens hold two of the three.
        assert_eq!(
            passes(7, true),
            [vec![vec![0, 2]], vec![vec![1, 3]], vec![vec![4]]]
        );
        assert_eq!(passes(5, false).len(), 5);
        // A query that occurs once is packed as a row.
        assert_eq!(passes(10, false)[0], [vec![0], vec![2]]);
    }
}
