//! Proximal policy optimisation with a KL leash to the initial policy.
//!
//! # Source
//! Schulman et al. 2017, arXiv:1707.06347; Ziegler et al. 2019, arXiv:1909.08593; details as in Huang et al. 2024,
//! arXiv:2403.17031 ("N+"), on packed rows. `docs/ppo-details.md` goes through that paper's details one by one.
//!
//! # How an update flows
//! Responses are drawn and scored ([`Episodes`]); [`Rollout::evaluate`] computes everything else that the update reads;
//! [`minibatch_orders`] shuffles; [`update`] trains. The last three take no part in I/O or sampling, so that a given rollout
//! can be checked against another implementation, number by number.

mod average;
mod config;
mod draw;
mod passes;
mod ptx;
mod rollout;
mod spec;
mod update;
mod value;

use std::collections::BTreeMap;
use std::ops::Range;

use burn::module::AutodiffModule;

use super::Session;
use super::drawing::Drawing;
use super::evaluate::Evaluator;
use super::journal::Journal;
use super::policy::{Policy, Trainable, save_policy};
use super::session::{Outcome, data_file};
use super::state::{restore_weights, trained_weights, under};
use crate::data::{Example, Prompt, encode_prompts, encode_text};
use crate::error::Result;
use crate::generate::SamplingConfig;
use crate::model::LanguageModel;
use crate::ops::ModelBackend;
use crate::optim::{AdamW, lr_at};
use crate::reward::{RewardConfig, RewardSource};
use crate::rl::KlController;
use crate::rng::Seed;
use crate::snapshot::Snapshot;

pub use super::shared::NonFinite;
use average::Average;
pub use config::{PpoConfig, PtxConfig, ValueInit, ValueTrunk};
use draw::draw;
pub use passes::Models;
pub use ptx::Ptx;
pub use rollout::{Episodes, Rollout};
pub use update::{
    MinibatchReport, Networks, UpdateReport, UpdateSettings, minibatch_orders, update,
};
use value::WithHead;
pub use value::{
    FrozenValue, OTHER_TOKENS, ValueFunction, ValueHead, value_function, value_network,
};

/// Name under which the training reward is reported at evaluations.
const SCORE: &str = "score";
/// Prefix of the averaged weights in checkpoints.
const AVERAGE: &str = "average.";
/// Name under which the gold score is reported.
const GOLD: &str = "gold";
/// Difference in nats between sampling and training above which the numbers cannot be trusted.
const LOGPROB_DIFF_HIGH: f64 = 1e-3;
/// The same with a base in 8 bits, where sums in another order may move an input across the edge of a step.
const LOGPROB_DIFF_HIGH_ROUNDED: f64 = 2e-2;

/// The temperature of every log-probability of the stage: of sampling, of the reference, and of every pass of the update.
///
/// # Source
/// The `logits /= temperature + 1e-7` of lm-human-preferences and of the N+ code.
pub fn logprob_temperature(config: &PpoConfig) -> f64 {
    config.temperature + 1e-7
}

