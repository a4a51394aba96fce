//! K responses per prompt, scored by a reward source if there is one. A prompt's responses share its pass.
//!
//! Rank is the case of at least two responses with scores.
//!
//! # Source
//! Touvron et al. 2023, arXiv:2307.09288, section 3.2.3 (rejection sampling); Gulcehre et al. 2023, arXiv:2308.08998, section 3 (the
//! grow step of ReST).

mod config;
mod files;
mod spec;

pub use config::SampleConfig;

use std::sync::Arc;

use serde_json::{Map, Value, json};

use crate::atomic::write_atomic;
use crate::collective;
use crate::data::{Prompt, Prompts, Tokenizer, encode_for_reward_model};
use crate::error::{Error, Result};
use crate::generate::{Response, SamplingConfig, Truncate, generate};
use crate::ops::ModelBackend;
use crate::report::{Histogram, RolloutReport, Sample, StageRecord};
use crate::reward::{Completion, RewardConfig};
use crate::snapshot::Snapshot;
use crate::train::Session;
use crate::train::config::{Cadence, DataConfig, Init};
use crate::train::evaluate::{completions, sample as shown_sample};
use crate::train::generation::Generation;
use crate::train::journal::Journal;
use crate::train::session::{Outcome, data_files};
use files::{Files, append, held_out, remove};

/// Prompts processed between two writes: at most this many are lost in a crash.
const PROMPTS_PER_STEP: usize = 32;

/// What to generate and how to score it.
pub(super) struct Sampling<'a> {
    pub(super) name: &'a str,
    pub(super) init: &'a Init,
    pub(super) data: &'a DataConfig,
    pub(super) num_responses: usize,
    pub(super) response_length: usize,
    pub(super) max_prompt_length: usize,
    pub(super) sampling: &'a SamplingConfig,
    pub(super) truncate: Option<&'a Truncate>,
    pub(super) reward: Option<&'a RewardConfig>,
    pub(super) include_completions: bool,
    pub(super) tie_margin: f64,
    pub(super) batch_size: usize,
    pub(super) valid_fraction: f64,
    /// What is done to prompts, for the summary: "ranked".
    pub(super) verb: &'static str,
    /// Whether rows have ranks, and metrics the best score and the length.
    pub(super) with_ranks: bool,
}

