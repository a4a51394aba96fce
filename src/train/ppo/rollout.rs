//! One batch of responses with everything the update needs, on the host.

use std::collections::BTreeMap;

use super::{GOLD, SCORE, score_error};
use crate::data::{Prompt, Tokenizer, micro_batches};
use crate::error::Result;
use crate::generate::{GenerateOptions, generate};
use crate::model::{LanguageModel, ScalarModel};
use crate::ops::ModelBackend;
use crate::report::RolloutReport;
use crate::reward::RewardSource;
use crate::rl::{self, ResponseLayout, Variance};
use crate::rng::Seed;
use crate::tokens::{Segments, TokenBatch};
use crate::train::Session;
use crate::train::config::PpoConfig;
use crate::train::evaluate::completions;
use crate::train::forward::{host, indices, row_logprobs};

/// The models that a rollout reads, all without gradient.
pub(super) struct Sources<'a, B: ModelBackend> {
    pub(super) policy: &'a LanguageModel<B>,
    pub(super) reference: &'a LanguageModel<B>,
    pub(super) value: &'a ScalarModel<B>,
}

/// Responses with log-probabilities, values, advantages and returns.
pub(super) struct Rollout {
    /// Query and response, row by row.
    pub(super) rows: Vec<Vec<u32>>,
    /// Tokens of each row that are the query.
    pub(super) query_lens: Vec<usize>,
    /// Of the policy that drew, per response token.
    pub(super) logprobs: Vec<Vec<f32>>,
    /// Of the value network, per value position.
    pub(super) values: Vec<Vec<f32>>,
    /// Per response token, whitened if asked for.
    pub(super) advantages: Vec<Vec<f32>>,
    /// Per value position.
    pub(super) returns: Vec<Vec<f32>>,
    /// Nats per response.
    pub(super) mean_kl: f64,
    /// What `metrics.jsonl` says of the rollout.
    pub(super) metrics: Vec<(&'static str, f64)>,
}

impl Rollout {
    /// Draws responses, scores them, and turns scores into advantages.
    #[allow(clippy::too_many_arguments)]
    pub(super) fn draw<B: ModelBackend>(
        session: &mut Session<'_, B>,
        config: &PpoConfig,
        models: &Sources<'_, B>,
        tokenizer: &Tokenizer,
        prompts: &[Prompt],
        sources: &mut BTreeMap<String, Box<dyn RewardSource>>,
        options: &GenerateOptions,
        kl_coef: f64,
        seed: Seed,
    ) -> Result<Self> {
        let device = session.device.clone();
        let ids: Vec<&[u32]> = prompts.iter().map(|p| p.ids.as_slice()).collect();
        let total = ids.len();
        let reporter = &mut *session.reporter;
        let responses = generate(
            models.policy,
            &ids,
            options,
            seed,
            &device,
            &mut |done, tokens| {
                reporter.rollout(&RolloutReport {
                    what: "rollout",
                    done,
                    total,
                    tokens,
                });
            },
        );
        let completions = completions(prompts, &responses, tokenizer)?;
        let mut scores = BTreeMap::new();
        for (name, source) in sources.iter_mut() {
            let values = source.score(&completions)?;
            if values.iter().any(|value| !value.is_finite()) {
                return Err(score_error(name));
            }
            scores.insert(name.as_str(), values);
        }
        let raw_scores = scores[SCORE].clone();
        let has_eos: Vec<bool> = responses.iter().map(|r| r.stopped).collect();
        let mut kept_scores = raw_scores.clone();
        rl::apply_missing_eos(&mut kept_scores, &has_eos, config.missing_eos);

        let rows: Vec<Vec<u32>> = ids
            .iter()
            .zip(&responses)
            .map(|(query, r)| [*query, &r.ids].concat())
            .collect();
        let slices: Vec<&[u32]> = rows.iter().map(Vec::as_slice).collect();
        let query_lens: Vec<usize> = ids.iter().map(|query| query.len()).collect();
        let segments = Segments::from_lens(responses.iter().map(|r| r.ids.len()));
        let layout = ResponseLayout::after_eos(segments.clone(), config.response_length);
        let tokens = config.micro_batch_tokens;
        let ref_logprobs = row_logprobs(
            models.reference,
            &slices,
            &query_lens,
            config.temperature,
            tokens,
            &device,
        )
        .concat();
        let values = row_values(models.value, &slices, &query_lens, &layout, tokens, &device);
        let logprobs: Vec<Vec<f32>> = responses.iter().map(|r| r.logprobs.clone()).collect();
        let flat_logprobs = logprobs.concat();

        let kl = rl::kl_per_token(config.kl_estimator, &flat_logprobs, &ref_logprobs);
        let mut rewards = rl::token_rewards(&kl, &kept_scores, kl_coef, &layout);
        if config.whiten_rewards {
            rewards = rl::whiten(&rewards, false, Variance::Biased);
        }
        let flat_values = values.concat();
        let gae = rl::gae(
            &rewards,
            &flat_values,
            layout.values(),
            config.gamma,
            config.lam,
        );
        let mut advantages = layout.at_responses(&gae.advantages);
        let advantage_mean = rl::mean(&advantages);
        if config.whiten_advantages {
            advantages = rl::whiten(&advantages, true, Variance::Biased);
        }
        // The KL that is reported and controlled is always the plain estimator's.
        let plain = rl::kl_per_token(rl::KlEstimator::K1, &flat_logprobs, &ref_logprobs);
        let stats = rl::objective_stats(&plain, &raw_scores, kl_coef, &segments, &has_eos);
        let mut metrics = stats.metrics().to_vec();
        if let Some(gold) = scores.get(GOLD) {
            metrics.push(("objective/gold_scores", rl::mean(gold)));
        }
        let missing = has_eos.iter().filter(|&&has| !has).count() as f64 / has_eos.len() as f64;
        metrics.extend([
            ("objective/scores_std", rl::variance(&raw_scores).sqrt()),
            ("val/missing_eos_rate", missing),
            ("val/advantage_mean", advantage_mean),
            (
                "val/explained_variance",
                rl::explained_variance(&flat_values, &gae.returns),
            ),
        ]);
        Ok(Self {
            mean_kl: stats.kl,
            advantages: by_row(&advantages, &segments),
            returns: by_row(&gae.returns, layout.values()),
            rows,
            query_lens,
            logprobs,
            values,
            metrics,
        })
    }