/// Samples, scores, and updates policy and value network, `total_episodes / batch_size` times.
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
    let prompts = prompts(session, config, &policy, &config.data, "prompts")?;
    let eval_prompts = match &config.eval_data {
        Some(data) => self::prompts(session, config, &policy, data, "held-out prompts")?,
        None => Vec::new(),
    };
    let mut sources = BTreeMap::new();
    sources.insert(
        SCORE.to_owned(),
        session.reward_source(&config.reward, &policy.tokenizer)?,
    );
    if let Some(gold) = &config.gold {
        sources.insert(
            GOLD.to_owned(),
            session.reward_source(gold, &policy.tokenizer)?,
        );
    }
    let value_init = config.value_init.unwrap_or_default();
    let reward = match (&config.reward, config.value_trunk, value_init) {
        (RewardConfig::Learned { stage }, ValueTrunk::Own, ValueInit::Reward) => {
            Some(session.reward_model(stage)?)
        }
        _ => None,
    };
    let value = value_function(&policy, reward, config, seed, &device)?;
    let texts = texts(session, config, &policy)?;
    let mut data = vec![(data_file(&config.data, session.run.path()), prompts.len())];
    if let Some(ptx) = &config.ptx {
        data.push((data_file(&ptx.data, session.run.path()), texts.len()));
    }
    session.record(
        &config.name,
        &format!("{:?}", config.init),
        &policy.files,
        &data,
    )?;

    let reference = policy.model.clone();
    let trained = policy.clone().into_trainable(&config.peft, seed)?;
    let mut networks = Networks {
        policy: trained.model,
        value,
        policy_optim: AdamW::<B>::new(config.optim.clone()),
    };
    let mut average = config
        .ema_decay
        .map(|decay| Average::new(decay, &mut networks.policy));
    let updates = config.total_episodes / config.batch_size;
    let summary = format!(
        "{updates} updates of {} responses, {} prompts",
        config.batch_size,
        prompts.len()
    );
    let (mut journal, restored) =
        Journal::open(session, &config.name, &summary, updates, &config.cadence)?;
    let mut kl = KlController::new(config.kl_control, config.kl_coef);
    if let Some((folder, checkpoint)) = restored {
        let weights = &checkpoint.weights;
        restore_weights(weights, "policy.", &mut networks.policy, &device, &folder)?;
        let value = networks.value.parameters();
        restore_weights(weights, "value.", value, &device, &folder)?;
        let done = journal.position.updates_of(0, &folder)?;
        let moments = under(&checkpoint.optim, "policy.");
        let (policy, optim) = (&mut networks.policy, &mut networks.policy_optim);
        match &mut networks.value {
            ValueFunction::Head(head) => {
                let mut both = WithHead { policy, head };
                optim.restore(moments, done, &mut both, &device, &folder)?;
            }
            ValueFunction::Network {
                model,
                optim: value_optim,
            } => {
                optim.restore(moments, done, policy, &device, &folder)?;
                let done = journal.position.updates_of(1, &folder)?;
                let moments = under(&checkpoint.optim, "value.");
                value_optim.restore(moments, done, model, &device, &folder)?;
            }
        }
        kl = journal.position.kl.unwrap_or(kl);
        if let Some(average) = &mut average {
            average.restore(under(weights, AVERAGE), &folder)?;
        }
    }
    let evaluator = Evaluator {
        prompts: &eval_prompts,
        tokenizer: &policy.tokenizer,
        options: drawing(config).options(&policy.tokenizer)?,
        reference: Some(&reference),
        micro_batch_tokens: config.micro_batch_tokens,
        seed: seed.fork("evaluation"),
    };
    let mut first = None;
    if journal.position.step == 0 {
        let policy = networks.policy.valid();
        first = evaluate(session, &mut journal, &evaluator, &policy, &mut sources)?;
    }
    let mut last = None;
    while journal.position.step < updates {
        let done = journal.position.step;
        let batch = next_prompts(&prompts, config.batch_size, done, seed.fork("order"));
        // Where inputs are rounded, a sum in another order moves them across the edge of a step, and layers multiply that:
        // sampling, with its cache, is up to a nat (in 8 bits) away from the update's passes. The ratio begins at 1 only with
        // numbers of such a pass.
        let retake = session.numerics.round_inputs();
        let value = networks.value.valid();
        let (episodes, gold) = draw(
            session,
            &networks.policy.valid(),
            (!retake).then_some(&value),
            &policy.tokenizer,
            &batch,
            &mut sources,
            &evaluator.options,
            seed.fork("rollout").fork_index(done as u64),
        )?;
        let rollout = Rollout::evaluate(
            &episodes,
            Models {
                reference: &reference,
                policy: &networks.policy.valid(),
                value: &value,
                retake,
                frozen_base: !config.peft.trains_base(),
            },
            config,
            kl.coef(),
            &device,
        );
        let value_optim = config.value_optim.as_ref().unwrap_or(&config.optim);
        let texts = ptx_batches(&texts, config, done, seed.fork("ptx"));
        let settings = UpdateSettings {
            ppo: config,
            policy_lr: lr_at(&config.optim.schedule, config.optim.lr, done, updates),
            value_lr: lr_at(&value_optim.schedule, value_optim.lr, done, updates),
            ptx: config.ptx.as_ref().map(|ptx| Ptx {
                coef: ptx.coef,
                batches: &texts,
            }),
        };
        let order_seed = seed.fork("minibatches").fork_index(done as u64);
        let orders = minibatch_orders(order_seed, rollout.rows.len(), config.num_ppo_epochs);
        let report = match update(&mut networks, &rollout, &orders, &settings, &device) {
            Ok(report) => report,
            Err(NonFinite(what)) => return Err(journal.non_finite(what, &rollout.row_slices())),
        };
        if let Some(average) = &mut average {
            average.update(&mut networks.policy);
        }
        let episode = (done + 1) * config.batch_size;
        let mut metrics = rollout.metrics();
        metrics.extend(gold.map(|gold| ("objective/gold_scores", gold)));
        metrics.extend(report.metrics());
        metrics.extend([
            ("kl_coef", kl.coef()),
            ("lr", settings.policy_lr),
            ("episode", episode as f64),
        ]);
        let limit = (session.numerics.round_inputs()).then_some(LOGPROB_DIFF_HIGH_ROUNDED);
        metrics.extend(limit.map(|limit| ("rollout/logprob_diff_limit", limit)));
        kl.update(rollout.mean_kl(), config.batch_size);
        journal.position.kl = Some(kl);
        journal.position.updates = vec![
            networks.policy_optim.num_updates(),
            match &networks.value {
                ValueFunction::Network { optim, .. } => optim.num_updates(),
                ValueFunction::Head(_) => networks.policy_optim.num_updates(),
            },
        ];
        let tokens = rollout.rows.iter().map(|row| row.len() as u64).sum();
        journal.step(session, tokens, &metrics)?;
        if report.logprob_max_diff > limit.unwrap_or(LOGPROB_DIFF_HIGH) {
            session.reporter.message(&format!(
                "update {}: log-probabilities of sampling and training differ by {:.1e}; the numbers of this backend cannot be trusted (run `temper doctor`)",
                done + 1,
                report.logprob_max_diff
            ));
        }
        if journal.evaluates() {
            let policy = match &average {
                Some(average) => average.applied(&networks.policy, &device)?.valid(),
                None => networks.policy.valid(),
            };
            last = evaluate(session, &mut journal, &evaluator, &policy, &mut sources)?;
        }
        if journal.must_save() {
            let (mut weights, mut moments) = (Snapshot::default(), Snapshot::default());
            weights.extend("policy.", trained_weights(&mut networks.policy));
            weights.extend("value.", trained_weights(networks.value.parameters()));
            if let Some(average) = &average {
                weights.extend(AVERAGE, average.weights());
            }
            moments.extend("policy.", networks.policy_optim.state());
            if let ValueFunction::Network { optim, .. } = &networks.value {
                moments.extend("value.", optim.state());
            }
            journal.save(session, &weights, &moments)?;
        }
    }
    let trained = Trainable {
        model: match &average {
            Some(average) => average.applied(&networks.policy, &device)?,
            None => networks.policy,
        },
        adapter: trained.adapter,
        merged: trained.merged,
    };
    save_policy(
        journal.dir(),
        &trained,
        &policy.config,
        &policy.tokenizer,
        &policy.base,
    )?;
    let summary = match (first, last) {
        (Some(first), Some(last)) => {
            let name = if config.gold.is_some() { GOLD } else { SCORE };
            format!(
                "held-out {name} {:.3} -> {:.3} at KL {:.2} nats per response",
                first.0, last.0, last.1
            )
        }
        _ => format!("{updates} updates"),
    };
    journal.finish(session, &summary, "")?;
    Ok(Outcome {
        summary,
        table: String::new(),
    })
}

