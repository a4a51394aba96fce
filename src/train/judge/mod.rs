//! Pairs of responses, labelled by a judge.
//!
//! # Source
//! Bai et al. 2022, arXiv:2212.08073, section 4.1; Lee et al. 2023, arXiv:2309.00267, section 2.1.

mod config;
mod labelled;
mod spec;

pub use config::JudgeConfig;

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::json;

use crate::data::{ResponseSet, read_response_sets};
use crate::error::{Error, Result};
use crate::ops::ModelBackend;
use crate::report::{RolloutReport, Sample, StageRecord};
use crate::reward::judge::{
    Judge, PairForm, PairSettings, Question, Usage, clamped, jsonl, label_probabilities,
    preference, texts,
};
use crate::rng::Seed;
use crate::snapshot::Snapshot;
use crate::train::Session;
use crate::train::config::Cadence;
use crate::train::journal::Journal;
use crate::train::session::{Outcome, data_files};
use crate::train::shared::RowLog;
use labelled::{JudgedPair, JudgedRow, Tally};

/// Prompts between two writes: at most this many are lost in a crash.
const PROMPTS_PER_STEP: usize = 16;
/// The file of all answers.
const LOG: &str = "judged.jsonl";

/// Asks about all pairs; writes `judged.jsonl`, `train.jsonl` and `valid.jsonl`.
///
/// # Errors
/// Those of data and judge; `Error::Stage` if too few pairs are answered; `Error::Interrupted`.
pub(super) fn judge<B: ModelBackend>(
    session: &mut Session<'_, B>,
    config: &JudgeConfig,
) -> Result<Outcome> {
    let sets = read_response_sets(&config.data, &session.data_context())?;
    let seed = session.stage_seed(&config.name);
    let pairs = Pairs {
        config,
        principles: config.principles()?,
        form: PairForm::new(config.pair_settings()?)?,
        seed,
    };
    let all: Vec<Vec<(usize, usize)>> = (sets.iter().enumerate())
        .map(|(row, set)| pairs.of(row, set.responses.len()))
        .collect();
    let total: usize = all.iter().map(Vec::len).sum();
    if total == 0 {
        return Err(Error::Stage {
            stage: config.name.clone(),
            message: "no prompt has two responses: a judge needs pairs. Raise `num_responses` of the stage that writes them".into(),
        });
    }
    let mut judge = session.judge(&config.judge)?;
    let data = (data_files(&config.data, session.run.path()), sets.len());
    session.record(&config.name, &config.judge.name(), &[data])?;
    let steps = sets.len().div_ceil(PROMPTS_PER_STEP);
    let summary = format!("{total} pairs of responses to {} prompts", sets.len());
    // Every step is a checkpoint: its rows are in the log.
    let cadence = Cadence {
        save_steps: Some(1),
        save_total_limit: 1,
        ..Cadence::default()
    };
    let (mut journal, _) = Journal::open(session, &config.name, &summary, steps, &cadence)?;
    let log = RowLog::new(journal.dir(), LOG);
    let done = (journal.position.step * PROMPTS_PER_STEP).min(sets.len());
    if !log.keep(done)? {
        journal.begin_again(
            session,
            &summary,
            &format!("{LOG} lacks lines of earlier work"),
        )?;
        log.keep(0)?;
    }
    let mut tally = Tally::default();
    for row in log.rows::<JudgedRow>()? {
        tally.add(&row);
    }
    while journal.position.step < steps {
        let step = journal.position.step;
        let first = step * PROMPTS_PER_STEP;
        let last = (first + PROMPTS_PER_STEP).min(sets.len());
        let before = judge.usage();
        let rows = pairs.ask(judge.as_mut(), &sets, &all, first..last, session)?;
        let mut of_step = Tally::default();
        for row in &rows {
            of_step.add(row);
            tally.add(row);
        }
        if step == 0 {
            for sample in samples(&sets[first..last], &rows, journal.num_samples()) {
                journal.sample(&sample)?;
            }
        }
        log.append(&rows)?;
        let mut metrics = of_step.metrics();
        metrics.extend(cost(config, before, judge.usage()));
        journal.step(session, 0, &metrics)?;
        if journal.must_save() {
            let nothing = Snapshot::default();
            journal.save(session, &nothing, &nothing)?;
        }
        let allowed = config.max_unanswered * total as f64;
        if tally.unanswered as f64 > allowed {
            return Err(pairs.too_few(&tally, total, &journal.dir().join(LOG)));
        }
    }
    let rows: Vec<JudgedRow> = log.rows()?;
    let comparisons: Vec<Vec<_>> = (rows.iter().zip(&sets))
        .map(|(row, set)| row.comparisons(set))
        .collect();
    let (train, valid) = log.split(&comparisons, config.valid_fraction, seed.fork("split"))?;
    if let Some(report) = judge.report() {
        session.reporter.message(&report);
    }
    let results = StageRecord {
        summary: format!(
            "{train} comparisons for training, {valid} held out; {}",
            tally.summary(config.both_orders)
        ),
        ..StageRecord::default()
    };
    journal.finish(session, results)
}

