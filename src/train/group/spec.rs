//! The stage specification of all group methods.

use super::{GroupKeys, Method, train};
use crate::data::{Row, RowKind, Tokenizer, encode_prompts};
use crate::error::Result;
use crate::ops::ModelBackend;
use crate::rl::rollout::KL_METRICS;
use crate::train::alarms::Unmeasured;
use crate::train::checks::Checks;
use crate::train::checks::on_policy::{OnPolicy, check_on_policy};
use crate::train::config::{AlarmKind, DataConfig, KlIn};
use crate::train::plan::{OnPolicyPlan, Planner, StagePlan, UpdateParams};
use crate::train::{
    GenerationSettings, MetricNames, Outcome, Preview, Session, StageInputs, StageOutput,
    StageSpec, TrainingSettings,
};

/// A method whose baseline are other responses to the same prompt: all that a stage needs beside the common loop.
pub trait GroupMethod {
    /// The keys common to all group methods.
    fn keys(&self) -> GroupKeys<'_>;

    /// Its data sets, mutable.
    fn data_sets(&mut self) -> Vec<&mut DataConfig>;

    /// How its update is computed.
    fn method(&self) -> Method;

    /// Fewest responses to a prompt that it can compare.
    fn fewest_generations(&self) -> usize {
        2
    }

    /// Checks its own settings; `path` is the stage's key path.
    fn check_own(&self, checks: &mut Checks, path: &str);
}

impl<M: GroupMethod> StageSpec for M {
    const OUTPUT: StageOutput = StageOutput::Policy;

    fn name(&self) -> &str {
        self.keys().name
    }

