//! What the update of an on-policy method reads: responses with all that is known of them, advantages, and where there is a
//! value function its targets. Plain data on the host; nothing here knows a stage or a model.
//!
//! A method is a choice among what stands here: its samples, an [`Advantage`], an [`Objective`], a [`LossMean`] and a
//! [`KlTerm`]. PPO is `Gae` with `Clip` and a mean over tokens, RLOO has `LeaveOneOut`, GRPO `Group` and a mean over responses.

mod advantage;
mod group;
mod objective;
mod samples;

use super::{KlTerm, explained_variance, mean, objective_stats, variance};

pub use advantage::Advantage;
pub use group::{ScaleRewards, group_advantages, leave_one_out};
pub use objective::{LossMean, Objective};
pub use samples::Samples;

/// Samples with their advantages: what an update reads.
///
/// # Source
/// The small trajectory of group methods (arXiv:2402.03300) and, with `targets`, that of arXiv:2403.17031.
#[derive(Debug, Clone)]
pub struct Rollout {
    /// Responses, and what is known of them.
    pub samples: Samples,
    /// The KL term of this rollout.
    pub kl: KlTerm,
    /// `[response tokens]`: before any whitening.
    pub raw_advantages: Vec<f32>,
    /// `[response tokens]`: what the policy's objective reads.
    pub advantages: Vec<f32>,
    /// What a value function is trained on; `None` for methods without one.
    pub targets: Option<ValueTargets>,
}

/// What a value function is trained on, by value position
/// ([`ResponseLayout::values`](crate::rl::ResponseLayout::values)).
#[derive(Debug, Clone, PartialEq)]
pub struct ValueTargets {
    /// Values before the update.
    pub values: Vec<f32>,
    /// Rewards as the estimator read them: whitened, if the method says so.
    pub rewards: Vec<f32>,
    /// What the values should have been.
    pub returns: Vec<f32>,
}

impl Rollout {
    /// What `metrics.jsonl` says of the rollout.
    pub fn metrics(&self) -> Vec<(&'static str, f64)> {
        let samples = &self.samples;
        let missing = samples.has_eos.iter().filter(|&&has| !has).count() as f64;
        let objective = objective_stats(samples, &self.kl);
        let mut metrics = objective.metrics().to_vec();
        metrics.extend([
            ("objective/scores_std", variance(&samples.scores).sqrt()),
            ("val/missing_eos_rate", missing / samples.rows.len() as f64),
            ("val/advantage_mean", mean(&self.raw_advantages)),
        ]);
        if let Some(targets) = &self.targets {
            let explained = explained_variance(&targets.values, &targets.returns);
            metrics.push(("val/explained_variance", explained));
        }
        metrics
    }
}
