//! The data of an on-policy update: responses with scores and log-probabilities, advantages and, with a value function, its
//! targets. Plain data on the host, independent of stages and models.
//!
//! A method combines [`Samples`] with an [`AdvantageEstimator`], an [`Objective`], a [`LossMean`] and a [`KlTerm`]. PPO is `Gae`
//! with `Clip` and a mean over tokens; RLOO uses `LeaveOneOut` with the ratio of whole responses; GRPO uses `Group`; REINFORCE++
//! uses `Returns`.

mod advantage;
mod group;
mod objective;
mod samples;

use super::{KlTerm, explained_variance, mean, objective_stats, variance};

pub use advantage::AdvantageEstimator;
pub use group::{
    ScaleRewards, group_advantages, groups_vary, leave_one_out, less_group_mean, normalised,
};
pub use objective::{LossMean, MinibatchSize, Objective, RatioLevel};
pub use samples::{Samples, repetition};

/// Samples with their advantages: the input of an update.
///
/// # Source
/// The small trajectory of group methods (arXiv:2402.03300) and, with `targets`, that of arXiv:2403.17031.
#[derive(Debug, Clone)]
pub struct Rollout {
    /// Responses with their scores and log-probabilities.
    pub samples: Samples,
    /// The KL term of this rollout.
    pub kl: KlTerm,
    /// `[response tokens]`, before whitening.
    pub raw_advantages: Vec<f32>,
    /// `[response tokens]`, as the policy's objective reads them.
    pub advantages: Vec<f32>,
    /// Training targets of the value function; `None` for methods without one.
    pub targets: Option<ValueTargets>,
    /// Whether each response is trained on; `None`: all are.
    pub trained: Option<Vec<bool>>,
}

/// Training targets of a value function, by value position
/// ([`ResponseLayout::values`](crate::rl::ResponseLayout::values)).
#[derive(Debug, Clone, PartialEq)]
pub struct ValueTargets {
    /// Values before the update.
    pub values: Vec<f32>,
    /// Rewards as the estimator reads them, whitened if the method asks for it.
    pub rewards: Vec<f32>,
    /// Targets of the values.
    pub returns: Vec<f32>,
}

/// Metrics of the KL to a reference.
pub const KL_METRICS: [&str; 3] = [
    "objective/kl",
    "objective/non_score_reward",
    "objective/rlhf_reward",
];

impl Rollout {
    /// Number of tokens that are trained on of `rows`.
    pub fn trained_tokens(&self, rows: impl IntoIterator<Item = usize>) -> usize {
        let is_trained = |row: &usize| self.trained.as_ref().is_none_or(|trained| trained[*row]);
        let responses = self.samples.layout.responses();
        (rows.into_iter().filter(is_trained))
            .map(|row| responses.row_len(row))
            .sum()
    }

    /// The rollout's entries in `metrics.jsonl`.
    pub fn metrics(&self) -> Vec<(&'static str, f64)> {
        let samples = &self.samples;
        let missing = samples.has_eos.iter().filter(|&&has| !has).count() as f64;
        let objective = objective_stats(samples, &self.kl);
        let mut metrics = objective.metrics().to_vec();
        if samples.ref_logprobs.is_none() {
            metrics.retain(|(name, _)| !KL_METRICS.contains(name));
        }
        metrics.extend([
            ("objective/scores_std", variance(&samples.scores).sqrt()),
            ("val/missing_eos_rate", missing / samples.rows.len() as f64),
            ("val/repetition", samples.repetition()),
            ("val/advantage_mean", mean(&self.raw_advantages)),
        ]);
        if let Some(targets) = &self.targets {
            let explained = explained_variance(&targets.values, &targets.returns);
            metrics.push(("val/explained_variance", explained));
        }
        metrics
    }
}
