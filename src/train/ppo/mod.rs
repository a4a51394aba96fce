//! Proximal policy optimisation with a KL penalty to the initial policy: the rollout core with a value function.
//!
//! # Source
//! Schulman et al. 2017, arXiv:1707.06347; Ziegler et al. 2019, arXiv:1909.08593; details as in Huang et al. 2024,
//! arXiv:2403.17031 ("N+"), on packed rows. `docs/ppo-details.md` lists that paper's details one by one.

mod config;
mod settings;
mod spec;
mod value;

use std::borrow::Cow;
use std::time::Instant;

use burn::module::AutodiffModule;

use super::Session;
use super::evaluate::Evaluator;
use super::journal::Journal;
use super::policy::{Policy, save_policy};
use super::rescue::attempt;
use super::rollout::{
    Episodes, GOLD, Generator, HeldOut, Models, Networks, NonFinite, Ptx, Rollout, SCORE, State,
    endless, evaluate, held_out_prompts, minibatch_orders, next_prompts, prompts, update,
};
use super::session::{Outcome, data_files};
use crate::checkpoint::ModelRole;
use crate::data::{Example, Texts, TokenRows};
use crate::error::Result;
use crate::ops::ModelBackend;
use crate::optim::Optimiser;
use crate::report::StageRecord;
use crate::rl::KlController;
use crate::rng::Seed;

pub use config::{PpoConfig, PtxConfig, ValueInit, ValueTrunk};
pub use value::{OTHER_TOKENS, value_function, value_network};

/// PPO's rollout: forward passes over `episodes`, then rewards, advantages and returns. `kl_coef` is the current KL coefficient.
///
/// # Panics
/// If a query or a response is empty, a response is longer than `config.response_length`, `models` lack the reference or the
/// value function, or the lengths of `episodes` differ.
///
/// # Source
/// arXiv:2403.17031 and its code, `ppo.py`: from `logprobs` to `advantages`.
pub fn rollout<B: ModelBackend>(
    episodes: &Episodes,
    models: Models<'_, B>,
    config: &PpoConfig,
    kl_coef: f64,
    device: &B::Device,
) -> Rollout {
    let (samples, values) = models.samples(episodes, config.sample_settings(), device);
    (config.advantage()).estimate(samples, values, config.kl_term(kl_coef))
}

