//! Group methods: several responses to each prompt, whose rewards are each other's baseline; no value function.
//!
//! A method consists of its recipe keys ([`GroupKeys`] and its own) and of a [`Method`], which says how its advantages, its objective and
//! its KL term are computed. The loop over the rollout core's steps is the same for all of them.
//!
//! # Source
//! Shao et al. 2024, arXiv:2402.03300 (GRPO); Ahmadian et al. 2024, arXiv:2402.14740 (RLOO); Hu 2025, arXiv:2501.03262
//! (REINFORCE++). Numbers and defaults as in TRL 1.16.

mod config;
mod draw;
mod spec;

use std::time::Instant;

use burn::module::AutodiffModule;

use super::Session;
use super::evaluate::Evaluator;
use super::generation::Generation;
use super::journal::Journal;
use super::policy::save_policy;
use super::rescue::attempt;
use super::rollout::{
    GOLD, Generator, HeldOut, Models, Networks, NonFinite, PassSettings, PolicyUpdate, Rollout,
    SCORE, SampleSettings, State, UpdateSettings, evaluate, held_out_prompts, minibatch_orders,
    prompts, update,
};
use super::session::{Outcome, data_files};
use crate::error::Result;
use crate::generate::SamplingConfig;
use crate::ops::ModelBackend;
use crate::optim::{Optimiser, lr_at};
use crate::report::StageRecord;
use crate::rl::rollout::{AdvantageEstimator, LossMean, Objective, RatioLevel, Samples};
use crate::rl::{KlControl, KlController, KlTerm};

pub use config::{DynamicSampling, GroupKeys, Overlong};
pub(super) use config::{fifth, group_config, unit};
pub use spec::GroupMethod;

use draw::Draw;

/// How a group method computes its update.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Method {
    /// From scores to advantages.
    pub advantage: AdvantageEstimator,
    /// The objective that is maximised.
    pub objective: Objective,
    /// What its probability ratio is a ratio of.
    pub ratio: RatioLevel,
    /// What the loss is averaged over.
    pub mean: LossMean,
    /// The KL term. With a coefficient of 0 there is no pass of the reference.
    pub kl: KlTerm,
    /// Whether a KL term in the loss is multiplied by the probability ratio.
    pub kl_bias_correction: bool,
    /// Scores are cut to this range, before a KL term.
    pub reward_clip_range: Option<(f64, f64)>,
}

impl Method {
    /// The rollout of `samples`; without EOS a response is not trained on if `mask_truncated` is set.
    pub fn rollout(&self, mut samples: Samples, mask_truncated: bool) -> Rollout {
        if let Some((low, high)) = self.reward_clip_range {
            for score in &mut samples.scores {
                *score = f64::from(*score).clamp(low, high) as f32;
            }
        }
        let trained = mask_truncated.then(|| samples.has_eos.clone());
        let rollout = self.advantage.estimate(samples, None, self.kl);
        Rollout { trained, ..rollout }
    }
}

impl GroupKeys<'_> {
    /// Number of updates.
    pub(super) fn num_updates(&self) -> usize {
        self.total_episodes / self.batch_size
    }

    /// How responses are generated.
    fn generation(&self) -> Generation<'_> {
        Generation {
            response_length: self.response_length,
            // No top-k and no top-p: the ratio needs the distribution that tokens were sampled from.
            sampling: SamplingConfig {
                temperature: self.temperature,
                ..SamplingConfig::default()
            },
            truncate: self.truncate,
            batch_size: self.generation_batch_size,
        }
    }

    /// Settings of the forward passes over responses.
    pub fn sample_settings(&self) -> SampleSettings {
        SampleSettings {
            response_length: self.response_length,
            temperature: self.temperature,
            micro_batch_tokens: self.micro_batch_tokens,
            missing_eos: self.missing_eos,
            share_prompts: true,
        }
    }

    /// Settings of update `update` by `method`.
    pub fn update_settings(&self, method: &Method, update: usize) -> UpdateSettings<'static> {
        let (optim, updates) = (self.optim, self.num_updates());
        UpdateSettings {
            num_mini_batches: self.num_mini_batches,
            passes: PassSettings {
                micro_batch_tokens: self.micro_batch_tokens,
                gradient_checkpointing: self.gradient_checkpointing,
                share_prompts: true,
            },
            policy: PolicyUpdate {
                objective: method.objective,
                ratio: method.ratio,
                kl_bias_correction: method.kl_bias_correction,
                mean: method.mean,
                temperature: self.temperature,
                lr: lr_at(&optim.schedule, optim.lr, update, updates),
            },
            value: None,
            ptx: None,
        }
    }
}

