//! A policy answers prompts, criticises its answers and revises them.
//!
//! # Source
//! Bai et al. 2022, arXiv:2212.08073, section 3.

mod config;
mod dialogue;
mod spec;
mod stop;

pub use config::{Keep, ReviseConfig};

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use crate::data::{Prompt, Prompts, readable};
use crate::error::{Error, Result};
use crate::generate::{GenerateOptions, generate_watched};
use crate::ops::ModelBackend;
use crate::report::{RolloutReport, Sample, StageRecord};
use crate::reward::judge::jsonl;
use crate::rng::Seed;
use crate::snapshot::Snapshot;
use crate::train::config::Cadence;
use crate::train::generation::Generation;
use crate::train::journal::Journal;
use crate::train::session::{Outcome, data_files};
use crate::train::shared::RowLog;
use crate::train::{Policy, Session};
use dialogue::{Dialogue, HEADINGS, Principle, Request, Requests, Round};
use stop::{StopAt, cut};

/// Prompts between two writes: at most this many are lost in a crash.
const PROMPTS_PER_STEP: usize = 32;
/// The file of all dialogues.
const LOG: &str = "dialogues.jsonl";

/// Generates responses, critiques and revisions; writes `dialogues.jsonl`, `train.jsonl` and `valid.jsonl`.
///
/// # Errors
/// Those of data and models; `Error::Stage` if no revision is left; `Error::Interrupted`.
pub(super) fn revise<B: ModelBackend>(
    session: &mut Session<'_, B>,
    config: &ReviseConfig,
) -> Result<Outcome> {
    let policy = session.policy(&config.init)?;
    let encoding = Prompts {
        max_length: config.max_prompt_length,
    };
    let prompts = session.token_rows("prompts", &config.data, &policy.tokenizer, &encoding)?;
    let files = data_files(&config.data, session.run.path());
    let init = format!("{:?}", config.init);
    session.record(&config.name, &init, &[(files, prompts.num_read())])?;
    let seed = session.stage_seed(&config.name);
    let reviser = Reviser {
        config,
        principles: config.principles()?,
        requests: Requests {
            examples: config.examples()?,
            tokenizer: &policy.tokenizer,
            critique: config.critique,
        },
        options: Generation {
            response_length: config.response_length,
            sampling: config.sampling.clone(),
            truncate: None,
            batch_size: config.generation_batch_size,
        }
        .options(&policy.tokenizer)?,
        max_positions: max_positions(&policy),
        policy: &policy,
        seed,
    };
    let steps = prompts.len().div_ceil(PROMPTS_PER_STEP);
    let summary = format!(
        "{} revisions of the responses to {} prompts",
        config.num_revisions,
        prompts.len()
    );
    // Every step is a checkpoint: its dialogues are in the log.
    let cadence = Cadence {
        save_steps: Some(1),
        save_total_limit: 1,
        ..Cadence::default()
    };
    let (mut journal, _) = Journal::open(session, &config.name, &summary, steps, &cadence)?;
    let log = RowLog::new(journal.dir(), LOG);
    let done = (journal.position.step * PROMPTS_PER_STEP).min(prompts.len());
    if !log.keep(done)? {
        journal.begin_again(
            session,
            &summary,
            &format!("{LOG} lacks lines of earlier work"),
        )?;
        log.keep(0)?;
    }
    while journal.position.step < steps {
        let step = journal.position.step;
        let first = step * PROMPTS_PER_STEP;
        let last = (first + PROMPTS_PER_STEP).min(prompts.len());
        let chunk = prompts.get(first..last)?;
        let chunk: Vec<&Prompt> = chunk.iter().map(AsRef::as_ref).collect();
        let mut written = Written::default();
        let dialogues = reviser.run(&chunk, first, &mut written, session)?;
        if step == 0 {
            for dialogue in dialogues.iter().take(journal.num_samples()) {
                for sample in samples(dialogue) {
                    journal.sample(&sample)?;
                }
            }
        }
        log.append(&dialogues)?;
        let metrics = written.metrics(&dialogues);
        journal.step(session, written.tokens, &metrics)?;
        if journal.must_save() {
            let nothing = Snapshot::default();
            journal.save(session, &nothing, &nothing)?;
        }
    }
    let dialogues: Vec<Dialogue> = log.rows()?;
    let rows: Vec<Vec<Value>> = dialogues.iter().map(|d| rows(d, config.keep)).collect();
    let (train, valid) = log.split(&rows, config.valid_fraction, seed.fork("split"))?;
    if train + valid == 0 {
        return Err(Error::Stage {
            stage: config.name.clone(),
            message: format!(
                "all revisions are empty: see {LOG}. The policy ends its texts at once; show it in `examples` what a revision is"
            ),
        });
    }
    let without = rows.iter().filter(|rows| rows.is_empty()).count();
    let too_long = dialogues
        .iter()
        .filter(|dialogue| dialogue.too_long)
        .count();
    let mut summary = format!("{train} revisions for training, {valid} held out");
    for (count, what) in [
        (without, "prompts left out without a revision"),
        (too_long, "dialogues ended early at the table of positions"),
    ] {
        if count > 0 {
            summary += &format!("; {count} {what}");
        }
    }
    let results = StageRecord {
        summary,
        ..StageRecord::default()
    };
    journal.finish(session, results)
}