/// Generates and scores responses; writes `train.jsonl` and `valid.jsonl`, a row for each prompt.
///
/// # Errors
/// Those of data, models and the reward source; `Error::Interrupted`.
pub(super) fn sample<B: ModelBackend>(
    session: &mut Session<'_, B>,
    work: &Sampling<'_>,
) -> Result<Outcome> {
    let device = session.device.clone();
    let policy = session.policy(work.init)?;
    let encoding = Prompts {
        max_length: work.max_prompt_length,
    };
    let prompts = session.token_rows("prompts", work.data, &policy.tokenizer, &encoding)?;
    let data = (
        data_files(work.data, session.run.path()),
        prompts.num_read(),
    );
    session.record(work.name, &format!("{:?}", work.init), &[data])?;
    let mut source = match work.reward {
        Some(reward) => Some(session.reward_source(reward, &policy.tokenizer)?),
        None => None,
    };
    let seed = session.stage_seed(work.name);
    let options = Generation {
        response_length: work.response_length,
        sampling: work.sampling.clone(),
        truncate: work.truncate,
        batch_size: work.batch_size,
    }
    .options(&policy.tokenizer)?;
    let steps = prompts.len().div_ceil(PROMPTS_PER_STEP);
    let summary = format!(
        "{} responses to each of {} prompts",
        work.num_responses,
        prompts.len()
    );
    // A step is a few prompts. Their rows are appended to `partial.jsonl`, so that every step can be a checkpoint.
    let cadence = Cadence {
        save_steps: Some(1),
        save_total_limit: 1,
        ..Default::default()
    };
    let (mut journal, _) = Journal::open(session, work.name, &summary, steps, &cadence)?;
    let files = Files::of(journal.dir());
    let held_out = held_out(prompts.len(), work.valid_fraction, seed.fork("split"));
    let mut written = (journal.position.step * PROMPTS_PER_STEP).min(prompts.len());
    let earlier = files.earlier_lines(written, &held_out)?;
    // All have read before rank 0 writes.
    collective::ranks().barrier();
    match earlier {
        Some(lines) => {
            collective::on_first(|| write_atomic(&files.partial, lines.as_bytes()))?;
        }
        None => {
            let why = format!("{} lacks lines of earlier work", files.partial.display());
            journal.begin_again(session, &summary, &why)?;
            written = 0;
        }
    }
    if written == 0 {
        collective::on_first(|| files.begin())?;
    }
    while journal.position.step < steps {
        let step = journal.position.step;
        let first = step * PROMPTS_PER_STEP;
        let chunk = prompts.get(first..(first + PROMPTS_PER_STEP).min(prompts.len()))?;
        let repeated: Vec<Prompt> = chunk
            .iter()
            .flat_map(|p| std::iter::repeat_n(p.as_ref().clone(), work.num_responses))
            .collect();
        let ids: Vec<&[u32]> = repeated.iter().map(|p| p.ids.as_slice()).collect();
        let total = ids.len();
        let reporter = &mut *session.reporter;
        let responses = generate(
            &policy.model,
            &ids,
            &options,
            seed.fork_index(step as u64),
            &device,
            &mut |done, tokens| {
                reporter.rollout(&RolloutReport {
                    what: "responses",
                    done,
                    total,
                    tokens,
                });
            },
        );
        let generated = completions(&repeated, &responses, &policy.tokenizer)?;
        let mut of_prompts: Vec<Vec<Completion>> = (generated.chunks(work.num_responses))
            .map(<[Completion]>::to_vec)
            .collect();
        let mut own = 0;
        if work.include_completions {
            for (prompt, responses) in chunk.iter().zip(&mut of_prompts) {
                let completion = own_completion(prompt, &policy.tokenizer)?;
                own += usize::from(completion.is_some());
                responses.extend(completion);
            }
        }
        let scores = match &mut source {
            Some(source) => Some(session.score(source.as_mut(), &of_prompts.concat())?),
            None => None,
        };
        if step == 0 {
            let all = shown(work, &of_prompts, &responses, scores.as_deref());
            for sample in all.into_iter().take(journal.num_samples()) {
                journal.sample(&sample)?;
            }
        }
        let lines = lines(work, &of_prompts, scores.as_deref());
        collective::on_first(|| append(&files.partial, &lines))?;
        written += chunk.len();
        let tokens: u64 = responses.iter().map(|r| r.ids.len() as u64).sum();
        let mut metrics = metrics(work, &of_prompts, &responses, scores.as_deref());
        if work.include_completions {
            metrics.push(("own_completions", own as f64));
        }
        journal.step(session, tokens, &metrics)?;
        if journal.must_save() {
            let nothing = Snapshot::default();
            journal.save(session, &nothing, &nothing)?;
        }
    }
    collective::on_first(|| files.split(&held_out))?;
    let valid = held_out.iter().filter(|&&held_out| held_out).count();
    let train = held_out.len() - valid;
    session.warn_of_sources(source.as_ref());
    let scores = match source {
        Some(_) if collective::ranks().is_first() => Histogram::of_ranked(&files.scores()?),
        Some(_) => None,
        None => None,
    };
    let results = StageRecord {
        summary: format!(
            "{written} prompts {}: {train} for training, {valid} held out",
            work.verb
        ),
        scores,
        ..StageRecord::default()
    };
    let outcome = journal.finish(session, results)?;
    collective::on_first(|| remove(&files.partial))?;
    Ok(outcome)
}

/// Entries of `samples.jsonl` for the generated responses.
fn shown(
    work: &Sampling<'_>,
    of_prompts: &[Vec<Completion>],
    responses: &[Response],
    scores: Option<&[f32]>,
) -> Vec<Sample> {
    let (mut samples, mut first) = (Vec::new(), 0);
    for (of_prompt, responses) in of_prompts.iter().zip(responses.chunks(work.num_responses)) {
        for (i, (completion, response)) in of_prompt.iter().zip(responses).enumerate() {
            let mut shown = shown_sample(completion, response.stopped, 0);
            if let Some(scores) = scores {
                (shown.scores).insert("score".into(), f64::from(scores[first + i]));
            }
            samples.push(shown);
        }
        first += of_prompt.len();
    }
    samples
}