fn prompts<B: ModelBackend>(
    session: &mut Session<'_, B>,
    config: &PpoConfig,
    policy: &Policy<B>,
    data: &crate::train::config::DataConfig,
    what: &str,
) -> Result<Vec<Prompt>> {
    let encoded = encode_prompts(
        &session.rows(data)?,
        &policy.tokenizer,
        &data.format,
        config.max_prompt_length,
    )?;
    session.tell(what, &encoded.report);
    Ok(encoded.items)
}

fn drawing(config: &PpoConfig) -> Drawing<'_> {
    Drawing {
        response_length: config.response_length,
        // No top-k and no top-p: the ratio of PPO needs the distribution that was drawn from.
        sampling: SamplingConfig {
            temperature: logprob_temperature(config),
            ..SamplingConfig::default()
        },
        truncate: config.truncate.as_ref(),
        batch_size: config.generation_batch_size,
    }
}

/// Rows of the pre-training text; none without `ptx`.
fn texts<B: ModelBackend>(
    session: &mut Session<'_, B>,
    config: &PpoConfig,
    policy: &Policy<B>,
) -> Result<Vec<Example>> {
    let Some(ptx) = &config.ptx else {
        return Ok(Vec::new());
    };
    let rows = session.rows(&ptx.data)?;
    let (tokenizer, format) = (&policy.tokenizer, &ptx.data.format);
    let encoded = encode_text(&rows, tokenizer, format, ptx.max_length)?;
    session.tell("pre-training text", &encoded.report);
    Ok(encoded.items)
}