impl ReviseConfig {
    fn principles(&self) -> Result<Vec<Principle>> {
        jsonl(
            &self.principles,
            "`critique` and `revision`, the two requests of a principle",
        )
    }

    fn examples(&self) -> Result<Vec<dialogue::Example>> {
        let expected = "`prompt`, `response`, `critique_request`, `critique`, `revision_request` and `revision`";
        match &self.examples {
            Some(path) => jsonl(path, expected),
            None => Ok(Vec::new()),
        }
    }
}

/// Rows of the model's table of positions that are left for tokens, if it has one.
fn max_positions<B: ModelBackend>(policy: &Policy<B>) -> usize {
    let before = (policy.adapter.as_ref()).map_or(0, |adapter| adapter.num_virtual_tokens());
    match policy.config.has_learned_positions() {
        true => policy.config.max_positions().saturating_sub(before),
        false => usize::MAX,
    }
}

/// Sums over what was generated.
#[derive(Default)]
struct Written {
    tokens: u64,
    /// Tokens and number of responses, critiques and revisions.
    kinds: BTreeMap<&'static str, (u64, u64)>,
}

impl Written {
    fn metrics(&self, dialogues: &[Dialogue]) -> Vec<(&'static str, f64)> {
        let mut metrics: Vec<(&str, f64)> = (self.kinds.iter())
            .map(|(name, (tokens, count))| (*name, *tokens as f64 / (*count).max(1) as f64))
            .collect();
        let rounds = |dialogue: &Dialogue| dialogue.rounds.len();
        let all = dialogues.iter().map(rounds).sum::<usize>().max(1) as f64;
        let count = |counts: &dyn Fn(&str, &str) -> bool| -> f64 {
            let of_dialogue = |dialogue: &Dialogue| {
                let mut before = dialogue.response.as_str();
                let mut found = 0;
                for round in &dialogue.rounds {
                    found += usize::from(counts(before, &round.revision));
                    before = &round.revision;
                }
                found
            };
            dialogues.iter().map(of_dialogue).sum::<usize>() as f64
        };
        metrics.push((
            "revise/changed",
            count(&|before, after| before != after) / all,
        ));
        metrics.push(("revise/empty", count(&|_, after| after.is_empty()) / all));
        metrics
    }
}

/// Generates dialogues.
struct Reviser<'a, B: ModelBackend> {
    config: &'a ReviseConfig,
    principles: Vec<Principle>,
    requests: Requests<'a>,
    options: GenerateOptions,
    max_positions: usize,
    policy: &'a Policy<B>,
    seed: Seed,
}