impl JudgeConfig {
    /// The principles; one general question if the recipe names none.
    ///
    /// # Errors
    /// If the file cannot be read or is empty.
    fn principles(&self) -> Result<Vec<String>> {
        match &self.principles {
            Some(path) => texts(path),
            None => Ok(vec!["Which of the two responses is better?".to_owned()]),
        }
    }

    /// How pairs are asked about.
    ///
    /// # Errors
    /// If the file of examples cannot be read.
    fn pair_settings(&self) -> Result<PairSettings> {
        let examples = match &self.examples {
            Some(path) => jsonl(path, "`prompt`, `first`, `second` and `answer`")?,
            None => Vec::new(),
        };
        Ok(PairSettings {
            instructions: self.instructions.clone(),
            template: self.template.clone(),
            labels: [self.labels.0.clone(), self.labels.1.clone()],
            chat: self.chat || self.judge.model().is_none(),
            reasoning: self.chain_of_thought.is_some(),
            examples,
        })
    }
}

/// The pairs of a stage, and how they are asked about.
struct Pairs<'a> {
    config: &'a JudgeConfig,
    principles: Vec<String>,
    form: PairForm,
    seed: Seed,
}

/// A question about a pair in one order.
struct Asked {
    row: usize,
    pair: usize,
    /// The response shown first, and second.
    shown: [usize; 2],
}

impl Pairs<'_> {
    /// The pairs of row `row` with this number of responses.
    fn of(&self, row: usize, responses: usize) -> Vec<(usize, usize)> {
        let all: Vec<(usize, usize)> = (0..responses)
            .flat_map(|a| (a + 1..responses).map(move |b| (a, b)))
            .collect();
        match self.config.max_pairs {
            Some(most) if most < all.len() => {
                let order = self.seed.fork("pairs").fork_index(row as u64);
                let order = order.permutation(all.len());
                order[..most].iter().map(|&i| all[i]).collect()
            }
            _ => all,
        }
    }

    /// The judge's answers for some rows.
    fn ask<B: ModelBackend>(
        &self,
        judge: &mut dyn Judge,
        sets: &[ResponseSet],
        all: &[Vec<(usize, usize)>],
        rows: std::ops::Range<usize>,
        session: &mut Session<'_, B>,
    ) -> Result<Vec<JudgedRow>> {
        let mut judged: Vec<JudgedRow> = Vec::new();
        let mut asked = Vec::new();
        for row in rows.clone() {
            let principle = self.seed.fork("principle").fork_index(row as u64);
            let order = self.seed.fork("order").fork_index(row as u64);
            let mut of_row = Vec::new();
            for (pair, &(a, b)) in all[row].iter().enumerate() {
                of_row.push(JudgedPair {
                    responses: [a, b],
                    principle: principle.below(pair as u64, self.principles.len()),
                    known: sets[row].scores[a] - sets[row].scores[b],
                    ..JudgedPair::default()
                });
                let orders: &[[usize; 2]] = match self.config.both_orders {
                    true => &[[a, b], [b, a]],
                    false if order.uniform(pair as u64) < 0.5 => &[[a, b]],
                    false => &[[b, a]],
                };
                asked.extend(orders.iter().map(|&shown| Asked { row, pair, shown }));
            }
            judged.push(JudgedRow { pairs: of_row });
        }
        let texts = |asked: &Asked| -> (&str, &str, [&str; 2]) {
            let set = &sets[asked.row];
            let principle = judged[asked.row - rows.start].pairs[asked.pair].principle;
            let shown = asked.shown.map(|i| set.responses[i].as_str());
            (&set.text, &self.principles[principle], shown)
        };
        let thoughts = match &self.config.chain_of_thought {
            Some(reasoning) => {
                let questions: Vec<Question> = (asked.iter())
                    .map(|asked| {
                        let (prompt, principle, shown) = texts(asked);
                        let question = self.form.thought(prompt, principle, shown);
                        question.map_err(|error| self.no_question(asked, &error))
                    })
                    .collect::<Result<_>>()?;
                let seed = self.seed.fork("thoughts").fork_index(rows.start as u64);
                let written = judge.write(&questions, reasoning.max_tokens, seed)?;
                // A model that goes on to further questions has said enough.
                let thought = |text: String| match text.trim_start().split_once("\n\n") {
                    Some((thought, _)) => thought.to_owned(),
                    None => text,
                };
                written
                    .into_iter()
                    .map(|text| Some(thought(text)))
                    .collect()
            }
            None => vec![None; asked.len()],
        };
        let questions: Vec<Question> = (asked.iter().zip(&thoughts))
            .map(|(asked, thought): (&Asked, &Option<String>)| {
                let (prompt, principle, shown) = texts(asked);
                let thought = thought.as_deref();
                let question = self.form.question(prompt, principle, shown, thought);
                question.map_err(|error| self.no_question(asked, &error))
            })
            .collect::<Result<_>>()?;
        let total = questions.len();
        let mut answers = Vec::with_capacity(total);
        for part in questions.chunks(16) {
            answers.extend(judge.answer(part, self.form.labels())?);
            session.reporter.rollout(&RolloutReport {
                what: "answers",
                done: answers.len(),
                total,
                tokens: 0,
            });
        }
        for ((asked, answer), thought) in asked.iter().zip(answers).zip(thoughts) {
            let judged = &mut judged[asked.row - rows.start].pairs[asked.pair];
            let probabilities = answer.logprobs.as_deref().and_then(label_probabilities);
            judged.hard |= answer.without_probabilities;
            judged.first.push(probabilities.as_ref().map(|p| p[0]));
            judged.thoughts.extend(thought);
            if probabilities.is_none() {
                judged.text.get_or_insert(answer.text);
            }
            judged.mass = match (&answer.logprobs, answer.without_probabilities) {
                (Some(logprobs), false) => logprobs.iter().map(|x| x.exp()).sum(),
                _ => judged.mass,
            };
            if judged.shown.is_none() {
                judged.shown = Some(asked.shown);
            }
        }
        let bounds = (self.config.chain_of_thought.as_ref()).and_then(|reasoning| reasoning.clamp);
        for row in &mut judged {
            for pair in &mut row.pairs {
                let forwards = pair.shown == Some(pair.responses);
                let preferred = match (pair.first.as_slice(), forwards) {
                    ([Some(first), Some(second)], _) => Some(preference(*first, *second)),
                    ([Some(first)], true) => Some(*first),
                    ([Some(first)], false) => Some(1.0 - first),
                    _ => None,
                };
                pair.probability = preferred.map(|p| clamped(p, bounds));
                pair.text = pair.text.take().filter(|_| preferred.is_none());
            }
        }
        Ok(judged)
    }

    /// The error for a pair that the template cannot show.
    fn no_question(&self, asked: &Asked, error: &Error) -> Error {
        let [first, second] = asked.shown.map(|response| response + 1);
        Error::Stage {
            stage: self.config.name.clone(),
            message: format!(
                "prompt {}, with response {first} first and {second} second: {error}",
                asked.row + 1
            ),
        }
    }

    fn too_few(&self, tally: &Tally, total: usize, log: &Path) -> Error {
        let (a, b) = &self.config.labels;
        let text: String = tally.odd_text.chars().take(120).collect();
        Error::Stage {
            stage: self.config.name.clone(),
            message: format!(
                "the judge answered neither {a:?} nor {b:?} about {} of {total} pairs, more than max_unanswered {}; it wrote {text:?}. \
                 Say in `instructions` how to answer, show it in `examples`, or raise `max_unanswered`; answers so far are kept in {}",
                tally.unanswered,
                self.config.max_unanswered,
                log.display()
            ),
        }
    }
}

