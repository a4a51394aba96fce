//! One batch of responses, generated and scored.

use std::collections::BTreeMap;

use super::FrozenValue;
use crate::data::{Prompt, Tokenizer};
use crate::error::{Error, Result};
use crate::generate::{GenerateOptions, Response, generate, generate_with};
use crate::model::LanguageModel;
use crate::ops::ModelBackend;
use crate::report::RolloutReport;
use crate::reward::{RewardConfig, RewardSource};
use crate::rng::Seed;
use crate::train::Session;
use crate::train::evaluate::completions;
use crate::train::generation::Generation;
use crate::train::policy::Policy;

/// Name of the reward source that is trained on.
pub(crate) const SCORE: &str = "score";
/// Name of a second source, which is reported only.
pub(crate) const GOLD: &str = "gold";

/// Queries, a generated response to each, and the scores of the responses.
#[derive(Debug, Clone, Default)]
pub struct Episodes {
    /// Token ids of each query, at least one.
    pub queries: Vec<Vec<u32>>,
    /// The response to each query, at least one token, with the log-probabilities of the policy that generated it.
    pub responses: Vec<Response>,
    /// Values of each response at its value positions, if they were read during generation.
    pub values: Option<Vec<Vec<f32>>>,
    /// Score of each response, before the missing-EOS rule.
    pub scores: Vec<f32>,
}

impl Episodes {
    /// Token ids of each query with its response.
    pub(super) fn rows(&self) -> Vec<Vec<u32>> {
        (self.queries.iter().zip(&self.responses))
            .map(|(query, response)| [query.as_slice(), &response.ids].concat())
            .collect()
    }
}

/// Generates and scores responses.
pub(crate) struct Generator<'a> {
    tokenizer: &'a Tokenizer,
    /// Sampling, and where responses end.
    pub(crate) options: GenerateOptions,
    /// The reward sources by name: [`SCORE`] and optionally [`GOLD`].
    pub(crate) sources: BTreeMap<String, Box<dyn RewardSource>>,
}

impl<'a> Generator<'a> {
    /// A generator for `policy`. `reward` is the source that is maximised; `gold` is reported only.
    ///
    /// # Errors
    /// Those of the sources; `Error::Usage` if the text to truncate at is not one token.
    pub(crate) fn new<B: ModelBackend>(
        session: &mut Session<'_, B>,
        policy: &'a Policy<B>,
        generation: Generation<'_>,
        reward: &RewardConfig,
        gold: Option<&RewardConfig>,
    ) -> Result<Self> {
        let tokenizer = &policy.tokenizer;
        let mut sources = BTreeMap::new();
        let score = session.reward_source(reward, tokenizer)?;
        sources.insert(SCORE.to_owned(), score);
        if let Some(gold) = gold {
            sources.insert(GOLD.to_owned(), session.reward_source(gold, tokenizer)?);
        }
        Ok(Self {
            tokenizer,
            options: generation.options(tokenizer)?,
            sources,
        })
    }

    /// Generates and scores one response of `policy` per prompt; also returns the mean gold score, if there is a gold source. With a
    /// `value` head, values are read during generation from the states that predict the tokens.
    ///
    /// # Errors
    /// Those of the sources, and `Error::Reward` for a score that is not finite.
    pub(crate) fn episodes<B: ModelBackend>(
        &mut self,
        session: &mut Session<'_, B>,
        policy: &LanguageModel<B>,
        value: Option<&FrozenValue<B>>,
        prompts: &[Prompt],
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
        let options = &self.options;
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
        let completions = completions(prompts, &responses, self.tokenizer)?;
        let (mut scores, mut gold) = (Vec::new(), None);
        for (name, source) in self.sources.iter_mut() {
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
}
