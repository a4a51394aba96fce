//! Compares policies on the same held-out prompts.

mod config;
mod spec;

pub use config::CompareConfig;

use std::collections::BTreeMap;

use crate::data::Prompts;
use crate::error::{Error, Result};
use crate::ops::ModelBackend;
use crate::report::{Comparison, PolicyResponses, RolloutReport, StageRecord};
use crate::train::Session;
use crate::train::config::{Cadence, Init};
use crate::train::evaluate::Evaluator;
use crate::train::generation::Generation;
use crate::train::journal::Journal;
use crate::train::session::{Outcome, data_files};

/// Tokens scored at once.
const MICRO_BATCH_TOKENS: usize = 4096;

/// Generates and scores responses of every policy; reports scores, KL and lengths by policy, with samples.
///
/// # Errors
/// Those of data, models and reward sources.
pub(super) fn compare<B: ModelBackend>(
    session: &mut Session<'_, B>,
    config: &CompareConfig,
) -> Result<Outcome> {
    let device = session.device.clone();
    let first = config.policies.first().ok_or_else(|| Error::Stage {
        stage: config.name.clone(),
        message: "`policies` is empty: name at least one".into(),
    })?;
    let reference = session.policy(config.reference.as_ref().unwrap_or(first))?;
    let encoding = Prompts {
        max_length: config.max_prompt_length,
    };
    let prompts = session.token_rows("prompts", &config.data, &reference.tokenizer, &encoding)?;
    let num_read = prompts.num_read();
    let prompts = prompts.into_vec()?;
    let mut sources = BTreeMap::new();
    for (title, reward) in &config.rewards {
        sources.insert(
            title.clone(),
            session.reward_source(reward, &reference.tokenizer)?,
        );
    }
    let summary = format!(
        "{} policies on {} held-out prompts",
        config.policies.len(),
        prompts.len()
    );
    let cadence = Cadence::default();
    let (mut journal, _) = Journal::open(
        session,
        &config.name,
        &summary,
        config.policies.len(),
        &cadence,
    )?;
    journal.position = Default::default();
    let num_shown = config.num_samples.min(prompts.len());
    let mut files = Vec::new();
    let mut results: Vec<PolicyResponses> = Vec::new();
    for init in &config.policies {
        let policy = session.policy(init)?;
        let name = title(init);
        files.extend(policy.files.iter().cloned());
        let evaluator = Evaluator {
            prompts: &prompts,
            tokenizer: &policy.tokenizer,
            options: Generation {
                response_length: config.response_length,
                sampling: config.sampling.clone(),
                truncate: config.truncate.as_ref(),
                batch_size: config.generation_batch_size,
            }
            .options(&policy.tokenizer)?,
            reference: Some(&reference.model),
            micro_batch_tokens: MICRO_BATCH_TOKENS,
            // The same random numbers for every policy: differences are due to the policies alone.
            seed: session.stage_seed(&config.name),
        };
        let total = prompts.len();
        let reporter = &mut *session.reporter;
        let result = evaluator.run(&policy.model, &mut sources, &device, &mut |done, tokens| {
            reporter.rollout(&RolloutReport {
                what: "evaluation",
                done,
                total,
                tokens,
            });
        })?;
        results.push(PolicyResponses {
            name: name.clone(),
            scores: result.samples.iter().map(|s| s.scores.clone()).collect(),
            kl: result.kl,
            tokens: result.response_length,
            eos_rate: result.eos_rate,
        });
        let mut metrics: Vec<(&str, f64)> = result
            .scores
            .iter()
            .map(|(k, v)| (k.as_str(), *v))
            .collect();
        metrics.extend([
            ("eval/kl", result.kl),
            ("eval/response_length", result.response_length),
            ("eval/eos_rate", result.eos_rate),
        ]);
        journal.step(session, 0, &metrics)?;
        for mut sample in result.samples.into_iter().take(num_shown) {
            sample.step = journal.position.step;
            sample.policy = Some(name.clone());
            journal.sample(&sample)?;
        }
    }
    files.sort();
    files.dedup();
    let policies: Vec<String> = config.policies.iter().map(title).collect();
    let data = (data_files(&config.data, session.run.path()), num_read);
    session.record(&config.name, &policies.join(", "), &files, &[data])?;
    let reference = title(config.reference.as_ref().unwrap_or(first));
    session.warn_of_sources(sources.values());
    let sources: Vec<String> = sources.into_keys().collect();
    let results = StageRecord {
        summary,
        comparison: Some(Comparison::new(&reference, sources, &results)),
        ..StageRecord::default()
    };
    journal.finish(session, results)
}

fn title(init: &Init) -> String {
    match init {
        Init::Base => "base".into(),
        Init::Stage(stage) => stage.clone(),
        Init::Folder(path) | Init::Random(path) => path.display().to_string(),
    }
}