    /// The rows as slices.
    pub(super) fn row_slices(&self) -> Vec<&[u32]> {
        self.rows.iter().map(Vec::as_slice).collect()
    }
}

/// Values at every value position, row by row.
fn row_values<B: ModelBackend>(
    model: &ScalarModel<B>,
    rows: &[&[u32]],
    query_lens: &[usize],
    layout: &ResponseLayout,
    micro_batch_tokens: usize,
    device: &B::Device,
) -> Vec<Vec<f32>> {
    let mut out = vec![Vec::new(); rows.len()];
    let lens: Vec<usize> = rows.iter().map(|row| row.len()).collect();
    for part in micro_batches(&lens, micro_batch_tokens) {
        let packed: Vec<&[u32]> = part.iter().map(|&i| rows[i]).collect();
        let batch = TokenBatch::from_rows(&packed, device);
        let counts: Vec<usize> = part.iter().map(|&i| layout.values().row_len(i)).collect();
        let positions: Vec<usize> = part
            .iter()
            .zip(batch.segments.iter())
            .zip(&counts)
            .flat_map(|((&row, range), &count)| {
                let first = range.start + query_lens[row] - 1;
                first..first + count
            })
            .collect();
        let mut values =
            host(model.scores(&batch, Some(indices(&positions, device)), None)).into_iter();
        for (&row, &count) in part.iter().zip(&counts) {
            out[row] = values.by_ref().take(count).collect();
        }
    }
    out
}

fn by_row(values: &[f32], segments: &Segments) -> Vec<Vec<f32>> {
    segments
        .iter()
        .map(|range| values[range].to_vec())
        .collect()
}
