//! From responses and scores to advantages: every array of one rollout, on the host.

use super::passes::{Models, Passed, Rows};
use crate::generate::Response;
use crate::ops::ModelBackend;
use crate::rl::{self, KlEstimator, KlIn, ResponseLayout, Variance};
use crate::tokens::Segments;
use crate::train::config::PpoConfig;

/// Queries, the responses drawn to them, and what the reward source says of each.
#[derive(Debug, Clone, Default)]
pub struct Episodes {
    /// Token ids of each query, at least one.
    pub queries: Vec<Vec<u32>>,
    /// Its response, at least one token, with the log-probabilities of the policy that drew it.
    pub responses: Vec<Response>,
    /// Its values at the value positions, if they were read when it was drawn.
    pub values: Option<Vec<Vec<f32>>>,
    /// Its score, before the missing-EOS rule.
    pub scores: Vec<f32>,
}

impl Episodes {
    /// Each query with its response.
    fn rows(&self) -> Vec<Vec<u32>> {
        (self.queries.iter().zip(&self.responses))
            .map(|(query, response)| [query.as_slice(), &response.ids].concat())
            .collect()
    }

    /// Length of each query in tokens.
    fn query_lens(&self) -> Vec<usize> {
        self.queries.iter().map(Vec::len).collect()
    }
}

/// A rollout as the update reads it, and every array on the way there.
///
/// Arrays are packed: row after row, `[response tokens]` as [`ResponseLayout::responses`] or `[value positions]` as
/// [`ResponseLayout::values`] tell the rows apart. Nothing stands at positions that do not count.
///
/// # Source
/// arXiv:2403.17031 and its code, `ppo.py`: from `logprobs` to `advantages`.
#[derive(Debug, Clone)]
pub struct Rollout {
    /// Query and response, row by row.
    pub rows: Vec<Vec<u32>>,
    /// Tokens of each row that are the query.
    pub query_lens: Vec<usize>,
    /// Which positions of the responses count for the policy and for the value network.
    pub layout: ResponseLayout,
    /// Whether each response ended by itself.
    pub has_eos: Vec<bool>,
    /// Score of each response.
    pub scores: Vec<f32>,
    /// The same after the missing-EOS rule.
    pub kept_scores: Vec<f32>,
    /// `[response tokens]`, nats: of the policy that drew.
    pub logprobs: Vec<f32>,
    /// `[response tokens]`, nats: of the reference.
    pub ref_logprobs: Vec<f32>,
    /// `[response tokens]`, nats: the recipe's estimator of the KL.
    pub kl: Vec<f32>,
    /// Weight of the KL term.
    pub kl_coef: f64,
    /// Where that term is.
    pub kl_in: KlIn,
    /// `[value positions]`: before the updates.
    pub values: Vec<f32>,
    /// `[value positions]`: the KL term, and the score at each row's end; not whitened.
    pub raw_rewards: Vec<f32>,
    /// `[value positions]`: the same, whitened if the recipe says so.
    pub rewards: Vec<f32>,
    /// `[value positions]`: not whitened.
    pub raw_advantages: Vec<f32>,
    /// `[response tokens]`: what the policy loss reads, whitened if the recipe says so.
    pub advantages: Vec<f32>,
    /// `[value positions]`: what the value loss reads.
    pub returns: Vec<f32>,
}

