//! The stage specification of Distill.

use super::DistillConfig;
use crate::data::{Row, RowKind, Tokenizer, encode_all, encode_prompts};
use crate::error::Result;
use crate::ops::ModelBackend;
use crate::train::checks::Checks;
use crate::train::config::{DataConfig, Init};
use crate::train::plan::{Planner, StagePlan, Workload, estimate, longest, num_evaluations};
use crate::train::{
    GenerationSettings, MetricNames, Outcome, Preview, Session, StageInputs, StageOutput,
    StageSpec, TrainingSettings,
};

impl StageSpec for DistillConfig {
    const OUTPUT: StageOutput = StageOutput::Policy;

    fn name(&self) -> &str {
        &self.name
    }

    fn inputs(&self) -> StageInputs<'_> {
        let kind = self.row_kind();
        let mut inputs = StageInputs::of("init", &self.init)
            .data("data", &self.data, kind)
            .data("eval_data", self.eval_data.as_ref(), kind);
        inputs.models.push(("teacher".to_owned(), &self.teacher));
        inputs.same_vocabulary = true;
        inputs
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
        let of_rows = ["on_policy", "response_length", "trained_tokens"];
        MetricNames::of_steps(&of_rows).with_both(&["loss"])
    }

    fn generation(&self) -> Option<GenerationSettings<'_>> {
        self.generates().then_some(GenerationSettings {
            response_length: self.response_length,
            max_prompt_length: self.max_length,
            generation_batch_size: self.generation_batch_size,
            sampling: None,
            truncate: self.truncate.as_ref(),
        })
    }

    fn check(&self, checks: &mut Checks, path: &str) {
        checks.fraction(path, "beta", self.beta);
        checks.fraction(path, "lmbda", self.lmbda);
        checks.temperature(path, "temperature", self.temperature);
        checks.temperature(path, "loss_temperature", self.loss_temperature);
        let teacher = format!("{path}.teacher");
        if matches!(self.teacher, Init::Random(_)) {
            checks.problem(&teacher, "a model with random weights has nothing to teach");
            checks.help("e.g. `teacher: Base`, `Stage(\"sft\")` or `Folder(\"path\")`");
        }
        if self.teacher == self.init {
            checks.problem(
                &teacher,
                "is the student itself before training: every divergence would be 0",
            );
            checks.depends_on(format!("{path}.init"));
        }
        let longest = self.max_length.saturating_add(self.response_length);
        if self.generates() && self.micro_batch_tokens < longest {
            checks.problem(
                format!("{path}.micro_batch_tokens"),
                format!(
                    "must be at least max_length + response_length = {longest}, found {}",
                    self.micro_batch_tokens
                ),
            );
            checks.depends_on(format!("{path}.max_length"));
            checks.depends_on(format!("{path}.response_length"));
        }
    }

    fn plan(&self, planner: &mut Planner<'_>, plan: &mut StagePlan) {
        let data = planner.lengths("data", &self.data, self.row_kind(), self.max_length);
        let Some(training) = self.training() else {
            return;
        };
        planner.train(plan, &training, &data, self.max_length, true);
        plan.response = data.targets_mean();
        let rows = plan.steps as f64 * self.batch_size as f64;
        let own = planner.response_of(&self.init, self.response_length);
        let of_teacher = planner.response_of(&self.teacher, self.response_length);
        plan.work.sampled += rows * self.lmbda * own;
        if self.seq_kd {
            plan.work.sampled += rows * (1.0 - self.lmbda) * of_teacher;
        }
        if self.row_kind() == RowKind::Prompt {
            plan.work.trained += rows * own;
        }
        // The teacher's passes, and those over prompts.
        plan.work.forward += plan.work.trained * (1.0 + f64::from(u8::from(self.generates())));
        if let (
            Some(Workload::Train {
                micro_tokens,
                rows,
                targets,
            }),
            true,
        ) = (plan.workload, self.generates())
        {
            let work = Workload::Ppo {
                micro_tokens,
                rows,
                targets: targets.max((self.batch_size * self.response_length) as u64),
                batch: self.generation_batch_size as u64,
                prompt: longest(&data, self.max_length),
                response: self.response_length as u64,
                trained_params: plan.trainable_params,
                network_params: plan.trainable_params,
                optimizer_bytes: plan.shape.optimizer_bytes,
            };
            plan.memory = estimate(work, &plan.shape);
            plan.workload = Some(work);
        }
        // Student and teacher.
        for _ in 0..2 {
            let eval_data = self.eval_data.as_ref();
            let held_out = planner.held_out(plan, &training, eval_data, self.row_kind());
            let times = num_evaluations(&training, plan.steps) as f64;
            if let (Some(held_out), RowKind::Prompt) = (held_out, self.row_kind()) {
                plan.work.sampled += times * held_out.rows as f64 * own / 2.0;
            }
        }
    }

    fn preview(&self, rows: &[Row], tokenizer: &Tokenizer) -> Result<Preview> {
        let format = &self.data.format;
        if self.row_kind() == RowKind::Prompt {
            let encoded = encode_prompts(rows, tokenizer, format, self.max_length)?;
            return Ok(Preview::prompts(encoded));
        }
        let encoded = encode_all(&self.encoding(), rows, tokenizer, format)?;
        Ok(Preview::examples(encoded))
    }

    fn run<B: ModelBackend>(&self, session: &mut Session<'_, B>) -> Result<Outcome> {
        super::distill(session, self)
    }
}
