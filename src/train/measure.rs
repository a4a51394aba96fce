//! Measures how fast a stage's passes are, on the real model, in a second or two: what `--dry-run` estimates the time from.
//!
//! The passes have the sizes that the plan expects. Their tokens are arbitrary: the time of a pass depends on the lengths of its rows and
//! on nothing else in them, and the rows of a stage that reads another one's do not exist yet. A stage that starts from another one is
//! measured on the model that the other one starts from, with adapters of the same shape.

use std::sync::Arc;
use std::time::Instant;

use burn::backend::Autodiff;
use burn::module::AutodiffModule;

use super::config::{Init, Peft};
use super::plan::{Pace, StagePlan, Workload};
use super::policy::TrainablePolicy;
use super::shared::{Accumulator, NonFinite, optimise};
use super::{Session, Stage};
use crate::error::{Error, Result};
use crate::generate::{GenerateOptions, SamplingConfig, generate};
use crate::guard;
use crate::host::{indices, read};
use crate::loss::cross_entropy;
use crate::model::{CausalLm, LanguageModel, Tape};
use crate::ops::ModelBackend;
use crate::optim::Optimiser;
use crate::rng::Seed;
use crate::tokens::TokenBatch;

/// Seconds that a measurement of one kind of pass should take.
const BUDGET_S: f64 = 0.35;
/// Tokens of the first pass, which warms up caches and says how many more fit into the budget.
const FIRST_TOKENS: u64 = 128;
/// Most repetitions of a pass.
const MAX_REPEATS: usize = 50;
/// Tokens that are sampled for each row at first; the prompt's pass is in their time.
const FIRST_SAMPLED: usize = 2;
/// Tokens sampled where an evaluation samples, prompts being as long as rows.
const SAMPLED: u64 = 16;
/// Most rows of the first sampling; more are measured if they fit into the budget.
const FIRST_ROWS: usize = 4;

/// The sizes of a stage's passes.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
struct Sizes {
    /// Tokens, rows and targets of a training pass, if it trains.
    training: Option<(u64, u64, u64)>,
    /// Responses at once, tokens of a prompt and of a response, if it generates.
    generation: Option<(u64, u64, u64)>,
}

impl Sizes {
    fn of(work: Workload) -> Self {
        match work {
            Workload::Train {
                micro_tokens,
                rows,
                targets,
            } => Self {
                training: Some((micro_tokens, rows, targets)),
                generation: None,
            },
            Workload::Generate {
                batch,
                prompt,
                response,
            } => Self {
                training: None,
                generation: Some((batch, prompt, response)),
            },
            Workload::Ppo {
                micro_tokens,
                rows,
                targets,
                batch,
                prompt,
                response,
                ..
            } => Self {
                training: Some((micro_tokens, rows, targets.min(micro_tokens))),
                generation: Some((batch, prompt, response)),
            },
        }
    }
}

