//! The stage specification of Hir.

use super::HirConfig;
use crate::data::{Row, RowKind, Tokenizer, encode_prompts};
use crate::error::Result;
use crate::ops::ModelBackend;
use crate::train::checks::Checks;
use crate::train::config::{DataConfig, Init};
use crate::train::plan::{Planner, StagePlan, Workload, estimate, longest, num_evaluations};
use crate::train::{
    GenerationSettings, MetricNames, Outcome, Preview, Session, StageInputs, StageOutput,
    StageSpec, TrainingSettings,
};

/// Tokens of an instruction, roughly.
const OF_INSTRUCTION: usize = 16;

impl StageSpec for HirConfig {
    const OUTPUT: StageOutput = StageOutput::Policy;

    fn name(&self) -> &str {
        &self.name
    }

    fn inputs(&self) -> StageInputs<'_> {
        StageInputs::of("init", &self.init)
            .data("data", &self.data, RowKind::Prompt)
            .data("eval_data", self.eval_data.as_ref(), RowKind::Prompt)
            .reward("reward", &self.reward)
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
            max_steps: None,
            batch_size: self.batch_size,
            micro_batch_tokens: self.micro_batch_tokens,
            max_length: None,
            gradient_checkpointing: self.gradient_checkpointing,
            cadence: &self.cadence,
        })
    }

    fn metrics(&self) -> MetricNames {
        let of_rounds = [
            "score",
            "eos_rate",
            "response_length",
            "loss",
            "loss/supervised",
            "loss/contrastive",
            "hir/correct",
            "hir/duplicates",
            "hir/entropy",
        ];
        MetricNames::of_steps(&of_rounds)
            .with_if(self.sub_outputs > 0, &["hir/correct_parts"])
            .with_held_out_responses(&self.reward, false, true)
    }

    fn generation(&self) -> Option<GenerationSettings<'_>> {
        Some(GenerationSettings {
            response_length: self.response_length,
            max_prompt_length: self.max_prompt_length,
            generation_batch_size: self.generation_batch_size,
            sampling: None,
            truncate: None,
        })
    }

    fn check(&self, checks: &mut Checks, path: &str) {
        for (key, value) in [
            ("iterations", self.iterations),
            ("prompts_per_iteration", self.prompts_per_iteration),
            ("num_responses", self.num_responses),
        ] {
            checks.positive(path, key, value);
        }
        checks.must(
            format!("{path}.threshold"),
            self.threshold.is_finite(),
            "finite",
            self.threshold,
        );
        checks.below_one(path, "label_smoothing", self.label_smoothing);
        checks.not_negative(path, "contrastive_coef", self.contrastive_coef);
        checks.not_negative(path, "entropy_coef", self.entropy_coef);
        // At temperature 0 all responses to a prompt are equal, and one is kept.
        checks.temperature(path, "temperature", self.temperature);
        let (correct, wrong) = (&self.instructions.correct, &self.instructions.wrong);
        checks.must(
            format!("{path}.instructions"),
            correct != wrong,
            "two different instructions",
            correct,
        );
        if matches!(self.init, Init::Random(_)) {
            checks.problem(
                format!("{path}.init"),
                "a randomly initialised policy writes nothing that fits an instruction",
            );
            checks.help("start from `Base` or an `Sft` stage, e.g. `init: Stage(\"sft\")`");
        }
        checks.must(
            format!("{path}.sub_outputs"),
            self.sub_outputs < self.response_length.max(1),
            "below response_length: places within a response",
            self.sub_outputs,
        );
        let row = self.max_prompt_length.saturating_add(self.response_length);
        if self.micro_batch_tokens < row.saturating_mul(2) {
            checks.problem(
                format!("{path}.micro_batch_tokens"),
                format!(
                    "must be at least twice max_prompt_length + response_length, {}, found {}: a response is there under both instructions",
                    row.saturating_mul(2),
                    self.micro_batch_tokens
                ),
            );
            checks.depends_on(format!("{path}.max_prompt_length"));
            checks.depends_on(format!("{path}.response_length"));
        }
    }

    fn plan(&self, planner: &mut Planner<'_>, plan: &mut StagePlan) {
        let data = planner.lengths("data", &self.data, RowKind::Prompt, self.max_prompt_length);
        let response = planner.response_of(&self.init, self.response_length);
        let prompt = data.mean + OF_INSTRUCTION as f64;
        let of_round = self.prompts_per_iteration * self.num_responses;
        let responses = (self.iterations * of_round) as f64;
        plan.rows = data.rows;
        plan.steps = self.iterations as u64;
        plan.tokens = (responses * (prompt + response)) as u64;
        let row = (2.0 * (prompt + response)).max(1.0);
        let batch =
            (self.batch_size).min(of_round.saturating_mul(self.sub_outputs.saturating_add(1)));
        let step = (batch as f64 * 2.0 * (prompt + self.response_length as f64)) as u64;
        let micro_tokens = (self.micro_batch_tokens as u64).min(step.max(1));
        let rows = ((micro_tokens as f64 / row).ceil() as usize).clamp(1, batch.max(1));
        let whole = u64::from(self.peft.trains_base());
        let work = Workload::Ppo {
            micro_tokens,
            rows: 2 * rows as u64,
            // Logits of whole micro-batches, their log-probabilities and gradients are held at once.
            targets: (rows * self.response_length) as u64,
            batch: self.generation_batch_size as u64,
            prompt: longest(&data, self.max_prompt_length) + OF_INSTRUCTION as u64,
            response: self.response_length as u64,
            trained_params: plan.trainable_params,
            network_params: plan.trainable_params * (1 + whole),
            optimizer_bytes: plan.shape.optimizer_bytes,
        };
        plan.memory = estimate(work, &plan.shape);
        let logits = 4 * (rows * self.response_length) as u64 * plan.shape.vocab;
        let bytes = size_of::<f32>() as u64 * logits;
        plan.memory.push(("logits of the loss".into(), bytes));
        plan.workload = Some(work);
        let outputs = responses * (1 + self.sub_outputs) as f64;
        let trained = outputs * self.epochs as f64;
        plan.work.sampled = responses * response;
        plan.work.forward = responses * prompt;
        plan.work.trained = trained * row;
        plan.work.updates = trained / batch.max(1) as f64;
        if let (Some(eval_data), Some(training)) = (&self.eval_data, self.training()) {
            let held_out = planner.quietly(eval_data, RowKind::Prompt, self.max_prompt_length);
            let rows = num_evaluations(&training, plan.steps) as f64 * held_out.rows as f64;
            plan.work.sampled += rows * response;
            plan.work.forward += rows * (2.0 * held_out.mean + response);
        }
        planner.check_groups("optim", &self.optim, &self.peft, false);
        if let Some(training) = self.training() {
            plan.warn_of_warmup(&training);
        }
    }

    fn preview(&self, rows: &[Row], tokenizer: &Tokenizer) -> Result<Preview> {
        let (format, longest) = (&self.data.format, self.max_prompt_length);
        let encoded = encode_prompts(rows, tokenizer, format, longest)?;
        Ok(Preview::prompts(encoded))
    }

    fn run<B: ModelBackend>(&self, session: &mut Session<'_, B>) -> Result<Outcome> {
        super::hir(session, self)
    }
}
