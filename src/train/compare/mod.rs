//! Compares policies on the same held-out prompts.

mod config;
mod spec;

pub use config::CompareConfig;

use std::collections::BTreeMap;

use crate::data::Prompts;
use crate::error::{Error, Result};
use crate::ops::ModelBackend;
use crate::report::{RolloutReport, table};
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
    let mut header: Vec<String> = vec!["policy".into()];
    header.extend(sources.keys().cloned());
    header.extend(["KL", "tokens", "EOS"].map(String::from));
    let (mut lines, mut shown) = (
        Vec::new(),
        vec![String::new(); config.num_samples.min(prompts.len())],
    );
    let mut files = Vec::new();
    let mut results: Vec<PolicyScores> = Vec::new();
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
        let mut line = vec![name.clone()];
        line.extend(result.scores.values().map(|score| format!("{score:.3}")));
        line.push(unsigned_zero(format!("{:.2}", result.kl)));
        line.push(format!("{:.1}", result.response_length));
        line.push(format!("{:.0} %", 100.0 * result.eos_rate));
        lines.push(line);
        results.push(PolicyScores {
            policy: name.clone(),
            scores: result.samples.iter().map(|s| s.scores.clone()).collect(),
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
    let data = (data_files(&config.data, session.run.path()), num_read);
    session.record(&config.name, &policies.join(", "), &files, &[data])?;
    let mut scores = table(&header, &lines);
    let reference = title(config.reference.as_ref().unwrap_or(first));
    scores.push_str(&gains(&results, &reference));
    let text = format!("{scores}\n{}\n", shown.join("\n\n"));
    session.warn_of_sources(sources.values());
    journal.finish(session, &summary, &scores)?;
    Ok(Outcome {
        summary,
        table: text,
    })
}

/// Scores of a policy's responses, by source and prompt.
struct PolicyScores {
    policy: String,
    scores: Vec<BTreeMap<String, f64>>,
}

/// Mean differences from the reference policy on the same prompts, each with its standard error: a gain below two standard
/// errors may be chance. Empty if the reference is not among the policies.
fn gains(policies: &[PolicyScores], reference: &str) -> String {
    let Some(base) = policies.iter().find(|s| s.policy == reference) else {
        return String::new();
    };
    let mut text = String::new();
    for other in policies.iter().filter(|s| s.policy != reference) {
        let names = other.scores.first().map(BTreeMap::keys);
        let parts: Vec<String> = names
            .into_iter()
            .flatten()
            .map(|name| {
                let pairs = other.scores.iter().zip(&base.scores);
                let differences: Vec<f64> = pairs.map(|(a, b)| a[name] - b[name]).collect();
                let (mean, error) = mean_and_error(&differences);
                format!("{name} {mean:+.3} ± {error:.3}")
            })
            .collect();
        if !parts.is_empty() {
            text.push_str(&format!(
                "\n{} against {reference}, prompt by prompt: {}",
                other.policy,
                parts.join(", ")
            ));
        }
    }
    if !text.is_empty() {
        text.push('\n');
    }
    text
}

/// Mean, and its standard error `sqrt(variance / n)` with the unbiased variance; 0 for a single value.
fn mean_and_error(values: &[f64]) -> (f64, f64) {
    let n = values.len() as f64;
    let mean = values.iter().sum::<f64>() / n;
    let squares: f64 = values.iter().map(|x| (x - mean).powi(2)).sum();
    (mean, (squares / (n - 1.0).max(1.0) / n).sqrt())
}

/// Drops the sign of a rounded zero: a policy's KL to itself is zero up to rounding.
fn unsigned_zero(text: String) -> String {
    match text.strip_prefix('-') {
        Some(rest) if rest.chars().all(|c| matches!(c, '0' | '.')) => rest.to_owned(),
        _ => text,
    }
}

fn title(init: &Init) -> String {
    match init {
        Init::Base => "base".into(),
        Init::Stage(stage) => stage.clone(),
        Init::Folder(path) | Init::Random(path) => path.display().to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scores_of(policy: &str, gold: &[f64]) -> PolicyScores {
        let one = |&score| BTreeMap::from([("gold".to_owned(), score)]);
        PolicyScores {
            policy: policy.into(),
            scores: gold.iter().map(one).collect(),
        }
    }

    #[test]
    fn gains_are_paired_by_prompt() {
        let all = [
            scores_of("sft", &[0.0, 1.0, 0.5, 0.25]),
            scores_of("ppo", &[0.5, 1.0, 1.5, 0.75]),
        ];
        // Differences 0.5, 0, 1, 0.5: mean 0.5, variance 0.5 / 3, error sqrt(0.5 / 3 / 4) = 0.204.
        assert_eq!(
            gains(&all, "sft"),
            "\nppo against sft, prompt by prompt: gold +0.500 ± 0.204\n"
        );
        assert_eq!(gains(&all, "base"), "");
    }

    #[test]
    fn zero_has_no_sign() {
        assert_eq!(unsigned_zero("-0.00".into()), "0.00");
        assert_eq!(unsigned_zero("-0.01".into()), "-0.01");
        assert_eq!(unsigned_zero("0.00".into()), "0.00");
    }
}
