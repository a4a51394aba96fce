//! The stage specification of Ppo.

use super::{PpoConfig, ValueTrunk};
use crate::data::{Row, RowKind, Tokenizer, encode_prompts};
use crate::error::Result;
use crate::ops::ModelBackend;
use crate::rl::rollout::KL_METRICS;
use crate::suggest::quoted;
use crate::train::alarms::Unmeasured;
use crate::train::checks::Checks;
use crate::train::checks::on_policy::{OnPolicy, check_on_policy};
use crate::train::checks::settings::{check_method, check_optim, check_row_length, check_rule};
use crate::train::config::{DataConfig, KlControl, KlEstimator, KlIn, ValueInit};
use crate::train::plan::{Lengths, OnPolicyPlan, Planner, StagePlan, UpdateParams};
use crate::train::{
    GenerationSettings, MetricNames, Outcome, Preview, Session, StageInputs, StageOutput,
    StageSpec, TrainingSettings,
};

impl PpoConfig {
    /// What its plan reads.
    fn on_policy(&self) -> OnPolicyPlan<'_> {
        OnPolicyPlan {
            init: &self.init,
            data: &self.data,
            eval_data: self.eval_data.as_ref(),
            reward: &self.reward,
            gold: self.gold.as_ref(),
            total_episodes: self.total_episodes,
            batch_size: self.batch_size,
            num_mini_batches: self.num_mini_batches,
            num_epochs: self.num_ppo_epochs,
            micro_batch_tokens: self.micro_batch_tokens,
            generation_batch_size: self.generation_batch_size,
            response_length: self.response_length,
            max_prompt_length: self.max_prompt_length,
        }
    }

    /// Counts the passes: rollouts by the policy, each response by the reference, the value network and a learned reward, and epochs
    /// of updates of policy and value network.
    fn plan_work(&self, planner: &mut Planner<'_>, plan: &mut StagePlan, data: &Lengths) {
        let settings = self.on_policy();
        let (response, learned) = (settings.response(planner), settings.num_learned());
        let row = data.mean + response;
        let episodes = self.total_episodes as f64;
        let own_value = f64::from(u8::from(self.value_trunk == ValueTrunk::Own));
        let work = &mut plan.work;
        work.sampled = episodes * response;
        work.forward = episodes * (data.mean + (1.0 + own_value + learned) * row);
        work.trained = episodes * row * self.num_ppo_epochs as f64 * (1.0 + own_value);
        work.updates = settings.num_minibatches(plan.steps) as f64 * (1.0 + own_value);
        if let Some(training) = self.training() {
            settings.held_out(planner, plan, &training, learned);
        }
    }
}

impl StageSpec for PpoConfig {
    const OUTPUT: StageOutput = StageOutput::Policy;

    fn name(&self) -> &str {
        &self.name
    }