/// The pace of `stage`, one of `stages`, which `plan` plans. Measured in place of it: nothing of the run is changed.
///
/// # Errors
/// Those of loading its model and of the device.
pub fn measure<B: ModelBackend>(
    session: &mut Session<'_, B>,
    stages: &[Stage],
    stage: &Stage,
    plan: &StagePlan,
) -> Result<Pace> {
    let Some(work) = plan.workload else {
        return Ok(Pace::default());
    };
    let mut sizes = Sizes::of(work);
    if let (Some((tokens, rows, _)), None, true) =
        (sizes.training, sizes.generation, plan.work.sampled > 0.0)
    {
        // Samples of its evaluations.
        // A prompt of a whole row has no place for a response.
        let prompt = (tokens / rows.max(1)).saturating_sub(SAMPLED);
        sizes.generation = Some((FIRST_ROWS as u64, prompt, SAMPLED));
    }
    let (init, of_start) = start(stages, stage);
    let policy = session.policy(init)?;
    let vocab = policy.config.vocab_size() as u32;
    let device = session.device.clone();
    let training = stage.training();
    // A stage that only generates has the adapters of the stage that it starts from.
    let adapted = of_start.filter(|peft| peft.adapter().is_some());
    let mut pace = Pace::default();
    let model = match training.map(|training| training.peft).or(adapted) {
        None => policy.model,
        Some(peft) => {
            let mut trained = policy.into_trainable(peft, session.stage_seed("measure"))?;
            if let (Some((tokens, rows, targets)), Some(training)) = (sizes.training, training) {
                let mut pass = TrainingPass {
                    trained: &mut trained,
                    optim: Optimiser::new(training.optim.clone()),
                    recompute: training.gradient_checkpointing,
                    rows: Rows {
                        len: (tokens / rows.max(1)).max(2),
                        target_share: targets as f64 / tokens.max(1) as f64,
                        vocab,
                    },
                };
                (pace.trained, pace.update) = pass.measure(tokens, &device)?;
            }
            trained.model.valid()
        }
    };
    let (tokens, len, share) = match (sizes.training, sizes.generation) {
        (Some((tokens, rows, targets)), _) => {
            let share = targets as f64 / tokens.max(1) as f64;
            (tokens, tokens / rows.max(1), share)
        }
        (None, Some((batch, prompt, response))) => {
            let row = prompt + response;
            (batch * row, row, response as f64 / row.max(1) as f64)
        }
        (None, None) => (0, 0, 0.0),
    };
    if tokens > 0 {
        let rows = Rows {
            len: len.max(2),
            target_share: share,
            vocab,
        };
        pace.forward = forward_pace::<B>(&model, &rows, tokens, &device)?;
    }
    if let Some((batch, prompt, response)) = sizes.generation {
        pace.sampled = sampling_pace::<B>(&model, vocab, batch, prompt, response, &device)?;
    }
    Ok(pace)
}

/// The model that exists before the run from which `stage` starts, and what the stages between train.
fn start<'a>(stages: &'a [Stage], stage: &'a Stage) -> (&'a Init, Option<&'a Peft>) {
    let mut init = first_init(stage);
    let mut peft = None;
    while let Init::Stage(name) = init {
        let Some(earlier) = stages.iter().find(|earlier| earlier.name() == name) else {
            break;
        };
        peft = peft.or(earlier.training().map(|training| training.peft));
        init = first_init(earlier);
    }
    (init, peft)
}

/// The model of a stage; of several the one that was trained longest, the last.
fn first_init(stage: &Stage) -> &Init {
    let inputs = stage.inputs();
    let judge = inputs.judge.and_then(|(judge, _)| judge.model());
    let last = inputs.models.last().map(|(_, init)| *init);
    last.or(judge).unwrap_or(&Init::Base)
}

/// Rows of arbitrary tokens.
#[derive(Debug, Clone, Copy)]
struct Rows {
    len: u64,
    target_share: f64,
    vocab: u32,
}

impl Rows {
    /// Rows of `tokens` tokens in all, two at least.
    fn of(&self, tokens: u64) -> Vec<Vec<u32>> {
        let len = self.len.min(tokens).max(2);
        let count = (tokens / len).max(1);
        let row = |row: u64| -> Vec<u32> {
            let id = |place: u64| (1 + 7 * row + 13 * place) % u64::from(self.vocab.max(1));
            (0..len).map(|place| id(place) as u32).collect()
        };
        (0..count).map(row).collect()
    }

    /// Positions whose states predict a target, and the targets: the last tokens of each row, one at least.
    fn targets(&self, rows: &[Vec<u32>]) -> (Vec<usize>, Vec<u32>) {
        let (mut positions, mut targets, mut start) = (Vec::new(), Vec::new(), 0);
        for row in rows {
            let share = (row.len() as f64 * self.target_share).round() as usize;
            let count = share.clamp(1, row.len() - 1);
            positions.extend(start + row.len() - 1 - count..start + row.len() - 1);
            targets.extend(&row[row.len() - count..]);
            start += row.len();
        }
        (positions, targets)
    }
}

