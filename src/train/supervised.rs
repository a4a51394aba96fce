//! The loop of language modelling and supervised fine-tuning: cross-entropy on trained tokens.

use std::collections::BTreeMap;
use std::sync::Arc;

use burn::backend::Autodiff;
use burn::module::AutodiffModule;

use super::config::{Cadence, OptimConfig, Peft};
use super::evaluate::{Evaluator, SampleRequest, greedy_samples};
use super::forward::{example_loss, trained_positions};
use super::policy::{Policy, TrainablePolicy, save_policy};
use super::session::Outcome;
use super::shared::{Accumulator, NonFinite, Training, finite};
use super::{MetricNames, Session};
use crate::data::{Batches, Example, Prompt, TokenRows, Tokenizer, step_parts_with};
use crate::error::Result;
use crate::generate::GenerateOptions;
use crate::host::indices;
use crate::loss::cross_entropy;
use crate::model::{CausalLm, LanguageModel, Tape};
use crate::ops::ModelBackend;
use crate::optim::GradientSum;
use crate::params::Parameters;
use crate::report::{RolloutReport, StageRecord};
use crate::reward::RewardSource;
use crate::rng::Seed;
use crate::tokens::TokenBatch;

/// The settings and data of the loop.
pub(super) struct SupervisedTraining<'a> {
    pub(super) stage: &'a str,
    pub(super) peft: &'a Peft,
    pub(super) optim: &'a OptimConfig,
    pub(super) epochs: usize,
    pub(super) max_steps: Option<usize>,
    pub(super) batch_size: usize,
    /// Most tokens of a row.
    pub(super) max_length: usize,
    pub(super) shuffle: bool,
    pub(super) micro_batch_tokens: usize,
    pub(super) gradient_checkpointing: bool,
    pub(super) cadence: &'a Cadence,
    pub(super) train: TokenRows<Example>,
    pub(super) valid: TokenRows<Example>,
    /// Held-out prompts for samples at each evaluation; empty for language modelling.
    pub(super) prompts: Vec<Prompt>,
    /// Residual dropout in training.
    pub(super) dropout: f64,
    /// Held-out responses that a reward source scores at each evaluation.
    pub(super) graded: Option<Graded>,
}

/// Held-out prompts whose responses are scored.
pub(super) struct Graded {
    pub(super) prompts: Vec<Prompt>,
    pub(super) options: GenerateOptions,
    /// One source, named `reward`.
    pub(super) sources: BTreeMap<String, Box<dyn RewardSource>>,
}

/// Names of the metrics that every such stage logs.
pub(super) fn metric_names() -> MetricNames {
    MetricNames::of_steps(&["trained_tokens"])
        .with_both(&["loss"])
        .with(&["eval/perplexity"])
}

/// Trains, evaluates, checkpoints and saves.
pub(super) fn run<B: ModelBackend>(
    session: &mut Session<'_, B>,
    mut work: SupervisedTraining<'_>,
    policy: Policy<B>,
) -> Result<Outcome> {
    let device = session.device.clone();
    let seed = session.stage_seed(work.stage);
    let (config, tokenizer) = (policy.config.clone(), policy.tokenizer.clone());
    let base = policy.base.clone();
    let mut trained = policy.into_trainable(work.peft, seed)?;
    trained.model.residual_dropout = work.dropout;
    if work.peft.trains_base() {
        session.free_bases();
    }
    let batches = Batches::new(
        work.train.len(),
        work.batch_size,
        work.epochs,
        work.shuffle.then(|| seed.fork("order")),
    )
    .with_steps(work.max_steps);
    let (num_trained, total) = trained.model.count_parameters();
    let summary = format!(
        "{} rows, {} of {} parameters trained",
        work.train.len(),
        crate::report::format_value(num_trained as f64),
        crate::report::format_value(total as f64)
    );
    let steps = batches.num_steps();
    let mut training = Training::open(
        session,
        work.stage,
        &summary,
        steps,
        work.cadence,
        work.optim,
        &mut trained.model,
    )?
    .at_rates_of(work.peft);
    // On resume the journal already has the evaluations up to here.
    let first_loss = match training.is_fresh() {
        true => evaluate(session, &mut training, &mut work, &tokenizer, &trained)?,
        false => training.journal.first("eval/loss")?,
    };
    let mut last_loss = None;
    while let Some(step) = training.next_step() {
        let batch = work.train.get(batches.batch(step))?;
        let rows: Vec<&Example> = batch.iter().map(AsRef::as_ref).collect();
        let ids: Vec<&[u32]> = rows.iter().map(|row| row.ids.as_slice()).collect();
        let tokens: u64 = ids.iter().map(|ids| ids.len() as u64).sum();
        let targets = rows.iter().map(|row| num_targets(row)).sum::<usize>() as f64;
        let dropout = seed.fork("dropout").fork_index(step as u64);
        let (gradients, loss) = gradients(&mut trained.model, &rows, &work, dropout, &device)
            .map_err(|(problem, part)| training.non_finite(problem, &part))?;
        let taken = training.optimise(&mut trained.model, gradients, targets, &ids)?;
        let mut metrics = vec![("loss", loss / targets)];
        metrics.extend(taken);
        metrics.push(("trained_tokens", targets));
        training.journal.step(session, tokens, &metrics)?;
        if training.journal.evaluates() {
            last_loss = evaluate(session, &mut training, &mut work, &tokenizer, &trained)?;
        }
        training.save_if_due(session, &mut trained.model)?;
    }
    let journal = training.finish(session, &mut trained.model)?;
    save_policy(journal.dir(), &trained, &config, &tokenizer, &base)?;
    let summary = match (first_loss, last_loss) {
        (Some(first), Some(last)) => {
            format!("held-out loss {first:.4} -> {last:.4} nats per trained token")
        }
        (None, Some(last)) => format!("held-out loss {last:.4} nats per trained token"),
        _ => format!("{steps} steps"),
    };
    let results = StageRecord {
        summary,
        ..StageRecord::default()
    };
    if let Some(graded) = &work.graded {
        session.warn_of_sources(graded.sources.values());
    }
    journal.finish(session, results)
}

