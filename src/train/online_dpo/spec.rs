//! The stage specification of OnlineDpo.

use super::OnlineDpoConfig;
use crate::data::{Row, RowKind, Tokenizer, encode_prompts};
use crate::error::Result;
use crate::ops::ModelBackend;
use crate::reward::RewardConfig;
use crate::train::alarms::Unmeasured;
use crate::train::checks::Checks;
use crate::train::config::{DataConfig, MissingEos};
use crate::train::plan::{OnPolicyPlan, Planner, StagePlan, UpdateParams};
use crate::train::preference::check_reference;
use crate::train::{
    GenerationSettings, MetricNames, Outcome, Preview, Session, StageInputs, StageOutput,
    StageSpec, TrainingSettings,
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

    fn metrics(&self) -> MetricNames {
        let (reward, has_gold) = (&self.reward, self.gold.is_some());
        let of_responses = [
            "episode",
            "objective/kl",
            "objective/scores_margin",
            "val/missing_eos_rate",
            "val/repetition",
            "val/response_length",
            "val/tie_rate",
        ];
        (self.objective().metric_names())
            .with(&of_responses)
            .with_scores(reward, has_gold)
            .with_held_out_responses(reward, has_gold, true)
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
        check_reference(checks, path, &self.init);
        checks.must(
            format!("{path}.peft.dropout"),
            self.peft.dropout() == 0.0,
            "0: policy and reference would differ before the first step",
            self.peft.dropout(),
        );
        let has_gold = self.gold.is_some() || self.eval_data.is_some();
        self.alarms
            .check(checks, path, has_gold, &[Unmeasured::VARIANCE]);
        checks.above_zero(path, "beta", self.beta);
        checks.temperature(path, "temperature", self.temperature);
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
        let settings = OnPolicyPlan {
            init: &self.init,
            data: &self.data,
            eval_data: self.eval_data.as_ref(),
            reward: &self.reward,
            gold: self.gold.as_ref(),
            total_episodes: self.total_episodes,
            batch_size: self.batch_size,
            num_mini_batches: 1,
            num_epochs: 1,
            micro_batch_tokens: self.micro_batch_tokens,
            generation_batch_size: self.generation_batch_size,
            response_length: self.response_length,
            max_prompt_length: self.max_prompt_length,
        };
        let data = settings.rows(planner, plan);
        let trained = plan.shape.trainable_params;
        // A learned reward has an adapter of about the policy's size; a whole policy has a whole reference.
        let others = [self.reward.learned().is_some(), self.peft.trains_base()];
        let others = others.map(u64::from).iter().sum::<u64>() * trained;
        let params = UpdateParams {
            trained,
            networks: trained + others,
            optimizer_bytes: plan.shape.optimizer_bytes,
        };
        // A pass is of prompts with two responses each.
        let (prompt, num_prompts) = (
            self.max_prompt_length,
            self.batch_size / self.num_generations.max(1),
        );
        let prompts = data.largest(num_prompts, plan.steps).unwrap_or(usize::MAX);
        let responses = (2 * num_prompts).saturating_mul(self.response_length);
        let step = prompts.min(num_prompts.saturating_mul(prompt)) + responses;
        let micro_tokens = self.micro_batch_tokens.min(step);
        let pair = (data.mean + 2.0 * self.response_length as f64).max(1.0);
        let rows = 2 * ((micro_tokens as f64 / pair).ceil() as usize).min(num_prompts);
        let sizes = [micro_tokens, rows, responses.min(micro_tokens)];
        settings.workload(plan, &data, params, sizes);

        let episodes = self.total_episodes as f64;
        let response = settings.response(planner);
        let is_learned = |reward: &RewardConfig| f64::from(u8::from(reward.learned().is_some()));
        let learned = is_learned(&self.reward) + self.gold.as_ref().map_or(0.0, is_learned);
        let pairs = episodes / self.num_generations.max(1) as f64 * (data.mean + 2.0 * response);
        plan.work.sampled = episodes * response;
        plan.work.forward = episodes * (data.mean + learned * (data.mean + response)) + pairs;
        plan.work.trained = pairs;
        plan.work.updates = plan.steps as f64;
        planner.check_groups("optim", &self.optim, &self.peft, false);
        if let Some(training) = self.training() {
            settings.held_out(planner, plan, &training, learned);
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
