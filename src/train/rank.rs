//! Comparisons without people: K responses per prompt, ranked by a reward source.

use std::io::Write;
use std::path::Path;

use serde_json::json;

use super::Session;
use super::config::RankConfig;
use super::drawing::Drawing;
use super::evaluate::{completions, sample};
use super::journal::Journal;
use super::session::{Outcome, data_file};
use crate::atomic::write_atomic;
use crate::data::{Prompt, encode_prompts};
use crate::error::{Error, Result};
use crate::generate::generate;
use crate::ops::ModelBackend;
use crate::report::RolloutReport;
use crate::snapshot::Snapshot;

/// Prompts answered between two writes: what a crash can lose.
const PROMPTS_PER_STEP: usize = 32;

/// Draws, ranks and writes `train.jsonl` and `valid.jsonl`.
///
/// # Errors
/// Those of data, models and the reward source; `Error::Interrupted`.
pub fn rank<B: ModelBackend>(session: &mut Session<'_, B>, config: &RankConfig) -> Result<Outcome> {
    let device = session.device.clone();
    let policy = session.policy(&config.init)?;
    let rows = session.rows(&config.data)?;
    let prompts = encode_prompts(
        &rows,
        &policy.tokenizer,
        &config.data.format,
        config.max_prompt_length,
    )?;
    session.tell("prompts", &prompts.report);
    let prompts = prompts.items;
    let data = (data_file(&config.data, session.run.path()), rows.len());
    session.record(
        &config.name,
        &format!("{:?}", config.init),
        &policy.files,
        &[data],
    )?;
    let mut source = session.reward_source(&config.reward, policy.config.vocab_size())?;
    let seed = session.stage_seed(&config.name);
    let options = Drawing {
        response_length: config.response_length,
        sampling: config.sampling.clone(),
        truncate: config.truncate.as_ref(),
        batch_size: config.generation_batch_size,
    }
    .options(&policy.tokenizer)?;
    let steps = prompts.len().div_ceil(PROMPTS_PER_STEP);
    let summary = format!(
        "{} responses to each of {} prompts",
        config.num_responses,
        prompts.len()
    );
    // A step is a handful of prompts; each is kept in `partial.jsonl`, so every step is a checkpoint.
    let cadence = super::config::Cadence {
        save_steps: Some(1),
        save_total_limit: 1,
        ..Default::default()
    };
    let (mut journal, _) = Journal::open(session, &config.name, &summary, steps, &cadence)?;
    let partial = journal.dir().join("partial.jsonl");
    let mut written = truncate_lines(
        &partial,
        (journal.position.step * PROMPTS_PER_STEP).min(prompts.len()),
    )?;
    while journal.position.step < steps {
        let step = journal.position.step;
        let chunk =
            &prompts[step * PROMPTS_PER_STEP..((step + 1) * PROMPTS_PER_STEP).min(prompts.len())];
        let repeated: Vec<Prompt> = chunk
            .iter()
            .flat_map(|p| std::iter::repeat_n(p.clone(), config.num_responses))
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
        let completions = completions(&repeated, &responses, &policy.tokenizer)?;
        let scores = source.score(&completions)?;
        if step == 0 {
            for i in 0..journal.num_samples().min(completions.len()) {
                let mut shown = sample(&completions[i], responses[i].stopped, 0);
                shown.scores.insert("score".into(), f64::from(scores[i]));
                journal.sample(&shown)?;
            }
        }
        let mut text = String::new();
        for (i, prompt) in chunk.iter().enumerate() {
            let part = i * config.num_responses..(i + 1) * config.num_responses;
            let row = json!({
                "prompt": prompt.text,
                "prompt_ids": prompt.ids,
                "responses": completions[part.clone()].iter().map(|c| &c.response).collect::<Vec<_>>(),
                "response_ids": responses[part.clone()].iter().map(|r| &r.ids).collect::<Vec<_>>(),
                "scores": &scores[part],
                "tie_margin": config.tie_margin,
            });
            text.push_str(&row.to_string());
            text.push('\n');
        }
        append(&partial, &text)?;
        written += chunk.len();
        let tokens: u64 = responses.iter().map(|r| r.ids.len() as u64).sum();
        let ended = responses.iter().filter(|r| r.stopped).count() as f64 / responses.len() as f64;
        let metrics = [
            ("score", crate::rl::mean(&scores)),
            ("score_var", crate::rl::variance(&scores)),
            ("eos_rate", ended),
        ];
        journal.step(session, tokens, &metrics)?;
        if journal.must_save() {
            let nothing = Snapshot::default();
            journal.save(session, &nothing, &nothing)?;
        }
    }
    let (train, valid) = split(&partial, journal.dir(), config, seed.fork("split"))?;
    let summary = format!("{written} prompts ranked: {train} for training, {valid} held out");
    journal.finish(session, &summary, "")?;
    Ok(Outcome {
        summary,
        table: String::new(),
    })
}

/// Keeps the first `lines` lines of a file that may be torn at its end; returns their number.
fn truncate_lines(path: &Path, lines: usize) -> Result<usize> {
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => String::new(),
        Err(e) => return Err(Error::io("read", path)(e)),
    };
    let kept: String = text.split_inclusive('\n').take(lines).collect();
    if kept.lines().count() < lines {
        return Err(Error::format(
            path,
            format!("expected {lines} lines of earlier work, found fewer; run without --resume"),
        ));
    }
    write_atomic(path, kept.as_bytes())?;
    Ok(lines)
}

fn append(path: &Path, text: &str) -> Result<()> {
    let mut file = std::fs::OpenOptions::new()
        .append(true)
        .open(path)
        .map_err(Error::io("open", path))?;
    file.write_all(text.as_bytes())
        .map_err(Error::io("write", path))?;
    file.sync_data().map_err(Error::io("write", path))
}

/// Divides the prompts, by a random order, into training and held-out files; returns their sizes.
fn split(
    partial: &Path,
    dir: &Path,
    config: &RankConfig,
    seed: crate::rng::Seed,
) -> Result<(usize, usize)> {
    let text = std::fs::read_to_string(partial).map_err(Error::io("read", partial))?;
    let lines: Vec<&str> = text.lines().collect();
    let held_out = (lines.len() as f64 * config.valid_fraction).round() as usize;
    let order = seed.permutation(lines.len());
    let mut is_valid = vec![false; lines.len()];
    order[..held_out].iter().for_each(|&i| is_valid[i] = true);
    let part = |valid: bool| -> String {
        lines
            .iter()
            .zip(&is_valid)
            .filter(|(_, v)| **v == valid)
            .flat_map(|(line, _)| [*line, "\n"])
            .collect()
    };
    write_atomic(dir.join("train.jsonl"), part(false).as_bytes())?;
    write_atomic(dir.join("valid.jsonl"), part(true).as_bytes())?;
    std::fs::remove_file(partial).map_err(Error::io("remove", partial))?;
    Ok((lines.len() - held_out, held_out))
}