impl Graded {
    /// Generates and scores a response to each prompt; every evaluation has the same random numbers.
    fn scores<B: ModelBackend>(
        &mut self,
        session: &mut Session<'_, B>,
        model: &LanguageModel<B>,
        tokenizer: &Tokenizer,
        micro_batch_tokens: usize,
    ) -> Result<[(&'static str, f64); 3]> {
        let device = session.device.clone();
        let evaluator = Evaluator {
            prompts: &self.prompts,
            tokenizer,
            options: self.options.clone(),
            reference: None,
            micro_batch_tokens,
            seed: session.seed.fork("held-out responses"),
        };
        let reporter = &mut *session.reporter;
        let total = self.prompts.len();
        let found = evaluator.run(model, &mut self.sources, &device, &mut |done, tokens| {
            reporter.rollout(&RolloutReport {
                what: "evaluation",
                done,
                total,
                tokens,
            });
        });
        session.say_of(self.sources.values_mut());
        let found = found?;
        let reward = found.scores.values().next().copied().unwrap_or_default();
        Ok([
            ("eval/reward", reward),
            ("eval/response_length", found.response_length),
            ("eval/eos_rate", found.eos_rate),
        ])
    }
}

/// Number of trained tokens of a row.
fn num_targets(row: &Example) -> usize {
    row.trained.iter().filter(|&&trained| trained).count()
}

/// Gradients of the cross-entropy, summed over the trained tokens of `rows`, and that sum in nats.
///
/// # Errors
/// [`NonFinite`], with the rows of the micro-batch whose loss is not finite.
#[allow(clippy::type_complexity, reason = "the error is taken apart at once")]
fn gradients<'a, B: ModelBackend>(
    model: &mut LanguageModel<Autodiff<B>>,
    rows: &[&'a Example],
    work: &SupervisedTraining<'_>,
    dropout: Seed,
    device: &B::Device,
) -> std::result::Result<(GradientSum<B>, f64), (NonFinite, Vec<&'a [u32]>)> {
    let lens: Vec<usize> = rows.iter().map(|row| row.ids.len()).collect();
    let drops = work.dropout > 0.0 || work.peft.dropout() > 0.0;
    let parts = step_parts_with(&lens, work.micro_batch_tokens, drops);
    let ids = |part: &[usize]| -> Vec<&'a [u32]> {
        part.iter().map(|&i| rows[i].ids.as_slice()).collect()
    };
    let mut sum = Accumulator::<B>::default();
    for (index, part) in parts.own_indexed() {
        // Parts of a step have masks of their own.
        let dropout = match index {
            0 => dropout,
            index => dropout.fork_index(index as u64),
        };
        let examples: Vec<&Example> = part.iter().map(|&i| rows[i]).collect();
        let batch = TokenBatch::<Autodiff<B>>::from_rows(&ids(part), device);
        let (positions, targets) = trained_positions(&examples, &batch.segments);
        let positions = Some(indices(&positions, device));
        let checkpointing = work.gradient_checkpointing;
        let (states, tape) = Tape::states_at(model, batch, positions, Some(dropout), checkpointing);
        let (logprobs, _) = model.logprobs(states, &Arc::new(targets), 1.0);
        let loss = cross_entropy(logprobs);
        sum.report(loss.clone());
        sum.backward(&loss, tape, model);
    }
    let mut loss = 0.0;
    for (part, value) in parts.all().iter().zip(sum.read_numbers()) {
        loss += finite("loss", f64::from(value[0])).map_err(|problem| (problem, ids(part)))?;
    }
    Ok((sum.gradients, loss))
}

/// Evaluates the held-out loss, if there is held-out data, and generates samples.
fn evaluate<B: ModelBackend>(
    session: &mut Session<'_, B>,
    training: &mut Training<B>,
    work: &mut SupervisedTraining<'_>,
    tokenizer: &Tokenizer,
    trained: &TrainablePolicy<B>,
) -> Result<Option<f64>> {
    if work.valid.is_empty() {
        return Ok(None);
    }
    let (device, journal) = (session.device.clone(), &mut training.journal);
    let model = trained.model.valid();
    let (sum, count) = example_loss(&model, &work.valid, work.micro_batch_tokens, &device)?;
    let loss = sum / count as f64;
    let mut metrics = vec![("eval/loss", loss), ("eval/perplexity", loss.exp())];
    if let Some(graded) = &mut work.graded {
        metrics.extend(graded.scores(session, &model, tokenizer, work.micro_batch_tokens)?);
    }
    journal.eval(session, &metrics)?;
    let mut longest = 1;
    for row in work.valid.iter() {
        let row = row?;
        longest = longest.max(row.ids.len() - row.prompt_len);
    }
    let prompts = &work.prompts[..journal.num_samples().min(work.prompts.len())];
    let request = SampleRequest {
        prompts,
        max_new_tokens: SampleRequest::within(work.max_length, prompts, longest),
        step: journal.position.step,
    };
    for sample in greedy_samples(&model, tokenizer, &request, &device)? {
        journal.sample(&sample)?;
    }
    Ok(Some(loss))
}
