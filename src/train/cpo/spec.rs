//! The stage specification of Cpo.

use super::CpoConfig;
use crate::data::{Row, RowKind, Tokenizer, encode_comparisons};
use crate::error::Result;
use crate::loss::{CpoLoss, CpoObjective};
use crate::ops::ModelBackend;
use crate::train::checks::Checks;
use crate::train::checks::settings::check_comparisons;
use crate::train::config::DataConfig;
use crate::train::plan::{Planner, StagePlan};
use crate::train::preference::{self, Objective, Settings};
use crate::train::{
    Outcome, Preview, Session, StageInputs, StageOutput, StageSpec, TrainingSettings,
};

impl StageSpec for CpoConfig {
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
        check_comparisons(checks, path, "CPO", self.inputs());
        checks.must(
            format!("{path}.peft.dropout"),
            self.peft.dropout() == 0.0,
            "0: the margins of the loss are taken without dropout",
            self.peft.dropout(),
        );
        checks.above_zero(path, "beta", self.beta);
        checks.not_negative(path, "cpo_alpha", self.cpo_alpha);
        checks.must(
            format!("{path}.alpha"),
            self.alpha.is_finite(),
            "finite",
            self.alpha,
        );
        let label_smoothing = format!("{path}.label_smoothing");
        checks.must(
            &label_smoothing,
            (0.0..0.5).contains(&self.label_smoothing),
            "at least 0 and below 0.5: with half of the labels wrong there is nothing to learn",
            self.label_smoothing,
        );
        if self.label_smoothing > 0.0 && !self.loss_type.knows_wrong_labels() {
            checks.problem(
                &label_smoothing,
                "only the losses `sigmoid` and `simpo` know wrong labels",
            );
            checks.depends_on(format!("{path}.loss_type"));
        }
        if let Some(gamma) = self.simpo_gamma {
            checks.not_negative(path, "simpo_gamma", gamma);
            if self.loss_type != CpoLoss::Simpo {
                checks.problem(
                    format!("{path}.simpo_gamma"),
                    "only the loss `simpo` reads it",
                );
                checks.depends_on(format!("{path}.loss_type"));
            }
        }
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
        // The loss reads the log-probabilities of all tokens after the prompt.
        Ok(Preview::comparisons(encoded, |i, prompt_len, _| {
            i >= prompt_len
        }))
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
            objective: Objective::Cpo(CpoObjective {
                loss_type: self.loss_type,
                beta: self.beta,
                label_smoothing: self.label_smoothing,
                cpo_alpha: self.cpo_alpha,
                simpo_gamma: self.simpo_gamma.unwrap_or(0.5),
                alpha: self.alpha,
            }),
            precompute_ref_log_probs: false,
        };
        preference::train(session, &settings)
    }
}
