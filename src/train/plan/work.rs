//! How much a stage computes: tokens by the kind of pass, from which its time follows.

use super::{Lengths, Planner, StagePlan};
use crate::data::{DataConfig, RowKind};
use crate::train::TrainingSettings;

/// Tokens that pass through the networks of a stage, by the kind of pass.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Work {
    /// Tokens of training, forward and backward, once for each network that is trained.
    pub trained: f64,
    /// Tokens of forward passes alone: evaluation, references, values, learned scores, prompts of responses.
    pub forward: f64,
    /// Sampled tokens.
    pub sampled: f64,
    /// Optimiser steps.
    pub updates: f64,
}

/// The seconds that a unit of [`Work`] takes.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Pace {
    /// Per trained token.
    pub trained: f64,
    /// Per token of a forward pass.
    pub forward: f64,
    /// Per sampled token.
    pub sampled: f64,
    /// Per optimiser step.
    pub update: f64,
}

impl Work {
    /// Its time in seconds.
    pub fn seconds(&self, pace: &Pace) -> f64 {
        self.trained * pace.trained
            + self.forward * pace.forward
            + self.sampled * pace.sampled
            + self.updates * pace.update
    }

    /// Adds `times` evaluations of forward passes over `tokens`.
    pub(in crate::train) fn evaluate(&mut self, times: u64, tokens: f64) {
        self.forward += times as f64 * tokens;
    }
}

/// Evaluations of a stage with `steps` steps: before the first one, every `eval_steps`, and after the last one.
pub(in crate::train) fn num_evaluations(training: &TrainingSettings<'_>, steps: u64) -> u64 {
    let within = training
        .cadence
        .eval_steps
        .map_or(0, |every| steps.saturating_sub(1) / (every as u64).max(1));
    within + 2
}

impl Planner<'_> {
    /// Adds the forward passes over the rows of a held-out data set, at every evaluation; returns their lengths. Planned without
    /// regard to problems, which are found elsewhere.
    pub(in crate::train) fn held_out(
        &mut self,
        plan: &mut StagePlan,
        training: &TrainingSettings<'_>,
        data: Option<&DataConfig>,
        kind: RowKind,
    ) -> Option<Lengths> {
        let longest = training.max_length.unwrap_or(usize::MAX);
        let lengths = self.quietly(data?, kind, longest);
        let times = num_evaluations(training, plan.steps);
        plan.work.evaluate(times, lengths.passed_tokens());
        Some(lengths)
    }

    /// As [`Planner::lengths`], without adding problems.
    pub(in crate::train) fn quietly(
        &mut self,
        data: &DataConfig,
        kind: RowKind,
        longest: usize,
    ) -> Lengths {
        let known = self.problems.len();
        let lengths = self.lengths("", data, kind, longest);
        self.problems.truncate(known);
        lengths
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_is_a_sum_over_kinds_of_passes() {
        let work = Work {
            trained: 1000.0,
            forward: 500.0,
            sampled: 20.0,
            updates: 4.0,
        };
        let pace = Pace {
            trained: 0.003,
            forward: 0.001,
            sampled: 0.05,
            update: 0.5,
        };
        // 3 + 0.5 + 1 + 2 seconds.
        assert!((work.seconds(&pace) - 6.5).abs() < 1e-12);
    }
}
