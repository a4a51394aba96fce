//! The stage specification of OnlineDpo.

use super::OnlineDpoConfig;
use crate::data::{Row, RowKind, Tokenizer, encode_prompts};
use crate::error::Result;
use crate::ops::ModelBackend;
use crate::reward::RewardConfig;
use crate::train::checks::Checks;
use crate::train::config::{DataConfig, Init, MissingEos};
use crate::train::plan::{Planner, StagePlan, Workload, estimate, longest, num_evaluations};
use crate::train::{
    GenerationSettings, Outcome, Preview, Session, StageInputs, StageOutput, StageSpec,
    TrainingSettings,
};

impl StageSpec for OnlineDpoConfig {
    const OUTPUT: StageOutput = StageOutput::Policy;

    fn name(&self) -> &str {
        &self.name
    }

    fn inputs(&self) -> StageInputs<'_> {
        StageInputs::of("init", &self.init)
            .data("data", &self.data, RowKind::Prompt)
            .data("eval_data", self.eval_data.as_ref(), RowKind::Prompt)
            .reward("reward", &self.reward)
            .reward("gold", self.gold.as_ref())
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
            epochs: None,
            max_steps: None,
            batch_size: self.batch_size,
            micro_batch_tokens: self.micro_batch_tokens,
            max_length: None,
            gradient_checkpointing: self.gradient_checkpointing,
            cadence: &self.cadence,
        })
    }

    fn generation(&self) -> Option<GenerationSettings<'_>> {
        Some(GenerationSettings {
            response_length: self.response_length,
            max_prompt_length: self.max_prompt_length,
            generation_batch_size: self.generation_batch_size,
            sampling: None,
            truncate: self.truncate.as_ref(),
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
        self.alarms.check(checks, path);
        checks.above_zero(path, "beta", self.beta);
        checks.above_zero(path, "temperature", self.temperature);
        checks.positive(path, "total_episodes", self.total_episodes);
        checks.must(
            format!("{path}.num_generations"),
            self.num_generations >= 2,
            "at least 2: a response is compared with another one to the same prompt",
            self.num_generations,
        );
        let batch_size = format!("{path}.batch_size");
        let (batch, count) = (self.batch_size, self.num_generations.max(1));
        if batch >= 1 && !batch.is_multiple_of(count) {
            let message = format!("must be a multiple of num_generations {count}, found {batch}");
            checks.problem(&batch_size, message);
            checks.help(format!("e.g. {}", batch.div_ceil(count) * count));
            checks.depends_on(format!("{path}.num_generations"));
        }
        let total = self.total_episodes;
        if batch >= 1 && total >= 1 && !total.is_multiple_of(batch) {
            checks.problem(
                format!("{path}.total_episodes"),
                format!("must be a multiple of batch_size {batch}, found {total}"),
            );
            let nearest = total.div_ceil(batch) * batch;
            checks.help(format!(
                "e.g. {nearest}, which is {} updates",
                nearest / batch
            ));
            checks.depends_on(&batch_size);
        }
        let pair = (self.max_prompt_length).saturating_add(self.response_length.saturating_mul(2));
        if self.micro_batch_tokens < pair {
            checks.problem(
                format!("{path}.micro_batch_tokens"),
                format!(
                    "must be at least max_prompt_length + 2 response_length = {pair}, found {}",
                    self.micro_batch_tokens
                ),
            );
            checks.help("a prompt with its chosen and its rejected response is never split");
            checks.depends_on(format!("{path}.max_prompt_length"));
            checks.depends_on(format!("{path}.response_length"));
        }
        match self.missing_eos {
            MissingEos::Keep => {}
            MissingEos::Replace(score) => checks.must(
                format!("{path}.missing_eos"),
                score.is_finite(),
                "finite",
                score,
            ),
            MissingEos::Subtract(penalty) => checks.not_negative(path, "missing_eos", penalty),
        }
    }

    fn plan(&self, planner: &mut Planner<'_>, plan: &mut StagePlan) {
        let prompt = self.max_prompt_length;
        let data = planner.lengths("data", &self.data, RowKind::Prompt, prompt);
        plan.rows = data.rows;
        plan.steps = (self.total_episodes / self.batch_size.max(1)) as u64;
        let episodes = self.total_episodes as f64;
        plan.tokens = (episodes * (data.mean + self.response_length as f64)) as u64;
        let trained = plan.shape.trainable_params;
        // A learned reward has an adapter of about the policy's size; a whole policy has a whole reference.
        let others = [self.reward.learned().is_some(), self.peft.trains_base()];
        let others = others.map(u64::from).iter().sum::<u64>() * trained;
        let num_prompts = self.batch_size / self.num_generations.max(1);
        let prompts = data.largest(num_prompts, plan.steps).unwrap_or(usize::MAX);
        let responses = (2 * num_prompts).saturating_mul(self.response_length);
        let step = prompts.min(num_prompts.saturating_mul(prompt)) + responses;
        let micro_tokens = self.micro_batch_tokens.min(step);
        let pair = (data.mean + 2.0 * self.response_length as f64).max(1.0);
        let rows = 2 * ((micro_tokens as f64 / pair).ceil() as usize).min(num_prompts);
        let work = Workload::Ppo {
            micro_tokens: micro_tokens as u64,
            rows: rows as u64,
            targets: responses.min(micro_tokens) as u64,
            batch: self.generation_batch_size as u64,
            prompt: longest(&data, prompt),
            response: self.response_length as u64,
            trained_params: trained,
            network_params: trained + others,
            optimizer_bytes: plan.shape.optimizer_bytes,
        };
        plan.memory = estimate(work, &plan.shape);
        plan.workload = Some(work);

        let response = planner.response_of(&self.init, self.response_length);
        let is_learned = |reward: &RewardConfig| f64::from(u8::from(reward.learned().is_some()));
        let learned = is_learned(&self.reward) + self.gold.as_ref().map_or(0.0, is_learned);
        let pairs = episodes / self.num_generations.max(1) as f64 * (data.mean + 2.0 * response);
        plan.work.sampled = episodes * response;
        plan.work.forward = episodes * (data.mean + learned * (data.mean + response)) + pairs;
        plan.work.trained = pairs;
        plan.work.updates = plan.steps as f64;
        if let Some(training) = self.training() {
            if let Some(eval_data) = &self.eval_data {
                let held_out = planner.quietly(eval_data, RowKind::Prompt, prompt);
                let times = num_evaluations(&training, plan.steps);
                let rows = times as f64 * held_out.rows as f64;
                let row = held_out.mean + response;
                plan.work.sampled += rows * response;
                plan.work.forward += rows * (held_out.mean + (1.0 + learned) * row);
            }
            planner.check_groups("optim", &self.optim, &self.peft, false);
            plan.warn_of_warmup(&training);
        }
    }

    fn preview(&self, rows: &[Row], tokenizer: &Tokenizer) -> Result<Preview> {
        let (format, longest) = (&self.data.format, self.max_prompt_length);
        let encoded = encode_prompts(rows, tokenizer, format, longest)?;
        Ok(Preview::prompts(encoded))
    }

    fn run<B: ModelBackend>(&self, session: &mut Session<'_, B>) -> Result<Outcome> {
        super::online_dpo(session, self)
    }
}