impl<B: ModelBackend> Reviser<'_, B> {
    /// The dialogues about `prompts`, of which the first has this index in the data.
    fn run(
        &self,
        prompts: &[&Prompt],
        first: usize,
        written: &mut Written,
        session: &mut Session<'_, B>,
    ) -> Result<Vec<Dialogue>> {
        let seed = |what: &str, round: usize| {
            let seed = self.seed.fork(what).fork_index(round as u64);
            seed.fork_index(first as u64)
        };
        let ids: Vec<Vec<u32>> = prompts.iter().map(|prompt| prompt.ids.clone()).collect();
        let longest = self.config.response_length;
        let responses = self.generate(
            "revise/response_length",
            &ids,
            longest,
            seed("response", 0),
            written,
            session,
        )?;
        let mut dialogues: Vec<Dialogue> = (prompts.iter().zip(responses))
            .map(|(prompt, response)| Dialogue {
                prompt: match &prompt.conversation {
                    Some(conversation) => Value::Array(conversation.messages.clone()),
                    None => Value::String(prompt.text.clone()),
                },
                response,
                ..Dialogue::default()
            })
            .collect();
        for round in 0..self.config.num_revisions {
            for (i, dialogue) in dialogues.iter_mut().enumerate() {
                let drawn = self.seed.fork("principle").fork_index((first + i) as u64);
                if !dialogue.too_long {
                    dialogue.rounds.push(Round {
                        principle: drawn.below(round as u64, self.principles.len()),
                        ..Round::default()
                    });
                }
            }
            if self.config.critique {
                let longest = self.config.critique_length.unwrap_or(longest);
                let request = |dialogue: &Dialogue, i: usize| {
                    let principle = &self.principles[dialogue.rounds[round].principle];
                    self.requests.ids(
                        prompts[i],
                        before(dialogue, round),
                        &Request::Critique(principle),
                    )
                };
                let seed = seed("critique", round);
                let name = "revise/critique_length";
                self.round(
                    &mut dialogues,
                    round,
                    request,
                    longest,
                    name,
                    seed,
                    written,
                    session,
                    |dialogue, text| {
                        dialogue.rounds[round].critique = text.trim().to_owned();
                    },
                )?;
            }
            let request = |dialogue: &Dialogue, i: usize| {
                let Round {
                    principle,
                    critique,
                    ..
                } = &dialogue.rounds[round];
                let critique = Some(critique.as_str()).filter(|_| self.config.critique);
                let request = Request::Revision(&self.principles[*principle], critique);
                self.requests
                    .ids(prompts[i], before(dialogue, round), &request)
            };
            let seed = seed("revision", round);
            let name = "revise/revision_length";
            self.round(
                &mut dialogues,
                round,
                request,
                longest,
                name,
                seed,
                written,
                session,
                |dialogue, text| {
                    dialogue.rounds[round].revision = dialogue.version(&text);
                },
            )?;
        }
        Ok(dialogues)
    }

    /// Generates one text for each dialogue that is in `round`; those that do not fit the model end here.
    #[allow(
        clippy::too_many_arguments,
        reason = "two kinds of texts in the same way"
    )]
    fn round(
        &self,
        dialogues: &mut [Dialogue],
        round: usize,
        request: impl Fn(&Dialogue, usize) -> Result<Vec<u32>>,
        longest: usize,
        name: &'static str,
        seed: Seed,
        written: &mut Written,
        session: &mut Session<'_, B>,
        mut take: impl FnMut(&mut Dialogue, String),
    ) -> Result<()> {
        let (mut asked, mut ids) = (Vec::new(), Vec::new());
        for (i, dialogue) in dialogues.iter_mut().enumerate() {
            if dialogue.rounds.len() <= round {
                continue;
            }
            let request = request(dialogue, i)?;
            if request.len() + longest > self.max_positions {
                dialogue.too_long = true;
                dialogue.rounds.pop();
                continue;
            }
            asked.push(i);
            ids.push(request);
        }
        let texts = self.generate(name, &ids, longest, seed, written, session)?;
        for (i, text) in asked.into_iter().zip(texts) {
            take(&mut dialogues[i], text);
        }
        Ok(())
    }

    fn generate(
        &self,
        name: &'static str,
        ids: &[Vec<u32>],
        longest: usize,
        seed: Seed,
        written: &mut Written,
        session: &mut Session<'_, B>,
    ) -> Result<Vec<String>> {
        let mut stops = self.config.stop.clone();
        stops.extend(HEADINGS.map(str::to_owned));
        let options = GenerateOptions {
            max_new_tokens: longest,
            ..self.options.clone()
        };
        let device = session.device.clone();
        let (what, total) = (
            name.trim_start_matches("revise/")
                .trim_end_matches("_length"),
            ids.len(),
        );
        let reporter = &mut *session.reporter;
        let mut progress = |done: usize, tokens: u64| {
            reporter.rollout(&RolloutReport {
                what,
                done,
                total,
                tokens,
            });
        };
        let mut watch = StopAt::new(&self.policy.tokenizer, &stops, &mut progress);
        let ids: Vec<&[u32]> = ids.iter().map(Vec::as_slice).collect();
        let responses = generate_watched(
            &self.policy.model,
            &ids,
            &options,
            seed,
            &device,
            &mut watch,
        );
        let tokens: u64 = responses
            .iter()
            .map(|response| response.ids.len() as u64)
            .sum();
        written.tokens += tokens;
        let sums = written.kinds.entry(name).or_default();
        *sums = (sums.0 + tokens, sums.1 + responses.len() as u64);
        (responses.iter())
            .map(|response| {
                let text = self.policy.tokenizer.decode(&response.ids, true)?;
                Ok(cut(&text, &stops).to_owned())
            })
            .collect()
    }
}

