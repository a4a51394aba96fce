//! The stage specification of Orpo.

use super::OrpoConfig;
use crate::data::{Row, RowKind, Tokenizer, encode_comparisons};
use crate::error::Result;
use crate::ops::ModelBackend;
use crate::train::checks::Checks;
use crate::train::checks::settings::check_comparisons;
use crate::train::config::DataConfig;
use crate::train::plan::{Planner, StagePlan};
use crate::train::preference::{self, Objective, Settings};
use crate::train::{
    Outcome, Preview, Session, StageInputs, StageOutput, StageSpec, TrainingSettings,
};

impl StageSpec for OrpoConfig {
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
        check_comparisons(checks, path, "ORPO", self.inputs());
        checks.must(
            format!("{path}.peft.dropout"),
            self.peft.dropout() == 0.0,
            "0: the margins of the loss are taken without dropout",
            self.peft.dropout(),
        );
        checks.above_zero(path, "beta", self.beta);
    }

    fn plan(&self, planner: &mut Planner<'_>, plan: &mut StagePlan) {
        let data = planner.lengths("data", &self.data, RowKind::Preference, self.max_length);
        if let Some(training) = self.training() {
            planner.train(plan, &training, &data, usize::MAX, true);
            let (eval_data, kind) = (self.eval_data.as_ref(), RowKind::Preference);
            planner.held_out(plan, &training, eval_data, kind);
        }
    }

    fn preview(&self, rows: &[Row], tokenizer: &Tokenizer) -> Result<Preview> {
        let encoded = encode_comparisons(rows, tokenizer, &self.data.format, self.max_length)?;
        // The cross-entropy reads the log-probabilities of all tokens but the first.
        Ok(Preview::comparisons(encoded, |i, _, _| i > 0))
    }

    fn run<B: ModelBackend>(&self, session: &mut Session<'_, B>) -> Result<Outcome> {
        let settings = Settings {
            name: &self.name,
            init: &self.init,
            data: &self.data,
            eval_data: self.eval_data.as_ref(),
            peft: &self.peft,
            optim: &self.optim,
            epochs: self.epochs,
            max_steps: self.max_steps,
            batch_size: self.batch_size,
            shuffle: self.shuffle,
            micro_batch_tokens: self.micro_batch_tokens,
            gradient_checkpointing: self.gradient_checkpointing,
            max_length: self.max_length,
            cadence: &self.cadence,
            objective: Objective::Orpo { beta: self.beta },
            precompute_ref_log_probs: false,
        };
        preference::train(session, &settings)
    }
}