    fn inputs(&self) -> StageInputs<'_> {
        let keys = self.keys();
        StageInputs::of("init", keys.init)
            .data("data", keys.data, RowKind::Prompt)
            .data("eval_data", keys.eval_data, RowKind::Prompt)
            .reward("reward", keys.reward)
            .reward("gold", keys.gold)
    }

    fn data_mut(&mut self) -> Vec<&mut DataConfig> {
        self.data_sets()
    }

    fn training(&self) -> Option<TrainingSettings<'_>> {
        let keys = self.keys();
        Some(TrainingSettings {
            init: keys.init,
            peft: keys.peft,
            optim: keys.optim,
            epochs: None,
            max_steps: None,
            batch_size: keys.batch_size,
            micro_batch_tokens: keys.micro_batch_tokens,
            max_length: None,
            gradient_checkpointing: keys.gradient_checkpointing,
            cadence: keys.cadence,
        })
    }

    fn metrics(&self) -> MetricNames {
        let keys = self.keys();
        let (has_gold, has_kl) = (keys.gold.is_some(), keys.kl_coef > 0.0);
        let in_loss = has_kl && self.method().kl.place == KlIn::Loss;
        let drawn = [
            "rollout/rounds",
            "rollout/groups_drawn",
            "rollout/groups_without_variance",
        ];
        MetricNames::of_updates(keys.reward, has_gold)
            .with_if(has_kl, &KL_METRICS)
            .with_if(in_loss, &["loss/kl_avg"])
            .with_if(keys.num_generations > 1, &["rollout/frac_reward_zero_std"])
            .with_if(keys.dynamic_sampling.is_some(), &drawn)
            .with_held_out_responses(keys.reward, has_gold, has_kl)
    }

    fn generation(&self) -> Option<GenerationSettings<'_>> {
        let keys = self.keys();
        Some(GenerationSettings {
            response_length: keys.response_length,
            max_prompt_length: keys.max_prompt_length,
            generation_batch_size: keys.generation_batch_size,
            sampling: None,
            truncate: keys.truncate,
        })
    }

    fn check(&self, checks: &mut Checks, path: &str) {
        let keys = self.keys();
        check_on_policy(
            checks,
            path,
            &OnPolicy {
                total_episodes: keys.total_episodes,
                batch_size: keys.batch_size,
                num_mini_batches: keys.num_mini_batches,
                micro_batch_tokens: keys.micro_batch_tokens,
                max_prompt_length: keys.max_prompt_length,
                response_length: keys.response_length,
                temperature: keys.temperature,
                kl_coef: keys.kl_coef,
                missing_eos: keys.missing_eos,
                ema_decay: keys.ema_decay,
            },
        );
        checks.positive(path, "num_iterations", keys.num_iterations);
        let mut unmeasured = Vec::new();
        if keys.kl_coef == 0.0 {
            unmeasured.push(Unmeasured {
                alarm: AlarmKind::Kl,
                reason: "with `kl_coef: 0.0` no KL to the reference is measured",
                key: "kl_coef",
            });
        }
        if keys.num_generations == 1 {
            unmeasured.push(Unmeasured {
                alarm: AlarmKind::Variance,
                reason: "with `num_generations: 1` there are no groups",
                key: "num_generations",
            });
        }
        let has_gold = keys.gold.is_some() || keys.eval_data.is_some();
        keys.alarms.check(checks, path, has_gold, &unmeasured);
        check_groups(checks, path, &keys, self.fewest_generations());
        if let Some(overlong) = keys.overlong {
            let most = keys.response_length;
            if !(1..=most).contains(&overlong.cache) {
                checks.problem(
                    format!("{path}.overlong.cache"),
                    format!(
                        "must be from 1 to response_length {most}, found {}",
                        overlong.cache
                    ),
                );
                checks.depends_on(format!("{path}.response_length"));
            }
            checks.not_negative(path, "overlong.penalty", overlong.penalty);
        }
        if let Some(dynamic) = keys.dynamic_sampling {
            checks.positive(path, "dynamic_sampling.max_rounds", dynamic.max_rounds);
            if keys.num_generations == 1 && self.fewest_generations() == 1 {
                checks.problem(
                    format!("{path}.dynamic_sampling"),
                    "has nothing to compare: num_generations is 1",
                );
                checks.depends_on(format!("{path}.num_generations"));
                checks.help("set `num_generations: 2` or more, or leave out `dynamic_sampling`");
            }
        }
        self.check_own(checks, path);
    }

    fn plan(&self, planner: &mut Planner<'_>, plan: &mut StagePlan) {
        let keys = self.keys();
        let settings = OnPolicyPlan {
            init: keys.init,
            data: keys.data,
            eval_data: keys.eval_data,
            reward: keys.reward,
            gold: keys.gold,
            total_episodes: keys.total_episodes,
            batch_size: keys.batch_size,
            num_mini_batches: keys.num_mini_batches,
            num_epochs: keys.num_iterations,
            micro_batch_tokens: keys.micro_batch_tokens,
            generation_batch_size: keys.generation_batch_size,
            response_length: keys.response_length,
            max_prompt_length: keys.max_prompt_length,
        };
        let data = settings.rows(planner, plan);
        let policy_params = plan.shape.trainable_params;
        let has_kl = keys.kl_coef > 0.0;
        // Each learned reward has an adapter of about the policy's size; a whole policy has a whole reference.
        let reference = u64::from(has_kl && keys.peft.trains_base());
        let others = (keys.reward.num_learned() as u64 + reference) * policy_params;
        let params = UpdateParams {
            trained: policy_params,
            networks: policy_params + others,
            optimizer_bytes: plan.shape.optimizer_bytes,
        };
        settings.memory(plan, &data, params);

        let episodes = keys.total_episodes as f64;
        let (response, learned) = (settings.response(planner), settings.num_learned());
        let row = data.mean + response;
        let prefills = episodes / keys.num_generations.max(1) as f64;
        plan.work.sampled = episodes * response;
        plan.work.forward =
            prefills * data.mean + episodes * (f64::from(u8::from(has_kl)) + learned) * row;
        plan.work.trained = episodes * row * keys.num_iterations as f64;
        plan.work.updates = settings.num_minibatches(plan.steps) as f64;
        planner.check_groups("optim", keys.optim, keys.peft, false);
        if let Some(training) = self.training() {
            settings.held_out(planner, plan, &training, learned);
            plan.warn_of_warmup(&training);
        }
    }

    fn preview(&self, rows: &[Row], tokenizer: &Tokenizer) -> Result<Preview> {
        let keys = self.keys();
        let (format, longest) = (&keys.data.format, keys.max_prompt_length);
        Ok(Preview::prompts(encode_prompts(
            rows, tokenizer, format, longest,
        )?))
    }

    fn run<B: ModelBackend>(&self, session: &mut Session<'_, B>) -> Result<Outcome> {
        train(session, self.keys(), &self.method())
    }
}

/// Checks that the responses of an update are whole groups.
fn check_groups(checks: &mut Checks, path: &str, keys: &GroupKeys<'_>, fewest: usize) {
    let (size, batch) = (keys.num_generations, keys.batch_size);
    let place = format!("{path}.num_generations");
    if size < fewest {
        let message = match fewest {
            1 => format!("must be at least 1, found {size}"),
            _ => format!(
                "must be at least {fewest}, found {size}: a response is compared with the others to its prompt"
            ),
        };
        checks.problem(&place, message);
        checks.help("e.g. `num_generations: 8`");
    } else if !batch.is_multiple_of(size) {
        checks.problem(
            format!("{path}.batch_size"),
            format!("must be a multiple of num_generations {size}, found {batch}"),
        );
        let nearest = batch.div_ceil(size) * size;
        checks.help(format!(
            "e.g. {nearest}: {size} responses to each of {} prompts",
            nearest / size
        ));
        checks.depends_on(&place);
    }
}
