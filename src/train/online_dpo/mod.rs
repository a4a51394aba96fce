//! Online direct preference optimisation: pairs are drawn from the policy and compared by a reward source.
//!
//! # Source
//! Guo et al. 2024, arXiv:2402.04792; keys and details of TRL 1.16's `OnlineDPOTrainer`, on packed rows.

mod config;
mod pairs;
mod spec;
#[cfg(test)]
mod tests;
mod update;

use burn::module::AutodiffModule;

use super::Session;
use super::evaluate::Evaluator;
use super::policy::save_policy;
use super::preference::Objective;
use super::rescue::attempt;
use super::rollout::{
    GOLD, Generator, HeldOut, SCORE, evaluate, held_out_prompts, next_prompts, prompts,
};
use super::session::{Outcome, data_files};
use super::shared::Training;
use crate::data::Prompt;
use crate::error::Result;
use crate::generate::SamplingConfig;
use crate::loss::{DpoLoss, DpoObjective};
use crate::ops::ModelBackend;
use crate::report::StageRecord;
use crate::train::generation::Generation;
use update::Update;

pub use config::{OnlineDpoConfig, OnlineDpoLoss};

impl OnlineDpoConfig {
    /// Number of updates.
    fn num_updates(&self) -> usize {
        self.total_episodes / self.batch_size
    }

    fn generation(&self) -> Generation<'_> {
        Generation {
            response_length: self.response_length,
            sampling: SamplingConfig {
                temperature: self.temperature,
                ..SamplingConfig::default()
            },
            truncate: self.truncate.as_ref(),
            batch_size: self.generation_batch_size,
        }
    }

    fn objective(&self) -> Objective {
        Objective::OnlineDpo(DpoObjective {
            losses: DpoLoss::from(self.loss_type).into(),
            beta: self.beta,
            label_smoothing: 0.0,
            discopop_tau: 0.05,
        })
    }
}

/// Generates responses, compares them, and updates the policy, `total_episodes / batch_size` times. A prompt whose responses all have one
/// score makes no pair; an update without a pair leaves the policy as it is.
///
/// # Errors
/// Those of data, models and reward sources; `Error::NonFinite`; `Error::Interrupted`.
fn online_dpo<B: ModelBackend>(
    session: &mut Session<'_, B>,
    config: &OnlineDpoConfig,
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
    let data = (data_files(&config.data, session.run.path()), train.len());
    session.record(&config.name, &format!("{:?}", config.init), &[data])?;

    let reference = policy.model.clone();
    let mut trained = policy.clone().into_trainable(&config.peft, seed)?;
    let (updates, count) = (config.num_updates(), config.num_generations);
    let summary = format!(
        "{updates} updates of {} responses, {} prompts",
        config.batch_size,
        train.len()
    );
    let mut training = Training::open(
        session,
        &config.name,
        &summary,
        updates,
        &config.cadence,
        &config.optim,
        &mut trained.model,
    )?
    .at_rates_of(&config.peft);
    let evaluator = Evaluator {
        prompts: &held_out,
        tokenizer: &policy.tokenizer,
        options: generator.options.clone(),
        reference: Some(&reference),
        micro_batch_tokens: config.micro_batch_tokens,
        seed: seed.fork("evaluation"),
    };
    let first = if training.is_fresh() {
        let (policy, journal) = (trained.model.valid(), &mut training.journal);
        evaluate(
            session,
            journal,
            &evaluator,
            &policy,
            &mut generator.sources,
        )?
    } else {
        HeldOut::logged(&mut training.journal)?
    };
    let mut alarms = training.journal.alarms(&config.alarms)?;
    let update = Update {
        config,
        objective: config.objective(),
        reference: &reference,
        device: &device,
    };
    let mut last = None;
    while let Some(done) = training.next_step() {
        let num_prompts = config.batch_size / count;
        let batch = next_prompts(&train, num_prompts, done, seed.fork("order"))?;
        let repeated: Vec<Prompt> = (batch.into_iter())
            .flat_map(|prompt| std::iter::repeat_n(prompt, count))
            .collect();
        let sampled = attempt(|| {
            // Dropped before the update: weights with a second owner could not be updated in place.
            let now = trained.model.valid();
            let seed = seed.fork("rollout").fork_index(done as u64);
            generator.episodes(session, &now, None, &repeated, seed)
        });
        let episodes =
            sampled.map_err(|failed| training.failed(session, &mut trained.model, failed))?;
        let (metrics, tokens) = update.take(&mut training, &mut trained.model, &episodes)?;
        if tokens == 0 {
            let update = done + 1;
            let message = "all responses to each prompt have one score; the policy stays as it is";
            session
                .reporter
                .message(&format!("update {update}: {message}"));
        }
        let columns = episodes.metrics();
        let mut metrics: Vec<(&str, f64)> = metrics;
        metrics.extend(columns.iter().map(|(name, mean)| (name.as_str(), *mean)));
        training.journal.step(session, tokens, &metrics)?;
        (training.journal).raise(session, alarms.update(&metrics))?;
        if training.journal.evaluates() {
            let (policy, journal) = (trained.model.valid(), &mut training.journal);
            last = evaluate(
                session,
                journal,
                &evaluator,
                &policy,
                &mut generator.sources,
            )?;
            let held_out = last.map_or(Vec::new(), |held_out| held_out.watched());
            journal.raise(session, alarms.update(&held_out))?;
        }
        training.save_if_due(session, &mut trained.model)?;
    }
    let journal = training.finish(session, &mut trained.model)?;
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