/// The rows of some prompts, a line each.
fn lines(work: &Sampling<'_>, of_prompts: &[Vec<Completion>], scores: Option<&[f32]>) -> String {
    let (mut text, mut first) = (String::new(), 0);
    for responses in of_prompts {
        let part = first..first + responses.len();
        first = part.end;
        // A prompt has at least one response.
        let prompt = &responses[0];
        let mut row = Map::new();
        let mut put = |name: &str, value: Value| row.insert(name.to_owned(), value);
        put("prompt", json!(prompt.prompt));
        put("prompt_ids", json!(prompt.prompt_ids));
        let texts = responses.iter().map(|c| &c.response).collect::<Vec<_>>();
        put("responses", json!(texts));
        let ids = responses.iter().map(|c| &c.response_ids);
        put("response_ids", json!(ids.collect::<Vec<_>>()));
        if let Some(scores) = scores {
            put("scores", json!(&scores[part.clone()]));
            if work.with_ranks {
                put("ranks", json!(ranks(&scores[part])));
            }
            put("tie_margin", json!(work.tie_margin));
        }
        text.push_str(&Value::Object(row).to_string());
        text.push('\n');
    }
    text
}

/// The rank of each score among all: 1 is the highest. Equal scores have the same rank, the next lower one that of its place.
fn ranks(scores: &[f32]) -> Vec<usize> {
    let above = |score: &f32| scores.iter().filter(|other| *other > score).count();
    scores.iter().map(|score| 1 + above(score)).collect()
}

/// The metrics of a step.
fn metrics(
    work: &Sampling<'_>,
    of_prompts: &[Vec<Completion>],
    responses: &[Response],
    scores: Option<&[f32]>,
) -> Vec<(&'static str, f64)> {
    let mut metrics = Vec::new();
    if let Some(scores) = scores {
        metrics.push(("score", crate::rl::mean(scores)));
        metrics.push(("score_var", crate::rl::variance(scores)));
        if work.with_ranks {
            let (mut first, mut best) = (0, Vec::new());
            for of_prompt in of_prompts {
                let part = &scores[first..first + of_prompt.len()];
                first += of_prompt.len();
                best.push(part.iter().copied().fold(f32::NEG_INFINITY, f32::max));
            }
            metrics.push(("score_best", crate::rl::mean(&best)));
        }
    }
    let count = responses.len().max(1) as f64;
    let ended = responses.iter().filter(|r| r.stopped).count() as f64;
    metrics.push(("eos_rate", ended / count));
    if work.with_ranks {
        let tokens = responses.iter().map(|r| r.ids.len()).sum::<usize>() as f64;
        metrics.push(("response_length", tokens / count));
    }
    metrics
}

/// The row's own completion as a response to its prompt; `None` if its tokens do not begin with the prompt's: a policy could not
/// have sampled it.
///
/// # Errors
/// For a row without a text in the column `completion`.
fn own_completion(prompt: &Prompt, tokenizer: &Tokenizer) -> Result<Option<Completion>> {
    let Some(Value::String(text)) = prompt.row.get("completion") else {
        return Err(Error::Usage(format!(
            "include_completions: the row with the prompt {:?} has no text in the column `completion`",
            prompt.text.chars().take(40).collect::<String>()
        )));
    };
    let conversation: Option<&Arc<_>> = prompt.conversation.as_ref();
    let ids = encode_for_reward_model(tokenizer, &prompt.text, conversation, text, true)?;
    let own = ids.strip_prefix(prompt.ids.as_slice());
    Ok(own.filter(|ids| !ids.is_empty()).map(|ids| Completion {
        prompt: prompt.text.clone(),
        response: text.clone(),
        prompt_ids: prompt.ids.clone(),
        response_ids: ids.to_vec(),
        conversation: prompt.conversation.clone(),
        row: prompt.row.clone(),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_highest_score_has_rank_one_and_ties_share_a_rank() {
        assert_eq!(ranks(&[0.5, 2.0, 1.0]), [3, 1, 2]);
        assert_eq!(ranks(&[1.0, 2.0, 2.0, 0.0]), [3, 1, 1, 4]);
        assert_eq!(ranks(&[7.0]), [1]);
    }
}
