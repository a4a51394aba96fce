//! Compares policies on the same held-out prompts.

mod config;
mod judged;
mod partial;
mod responses;
mod spec;

pub use config::CompareConfig;

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::atomic::write_atomic;
use crate::checkpoint::ModelRole;
use crate::collective;
use crate::data::{Prompt, Prompts};
use crate::error::{Error, Result, count};
use crate::ops::ModelBackend;
use crate::report::{Comparison, ContestRules, PolicyResponses, Sample, StageRecord};
use crate::snapshot::Snapshot;
use crate::train::Session;
use crate::train::config::{Cadence, Init};
use crate::train::evaluate::sample;
use crate::train::generation::Generation;
use crate::train::journal::Journal;
use crate::train::session::{Outcome, data_files};
use judged::judged;
use partial::Partial;
use responses::{Measured, Part, Responses, measure, respond};

/// Names of a policy's metrics beside those of the reward sources.
const OWN_METRICS: [&str; 3] = ["eval/kl", "eval/response_length", "eval/eos_rate"];

/// The file of all responses with their scores, a line for each prompt, for ratings.
pub const COMPARED: &str = "responses.jsonl";

/// Tokens scored at once.
const MICRO_BATCH_TOKENS: usize = 4096;

/// Generates and scores responses of every policy; reports scores, KL and lengths by policy, with samples.
///
/// Responses are kept some batches at a time, so that a comparison that was stopped or killed goes on with the others.
///
/// # Errors
/// Those of data, models and reward sources; `Error::Interrupted`.
pub(super) fn compare<B: ModelBackend>(
    session: &mut Session<'_, B>,
    config: &CompareConfig,
) -> Result<Outcome> {
    let device = session.device.clone();
    let first = config.policies.first().ok_or_else(|| Error::Stage {
        stage: config.name.clone(),
        message: "`policies` is empty: name at least one".into(),
    })?;
    let reference = match &config.reference {
        Some(init) => session.policy_as(ModelRole::Reference, init)?,
        None => session.policy(first)?,
    };
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
    let policies: Vec<String> = config.policies.iter().map(Init::name).collect();
    let data = (data_files(&config.data, session.run.path()), num_read);
    session.record(&config.name, &policies.join(", "), &[data])?;
    let summary = format!(
        "{} policies on {} held-out prompts",
        config.policies.len(),
        prompts.len()
    );
    let cadence = Cadence::default();
    let (mut journal, restored) = Journal::open(
        session,
        &config.name,
        &summary,
        config.policies.len(),
        &cadence,
    )?;
    let mut partial = Partial::open(journal.dir(), restored.is_some())?;
    if partial.damaged > 0 {
        let lines = count(partial.damaged, "line");
        let message =
            format!("{lines} of earlier responses are damaged; these are generated again");
        session.reporter.message(&message);
    }
    if restored.is_none() {
        // The stage has begun: what follows belongs to these settings.
        let nothing = Snapshot::default();
        journal.save(session, &nothing, &nothing)?;
    }
    let num_shown = config.num_samples.min(prompts.len());
    // The responses to one prompt stand together: they share its prefill.
    let repeated = |prompt: &Prompt| std::iter::repeat_n(prompt.clone(), config.num_responses);
    let prompts: Vec<Prompt> = match config.num_responses {
        1 => prompts,
        _ => prompts.iter().flat_map(repeated).collect(),
    };
    let mut all = Vec::new();
    let interrupt = session.interrupt.clone();
    for (index, init) in config.policies.iter().enumerate() {
        let policy = session.policy(init)?;
        let options = Generation {
            response_length: config.response_length,
            sampling: config.sampling.clone(),
            truncate: config.truncate.as_ref(),
            batch_size: config.generation_batch_size,
        }
        .options(&policy.tokenizer)?;
        // The same random numbers for every policy: differences are due to the policies alone.
        let seed = session.stage_seed(&config.name);
        let how = (&*policy.tokenizer, &options, config.stop.as_slice());
        let part = Part {
            policy: index,
            partial: &mut partial,
            interrupt: &interrupt,
        };
        let reporter = &mut *session.reporter;
        let model = &policy.model;
        match respond(model, &prompts, how, seed, part, &device, reporter)? {
            Some(responses) => all.push(responses),
            None => return Err(stopped(&mut journal, session)),
        }
    }
    // Greedy responses have log-probabilities at temperature 1, so the reference's are taken at 1.
    let temperature = match config.sampling.temperature {
        0.0 => 1.0,
        temperature => temperature,
    };
    let of_reference = (&reference.model, temperature);
    let measured = measure(
        session,
        &all,
        config.num_responses,
        &mut sources,
        of_reference,
        MICRO_BATCH_TOKENS,
    )?;
    let Some(measured) = measured else {
        return Err(stopped(&mut journal, session));
    };
    let Some(judged) = judged(session, config, &all)? else {
        return Err(stopped(&mut journal, session));
    };
    let mut results: Vec<PolicyResponses> = Vec::new();
    let each = config.policies.iter().zip(&all).zip(measured).zip(judged);
    for (((init, responses), measured), judged) in each {
        let result = PolicyResponses {
            judged,
            ..results_of(init.name(), config.num_responses, responses, measured)
        };
        let mean = |source: &String| {
            let scores = result.scores.iter().filter_map(|scores| scores.get(source));
            scores.sum::<f64>() / result.scores.len() as f64
        };
        let mut metrics: Vec<(&str, f64)> = (sources.keys())
            .map(|source| (source.as_str(), mean(source)))
            .collect();
        let own = [result.kl, result.tokens, result.eos_rate];
        metrics.extend(OWN_METRICS.into_iter().zip(own));
        journal.step(session, 0, &metrics)?;
        for i in (0..responses.responses.len())
            .step_by(config.num_responses)
            .take(num_shown)
        {
            let (completion, response) = (&responses.completions[i], &responses.responses[i]);
            journal.sample(&Sample {
                policy: Some(result.name.clone()),
                scores: result.scores[i].clone(),
                ..sample(completion, response.stopped, journal.position.step)
            })?;
        }
        results.push(result);
    }
    let lines = lines(&results, &all);
    collective::on_first(|| write_atomic(journal.dir().join(COMPARED), lines.as_bytes()))?;
    let reference = config.reference.as_ref().unwrap_or(first).name();
    session.warn_of_sources(sources.values());
    let sources: Vec<String> = sources.into_keys().collect();
    let rules = ContestRules {
        tie_margin: config.tie_margin,
        seed: session.stage_seed(&config.name).fork("bootstrap"),
    };
    let results = StageRecord {
        summary,
        comparison: Some(
            Comparison::new(&reference, sources, &results).with_contest(&results, rules),
        ),
        ..StageRecord::default()
    };
    let outcome = journal.finish(session, results)?;
    partial.remove()?;
    Ok(outcome)
}