/// Tokens and cost of a step.
fn cost(config: &JudgeConfig, before: Usage, after: Usage) -> Vec<(&'static str, f64)> {
    let crate::reward::judge::JudgeModel::Endpoint(endpoint) = &config.judge else {
        return Vec::new();
    };
    let read = after.prompt_tokens - before.prompt_tokens;
    let written = after.completion_tokens - before.completion_tokens;
    let mut metrics = vec![
        ("judge/prompt_tokens", read as f64),
        ("judge/completion_tokens", written as f64),
    ];
    let price = endpoint.price.map(|price| price.of(read, written));
    metrics.extend(price.map(|price| ("judge/cost", price)));
    metrics
}

/// The first judged pairs, for people to read: both responses to a prompt, each with the probability that it is the better one.
fn samples(sets: &[ResponseSet], rows: &[JudgedRow], count: usize) -> Vec<Sample> {
    let pairs = sets.iter().zip(rows);
    let pairs = pairs.filter_map(|(set, row)| Some((set, row.pairs.first()?)));
    let sample = |(set, pair): (&ResponseSet, &JudgedPair)| -> Option<[Sample; 2]> {
        let probability = pair.probability?;
        let [a, b] = pair.responses;
        Some(
            [(a, "a", probability), (b, "b", 1.0 - probability)].map(|(i, name, p)| Sample {
                policy: Some(name.to_owned()),
                prompt: set.text.clone(),
                response: set.responses[i].clone(),
                scores: BTreeMap::from([("preferred".to_owned(), p)]),
                ..Sample::default()
            }),
        )
    };
    pairs.filter_map(sample).take(count).flatten().collect()
}

impl JudgedRow {
    /// Its comparisons, in the columns that reward models read.
    fn comparisons(&self, set: &ResponseSet) -> Vec<serde_json::Value> {
        let comparison = |pair: &JudgedPair| {
            let probability = pair.probability?;
            let [a, b] = pair.responses;
            let (chosen, rejected, sure) = match probability >= 0.5 {
                true => (a, b, probability),
                false => (b, a, 1.0 - probability),
            };
            // Equal texts say nothing.
            (set.responses[a] != set.responses[b]).then(|| {
                json!({
                    "prompt": set.prompt,
                    "chosen": set.responses[chosen],
                    "rejected": set.responses[rejected],
                    "chosen_probability": sure,
                })
            })
        };
        self.pairs.iter().filter_map(comparison).collect()
    }
}
