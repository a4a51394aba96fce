//! Metrics of a DPO step or evaluation, summed over pairs.

use super::MicroBatch;
use crate::train::shared::{NonFinite, finite};

/// Names of the metrics, in the order of [`PairSums::means`].
pub(super) const NAMES: [&str; 7] = [
    "loss",
    "rewards/chosen",
    "rewards/rejected",
    "rewards/accuracies",
    "rewards/margins",
    "logps/chosen",
    "logps/rejected",
];
pub(super) const EVAL_NAMES: [&str; 7] = [
    "eval/loss",
    "eval/rewards/chosen",
    "eval/rewards/rejected",
    "eval/rewards/accuracies",
    "eval/rewards/margins",
    "eval/logps/chosen",
    "eval/logps/rejected",
];

/// Sums over the pairs of a step or an evaluation.
#[derive(Default)]
pub(super) struct PairSums {
    loss: f64,
    prompts: usize,
    pairs: usize,
    correct: usize,
    /// Of the chosen, then of the rejected responses; likewise below.
    log_ratios: [f64; 2],
    logps: [f64; 2],
}

impl PairSums {
    /// Adds a micro-batch, given the log-probabilities of its responses' tokens and its summed loss.
    pub(super) fn add(
        &mut self,
        micro: &MicroBatch<'_>,
        logprobs: &[f32],
        ref_logprobs: &[f32],
        loss: f64,
    ) {
        let logps = micro.sums(logprobs.iter().copied());
        let log_ratios = micro.log_ratios(logprobs, ref_logprobs);
        for (chosen, rejected) in micro.pairs.pairs() {
            for (side, response) in [chosen, rejected].into_iter().enumerate() {
                self.log_ratios[side] += log_ratios[response];
                self.logps[side] += logps[response];
            }
            self.correct += usize::from(log_ratios[chosen] > log_ratios[rejected]);
        }
        self.pairs += micro.pairs.num_pairs();
        self.prompts += micro.pairs.num_prompts();
        self.loss += loss;
    }

    /// Adds a micro-batch, given the numbers that [`MicroBatch::backward`] reported.
    ///
    /// # Errors
    /// [`NonFinite`] if its loss is not finite.
    pub(super) fn add_reported(
        &mut self,
        micro: &MicroBatch<'_>,
        numbers: &mut impl Iterator<Item = Vec<f32>>,
    ) -> std::result::Result<(), NonFinite> {
        let mut next = || numbers.next().expect("three for each micro-batch");
        let (logprobs, ref_logprobs, loss) = (next(), next(), next());
        let loss = finite("loss", f64::from(loss[0]))?;
        self.add(micro, &logprobs, &ref_logprobs, loss);
        Ok(())
    }

    /// Means over prompts (the loss) and over pairs (all others) under `names`.
    pub(super) fn means(&self, names: [&'static str; 7], beta: f64) -> Vec<(&'static str, f64)> {
        let pairs = self.pairs as f64;
        let [chosen, rejected] = self.log_ratios.map(|sum| beta * sum / pairs);
        let values = [
            self.loss / self.prompts as f64,
            chosen,
            rejected,
            self.correct as f64 / pairs,
            chosen - rejected,
            self.logps[0] / pairs,
            self.logps[1] / pairs,
        ];
        names.into_iter().zip(values).collect()
    }
}