/// The tokens that were asked for, as a part of those of whole rows.
fn share_of(tokens: u64, rows: &[Vec<u32>]) -> f64 {
    let there: usize = rows.iter().map(Vec::len).sum();
    tokens as f64 / there as f64
}

/// Seconds of `run`, which returns once the device is done.
fn timed(run: impl FnOnce() -> Result<()>) -> Result<f64> {
    let begin = Instant::now();
    run()?;
    Ok(begin.elapsed().as_secs_f64())
}

/// Seconds per token of a pass of at most `most` tokens: the fastest of several, after a small one.
fn per_token(most: u64, mut pass: impl FnMut(u64) -> Result<f64>) -> Result<f64> {
    let first = FIRST_TOKENS.min(most).max(2);
    pass(first)?;
    let seconds = pass(first)?;
    let fit = (BUDGET_S / seconds.max(1e-6) * first as f64) as u64;
    let tokens = fit.clamp(first, most.max(first));
    let (mut best, mut spent) = (f64::INFINITY, 0.0);
    for _ in 0..MAX_REPEATS {
        let seconds = pass(tokens)?;
        best = best.min(seconds);
        spent += seconds;
        if spent > BUDGET_S {
            break;
        }
    }
    Ok(best / tokens as f64)
}

/// Training passes of one model.
struct TrainingPass<'a, B: ModelBackend> {
    trained: &'a mut TrainablePolicy<B>,
    optim: Optimiser<B>,
    recompute: bool,
    rows: Rows,
}

impl<B: ModelBackend> TrainingPass<'_, B> {
    /// Seconds per token, and per step of the optimiser.
    fn measure(&mut self, tokens: u64, device: &B::Device) -> Result<(f64, f64)> {
        let mut updates = Vec::new();
        let per_token = per_token(tokens, |tokens| {
            let ids = self.rows.of(tokens);
            let slices: Vec<&[u32]> = ids.iter().map(Vec::as_slice).collect();
            let (positions, targets) = self.rows.targets(&ids);
            let count = targets.len() as f64;
            let model = &mut self.trained.model;
            let mut sum = Accumulator::<B>::default();
            let pass = timed(|| {
                let batch = TokenBatch::<Autodiff<B>>::from_rows(&slices, device);
                let at = Some(indices(&positions, device));
                let (states, tape) = Tape::states_at(model, batch, at, None, self.recompute);
                let (logprobs, _) = model.logprobs(states, &Arc::new(targets), 1.0);
                let loss = cross_entropy(logprobs);
                sum.report(loss.clone());
                sum.backward(&loss, tape, model);
                guard::check::<B>(device)
            })?;
            let update = timed(|| {
                // A rate of 0 leaves the weights as they are, for the passes after it.
                optimise(model, &mut self.optim, sum.gradients, count, 0.0)
                    .map_err(|NonFinite(what)| Error::Backend(format!("{what} is not finite")))?;
                guard::check::<B>(device)
            })?;
            updates.push(update);
            Ok(pass * share_of(tokens, &ids))
        })?;
        let update = updates.into_iter().fold(f64::INFINITY, f64::min);
        Ok((per_token, update))
    }
}

/// Seconds per token of forward passes with log-probabilities.
fn forward_pace<B: ModelBackend>(
    model: &LanguageModel<B>,
    rows: &Rows,
    tokens: u64,
    device: &B::Device,
) -> Result<f64> {
    per_token(tokens, |tokens| {
        let ids = rows.of(tokens);
        let slices: Vec<&[u32]> = ids.iter().map(Vec::as_slice).collect();
        let (positions, targets) = rows.targets(&ids);
        let seconds = timed(|| {
            let batch = TokenBatch::<B>::from_rows(&slices, device);
            let hidden = model.states_at(&batch, Some(indices(&positions, device)), None, None);
            let (logprobs, _) = model.logprobs(hidden, &Arc::new(targets), 1.0);
            read(logprobs);
            Ok(())
        })?;
        Ok(seconds * share_of(tokens, &ids))
    })
}

