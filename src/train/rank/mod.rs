//! K responses per prompt, ranked by a reward source: the case of [`sample`](crate::train::sample) whose rows are read as
//! comparisons.

mod config;
mod spec;

pub use config::RankConfig;

use crate::error::Result;
use crate::ops::ModelBackend;
use crate::train::Session;
use crate::train::sample::{Sampling, sample};
use crate::train::session::Outcome;

/// Generates and ranks responses; writes `train.jsonl` and `valid.jsonl`.
///
/// # Errors
/// Those of data, models and the reward source; `Error::Interrupted`.
pub(super) fn rank<B: ModelBackend>(
    session: &mut Session<'_, B>,
    config: &RankConfig,
) -> Result<Outcome> {
    let work = Sampling {
        name: &config.name,
        init: &config.init,
        data: &config.data,
        num_responses: config.num_responses,
        response_length: config.response_length,
        max_prompt_length: config.max_prompt_length,
        sampling: &config.sampling,
        truncate: config.truncate.as_ref(),
        reward: Some(&config.reward),
        include_completions: false,
        tie_margin: config.tie_margin,
        batch_size: config.generation_batch_size,
        valid_fraction: config.valid_fraction,
        verb: "ranked",
        with_ranks: false,
    };
    sample(session, &work)
}