/// The version of the response that round `round` is about. An empty revision is none.
fn before(dialogue: &Dialogue, round: usize) -> &str {
    let earlier = dialogue.rounds[..round].iter().rev();
    let mut earlier = earlier.map(|round| round.revision.as_str());
    (earlier.find(|revision| !revision.is_empty())).unwrap_or(&dialogue.response)
}

/// The rows of a dialogue: prompt and revisions.
fn rows(dialogue: &Dialogue, keep: Keep) -> Vec<Value> {
    let revisions = dialogue.rounds.iter().map(|round| round.revision.as_str());
    let revisions: Vec<&str> = revisions.filter(|revision| !revision.is_empty()).collect();
    let kept = match keep {
        Keep::All => revisions.as_slice(),
        Keep::Last => &revisions[revisions.len().saturating_sub(1)..],
    };
    let row = |revision: &&str| {
        let mut row = Map::new();
        row.insert("prompt".into(), dialogue.prompt.clone());
        row.insert("completion".into(), json!(revision));
        Value::Object(row)
    };
    kept.iter().map(row).collect()
}

/// A whole dialogue, for people to read.
fn samples(dialogue: &Dialogue) -> Vec<Sample> {
    let prompt = readable(&dialogue.prompt);
    let mut parts = vec![("response".to_owned(), &dialogue.response)];
    for (i, round) in dialogue.rounds.iter().enumerate() {
        parts.push((format!("critique {}", i + 1), &round.critique));
        parts.push((format!("revision {}", i + 1), &round.revision));
    }
    let parts = parts.into_iter().filter(|(_, text)| !text.is_empty());
    let sample = |(name, text): (String, &String)| Sample {
        policy: Some(name),
        prompt: prompt.clone(),
        response: text.clone(),
        ..Sample::default()
    };
    parts.map(sample).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_revision_is_a_row_or_the_last_one() {
        let round = |revision: &str| Round {
            revision: revision.into(),
            ..Round::default()
        };
        let dialogue = Dialogue {
            prompt: "p".into(),
            response: " a".into(),
            rounds: vec![round(" b"), round(""), round(" c")],
            too_long: false,
        };
        let row = |completion: &str| json!({"prompt": "p", "completion": completion});
        assert_eq!(rows(&dialogue, Keep::All), [row(" b"), row(" c")]);
        assert_eq!(rows(&dialogue, Keep::Last), [row(" c")]);
        assert_eq!(before(&dialogue, 0), " a");
        assert_eq!(before(&dialogue, 2), " b");
        let metrics = Written::default().metrics(&[dialogue]);
        assert!(
            metrics.contains(&("revise/empty", 1.0 / 3.0)),
            "{metrics:?}"
        );
    }
}
