//! Reports of an update.

use crate::rl::UpdateStats;

/// Report of one minibatch, before its optimiser steps. Means are over its policy or value positions.
#[derive(Debug, Clone, Default)]
pub struct MinibatchReport {
    /// Sums over tokens and value positions.
    pub stats: UpdateStats,
    /// The policy's loss without its KL term, averaged as the method does.
    pub policy_loss: f64,
    /// Clipped value loss with its factor 0.5 and without `vf_coef`, mean over value positions; 0 without a value function.
    pub value_loss: f64,
    /// KL term of the loss without its coefficient, in nats per response token (or averaged as the method does), if there is one.
    pub kl_loss: Option<f64>,
    /// Entropy, nats per response token.
    pub entropy: f64,
    /// Cross-entropy of the pre-training text, nats per token, if there is any.
    pub ptx_loss: Option<f64>,
    /// Number of response tokens.
    pub num_tokens: usize,
    /// Number of value positions.
    pub num_values: usize,
    /// Gradient norm of the policy before clipping; with a value head that of both, `vf_coef` included.
    pub policy_grad_norm: f64,
    /// Gradient norm of a separate value network before clipping, `vf_coef` included.
    pub value_grad_norm: Option<f64>,
}

/// Report of an update.
#[derive(Debug, Clone, Default)]
pub struct UpdateReport {
    /// Its minibatches, in order.
    pub minibatches: Vec<MinibatchReport>,
    /// Largest difference in nats between log-probabilities of generation (with a cache) and of the first minibatch's policy pass
    /// (without one, with the same weights).
    pub logprob_max_diff: f64,
}

/// Limit in nats on the difference between generation and training.
const LOGPROB_DIFF_HIGH: f64 = 1e-3;
/// The limit with rounded inputs of products: another order of summation may move an input across a rounding boundary.
const LOGPROB_DIFF_HIGH_ROUNDED: f64 = 2e-2;

impl UpdateReport {
    /// Returns a warning if log-probabilities of generation and training differ by more than rounding explains. With `rounded`
    /// inputs of products the limit is higher and is added to `metrics`.
    pub(crate) fn check(
        &self,
        rounded: bool,
        metrics: &mut Vec<(&'static str, f64)>,
    ) -> Option<String> {
        let limit = match rounded {
            true => LOGPROB_DIFF_HIGH_ROUNDED,
            false => LOGPROB_DIFF_HIGH,
        };
        metrics.extend(rounded.then_some(("rollout/logprob_diff_limit", limit)));
        (self.logprob_max_diff > limit).then(|| {
            format!(
                "log-probabilities of generation and training differ by {:.1e}; the numbers of this backend cannot be trusted (run `temper doctor`)",
                self.logprob_max_diff
            )
        })
    }

    /// The update's entries in `metrics.jsonl`: means over tokens or value positions; norms averaged over minibatches.
    pub fn metrics(&self) -> Vec<(&'static str, f64)> {
        let mut stats = UpdateStats::default();
        let (mut tokens, mut values) = (0, 0);
        let (mut policy_loss, mut value_loss, mut entropy) = (0.0, 0.0, 0.0);
        for part in &self.minibatches {
            stats.merge(&part.stats);
            tokens += part.num_tokens;
            values += part.num_values;
            policy_loss += part.policy_loss * part.num_tokens as f64;
            value_loss += part.value_loss * part.num_values as f64;
            entropy += part.entropy * part.num_tokens as f64;
        }
        let tokens = tokens.max(1) as f64;
        let norm = |of: fn(&MinibatchReport) -> Option<f64>| {
            let norms = self.minibatches.iter().filter_map(of);
            norms.sum::<f64>() / self.minibatches.len().max(1) as f64
        };
        let mut metrics = stats.metrics().to_vec();
        let kl = (self.minibatches.iter())
            .filter_map(|part| Some(part.kl_loss? * part.num_tokens as f64))
            .reduce(|a, b| a + b);
        metrics.extend(kl.map(|kl| ("loss/kl_avg", kl / tokens)));
        let texts: Vec<f64> = (self.minibatches.iter())
            .filter_map(|part| part.ptx_loss)
            .collect();
        if !texts.is_empty() {
            let mean = texts.iter().sum::<f64>() / texts.len() as f64;
            metrics.push(("loss/ptx_avg", mean));
        }
        metrics.extend([("loss/policy_avg", policy_loss / tokens)]);
        if values > 0 {
            metrics.push(("loss/value_avg", value_loss / values as f64));
        }
        metrics.extend([
            ("objective/entropy", entropy / tokens),
            ("policy/grad_norm", norm(|part| Some(part.policy_grad_norm))),
        ]);
        if self
            .minibatches
            .iter()
            .any(|part| part.value_grad_norm.is_some())
        {
            metrics.push(("value/grad_norm", norm(|part| part.value_grad_norm)));
        }
        metrics.push(("rollout/logprob_max_diff", self.logprob_max_diff));
        metrics
    }
}