/// The prompts of one update.
fn next_prompts(prompts: &[Prompt], count: usize, update: usize, seed: Seed) -> Vec<Prompt> {
    endless(prompts.len(), update * count..(update + 1) * count, seed)
        .map(|i| prompts[i].clone())
        .collect()
}

/// The pre-training text of each optimiser step of one update; none without `ptx`.
fn ptx_batches<'a>(
    texts: &'a [Example],
    config: &PpoConfig,
    update: usize,
    seed: Seed,
) -> Vec<Vec<&'a Example>> {
    let Some(ptx) = &config.ptx else {
        return Vec::new();
    };
    let steps = config.num_ppo_epochs * config.num_mini_batches;
    (update * steps..(update + 1) * steps)
        .map(|step| {
            let range = step * ptx.batch_size..(step + 1) * ptx.batch_size;
            endless(texts.len(), range, seed)
                .map(|i| &texts[i])
                .collect()
        })
        .collect()
}

/// Part of an endless walk over `len` rows: a fresh order at each pass, with no short batch at the end of a pass.
fn endless(len: usize, part: Range<usize>, seed: Seed) -> impl Iterator<Item = usize> {
    let (mut pass, mut order) = (usize::MAX, Vec::new());
    part.map(move |k| {
        if k / len != pass {
            pass = k / len;
            order = seed.fork_index(pass as u64).permutation(len);
        }
        order[k % len]
    })
}

/// Mean held-out score (the gold one if there is one) and KL.
fn evaluate<B: ModelBackend>(
    session: &mut Session<'_, B>,
    journal: &mut Journal,
    evaluator: &Evaluator<'_, B>,
    model: &LanguageModel<B>,
    sources: &mut BTreeMap<String, Box<dyn RewardSource>>,
) -> Result<Option<(f64, f64)>> {
    if evaluator.prompts.is_empty() {
        return Ok(None);
    }
    let device = session.device.clone();
    let reporter = &mut *session.reporter;
    let total = evaluator.prompts.len();
    let result = evaluator.run(model, sources, &device, &mut |done, tokens| {
        reporter.rollout(&crate::report::RolloutReport {
            what: "evaluation",
            done,
            total,
            tokens,
        });
    })?;
    let mut metrics = vec![
        ("eval/scores", result.scores[SCORE]),
        ("eval/kl", result.kl),
        ("eval/response_length", result.response_length),
        ("eval/eos_rate", result.eos_rate),
    ];
    if let Some(gold) = result.scores.get(GOLD) {
        metrics.push(("eval/gold_scores", *gold));
    }
    journal.eval(session, &metrics)?;
    let step = journal.position.step;
    let count = journal.num_samples();
    for mut sample in result.samples.into_iter().take(count) {
        sample.step = step;
        journal.sample(&sample)?;
    }
    let main = result.scores.get(GOLD).unwrap_or(&result.scores[SCORE]);
    Ok(Some((*main, result.kl)))
}
