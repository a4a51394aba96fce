//! Pairs of a chosen and a rejected response among several to a prompt.

use crate::data::Comparisons;
use crate::train::rollout::Episodes;

/// The best and the worst of each `num_generations` consecutive responses by their `scores`; of equal ones the first.
/// Where all scores of a prompt are equal there is no pair. Also returns the differences of scores, one a pair.
///
/// # Panics
/// If the responses are not a multiple of `num_generations`, or the lengths differ.
pub(super) fn pairs(
    episodes: &Episodes,
    scores: &[f32],
    num_generations: usize,
) -> (Vec<Comparisons>, Vec<f64>) {
    let count = episodes.responses.len();
    assert!(
        count.is_multiple_of(num_generations),
        "responses to each prompt"
    );
    assert_eq!(count, scores.len(), "a score for each response");
    let (mut items, mut margins) = (Vec::new(), Vec::new());
    for first in (0..count).step_by(num_generations) {
        let (mut best, mut worst) = (first, first);
        for i in first..first + num_generations {
            if scores[i] > scores[best] {
                best = i;
            }
            if scores[i] < scores[worst] {
                worst = i;
            }
        }
        if best == worst {
            continue;
        }
        let query = &episodes.queries[first];
        let row = |i: usize| [query.as_slice(), &episodes.responses[i].ids].concat();
        items.push(Comparisons {
            responses: vec![row(best), row(worst)],
            prompt_len: query.len(),
            pairs: vec![(0, 1, 0.0)],
            ..Comparisons::default()
        });
        margins.push(f64::from(scores[best] - scores[worst]));
    }
    (items, margins)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::generate::Response;

    fn episodes(count: usize) -> Episodes {
        let response = |i: usize| Response {
            ids: vec![10 + i as u32],
            logprobs: vec![0.0],
            stopped: true,
        };
        Episodes {
            queries: (0..count).map(|i| vec![i as u32 / 3]).collect(),
            responses: (0..count).map(response).collect(),
            ..Episodes::default()
        }
    }

    #[test]
    fn the_best_and_the_worst_of_a_prompt_are_compared() {
        let scores = [1.0, 3.0, 0.5, 2.0, 2.0, 2.0, -1.0, 4.0, 4.0];
        let (items, margins) = pairs(&episodes(9), &scores, 3);
        let rows: Vec<_> = items.iter().map(|item| item.responses.clone()).collect();
        // All responses to the second prompt have the same score.
        assert_eq!(
            rows,
            [[vec![0, 11], vec![0, 12]], [vec![2, 17], vec![2, 16]]]
        );
        assert_eq!(margins, [2.5, 5.0]);
        assert!(items.iter().all(|item| item.prompt_len == 1));
    }
}
