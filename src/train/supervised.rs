//! The loop of language modelling and supervised fine-tuning: cross-entropy on trained tokens.

use std::sync::Arc;

use burn::backend::Autodiff;
use burn::module::AutodiffModule;

use super::Session;
use super::config::{Cadence, OptimConfig, Peft};
use super::evaluate::{SampleRequest, greedy_samples};
use super::forward::{example_loss, trained_positions};
use super::policy::{Policy, TrainablePolicy, save_policy};
use super::session::Outcome;
use super::shared::{Accumulator, NonFinite, Training, finite};
use crate::data::{Batches, Example, Prompt, TokenRows, Tokenizer, micro_batches};
use crate::error::Result;
use crate::host::indices;
use crate::loss::cross_entropy;
use crate::model::{CausalLm, LanguageModel, Tape};
use crate::ops::ModelBackend;
use crate::optim::GradientSum;
use crate::params::Parameters;
use crate::report::StageRecord;
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
}

/// Trains, evaluates, checkpoints and saves.
pub(super) fn run<B: ModelBackend>(
    session: &mut Session<'_, B>,
    work: SupervisedTraining<'_>,
    policy: Policy<B>,
) -> Result<Outcome> {
    let device = session.device.clone();
    let seed = session.stage_seed(work.stage);
    let (config, tokenizer) = (policy.config.clone(), policy.tokenizer.clone());
    let base = policy.base.clone();
    let mut trained = policy.into_trainable(work.peft, seed)?;
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
    let mut first_loss = None;
    if training.is_fresh() {
        first_loss = evaluate(session, &mut training, &work, &tokenizer, &trained)?;
    }
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
            last_loss = evaluate(session, &mut training, &work, &tokenizer, &trained)?;
        }
        training.save_if_due(session, &mut trained.model)?;
    }
    let journal = training.journal;
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
    journal.finish(session, results)
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
    let parts = micro_batches(&lens, work.micro_batch_tokens);
    let ids = |part: &[usize]| -> Vec<&'a [u32]> {
        part.iter().map(|&i| rows[i].ids.as_slice()).collect()
    };
    let mut sum = Accumulator::<B>::default();
    for part in &parts {
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
    for (part, value) in parts.iter().zip(sum.numbers.read()) {
        loss += finite("loss", f64::from(value[0])).map_err(|problem| (problem, ids(part)))?;
    }
    Ok((sum.gradients, loss))
}

/// Evaluates the held-out loss, if there is held-out data, and generates samples.
fn evaluate<B: ModelBackend>(
    session: &mut Session<'_, B>,
    training: &mut Training<B>,
    work: &SupervisedTraining<'_>,
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
    journal.eval(
        session,
        &[("eval/loss", loss), ("eval/perplexity", loss.exp())],
    )?;
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