impl Rollout {
    /// Computes everything that follows from `episodes`: log-probabilities and values by forward passes of at most
    /// `config.micro_batch_tokens` tokens, then rewards, advantages and returns. Draws nothing, trains nothing.
    ///
    /// # Panics
    /// If a query or a response is empty, a response is longer than `config.response_length`, or the lengths of
    /// `episodes` differ.
    pub fn evaluate<B: ModelBackend>(
        episodes: &Episodes,
        models: Models<'_, B>,
        config: &PpoConfig,
        kl_coef: f64,
        device: &B::Device,
    ) -> Self {
        let Episodes {
            queries,
            responses,
            values,
            scores,
        } = episodes;
        assert_eq!(queries.len(), responses.len(), "a response to each query");
        let (rows, query_lens) = (episodes.rows(), episodes.query_lens());
        let slices: Vec<&[u32]> = rows.iter().map(Vec::as_slice).collect();
        let segments = Segments::from_lens(responses.iter().map(|r| r.ids.len()));
        let layout = ResponseLayout::after_eos(segments, config.response_length);

        let passed = models.pass(
            Rows {
                rows: &slices,
                query_lens: &query_lens,
                layout: &layout,
                temperature: super::logprob_temperature(config),
                micro_batch_tokens: config.micro_batch_tokens,
            },
            values.as_deref(),
            device,
        );
        let Passed {
            ref_logprobs,
            values,
            ..
        } = passed;
        let sampled = || responses.iter().flat_map(|r| r.logprobs.clone()).collect();
        let logprobs = passed.logprobs.unwrap_or_else(sampled);

        let has_eos: Vec<bool> = responses.iter().map(|r| r.stopped).collect();
        let mut kept_scores = scores.clone();
        rl::apply_missing_eos(&mut kept_scores, &has_eos, config.missing_eos);
        let kl = rl::kl_per_token(config.kl_estimator, &logprobs, &ref_logprobs);
        let in_rewards = reward_kl_coef(kl_coef, config.kl_in);
        let raw_rewards = rl::token_rewards(&kl, &kept_scores, in_rewards, &layout);
        let rewards = match config.whiten_rewards {
            true => rl::whiten(&raw_rewards, false, Variance::Biased),
            false => raw_rewards.clone(),
        };
        let rl::Gae {
            advantages: raw_advantages,
            returns,
        } = rl::gae(&rewards, &values, layout.values(), config.gamma, config.lam);
        let mut advantages = layout.at_responses(&raw_advantages);
        if config.whiten_advantages {
            advantages = rl::whiten(&advantages, true, Variance::Biased);
        }
        Self {
            scores: scores.clone(),
            rows,
            query_lens,
            layout,
            has_eos,
            kept_scores,
            logprobs,
            ref_logprobs,
            kl,
            kl_coef,
            kl_in: config.kl_in,
            values,
            raw_rewards,
            rewards,
            raw_advantages,
            advantages,
            returns,
        }
    }

    /// Mean over responses of the summed `logprob - ref_logprob`, nats: what is reported and controlled, whichever
    /// estimator enters the rewards.
    pub fn mean_kl(&self) -> f64 {
        self.objective().kl
    }

    fn objective(&self) -> rl::ObjectiveStats {
        let plain = rl::kl_per_token(KlEstimator::K1, &self.logprobs, &self.ref_logprobs);
        rl::objective_stats(
            &plain,
            &self.kl,
            &self.kept_scores,
            reward_kl_coef(self.kl_coef, self.kl_in),
            self.layout.responses(),
            &self.has_eos,
        )
    }

    /// What `metrics.jsonl` says of the rollout.
    pub fn metrics(&self) -> Vec<(&'static str, f64)> {
        let missing = self.has_eos.iter().filter(|&&has| !has).count() as f64;
        let advantages = self.layout.at_responses(&self.raw_advantages);
        let mut metrics = self.objective().metrics().to_vec();
        metrics.extend([
            (
                "objective/scores_std",
                rl::variance(&self.kept_scores).sqrt(),
            ),
            ("val/missing_eos_rate", missing / self.rows.len() as f64),
            ("val/advantage_mean", rl::mean(&advantages)),
            (
                "val/explained_variance",
                rl::explained_variance(&self.values, &self.returns),
            ),
        ]);
        metrics
    }

    /// The rows as slices.
    pub fn row_slices(&self) -> Vec<&[u32]> {
        self.rows.iter().map(Vec::as_slice).collect()
    }
}

/// Weight of the KL in the rewards.
fn reward_kl_coef(kl_coef: f64, kl_in: KlIn) -> f64 {
    match kl_in {
        KlIn::Reward => kl_coef,
        KlIn::Loss => 0.0,
    }
}