/// The error of a comparison that the user stops, or that of writing its checkpoint.
fn stopped<B: ModelBackend>(journal: &mut Journal, session: &Session<'_, B>) -> Error {
    let nothing = Snapshot::default();
    match journal.save(session, &nothing, &nothing) {
        Err(error) => error,
        // Only if the request was withdrawn, which no request is.
        Ok(()) => journal.interrupted(session),
    }
}

/// A policy's responses as the table takes them.
fn results_of(
    name: String,
    num_responses: usize,
    responses: &Responses,
    measured: Measured,
) -> PolicyResponses {
    let lengths: Vec<f64> = (responses.responses.iter())
        .map(|response| response.ids.len() as f64)
        .collect();
    let count = lengths.len().max(1) as f64;
    let stopped = responses.responses.iter().filter(|r| r.stopped).count();
    PolicyResponses {
        name,
        num_responses,
        scores: measured.scores,
        kl: measured.kl,
        tokens: lengths.iter().sum::<f64>() / count,
        lengths,
        judged: None,
        eos_rate: stopped as f64 / count,
    }
}

/// A line for each prompt: the responses of all policies, and the scores of each source; null where one is not finite.
fn lines(policies: &[PolicyResponses], all: &[Responses]) -> String {
    let Some(first) = policies.first() else {
        return String::new();
    };
    let (each, sources) = (first.num_responses.max(1), first.scores.first());
    let line = |prompt: usize| {
        let places = || {
            let of_prompt = prompt * each..(prompt + 1) * each;
            (0..policies.len()).flat_map(move |policy| of_prompt.clone().map(move |i| (policy, i)))
        };
        let names: Vec<&str> = places().map(|(p, _)| policies[p].name.as_str()).collect();
        let texts: Vec<&str> = places()
            .map(|(p, i)| all[p].completions[i].response.as_str())
            .collect();
        let scores: serde_json::Map<String, Value> = (sources.into_iter().flatten())
            .map(|(source, _)| {
                let of = places().map(|(p, i)| json!(policies[p].scores[i].get(source)));
                (source.clone(), of.collect())
            })
            .collect();
        let text = &all[0].completions[prompt * each].prompt;
        let row = json!({"prompt": text, "policies": names, "responses": texts, "scores": scores});
        format!("{row}\n")
    };
    (0..first.scores.len() / each).map(line).collect()
}