/// Generates, scores, and updates policy and value function, `total_episodes / batch_size` times.
///
/// # Errors
/// Those of data, models and reward sources; `Error::NonFinite`; `Error::Interrupted`.
pub(super) fn ppo<B: ModelBackend>(
    session: &mut Session<'_, B>,
    config: &PpoConfig,
) -> Result<Outcome> {
    let device = session.device.clone();
    let seed = session.stage_seed(&config.name);
    let policy = session.policy(&config.init)?;
    let longest = config.max_prompt_length;
    let train = prompts(session, &policy, &config.data, longest, "prompts")?;
    let held_out = held_out_prompts(session, &policy, config.eval_data.as_ref(), longest)?;
    let (reward, gold) = (&config.reward, config.gold.as_ref());
    let mut generator = Generator::new(
        session,
        &policy.tokenizer,
        config.generation(),
        reward,
        gold,
    )?;
    let reward = match config.value_start() {
        Some(stage) => Some(session.reward_model_as(ModelRole::Value, stage)?),
        None => None,
    };
    let value = value_function(&policy, reward, config, seed, &device)?;
    let texts = texts(session, config, &policy)?;
    record(session, config, train.len(), texts.len())?;

    let reference = match &config.reference {
        Some(init) => session.policy_as(ModelRole::Reference, init)?.model,
        None => policy.model.clone(),
    };
    let mut trained = policy.clone().into_trainable(&config.peft, seed)?;
    let frozen_base = !config.peft.trains_base();
    let networks = Networks {
        policy: trained.model,
        policy_optim: Optimiser::new(config.optim.clone())
            .with_vector_lr_factor(config.peft.vector_lr_factor()),
        value: Some(value),
    };
    let kl = KlController::new(config.kl_control, config.kl_coef);
    let mut state = State::new(networks, kl, config.ema_decay);
    let updates = config.num_updates();
    let summary = format!(
        "{updates} updates of {} responses, {} prompts",
        config.batch_size,
        train.len()
    );
    let (mut journal, restored) =
        Journal::open(session, &config.name, &summary, updates, &config.cadence)?;
    if let Some(restored) = restored {
        state.restore(restored, &device)?;
    }
    let mut alarms = journal.alarms(&config.alarms)?;
    let evaluator = Evaluator {
        prompts: &held_out,
        tokenizer: &policy.tokenizer,
        options: generator.options.clone(),
        reference: Some(&reference),
        micro_batch_tokens: config.micro_batch_tokens,
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
    while journal.position.step < updates {
        let done = journal.position.step;
        let batch = next_prompts(&train, config.batch_size, done, seed.fork("order"))?;
        // With rounded inputs, another order of summation moves values across rounding boundaries, and the layers amplify that:
        // generation with its cache differs from the update's passes by up to a nat (in 8 bits). For a ratio that starts at 1 the
        // old log-probabilities must come from such a pass.
        let rounded = session.numerics.round_inputs();
        let start = Instant::now();
        let sampled = attempt(|| {
            // Dropped before the update: weights with a second owner could not be updated in place.
            let now = state.networks.policy.valid();
            let value = state.networks.value.as_ref().map(|value| value.valid());
            let episodes = generator.episodes(
                session,
                &now,
                value.as_ref().filter(|_| !rounded),
                &batch,
                seed.fork("rollout").fork_index(done as u64),
            )?;
            let models = Models {
                policy: &now,
                reference: Some(&reference),
                value: value.as_ref(),
                recompute_logprobs: rounded,
                frozen_base,
            };
            let kl_coef = state.kl.coef();
            let rollout = rollout(&episodes, models, config, kl_coef, &device);
            Ok((rollout, episodes.metrics()))
        });
        let (rollout, columns) =
            sampled.map_err(|failed| state.failed(session, &mut journal, failed))?;

        journal.time("sampling_s", start);
        let start = Instant::now();
        let texts = ptx_batches(&texts, config, done, seed.fork("ptx"))?;
        let texts: Vec<Vec<&Example>> = (texts.iter())
            .map(|step| step.iter().map(AsRef::as_ref).collect())
            .collect();
        let ptx = config.ptx.as_ref().map(|ptx| Ptx {
            coef: ptx.coef,
            batches: &texts,
        });
        let settings = config.update_settings(done, updates, ptx);
        let order_seed = seed.fork("minibatches").fork_index(done as u64);
        let orders = minibatch_orders(order_seed, config.batch_size, config.num_ppo_epochs);
        let report = update(&mut state.networks, &rollout, &orders, &settings, &device)
            .map_err(|NonFinite(what)| journal.non_finite(what, &rollout.samples.row_slices()))?;
        journal.time("update_s", start);
        state.updated(&mut journal, rollout.samples.mean_kl(), config.batch_size);

        let mut metrics = rollout.metrics();
        metrics.extend(report.metrics());
        metrics.extend([
            ("kl_coef", rollout.kl.coef),
            ("lr", settings.policy.lr),
            ("episode", ((done + 1) * config.batch_size) as f64),
        ]);
        let warning = report.check(rounded, &mut metrics);
        let mut metrics: Vec<(&str, f64)> = metrics;
        metrics.extend(columns.iter().map(|(name, mean)| (name.as_str(), *mean)));
        let tokens = rollout.samples.rows.iter().map(|row| row.len() as u64);
        journal.step(session, tokens.sum(), &metrics)?;
        journal.raise(session, alarms.update(&metrics))?;
        if let Some(warning) = warning {
            let update = done + 1;
            session
                .reporter
                .message(&format!("update {update}: {warning}"));
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
    save_policy(
        journal.dir(),
        &trained,
        &policy.config,
        &policy.tokenizer,
        &policy.base,
    )?;
    let name = if config.gold.is_some() { GOLD } else { SCORE };
    let summary =
        HeldOut::change(first, last, name).unwrap_or_else(|| format!("{updates} updates"));
    session.warn_of_sources(generator.sources.values());
    let results = StageRecord {
        summary,
        ..StageRecord::default()
    };
    journal.finish(session, results)
}

/// Rows of the pre-training text; empty without `ptx`.
fn texts<B: ModelBackend>(
    session: &mut Session<'_, B>,
    config: &PpoConfig,
    policy: &Policy<B>,
) -> Result<TokenRows<Example>> {
    let Some(ptx) = &config.ptx else {
        return Ok(TokenRows::default());
    };
    let encoding = Texts {
        max_length: ptx.max_length,
    };
    session.token_rows("pre-training text", &ptx.data, &policy.tokenizer, &encoding)
}

/// Records the origin of the policy, of prompts and text.
fn record<B: ModelBackend>(
    session: &mut Session<'_, B>,
    config: &PpoConfig,
    prompts: usize,
    texts: usize,
) -> Result<()> {
    let run = session.run.path();
    let mut data = vec![(data_files(&config.data, run), prompts)];
    if let Some(ptx) = &config.ptx {
        data.push((data_files(&ptx.data, run), texts));
    }
    let init = format!("{:?}", config.init);
    session.record(&config.name, &init, &data)
}

/// The pre-training text of each optimiser step of one update; empty without `ptx`.
fn ptx_batches<'a>(
    texts: &'a TokenRows<Example>,
    config: &PpoConfig,
    update: usize,
    seed: Seed,
) -> Result<Vec<Vec<Cow<'a, Example>>>> {
    let Some(ptx) = &config.ptx else {
        return Ok(Vec::new());
    };
    let steps = config.num_ppo_epochs * config.num_mini_batches;
    (update * steps..(update + 1) * steps)
        .map(|step| {
            let range = step * ptx.batch_size..(step + 1) * ptx.batch_size;
            texts.get(endless(texts.len(), range, seed))
        })
        .collect()
}
