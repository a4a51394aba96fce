//! Generation by several ranks: each takes some prompts, and all have every response.

use super::{Response, Watch};
use crate::collective::{self, Words, deal, ranks};

/// A response with what was read off its states.
#[derive(Default)]
struct Generated {
    response: Response,
    readings: Vec<f32>,
}

impl Words for Generated {
    fn words(&self) -> Vec<u32> {
        let Response {
            ids,
            logprobs,
            stopped,
        } = &self.response;
        let mut words = vec![u32::from(*stopped), ids.len() as u32];
        words.extend(ids);
        words.extend(logprobs.words());
        words.extend(self.readings.words());
        words
    }

    fn from_words(words: &[u32]) -> Self {
        let [stopped, len, rest @ ..] = words else {
            return Self::default();
        };
        let (ids, rest) = rest.split_at(*len as usize);
        let (logprobs, readings) = rest.split_at(*len as usize);
        Self {
            response: Response {
                ids: ids.to_vec(),
                logprobs: Vec::from_words(logprobs),
                stopped: *stopped == 1,
            },
            readings: Vec::from_words(readings),
        }
    }
}

/// Shows the progress of one rank as that of all: their prompts take about as long.
struct OfAll<'a> {
    watch: &'a mut dyn Watch,
    /// All prompts, and this rank's.
    total: usize,
    own: usize,
}

impl Watch for OfAll<'_> {
    fn token(&mut self, prompt: usize, ids: &[u32]) -> bool {
        self.watch.token(prompt, ids)
    }

    fn progress(&mut self, finished: usize, tokens: u64) {
        let finished = finished * self.total / self.own.max(1);
        let tokens = tokens * self.total as u64 / self.own.max(1) as u64;
        self.watch.progress(finished, tokens);
    }

    fn stops(&self) -> bool {
        self.watch.stops()
    }
}

/// The responses to all `prompts`, and what was read off their states, from those that `generate` gives to the prompts of these indices.
/// Equal prompts that stand together share a pass, and so a rank.
pub(super) fn over_ranks(
    prompts: &[&[u32]],
    watch: &mut dyn Watch,
    generate: impl FnOnce(&[usize], &mut dyn Watch) -> (Vec<Response>, Vec<Vec<f32>>),
) -> (Vec<Response>, Vec<Vec<f32>>) {
    let all: Vec<usize> = (0..prompts.len()).collect();
    if ranks().is_alone() {
        return generate(&all, watch);
    }
    let groups: Vec<&[usize]> = all.chunk_by(|&a, &b| prompts[a] == prompts[b]).collect();
    let own: Vec<usize> = (deal(&weights(prompts, &groups)))
        .swap_remove(ranks().rank())
        .into_iter()
        .flat_map(|group| groups[group])
        .copied()
        .collect();
    let mut watch = OfAll {
        watch,
        total: prompts.len(),
        own: own.len(),
    };
    let (responses, readings) = generate(&own, &mut watch);
    let mut generated: Vec<Generated> = all.iter().map(|_| Generated::default()).collect();
    for ((&prompt, response), readings) in own.iter().zip(responses).zip(readings) {
        generated[prompt] = Generated { response, readings };
    }
    collective::share(&mut generated, own);
    (generated.into_iter())
        .map(|Generated { response, readings }| (response, readings))
        .unzip()
}

/// What groups of equal prompts cost. Nothing is known of the lengths of responses, so that ranks have equal numbers of them first, and
/// then as many tokens of prompts.
fn weights(prompts: &[&[u32]], groups: &[&[usize]]) -> Vec<usize> {
    let len = |group: &[usize]| prompts[group[0]].len();
    let response = 1 + groups.iter().map(|group| len(group)).sum::<usize>();
    (groups.iter())
        .map(|group| group.len() * response + len(group))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_have_equal_numbers_of_responses_and_then_of_tokens() {
        let lens = [9, 1, 8, 2, 2];
        let prompts: Vec<Vec<u32>> = (lens.iter().enumerate())
            .map(|(i, &len)| vec![i as u32; len])
            .collect();
        let prompts: Vec<&[u32]> = prompts.iter().map(Vec::as_slice).collect();
        let dealt = |groups: &[&[usize]]| {
            let weights = weights(&prompts, groups);
            collective::Threads::run(2, |_| deal(&weights)).swap_remove(0)
        };
        // 9 + 1 and 8 + 2, not 9 + 8 and 1 + 2.
        assert_eq!(dealt(&[&[0], &[1], &[2], &[3]]), [vec![0, 1], vec![2, 3]]);
        // Three responses to a short prompt are more than one to a long one.
        assert_eq!(
            dealt(&[&[0], &[1, 1, 1], &[2], &[3]]),
            [vec![1], vec![0, 2, 3]]
        );
    }
}
