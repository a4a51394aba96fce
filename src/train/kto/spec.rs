//! The stage specification of Kto.

use super::{KtoConfig, balance};
use crate::data::{Row, RowKind, Tokenizer, encode_labelled};
use crate::error::Result;
use crate::ops::ModelBackend;
use crate::train::checks::Checks;
use crate::train::config::{DataConfig, Init, KtoLoss};
use crate::train::plan::{FLOAT, Planner, StagePlan};
use crate::train::{
    Outcome, Preview, Session, StageInputs, StageOutput, StageSpec, TrainingSettings,
};

impl StageSpec for KtoConfig {
    const OUTPUT: StageOutput = StageOutput::Policy;

    fn name(&self) -> &str {
        &self.name
    }

    fn inputs(&self) -> StageInputs<'_> {
        StageInputs::of("init", &self.init)
            .data("data", &self.data, RowKind::Labelled)
            .data("eval_data", self.eval_data.as_ref(), RowKind::Labelled)
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

    fn plan(&self, planner: &mut Planner<'_>, plan: &mut StagePlan) {
        let mut data = planner.lengths("data", &self.data, RowKind::Labelled, self.max_length);
        let labels = planner.found(&self.data, RowKind::Labelled);
        if let Some(labels) = labels.map(|found| found.num_labels)
            && labels.iter().sum::<usize>() > 0
        {
            // A comparison is two responses.
            data.rows = data.rows.max(labels.iter().sum::<usize>() as u64);
            match balance::problem(labels) {
                Some(problem) => planner.problem("data", problem),
                None => {
                    let advice = balance::advice(labels, self.weights());
                    let advice = advice.map(|advice| ("desirable_weight", advice));
                    plan.warnings.extend(advice);
                }
            }
        }
        if let Some(training) = self.training() {
            planner.train(plan, &training, &data, usize::MAX, true);
            let estimates = self.loss_type == KtoLoss::Kto;
            // The reference's passes over rows and, with a KL estimate, those of both models over rows with others' responses: on each
            // step, or of the reference once before training.
            plan.work.forward += match self.precompute_ref_log_probs {
                true => data.passed_tokens(),
                false => plan.work.trained,
            };
            if estimates {
                plan.work.forward += 2.0 * plan.work.trained;
            }
            // Policy and reference.
            for _ in 0..2 {
                let (eval_data, kind) = (self.eval_data.as_ref(), RowKind::Labelled);
                planner.held_out(plan, &training, eval_data, kind);
            }
        }
        let shape = plan.shape;
        let reference = match (self.peft.trains_base(), self.precompute_ref_log_probs) {
            // A number for each token of the data, and for each response of a step.
            (_, true) => {
                (data.rows as f64 * data.mean) as u64 + plan.steps * self.batch_size as u64
            }
            // The base is shared; adapters of `init` are not.
            (false, false) if self.init == Init::Base => 0,
            (_, false) => shape.trainable_params,
        };
        if reference > 0 {
            plan.memory.push(("reference".into(), FLOAT * reference));
        }
    }

    fn preview(&self, rows: &[Row], tokenizer: &Tokenizer) -> Result<Preview> {
        let encoded = encode_labelled(rows, tokenizer, &self.data.format, self.max_length)?;
        Ok(Preview::labelled(encoded))
    }

    fn run<B: ModelBackend>(&self, session: &mut Session<'_, B>) -> Result<Outcome> {
        super::kto(session, self)
    }
}
