//! The stage specification of Dpo.

use super::DpoConfig;
use crate::data::{Row, RowKind, Tokenizer, encode_comparisons};
use crate::error::Result;
use crate::ops::ModelBackend;
use crate::train::checks::Checks;
use crate::train::checks::settings::check_comparisons;
use crate::train::config::{DataConfig, DpoLoss, Init};
use crate::train::plan::{FLOAT, Planner, StagePlan};
use crate::train::{
    Outcome, Preview, Session, StageInputs, StageOutput, StageSpec, TrainingSettings,
};

impl StageSpec for DpoConfig {
    const OUTPUT: StageOutput = StageOutput::Policy;

    fn name(&self) -> &str {
        &self.name
    }

    fn inputs(&self) -> StageInputs<'_> {
        StageInputs::of("init", &self.init)
            .data("data", &self.data, RowKind::Preference)
            .data("eval_data", self.eval_data.as_ref(), RowKind::Preference)
    }

    fn data_mut(&mut self) -> Vec<&mut DataConfig> {
        std::iter::once(&mut self.data)
            .chain(&mut self.eval_data)
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
        check_comparisons(checks, path, "DPO", self.inputs());
        if matches!(self.init, Init::Random(_)) {
            checks.problem(
                format!("{path}.init"),
                "a randomly initialised policy cannot be a reference",
            );
            checks.help("start from an `Sft` stage, e.g. `init: Stage(\"sft\")`");
        }
        checks.must(
            format!("{path}.peft.dropout"),
            self.peft.dropout() == 0.0,
            "0: policy and reference would differ before the first step",
            self.peft.dropout(),
        );
        checks.above_zero(path, "beta", self.beta);
        let label_smoothing = format!("{path}.label_smoothing");
        checks.must(
            &label_smoothing,
            (0.0..0.5).contains(&self.label_smoothing),
            "at least 0 and below 0.5: with half of the labels wrong there is nothing to learn",
            self.label_smoothing,
        );
        if self.label_smoothing > 0.0 && matches!(self.loss_type, DpoLoss::Hinge | DpoLoss::Ipo) {
            checks.problem(
                &label_smoothing,
                "only the losses `sigmoid` and `robust` know wrong labels",
            );
            checks.depends_on(format!("{path}.loss_type"));
        }
    }

    fn plan(&self, planner: &mut Planner<'_>, plan: &mut StagePlan) {
        let data = planner.lengths("data", &self.data, RowKind::Preference, self.max_length);
        if let Some(training) = self.training() {
            planner.train(plan, &training, &data, usize::MAX, true);
            // The reference's passes: on each step, or once over all rows.
            plan.work.forward += match self.precompute_ref_log_probs {
                true => data.passed_tokens(),
                false => plan.work.trained,
            };
            // Policy and reference.
            for _ in 0..2 {
                let (eval_data, kind) = (self.eval_data.as_ref(), RowKind::Preference);
                planner.held_out(plan, &training, eval_data, kind);
            }
        }
        let shape = plan.shape;
        let reference = match (self.peft.trains_base(), self.precompute_ref_log_probs) {
            // One number per token of the data.
            (_, true) => (data.rows as f64 * data.mean) as u64,
            // The base is shared; adapters of `init` are not.
            (false, false) if self.init == Init::Base => 0,
            (_, false) => shape.trainable_params,
        };
        if reference > 0 {
            plan.memory.push(("reference".into(), FLOAT * reference));
        }
    }

    fn preview(&self, rows: &[Row], tokenizer: &Tokenizer) -> Result<Preview> {
        let encoded = encode_comparisons(rows, tokenizer, &self.data.format, self.max_length)?;
        // The loss reads the log-probabilities of all tokens after the prompt.
        Ok(Preview::comparisons(encoded, |i, prompt_len, _| {
            i >= prompt_len
        }))
    }

    fn run<B: ModelBackend>(&self, session: &mut Session<'_, B>) -> Result<Outcome> {
        super::dpo(session, self)
    }
}
