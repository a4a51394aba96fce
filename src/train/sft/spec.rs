//! The stage specification of Sft.

use super::SftConfig;
use crate::data::{DataSource, Row, RowKind, TextsOrCompletions, Tokenizer, encode_all};
use crate::error::Result;
use crate::ops::ModelBackend;
use crate::train::checks::Checks;
use crate::train::config::DataConfig;
use crate::train::plan::{Planner, StagePlan, num_evaluations};
use crate::train::{
    MetricNames, Outcome, Preview, Session, StageInputs, StageOutput, StageSpec, TrainingSettings,
    supervised,
};

impl SftConfig {
    /// The kind of rows that it reads.
    fn row_kind(&self) -> RowKind {
        match self.takes_texts(&self.data) {
            false => RowKind::Completion,
            true => RowKind::TextOrCompletion,
        }
    }

    /// Whether plain text is trained on as a whole. In a mixture it may stand beside completions: InstructGPT's pre-training rows
    /// (arXiv:2203.02155, appendix C.3).
    fn takes_texts(&self, data: &DataConfig) -> bool {
        !self.completion_only_loss || matches!(data.source, DataSource::Mix(_))
    }

    /// How its rows are encoded.
    pub(super) fn encoding(&self) -> TextsOrCompletions {
        TextsOrCompletions {
            max_length: self.max_length,
            completion_only: self.completion_only_loss,
            texts: self.takes_texts(&self.data),
        }
    }
}

impl StageSpec for SftConfig {
    const OUTPUT: StageOutput = StageOutput::Policy;

    fn name(&self) -> &str {
        &self.name
    }

    fn inputs(&self) -> StageInputs<'_> {
        StageInputs::of("init", &self.init)
            .data("data", &self.data, self.row_kind())
            .data("eval_data", self.eval_data.as_ref(), self.row_kind())
            .reward(
                "eval_reward.reward",
                self.eval_reward.as_ref().map(|eval| &eval.reward),
            )
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

    fn metrics(&self) -> MetricNames {
        let scores = ["eval/reward", "eval/response_length", "eval/eos_rate"];
        supervised::metric_names().with_if(self.eval_reward.is_some(), &scores)
    }

    fn check(&self, checks: &mut Checks, path: &str) {
        checks.below_one(path, "dropout", self.dropout);
        let Some(eval) = &self.eval_reward else {
            return;
        };
        let place = format!("{path}.eval_reward");
        checks.positive(&place, "num_prompts", eval.num_prompts);
        checks.positive(&place, "response_length", eval.response_length);
        checks.positive(&place, "generation_batch_size", eval.generation_batch_size);
        if let Some(sampling) = &eval.sampling {
            checks.temperature_or_zero(&place, "sampling.temperature", sampling.temperature);
        }
        if eval.response_length >= self.max_length {
            checks.problem(
                format!("{place}.response_length"),
                format!(
                    "leaves no token of max_length {} to the prompt, found {}",
                    self.max_length, eval.response_length
                ),
            );
            checks.depends_on(format!("{path}.max_length"));
        }
        if self.eval_data.is_none() {
            checks.problem(
                place,
                "scores responses to the prompts of `eval_data`, and there is none",
            );
            checks.help("add `eval_data`, or leave out `eval_reward`");
        }
    }

    fn plan(&self, planner: &mut Planner<'_>, plan: &mut StagePlan) {
        let data = planner.lengths("data", &self.data, self.row_kind(), self.max_length);
        if let Some(training) = self.training() {
            planner.train(plan, &training, &data, self.max_length, true);
            plan.response = data.targets_mean().filter(|_| self.completion_only_loss);
            let eval_data = self.eval_data.as_ref();
            if let Some(held_out) = planner.held_out(plan, &training, eval_data, self.row_kind()) {
                let samples = (self.cadence.num_samples as u64).min(held_out.rows) as f64;
                let evaluations = num_evaluations(&training, plan.steps) as f64;
                plan.work.sampled +=
                    evaluations * samples * held_out.targets_mean().unwrap_or_default();
                if let Some(eval) = &self.eval_reward {
                    let prompts = (eval.num_prompts as u64).min(held_out.rows) as f64;
                    plan.work.sampled += evaluations * prompts * eval.response_length as f64;
                }
            }
        }
    }

    fn preview(&self, rows: &[Row], tokenizer: &Tokenizer) -> Result<Preview> {
        let encoded = encode_all(&self.encoding(), rows, tokenizer, &self.data.format)?;
        Ok(Preview::examples(encoded))
    }

    fn run<B: ModelBackend>(&self, session: &mut Session<'_, B>) -> Result<Outcome> {
        super::sft(session, self)
    }
}
