//! The closing table: policies side by side on the same held-out prompts.

use std::collections::BTreeMap;

use super::Session;
use super::config::{Cadence, CompareConfig, Init};
use super::evaluate::Evaluator;
use super::journal::Journal;
use super::session::{Outcome, data_file};
use crate::data::encode_prompts;
use crate::error::{Error, Result};
use crate::generate::GenerateOptions;
use crate::ops::ModelBackend;
use crate::report::{RolloutReport, table};

/// Tokens scored at once.
const MICRO_BATCH_TOKENS: usize = 4096;

/// Answers, scores, and prints scores, KL and lengths by policy, with samples.
///
/// # Errors
/// Those of data, models and reward sources.
pub fn compare<B: ModelBackend>(
    session: &mut Session<'_, B>,
    config: &CompareConfig,
) -> Result<Outcome> {
    let device = session.device.clone();
    let first = config.policies.first().ok_or_else(|| Error::Stage {
        stage: config.name.clone(),
        message: "`policies` is empty: name at least one".into(),
    })?;
    let reference = session.policy(config.reference.as_ref().unwrap_or(first))?;
    let rows = session.rows(&config.data)?;
    let prompts = encode_prompts(
        &rows,
        &reference.tokenizer,
        &config.data.format,
        config.max_prompt_length,
    )?;
    session.tell("prompts", &prompts.report);
    let prompts = prompts.items;
    let mut sources = BTreeMap::new();
    for (title, reward) in &config.rewards {
        sources.insert(
            title.clone(),
            session.reward_source(reward, reference.config.vocab_size())?,
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
    let mut header: Vec<String> = vec!["policy".into()];
    header.extend(sources.keys().cloned());
    header.extend(["KL", "tokens", "EOS"].map(String::from));
    let (mut lines, mut shown) = (
        Vec::new(),
        vec![String::new(); config.num_samples.min(prompts.len())],
    );
    let mut files = Vec::new();
    for init in &config.policies {
        let policy = session.policy(init)?;
        let name = title(init);
        files.extend(policy.files.iter().cloned());
        let evaluator = Evaluator {
            prompts: &prompts,
            tokenizer: &policy.tokenizer,
            options: GenerateOptions {
                max_new_tokens: config.response_length,
                sampling: config.sampling.clone(),
                stop_ids: policy.tokenizer.stop_ids().to_vec(),
                batch_size: config.generation_batch_size,
            },
            reference: Some(&reference.model),
            micro_batch_tokens: MICRO_BATCH_TOKENS,
            // The same draws for every policy: differences are the policies', not the dice's.
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
        let mut line = vec![name.clone()];
        line.extend(result.scores.values().map(|score| format!("{score:.3}")));
        line.push(format!("{:.2}", result.kl));
        line.push(format!("{:.1}", result.response_length));
        line.push(format!("{:.0} %", 100.0 * result.eos_rate));
        lines.push(line);
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
        for (i, mut sample) in result.samples.into_iter().enumerate() {
            if let Some(text) = shown.get_mut(i) {
                if text.is_empty() {
                    *text = prompts[i].text.trim().to_owned();
                    if let Some(reference) = &sample.reference {
                        text.push_str(&format!("\n    {:<10} {reference}", "(human)"));
                    }
                }
                text.push_str(&format!(
                    "\n    {name:<10} {}",
                    sample.response.trim().replace('\n', " / ")
                ));
                sample.step = journal.position.step;
                sample.policy = Some(name.clone());
                journal.sample(&sample)?;
            }
        }
    }
    files.sort();
    files.dedup();
    let policies: Vec<String> = config.policies.iter().map(title).collect();
    let data = (data_file(&config.data, session.run.path()), rows.len());
    session.record(&config.name, &policies.join(", "), &files, &[data])?;
    let scores = table(&header, &lines);
    let text = format!("{scores}\n{}\n", shown.join("\n\n"));
    journal.finish(session, &summary, &scores)?;
    Ok(Outcome {
        summary,
        table: text,
    })
}

fn title(init: &Init) -> String {
    match init {
        Init::Base => "base".into(),
        Init::Stage(stage) => stage.clone(),
        Init::Folder(path) | Init::Random(path) => path.display().to_string(),
    }
}
