//! Generation by several ranks: each takes some prompts, and all have every response.

use super::{Response, Watch};
use crate::collective::{self, Words};

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
    if collective::ranks().is_alone() {
        return generate(&all, watch);
    }
    let groups: Vec<&[usize]> = all.chunk_by(|&a, &b| prompts[a] == prompts[b]).collect();
    let own: Vec<usize> = (collective::own(groups.len()))
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
