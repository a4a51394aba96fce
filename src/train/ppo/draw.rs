//! One batch of responses, drawn and scored.

use std::collections::BTreeMap;

use super::{FrozenValue, GOLD, SCORE, rollout::Episodes};
use crate::data::{Prompt, Tokenizer};
use crate::error::{Error, Result};
use crate::generate::{GenerateOptions, generate, generate_with};
use crate::model::LanguageModel;
use crate::ops::ModelBackend;
use crate::report::RolloutReport;
use crate::reward::RewardSource;
use crate::rng::Seed;
use crate::train::Session;
use crate::train::evaluate::completions;

/// Draws a response to each prompt and asks every source for its score; the second result is the mean gold score, if
/// there is a gold source. With a `value` head the values are read on the way, from the states that are drawn from.
///
/// # Errors
/// Those of the sources, and `Error::Reward` for a score that is not finite.
#[allow(clippy::too_many_arguments)]
pub(super) fn draw<B: ModelBackend>(
    session: &mut Session<'_, B>,
    policy: &LanguageModel<B>,
    value: Option<&FrozenValue<B>>,
    tokenizer: &Tokenizer,
    prompts: &[Prompt],
    sources: &mut BTreeMap<String, Box<dyn RewardSource>>,
    options: &GenerateOptions,
    seed: Seed,
) -> Result<(Episodes, Option<f64>)> {
    let device = session.device.clone();
    let ids: Vec<&[u32]> = prompts.iter().map(|p| p.ids.as_slice()).collect();
    let total = ids.len();
    let reporter = &mut *session.reporter;
    let on_progress = &mut |done, tokens| {
        reporter.rollout(&RolloutReport {
            what: "rollout",
            done,
            total,
            tokens,
        });
    };
    let (responses, values) = match value {
        Some(FrozenValue::Head(head)) => {
            let read_out = &|states| head.values(states);
            let (responses, values) =
                generate_with(policy, read_out, &ids, options, seed, &device, on_progress);
            (responses, Some(values))
        }
        _ => {
            let responses = generate(policy, &ids, options, seed, &device, on_progress);
            (responses, None)
        }
    };
    let completions = completions(prompts, &responses, tokenizer)?;
    let (mut scores, mut gold) = (Vec::new(), None);
    for (name, source) in sources.iter_mut() {
        let values = source.score(&completions)?;
        if values.iter().any(|value| !value.is_finite()) {
            return Err(Error::Reward {
                name: name.clone(),
                message: "a score is not finite".into(),
            });
        }
        match name.as_str() {
            SCORE => scores = values,
            GOLD => gold = Some(crate::rl::mean(&values)),
            _ => {}
        }
    }
    let episodes = Episodes {
        queries: prompts.iter().map(|p| p.ids.clone()).collect(),
        responses,
        values,
        scores,
    };
    Ok((episodes, gold))
}