/// Generates groups of responses, scores them, and updates the policy, `total_episodes / batch_size` times.
///
/// # Errors
/// Those of data, models and reward sources; `Error::NonFinite`; `Error::Interrupted`.
fn train<B: ModelBackend>(
    session: &mut Session<'_, B>,
    keys: GroupKeys<'_>,
    method: &Method,
) -> Result<Outcome> {
    let device = session.device.clone();
    let seed = session.stage_seed(keys.name);
    let policy = session.policy(keys.init)?;
    let longest = keys.max_prompt_length;
    let train = prompts(session, &policy, keys.data, longest, "prompts")?;
    let held_out = held_out_prompts(session, &policy, keys.eval_data, longest)?;
    let tokenizer = policy.tokenizer.clone();
    let generation = keys.generation();
    let mut generator = Generator::new(session, &tokenizer, generation, keys.reward, keys.gold)?;
    let data = (data_files(keys.data, session.run.path()), train.len());
    let init = format!("{:?}", keys.init);
    session.record(keys.name, &init, &[data])?;

    // Adapters share the base's weights with it, so that it costs nothing; otherwise it is kept for the KL term only.
    let has_kl = keys.kl_coef > 0.0;
    let frozen_base = !keys.peft.trains_base();
    let reference = (has_kl || frozen_base).then(|| policy.model.clone());
    let (config, base) = (policy.config.clone(), policy.base.clone());
    let mut trained = policy.into_trainable(keys.peft, seed)?;
    if reference.is_none() {
        session.free_bases();
    }
    let networks = Networks {
        policy: trained.model,
        policy_optim: Optimiser::new(keys.optim.clone())
            .with_vector_lr_factor(keys.peft.vector_lr_factor()),
        value: None,
    };
    let kl = KlController::new(KlControl::Fixed, keys.kl_coef);
    let mut state = State::new(networks, kl, keys.ema_decay);
    let updates = keys.num_updates();
    let summary = format!(
        "{updates} updates of {} responses, {} to each of {} prompts",
        keys.batch_size,
        keys.num_generations,
        train.len()
    );
    let (mut journal, restored) =
        Journal::open(session, keys.name, &summary, updates, keys.cadence)?;
    if let Some(restored) = restored {
        state.restore(restored, &device)?;
    }
    let mut alarms = journal.alarms(keys.alarms)?;
    let evaluator = Evaluator {
        prompts: &held_out,
        tokenizer: &tokenizer,
        options: generator.options.clone(),
        reference: reference.as_ref(),
        micro_batch_tokens: keys.micro_batch_tokens,
        seed: seed.fork("evaluation"),
    };
    let first = if journal.position.step == 0 {
        let policy = state.networks.policy.valid();
        let sources = &mut generator.sources;
        let first = evaluate(session, &mut journal, &evaluator, &policy, sources)?;
        alarms.update(&first.map_or(Vec::new(), |held_out| held_out.watched()));
        first
    } else {
        HeldOut::logged(&mut journal)?
    };
    let mut last = None;
    // Rounded inputs make passes with a cache differ from those of the update; see the loop of Ppo.
    let rounded = session.numerics.round_inputs();
    while journal.position.step < updates {
        let done = journal.position.step;
        let start = Instant::now();
        let sampled = attempt(|| {
            // Dropped before the update: weights with a second owner could not be updated in place.
            let now = state.networks.policy.valid();
            let draw = Draw {
                prompts: &train,
                keys: &keys,
                order: seed.fork("order"),
                sampling: seed.fork("rollout").fork_index(done as u64),
            };
            let drawn = draw.episodes(session, &mut generator, &now, journal.position.prompts)?;
            let models = Models {
                policy: &now,
                reference: reference.as_ref().filter(|_| has_kl),
                value: None,
                recompute_logprobs: rounded,
                frozen_base,
            };
            let mut settings = keys.sample_settings();
            settings.share_prompts = !rounded;
            let (samples, _) = models.samples(&drawn.episodes, settings, &device);
            let rollout = method.rollout(samples, keys.mask_truncated_completions);
            Ok((rollout, drawn))
        });
        let (rollout, drawn) =
            sampled.map_err(|failed| state.failed(session, &mut journal, failed))?;
        journal.position.prompts = drawn.next_prompt;
        journal.time("sampling_s", start);

        let start = Instant::now();
        let mut settings = keys.update_settings(method, done);
        // The same order of sums as in the passes that the old log-probabilities then come from.
        settings.passes.share_prompts = !rounded;
        let order = seed.fork("minibatches").fork_index(done as u64);
        let orders = minibatch_orders(order, keys.batch_size, keys.num_iterations);
        let report = update(&mut state.networks, &rollout, &orders, &settings, &device)
            .map_err(|NonFinite(what)| journal.non_finite(what, &rollout.samples.row_slices()))?;
        state.updated(&mut journal, rollout.samples.mean_kl(), keys.batch_size);
        journal.time("update_s", start);

        let mut metrics = rollout.metrics();
        metrics.extend(drawn.metrics());
        metrics.extend(report.metrics());
        metrics.extend([
            ("lr", settings.policy.lr),
            ("episode", ((done + 1) * keys.batch_size) as f64),
        ]);
        let warnings = [report.check(rounded, &mut metrics), drawn.warning()];
        let columns = drawn.episodes.metrics();
        let mut metrics: Vec<(&str, f64)> = metrics;
        metrics.extend(columns.iter().map(|(name, mean)| (name.as_str(), *mean)));
        let tokens = rollout.samples.rows.iter().map(|row| row.len() as u64);
        journal.step(session, tokens.sum(), &metrics)?;
        journal.raise(session, alarms.update(&metrics))?;
        for warning in warnings.into_iter().flatten() {
            let update = done + 1;
            (session.reporter).message(&format!("update {update}: {warning}"));
        }
        if journal.evaluates() {
            let policy = state.result(&device)?.valid();
            let sources = &mut generator.sources;
            last = evaluate(session, &mut journal, &evaluator, &policy, sources)?;
            let held_out = last.map_or(Vec::new(), |held_out| held_out.watched());
            journal.raise(session, alarms.update(&held_out))?;
        }
        state.save_if_due(session, &mut journal)?;
    }
    trained.model = state.result(&device)?;
    journal.restore_best(session, &mut trained.model)?;
    save_policy(journal.dir(), &trained, &config, &tokenizer, &base)?;
    session.warn_of_sources(generator.sources.values());
    let name = if keys.gold.is_some() { GOLD } else { SCORE };
    let summary =
        HeldOut::change(first, last, name).unwrap_or_else(|| format!("{updates} updates"));
    let results = StageRecord {
        summary,
        ..StageRecord::default()
    };
    journal.finish(session, results)
}
