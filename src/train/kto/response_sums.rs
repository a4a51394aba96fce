//! Metrics of a step on labelled responses or of an evaluation.

use super::{KtoConfig, ResponseRows};
use crate::train::shared::{NonFinite, finite};

/// Names of the metrics that every loss has.
pub(super) const METRICS: [&str; 6] = [
    "loss",
    "rewards/chosen",
    "rewards/rejected",
    "rewards/margins",
    "logps/chosen",
    "logps/rejected",
];

/// Sums over the responses of a step or an evaluation.
#[derive(Default)]
pub(super) struct ResponseSums {
    /// The KL estimate, nats per response.
    kl: f64,
    loss: f64,
    /// Of the desirable, then of the undesirable responses; likewise below.
    counts: [usize; 2],
    log_ratios: [f64; 2],
    logps: [f64; 2],
}

impl ResponseSums {
    /// No responses yet.
    pub(super) fn with_kl(kl: f64) -> Self {
        Self {
            kl,
            ..Self::default()
        }
    }

    /// Adds responses, given the log-probabilities of their tokens and their summed loss.
    pub(super) fn add(
        &mut self,
        rows: &ResponseRows<'_>,
        logprobs: &[f32],
        ref_logprobs: &[f32],
        loss: f64,
    ) {
        let logps = rows.sums(logprobs.iter().copied());
        let log_ratios = rows.sums(logprobs.iter().zip(ref_logprobs).map(|(a, b)| a - b));
        for ((label, logp), log_ratio) in rows.labels.iter().zip(logps).zip(log_ratios) {
            let side = usize::from(!label);
            self.counts[side] += 1;
            self.logps[side] += logp;
            self.log_ratios[side] += log_ratio;
        }
        self.loss += loss;
    }

    /// Adds responses, given the numbers that their backward pass reported.
    ///
    /// # Errors
    /// [`NonFinite`] if their loss is not finite.
    pub(super) fn add_reported(
        &mut self,
        rows: &ResponseRows<'_>,
        numbers: &mut impl Iterator<Item = Vec<f32>>,
    ) -> std::result::Result<(), NonFinite> {
        let mut next = || numbers.next().expect("three for each micro-batch");
        let (logprobs, ref_logprobs, loss) = (next(), next(), next());
        let loss = finite("loss", f64::from(loss[0]))?;
        self.add(rows, &logprobs, &ref_logprobs, loss);
        Ok(())
    }

    /// Means over responses (the loss) and over those of a label (all others). Of a label that no response has there are none.
    pub(super) fn means(&self, config: &KtoConfig, held_out: bool) -> Vec<(&'static str, f64)> {
        let name = |step: &'static str, eval: &'static str| if held_out { eval } else { step };
        let count = self.counts.iter().sum::<usize>() as f64;
        let mut metrics = vec![(name("loss", "eval/loss"), self.loss / count)];
        if config.estimates_kl() {
            metrics.push((name("kl", "eval/kl"), self.kl));
        }
        let mean =
            |side: usize, sum: f64| (self.counts[side] > 0).then(|| sum / self.counts[side] as f64);
        let rewards = [0, 1].map(|side| mean(side, config.beta * self.log_ratios[side]));
        let logps = [0, 1].map(|side| mean(side, self.logps[side]));
        let margin = rewards[0].zip(rewards[1]).map(|(a, b)| a - b);
        let optional = [
            (name("rewards/chosen", "eval/rewards/chosen"), rewards[0]),
            (
                name("rewards/rejected", "eval/rewards/rejected"),
                rewards[1],
            ),
            (name("rewards/margins", "eval/rewards/margins"), margin),
            (name("logps/chosen", "eval/logps/chosen"), logps[0]),
            (name("logps/rejected", "eval/logps/rejected"), logps[1]),
        ];
        metrics.extend(
            optional
                .into_iter()
                .filter_map(|(name, value)| Some((name, value?))),
        );
        metrics
    }

    /// Mean reward of desirable minus that of undesirable responses; `None` without both.
    pub(super) fn margin(&self, config: &KtoConfig) -> Option<f64> {
        let means = self.means(config, false);
        let margin = means
            .into_iter()
            .find(|(name, _)| *name == "rewards/margins");
        margin.map(|(_, margin)| margin)
    }
}