/// Seconds per sampled token with `batch` responses at once, without the prompts' pass.
fn sampling_pace<B: ModelBackend>(
    model: &LanguageModel<B>,
    vocab: u32,
    batch: u64,
    prompt: u64,
    response: u64,
    device: &B::Device,
) -> Result<f64> {
    // Equal prompts share one pass, which would take most of the time here.
    let prompt: Vec<u32> = (0..prompt.max(1)).map(|i| (1 + i as u32) % vocab).collect();
    let sample = |rows: usize, tokens: usize| {
        let prompts = vec![prompt.as_slice(); rows];
        let options = GenerateOptions {
            max_new_tokens: tokens,
            sampling: SamplingConfig::default(),
            repetition_penalty: 1.0,
            stop_ids: Vec::new(),
            truncate: None,
            batch_size: rows,
        };
        timed(|| {
            generate(
                model,
                &prompts,
                &options,
                Seed::new(0),
                device,
                &mut |_, _| {},
            );
            Ok(())
        })
    };
    // The difference of a longer and a shorter response has no prompt in it.
    let per_step = |rows: usize, tokens: usize| -> Result<f64> {
        let shorter = sample(rows, FIRST_SAMPLED)?;
        let longer = sample(rows, FIRST_SAMPLED + tokens)?;
        Ok((longer - shorter).max(0.0) / tokens as f64)
    };
    let rows = FIRST_ROWS.min(batch.max(1) as usize);
    let most = (response as usize).saturating_sub(FIRST_SAMPLED).max(1);
    sample(rows, FIRST_SAMPLED)?;
    let step = per_step(rows, 1.min(most))?;
    // As many rows as the stage has, unless some steps of them take too long: then as many as fit.
    let fit = (BUDGET_S / 2.0 / step.max(1e-6) * rows as f64) as usize;
    let rows = (batch.max(1) as usize).min(fit.max(rows));
    let step = per_step(rows, 2.min(most))?;
    let steps = ((BUDGET_S / step.max(1e-6)) as usize).clamp(2.min(most), most);
    Ok(per_step(rows, steps)? / rows as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_have_the_planned_lengths_and_targets() {
        let rows = Rows {
            len: 10,
            target_share: 0.25,
            vocab: 100,
        };
        let ids = rows.of(35);
        assert_eq!(ids.iter().map(Vec::len).collect::<Vec<_>>(), [10, 10, 10]);
        let (positions, targets) = rows.targets(&ids);
        // A quarter of ten is 2.5, rounded to 3: the states before the last three tokens.
        assert_eq!(positions, [6, 7, 8, 16, 17, 18, 26, 27, 28]);
        assert_eq!(targets[..3], ids[0][7..]);
        assert!(ids.concat().iter().all(|&id| id < 100));
        assert_eq!(rows.of(3), [vec![1, 14, 27]]);
        // Thirty tokens took the time that 35 are said to take.
        assert_eq!(share_of(35, &ids), 35.0 / 30.0);
    }

    #[test]
    fn a_pass_takes_its_budget_and_no_more() {
        // A microsecond a token, with 10 more on each pass.
        let mut passes = Vec::new();
        let pace = per_token(2_000_000, |tokens| {
            passes.push(tokens);
            Ok(1e-6 * tokens as f64 + 1e-5)
        });
        assert!((pace.unwrap() - 1e-6).abs() < 1e-10);
        assert_eq!(passes[..2], [128, 128]);
        assert!(passes.len() <= 4, "{passes:?}");
        // Small passes are repeated.
        let mut count = 0;
        per_token(64, |_| {
            count += 1;
            Ok(1e-3)
        })
        .unwrap();
        assert_eq!(count, 2 + MAX_REPEATS);
    }
}
