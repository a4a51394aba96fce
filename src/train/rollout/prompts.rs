//! The prompts of a stage, and the order of rows in updates.

use std::borrow::Cow;
use std::ops::Range;

use crate::data::{Prompt, Prompts, TokenRows};
use crate::error::Result;
use crate::ops::ModelBackend;
use crate::rng::Seed;
use crate::train::Session;
use crate::train::config::DataConfig;
use crate::train::policy::Policy;

/// All prompts of a data set of at most `max_prompt_length` tokens; reports the number of longer ones under the name `what`.
///
/// # Errors
/// Those of the data.
pub(crate) fn prompts<B: ModelBackend>(
    session: &mut Session<'_, B>,
    policy: &Policy<B>,
    data: &DataConfig,
    max_prompt_length: usize,
    what: &str,
) -> Result<TokenRows<Prompt>> {
    let encoding = Prompts {
        max_length: max_prompt_length,
    };
    session.token_rows(what, data, &policy.tokenizer, &encoding)
}

/// The prompts of evaluations, in memory; none without `data`.
///
/// # Errors
/// As [`prompts`].
pub(crate) fn held_out_prompts<B: ModelBackend>(
    session: &mut Session<'_, B>,
    policy: &Policy<B>,
    data: Option<&DataConfig>,
    max_prompt_length: usize,
) -> Result<Vec<Prompt>> {
    match data {
        Some(data) => {
            prompts(session, policy, data, max_prompt_length, "held-out prompts")?.into_vec()
        }
        None => Ok(Vec::new()),
    }
}

/// A random order of the rollout's rows for each epoch.
pub fn minibatch_orders(seed: Seed, num_rows: usize, num_epochs: usize) -> Vec<Vec<usize>> {
    (0..num_epochs as u64)
        .map(|epoch| seed.fork_index(epoch).permutation(num_rows))
        .collect()
}

/// The `count` prompts of an update.
///
/// # Errors
/// If they cannot be read.
pub(crate) fn next_prompts(
    prompts: &TokenRows<Prompt>,
    count: usize,
    update: usize,
    seed: Seed,
) -> Result<Vec<Prompt>> {
    let range = update * count..(update + 1) * count;
    let rows = prompts.get(endless(prompts.len(), range, seed))?;
    Ok(rows.into_iter().map(Cow::into_owned).collect())
}

/// Part of an endless sequence over `len` rows: each pass has a new random order, and batches may span two passes.
pub(crate) fn endless(len: usize, part: Range<usize>, seed: Seed) -> impl Iterator<Item = usize> {
    let (mut pass, mut order) = (usize::MAX, Vec::new());
    part.map(move |k| {
        if k / len != pass {
            pass = k / len;
            order = seed.fork_index(pass as u64).permutation(len);
        }
        order[k % len]
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_comes_once_in_each_pass() {
        let seed = Seed::new(1);
        let all: Vec<usize> = endless(5, 0..10, seed).collect();
        for pass in all.chunks(5) {
            let mut sorted = pass.to_vec();
            sorted.sort();
            assert_eq!(sorted, [0, 1, 2, 3, 4]);
        }
        assert_ne!(all[..5], all[5..]);
        // A batch that begins in the middle of a pass is part of the same walk.
        let later: Vec<usize> = endless(5, 3..8, seed).collect();
        assert_eq!(later, all[3..8]);
    }
}
