//! The stage specification of RewardModel.

use super::RewardModelConfig;
use crate::data::{Row, RowKind, Tokenizer, encode_comparisons};
use crate::error::Result;
use crate::ops::ModelBackend;
use crate::train::checks::Checks;
use crate::train::checks::settings::check_comparisons;
use crate::train::config::{DataConfig, RewardLoss};
use crate::train::plan::{Planner, StagePlan};
use crate::train::{
    Outcome, Preview, Session, StageInputs, StageOutput, StageSpec, TrainingSettings,
};

impl StageSpec for RewardModelConfig {
    const OUTPUT: StageOutput = StageOutput::RewardModel;

    fn name(&self) -> &str {
        &self.name
    }

    fn inputs(&self) -> StageInputs<'_> {
        StageInputs::of("init", &self.init)
            .data("data", &self.data, RowKind::Preference)
            .data("eval_data", self.eval_data.as_ref(), RowKind::Preference)
            .data("center_on", self.center_on.as_ref(), RowKind::Completion)
    }

    fn data_mut(&mut self) -> Vec<&mut DataConfig> {
        std::iter::once(&mut self.data)
            .chain(&mut self.eval_data)
            .chain(&mut self.center_on)
            .collect()
    }

    fn training(&self) -> Option<TrainingSettings<'_>> {
        Some(TrainingSettings {
            init: &self.init,
            peft: &self.peft,
            optim: &self.optim,
            epochs: Some(self.epochs),
            max_steps: self.max_steps,
            batch_size: self.batch_size,
            micro_batch_tokens: self.micro_batch_tokens,
            max_length: Some(self.max_length),
            gradient_checkpointing: self.gradient_checkpointing,
            cadence: &self.cadence,
        })
    }

    fn check(&self, checks: &mut Checks, path: &str) {
        check_comparisons(checks, path, "a reward model", self.inputs());
        if self.use_margin && self.loss_type == RewardLoss::BestOfK {
            checks.problem(
                format!("{path}.use_margin"),
                "only the loss `bradley_terry` knows margins",
            );
            checks.depends_on(format!("{path}.loss_type"));
        }
        if self.standardize && self.center_on.is_none() {
            checks.problem(
                format!("{path}.standardize"),
                "needs `center_on`: the responses whose scores are to have variance 1",
            );
        }
        if !self.accuracy_by.is_empty() && self.eval_data.is_none() {
            checks.problem(
                format!("{path}.accuracy_by"),
                "needs `eval_data`: accuracy is reported by group on held-out comparisons",
            );
        }
    }

    fn plan(&self, planner: &mut Planner<'_>, plan: &mut StagePlan) {
        let data = planner.lengths("data", &self.data, RowKind::Preference, self.max_length);
        self.plan_margins(planner, plan);
        if let Some(training) = self.training() {
            planner.train(plan, &training, &data, usize::MAX, false);
            let kind = RowKind::Preference;
            planner.held_out(plan, &training, self.eval_data.as_ref(), kind);
            if let Some(references) = &self.center_on {
                let kind = RowKind::Completion;
                let lengths = planner.quietly(references, kind, self.max_length);
                let passes = 1 + u64::from(self.standardize) * 2;
                plan.work.evaluate(passes, lengths.passed_tokens());
            }
        }
    }

    fn preview(&self, rows: &[Row], tokenizer: &Tokenizer) -> Result<Preview> {
        let encoded = encode_comparisons(rows, tokenizer, &self.data.format, self.max_length)?;
        // The loss reads the score at the last token.
        Ok(Preview::comparisons(encoded, |i, _, len| i + 1 == len))
    }

    fn run<B: ModelBackend>(&self, session: &mut Session<'_, B>) -> Result<Outcome> {
        super::reward_model(session, self)
    }
}

impl RewardModelConfig {
    /// Reports missing margins if they are used, and unused margins if there are any.
    fn plan_margins(&self, planner: &mut Planner<'_>, plan: &mut StagePlan) {
        let Some(found) = planner.found(&self.data, RowKind::Preference) else {
            return;
        };
        let Some(rows) = found.num_rows else { return };
        let (margins, with) = (found.num_margins, found.num_margins + found.num_scored);
        if !self.use_margin {
            if margins > 0 {
                let message = format!(
                    "{margins} of {rows} rows have a `margin`, which is not used without `use_margin: true`"
                );
                plan.warnings.push(("data", message));
            }
        } else if with == 0 {
            planner.problem(
                "use_margin",
                "no row of the data has a column `margin`: leave out `use_margin`, or add the column",
            );
        } else if with < rows {
            let message = format!(
                "{} of {rows} rows have no `margin`; theirs is taken as 0",
                rows - with
            );
            plan.warnings.push(("use_margin", message));
        }
    }
}
