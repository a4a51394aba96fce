//! One batch of responses, generated and scored.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::FrozenValue;
use crate::data::{Prompt, Tokenizer};
use crate::error::Result;
use crate::generate::{GenerateOptions, Response, generate, generate_with};
use crate::model::LanguageModel;
use crate::ops::ModelBackend;
use crate::report::RolloutReport;
use crate::reward::{RewardConfig, RewardSource};
use crate::rng::Seed;
use crate::train::Session;
use crate::train::evaluate::completions;
use crate::train::generation::Generation;

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
    /// Further scores of each response by the name of their metric, which are reported only: gold scores, and the parts of a sum.
    pub columns: Vec<(String, Vec<f32>)>,
}

impl Episodes {
    /// Mean of each column, for `metrics.jsonl`.
    pub(crate) fn metrics(&self) -> Vec<(String, f64)> {
        (self.columns.iter())
            .map(|(name, scores)| (name.clone(), crate::rl::mean(scores)))
            .collect()
    }

    /// Appends other episodes of the same reward sources.
    pub(crate) fn append(&mut self, other: Self) {
        if self.queries.is_empty() {
            *self = other;
            return;
        }
        self.queries.extend(other.queries);
        self.responses.extend(other.responses);
        self.scores.extend(other.scores);
        for ((_, scores), (_, more)) in self.columns.iter_mut().zip(other.columns) {
            scores.extend(more);
        }
        if let (Some(values), Some(more)) = (&mut self.values, other.values) {
            values.extend(more);
        }
    }

    /// The episodes of `rows`, in this order.
    ///
    /// # Panics
    /// If there is no such row.
    pub(crate) fn select(&self, rows: &[usize]) -> Self {
        let numbers = |of: &[f32]| rows.iter().map(|&row| of[row]).collect();
        Self {
            queries: rows.iter().map(|&row| self.queries[row].clone()).collect(),
            responses: (rows.iter())
                .map(|&row| self.responses[row].clone())
                .collect(),
            values: (self.values.as_ref())
                .map(|values| rows.iter().map(|&row| values[row].clone()).collect()),
            scores: numbers(&self.scores),
            columns: (self.columns.iter())
                .map(|(name, scores)| (name.clone(), numbers(scores)))
                .collect(),
        }
    }

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
    /// A generator for policies with this tokenizer. `reward` is the source that is maximised; `gold` is reported only.
    ///
    /// # Errors
    /// Those of the sources; `Error::Usage` if the text to truncate at is not one token.
    pub(crate) fn new<B: ModelBackend>(
        session: &mut Session<'_, B>,
        tokenizer: &'a Arc<Tokenizer>,
        generation: Generation<'_>,
        reward: &RewardConfig,
        gold: Option<&RewardConfig>,
    ) -> Result<Self> {
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

    /// Generates and scores one response of `policy` per prompt; equal prompts in a row share their prefill. With a `value` head, values are read during generation from the states that predict the tokens.
    ///
    /// # Errors
    /// Those of the sources.
    pub(crate) fn episodes<B: ModelBackend>(
        &mut self,
        session: &mut Session<'_, B>,
        policy: &LanguageModel<B>,
        value: Option<&FrozenValue<B>>,
        prompts: &[Prompt],
        seed: Seed,
    ) -> Result<Episodes> {
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
        let (mut scores, mut columns) = (Vec::new(), Vec::new());
        for (name, source) in self.sources.iter_mut() {
            let values = session.score(source.as_mut(), &completions)?;
            match name.as_str() {
                SCORE => {
                    scores = values;
                    let parts = source.parts().into_iter();
                    columns
                        .extend(parts.map(|(part, of)| (format!("objective/scores/{part}"), of)));
                }
                GOLD => columns.push(("objective/gold_scores".to_owned(), values)),
                _ => {}
            }
        }
        Ok(Episodes {
            queries: prompts.iter().map(|p| p.ids.clone()).collect(),
            responses,
            values,
            scores,
            columns,
        })
    }
}
