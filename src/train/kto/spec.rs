//! The stage specification of Kto.

use super::response_sums::METRICS;
use super::{KtoConfig, balance};
use crate::data::{Row, RowKind, Tokenizer, encode_labelled};
use crate::error::Result;
use crate::ops::ModelBackend;
use crate::train::checks::Checks;
use crate::train::config::KtoLoss;
use crate::train::plan::{Lengths, Planner, StagePlan};
use crate::train::preference::{
    PreferenceKeys, PreferenceMethod, ReferencePasses, preference_stage,
};
use crate::train::{MetricNames, Outcome, Preview, Session};

preference_stage!(KtoConfig);

impl PreferenceMethod for KtoConfig {
    const KIND: RowKind = RowKind::Labelled;
    const TITLE: &'static str = "KTO";

    fn keys(&self) -> PreferenceKeys<'_> {
        self.preference_keys()
    }

    fn reference(&self) -> ReferencePasses {
        ReferencePasses::of(self.precompute_ref_log_probs)
    }

    fn beta(&self) -> f64 {
        self.beta
    }

    fn metrics(&self) -> MetricNames {
        MetricNames::of_steps(&[])
            .with_both(&METRICS)
            .with_if(self.estimates_kl(), &["kl", "eval/kl"])
    }

    fn check_own(&self, checks: &mut Checks, path: &str) {
        checks.above_zero(path, "desirable_weight", self.desirable_weight);
        checks.above_zero(path, "undesirable_weight", self.undesirable_weight);
        if self.batch_size == 1 && self.loss_type == KtoLoss::Kto {
            checks.problem(
                format!("{path}.batch_size"),
                "must be at least 2: the KL divergence is estimated with the other responses of the batch",
            );
            checks.help("or take `loss_type: apo_zero_unpaired`, which estimates none");
            checks.depends_on(format!("{path}.loss_type"));
        }
    }

    fn plan_rows(&self, planner: &mut Planner<'_>, plan: &mut StagePlan, data: &mut Lengths) {
        let labels = planner.found(&self.data, RowKind::Labelled);
        let Some(labels) = labels.map(|found| found.num_labels) else {
            return;
        };
        let count = labels.iter().sum::<usize>();
        if count == 0 {
            return;
        }
        // A comparison is two responses.
        data.rows = data.rows.max(count as u64);
        match balance::problem(labels) {
            Some(problem) => planner.problem("data", problem),
            None => {
                let advice = balance::advice(labels, self.weights());
                let advice = advice.map(|advice| ("desirable_weight", advice));
                plan.warnings.extend(advice);
            }
        }
    }

    /// Those of both models over rows with others' responses, for the estimate of the KL divergence.
    fn further_passes(&self) -> f64 {
        2.0 * f64::from(u8::from(self.estimates_kl()))
    }

    /// One for each response of a step.
    fn further_numbers(&self, plan: &StagePlan) -> u64 {
        plan.steps * self.batch_size as u64
    }

    fn preview_rows(&self, rows: &[Row], tokenizer: &Tokenizer) -> Result<Preview> {
        let encoded = encode_labelled(rows, tokenizer, &self.data.format, self.max_length)?;
        Ok(Preview::labelled(encoded))
    }

    fn train<B: ModelBackend>(&self, session: &mut Session<'_, B>) -> Result<Outcome> {
        super::kto(session, self)
    }
}