    fn inputs(&self) -> StageInputs<'_> {
        let ptx = self.ptx.as_ref().map(|ptx| &ptx.data);
        let mut inputs = StageInputs::of("init", &self.init)
            .data("data", &self.data, RowKind::Prompt)
            .data("eval_data", self.eval_data.as_ref(), RowKind::Prompt)
            .data("ptx.data", ptx, RowKind::Text)
            .reward("reward", &self.reward)
            .reward("gold", self.gold.as_ref());
        let reference = self.reference.as_ref();
        (inputs.models).extend(reference.map(|init| ("reference".to_owned(), init)));
        inputs.value_start = self.value_start().map(|stage| ("reward", stage));
        inputs.value_peft = Some(self.value_peft());
        inputs
    }

    fn data_mut(&mut self) -> Vec<&mut DataConfig> {
        let ptx = self.ptx.iter_mut().map(|ptx| &mut ptx.data);
        std::iter::once(&mut self.data)
            .chain(&mut self.eval_data)
            .chain(ptx)
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
        let of_value = [
            "kl_coef",
            "loss/value_avg",
            "val/clipfrac_avg",
            "val/explained_variance",
        ];
        let own_value = self.value_trunk == ValueTrunk::Own;
        let has_gold = self.gold.is_some();
        MetricNames::of_updates(&self.reward, has_gold)
            .with(&KL_METRICS)
            .with(&of_value)
            .with_if(own_value, &["value/grad_norm"])
            .with_if(self.kl_in == KlIn::Loss, &["loss/kl_avg"])
            .with_if(self.ptx.is_some(), &["loss/ptx_avg"])
            .with_held_out_responses(&self.reward, has_gold, true)
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

    fn longest_rows(&self) -> Vec<(&'static str, usize)> {
        let longest = self.max_prompt_length.saturating_add(self.response_length);
        let ptx = self.ptx.as_ref();
        std::iter::once(("response_length", longest))
            .chain(ptx.map(|ptx| ("ptx.max_length", ptx.max_length)))
            .collect()
    }

    fn check(&self, checks: &mut Checks, path: &str) {
        let value_peft = self.value_peft();
        match &self.value_optim {
            Some(optim) => check_optim(checks, &format!("{path}.value_optim"), optim, value_peft),
            None if self.value_peft.is_some() => {
                check_rule(
                    checks,
                    &format!("{path}.optim"),
                    &self.optim.algorithm,
                    value_peft,
                );
            }
            None => {}
        }
        if let Some(peft) = &self.value_peft {
            let place = format!("{path}.value_peft");
            check_method(checks, &place, peft);
            let message = "must leave the model's weights as they are: they are the policy's, too";
            if peft.trains_base() {
                checks.problem(&place, message);
                checks.help(
                    "e.g. `value_peft: Lora(rank: 16)`; `peft` is what both train without it",
                );
            }
        }
        if self.value_trunk == ValueTrunk::Policy {
            for (key, given) in [
                ("value_optim", self.value_optim.is_some()),
                ("value_init", self.value_init.is_some()),
                ("value_peft", self.value_peft.is_some()),
            ] {
                if given {
                    checks.problem(
                        format!("{path}.{key}"),
                        "applies to a separate value network, and with `value_trunk: Policy` there is none: the head starts at zero and is trained by `optim`",
                    );
                    checks.help(format!("leave out `{key}` or `value_trunk`"));
                }
            }
        }
        check_value_init(checks, path, self);
        check_on_policy(
            checks,
            path,
            &OnPolicy {
                total_episodes: self.total_episodes,
                batch_size: self.batch_size,
                num_mini_batches: self.num_mini_batches,
                micro_batch_tokens: self.micro_batch_tokens,
                max_prompt_length: self.max_prompt_length,
                response_length: self.response_length,
                temperature: self.temperature,
                kl_coef: self.kl_coef,
                missing_eos: self.missing_eos,
                ema_decay: self.ema_decay,
            },
        );
        checks.positive(path, "num_ppo_epochs", self.num_ppo_epochs);
        let has_gold = self.gold.is_some() || self.eval_data.is_some();
        self.alarms
            .check(checks, path, has_gold, &[Unmeasured::VARIANCE]);
        if let KlControl::Adaptive { target, horizon } = self.kl_control {
            checks.above_zero(path, "kl_control.target", target);
            checks.above_zero(path, "kl_control.horizon", horizon);
        }
        if (self.kl_in, self.kl_estimator) == (KlIn::Loss, KlEstimator::K1) {
            checks.problem(
                format!("{path}.kl_estimator"),
                "k1 cannot be in the loss: its expected gradient is zero, so it would have no effect",
            );
            checks.help("use k2 (whose gradient is that of the KL) or k3, or `kl_in: Reward`");
            checks.depends_on(format!("{path}.kl_in"));
        }
        checks.above_zero(path, "cliprange", self.cliprange);
        checks.above_zero(path, "cliprange_value", self.cliprange_value);
        checks.not_negative(path, "vf_coef", self.vf_coef);
        checks.fraction(path, "gamma", self.gamma);
        checks.fraction(path, "lam", self.lam);
        if let Some(ptx) = &self.ptx {
            let ptx_path = format!("{path}.ptx");
            checks.not_negative(&ptx_path, "coef", ptx.coef);
            checks.positive(&ptx_path, "batch_size", ptx.batch_size);
            check_row_length(checks, &ptx_path, ptx.max_length);
            if self.micro_batch_tokens < ptx.max_length {
                checks.problem(
                    format!("{path}.micro_batch_tokens"),
                    format!(
                        "must be at least ptx.max_length {}, found {}",
                        ptx.max_length, self.micro_batch_tokens
                    ),
                );
                checks.depends_on(format!("{ptx_path}.max_length"));
            }
        }
    }

    fn plan(&self, planner: &mut Planner<'_>, plan: &mut StagePlan) {
        let settings = self.on_policy();
        let data = settings.rows(planner, plan);
        let policy_params = plan.shape.trainable_params;
        plan.trainable_params += match (self.value_trunk, &self.value_peft) {
            (ValueTrunk::Own, Some(peft)) => planner.num_value_params("value_peft", peft),
            (ValueTrunk::Own, None) if self.peft.trains_base() => policy_params,
            (ValueTrunk::Own, None) => planner.num_value_params("peft", &self.peft),
            (ValueTrunk::Policy, _) => 0,
        };
        // Each learned reward has an adapter of about the policy's size; a whole policy has a whole reference.
        let others = self.reward.num_learned() as u64 + u64::from(self.peft.trains_base());
        let others = others * policy_params;
        let mut optimizer_bytes = plan.shape.optimizer_bytes;
        if self.value_trunk == ValueTrunk::Own {
            let (value, peft) = (self.value_optim(), self.value_peft());
            optimizer_bytes += planner.optimizer_bytes(value, peft, true);
            planner.check_groups("value_optim", value, peft, true);
        }
        let params = UpdateParams {
            trained: plan.trainable_params,
            networks: plan.trainable_params + others,
            optimizer_bytes,
        };
        settings.memory(plan, &data, params);
        self.plan_work(planner, plan, &data);
        let scores = self.value_trunk == ValueTrunk::Policy;
        planner.check_groups("optim", &self.optim, &self.peft, scores);
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
        super::ppo(session, self)
    }
}

/// Checks that the reward model that a value network starts from is one of the reward source's.
fn check_value_init(checks: &mut Checks, path: &str, config: &PpoConfig) {
    let among = config.reward.all_learned();
    let place = format!("{path}.value_init");
    match (&config.value_init, among.as_slice()) {
        (Some(ValueInit::Reward), [first, _, ..]) => {
            let message = format!(
                "`reward` has several reward models: {}",
                quoted(among.iter().copied())
            );
            checks.problem(&place, message);
            checks.help(format!(
                "name the one to start from: `value_init: Learned({first:?})`, or `value_init: Policy`"
            ));
        }
        (Some(ValueInit::Learned(name)), []) => {
            let message = format!("`reward` has no reward model, and so none named `{name}`");
            checks.problem(&place, message);
            checks.help("set `value_init: Policy`");
        }
        (Some(ValueInit::Learned(name)), known) if !known.contains(&name.as_str()) => {
            let message = format!(
                "`reward` has no reward model `{name}`; it has {}",
                quoted(among.iter().copied())
            );
            checks.problem(&place, message);
        }
        _ => return,
    }
    checks.depends_on(format!("{path}.reward"));
}
