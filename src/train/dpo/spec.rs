//! The stage specification of Dpo.

use super::DpoConfig;
use crate::data::{Row, RowKind, Tokenizer, encode_comparisons};
use crate::error::Result;
use crate::loss::DpoObjective;
use crate::ops::ModelBackend;
use crate::suggest::quoted;
use crate::train::checks::Checks;
use crate::train::checks::settings::check_comparisons;
use crate::train::config::{DataConfig, DpoLoss, Init};
use crate::train::plan::{FLOAT, Planner, StagePlan};
use crate::train::preference::{self, Objective, Settings};
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
        check_losses(checks, path, self);
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
        let objective = DpoObjective {
            losses: self.losses(),
            beta: self.beta,
            label_smoothing: self.label_smoothing,
            discopop_tau: self.discopop_tau.unwrap_or(0.05),
        };
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
            objective: Objective::Dpo(objective),
            precompute_ref_log_probs: self.precompute_ref_log_probs,
        };
        preference::train(session, &settings)
    }
}

/// Checks the losses, their weights and what belongs to some of them.
fn check_losses(checks: &mut Checks, path: &str, config: &DpoConfig) {
    let loss_type = format!("{path}.loss_type");
    let losses = config.loss_type.weighted();
    if losses.is_empty() {
        checks.problem(&loss_type, "lists no loss");
        checks.help("e.g. `loss_type: sigmoid` or `loss_type: [(sigmoid, 0.8), (sft, 0.2)]`");
    }
    if let Some(weights) = &config.loss_weights {
        let key = format!("{path}.loss_weights");
        if weights.len() != losses.len() {
            let (given, wanted) = (weights.len(), losses.len());
            let message = format!("expected one weight for each loss, found {given} for {wanted}");
            checks.problem(&key, message);
            checks.depends_on(&loss_type);
        }
        if losses.iter().any(|(_, weight)| *weight != 1.0) {
            checks.problem(&key, "`loss_type` has weights already");
            checks.depends_on(&loss_type);
        }
    }
    for (loss, weight) in config.losses().weighted() {
        let holds = weight.is_finite() && *weight > 0.0;
        let expected = format!("above 0 and finite: the weight of `{loss}`");
        checks.must(&loss_type, holds, &expected, weight);
    }
    let label_smoothing = format!("{path}.label_smoothing");
    checks.must(
        &label_smoothing,
        (0.0..0.5).contains(&config.label_smoothing),
        "at least 0 and below 0.5: with half of the labels wrong there is nothing to learn",
        config.label_smoothing,
    );
    let known: Vec<&str> = (DpoLoss::ALL.into_iter())
        .filter(|loss| loss.knows_wrong_labels())
        .map(DpoLoss::name)
        .collect();
    if config.label_smoothing > 0.0 && !losses.iter().any(|(loss, _)| loss.knows_wrong_labels()) {
        let message = format!("only the losses {} know wrong labels", quoted(known));
        checks.problem(&label_smoothing, message);
        checks.depends_on(&loss_type);
    }
    if config.label_smoothing == 0.0 && config.loss_type.has(DpoLoss::ExoPair) {
        checks.problem(
            &label_smoothing,
            "must be above 0 for `exo_pair`, which takes its logarithm",
        );
        checks.help("the paper recommends `label_smoothing: 1e-3`");
        checks.depends_on(&loss_type);
    }
    if let Some(tau) = config.discopop_tau {
        checks.above_zero(path, "discopop_tau", tau);
        if !config.loss_type.has(DpoLoss::Discopop) {
            checks.problem(
                format!("{path}.discopop_tau"),
                "only the loss `discopop` reads it",
            );
            checks.depends_on(&loss_type);
        }
    }
}
