//! Metrics of a step on comparisons or of an evaluation, summed over pairs.

use super::{MicroBatch, Objective};
use crate::loss::log_odds;
use crate::train::MetricNames;
use crate::train::shared::{NonFinite, finite};

/// Names of the metrics of a step and of an evaluation. The last ones are of losses without a reference, and of ORPO alone.
const NAMES: [(&str, &str); 10] = [
    ("loss", "eval/loss"),
    ("rewards/chosen", "eval/rewards/chosen"),
    ("rewards/rejected", "eval/rewards/rejected"),
    ("rewards/accuracies", "eval/rewards/accuracies"),
    ("rewards/margins", "eval/rewards/margins"),
    ("logps/chosen", "eval/logps/chosen"),
    ("logps/rejected", "eval/logps/rejected"),
    ("nll_loss", "eval/nll_loss"),
    ("log_odds_chosen", "eval/log_odds_chosen"),
    ("log_odds_ratio", "eval/log_odds_ratio"),
];

impl Objective {
    /// The names that it has metrics of.
    fn names(&self) -> impl Iterator<Item = (&'static str, &'static str)> + use<> {
        let count = match self {
            Self::Dpo(_) | Self::OnlineDpo(_) => 7,
            Self::Cpo(_) => 8,
            Self::Orpo { .. } => 10,
        };
        NAMES.into_iter().take(count)
    }

    /// Names of the metrics of steps on comparisons, and of held-out comparisons where the stage has any.
    pub(in crate::train) fn metric_names(&self) -> MetricNames {
        let names: Vec<&str> = self.names().map(|(step, _)| step).collect();
        match self {
            // Its held-out rows are prompts.
            Self::OnlineDpo(_) => MetricNames::of_steps(&names),
            _ => MetricNames::of_steps(&[]).with_both(&names),
        }
    }
}

/// Sums over the pairs of a step or an evaluation.
pub(super) struct PairSums<'a> {
    objective: &'a Objective,
    loss: f64,
    prompts: usize,
    pairs: usize,
    correct: usize,
    /// Of the chosen, then of the rejected responses; likewise below.
    rewards: [f64; 2],
    logps: [f64; 2],
    /// Cross-entropy of chosen rows, and their tokens, one pair a prompt.
    nll: f64,
    nll_tokens: f64,
    log_odds: f64,
    log_odds_ratio: f64,
}

impl<'a> PairSums<'a> {
    pub(super) fn new(objective: &'a Objective) -> Self {
        Self {
            objective,
            loss: 0.0,
            prompts: 0,
            pairs: 0,
            correct: 0,
            rewards: [0.0; 2],
            logps: [0.0; 2],
            nll: 0.0,
            nll_tokens: 0.0,
            log_odds: 0.0,
            log_odds_ratio: 0.0,
        }
    }

    /// Adds a micro-batch, given the log-probabilities of [`MicroBatch::packed`] and its summed loss.
    pub(super) fn add(
        &mut self,
        micro: &MicroBatch<'_>,
        logprobs: &[f32],
        ref_logprobs: Option<&[f32]>,
        loss: f64,
    ) {
        let objective = self.objective;
        let sums = micro.sums(logprobs.iter().copied());
        let logps: Vec<f64> = (sums.iter().zip(&micro.lens))
            .map(|(&sum, &len)| objective.logp(sum, len))
            .collect();
        let rewards: Vec<f64> = match ref_logprobs {
            Some(reference) => micro.sums(logprobs.iter().zip(reference).map(|(a, b)| a - b)),
            None => logps.iter().map(|&logp| objective.reward(logp)).collect(),
        };
        for (chosen, rejected) in micro.pairs.pairs() {
            for (side, response) in [chosen, rejected].into_iter().enumerate() {
                self.rewards[side] += rewards[response];
                self.logps[side] += logps[response];
            }
            self.correct += usize::from(rewards[chosen] > rewards[rejected]);
            if matches!(objective, Objective::Orpo { .. }) {
                let odds = log_odds(logps[chosen]) - log_odds(logps[rejected]);
                self.log_odds += odds;
                // log sigmoid, without overflow.
                self.log_odds_ratio += odds.min(0.0) - (-odds.abs()).exp().ln_1p();
            }
        }
        if objective.reports_nll() {
            let rows = micro.row_sums(logprobs);
            let pairs = micro.pairs.pairs().zip(micro.pairs.pair_weights());
            let nll = pairs.map(|((chosen, _), weight)| -f64::from(weight) * rows[chosen]);
            self.nll += nll.sum::<f64>();
            self.nll_tokens += objective.chosen_tokens(micro);
        }
        self.pairs += micro.pairs.num_pairs();
        self.prompts += micro.pairs.num_prompts();
        self.loss += loss;
    }

    /// Adds a micro-batch, given the numbers that its backward pass reported: log-probabilities, those of the reference if there is one,
    /// and the loss.
    ///
    /// # Errors
    /// [`NonFinite`] if its loss is not finite.
    pub(super) fn add_reported(
        &mut self,
        micro: &MicroBatch<'_>,
        numbers: &mut impl Iterator<Item = Vec<f32>>,
    ) -> std::result::Result<(), NonFinite> {
        let has_reference = self.objective.has_reference();
        let mut next = || numbers.next().expect("as many as a backward pass reports");
        let logprobs = next();
        let ref_logprobs = has_reference.then(&mut next);
        let loss = finite(self.objective.loss_name(), f64::from(next()[0]))?;
        self.add(micro, &logprobs, ref_logprobs.as_deref(), loss);
        Ok(())
    }

    /// Means over prompts (the loss), over chosen tokens (`nll_loss`) and over pairs (all others).
    pub(super) fn means(&self, held_out: bool) -> Vec<(&'static str, f64)> {
        let pairs = self.pairs as f64;
        let beta = self.objective.beta();
        let [chosen, rejected] = self.rewards.map(|sum| beta * sum / pairs);
        let values = [
            self.loss / self.prompts as f64,
            chosen,
            rejected,
            self.correct as f64 / pairs,
            chosen - rejected,
            self.logps[0] / pairs,
            self.logps[1] / pairs,
            self.nll / self.nll_tokens,
            self.log_odds / pairs,
            self.log_odds_ratio / pairs,
        ];
        let names = self.objective.names();
        let names = names.map(|(step, eval)| if held_out { eval } else { step });
        names.zip(values).collect()
    }
}
