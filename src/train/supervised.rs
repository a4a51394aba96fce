//! The loop that language modelling and supervised fine-tuning share: cross-entropy on trained tokens.

use std::sync::Arc;

use burn::backend::Autodiff;
use burn::module::AutodiffModule;

use super::Session;
use super::config::{Cadence, OptimConfig, Peft};
use super::evaluate::{SampleRequest, draw_samples};
use super::forward::{example_loss, trained_positions};
use super::journal::Journal;
use super::policy::{Policy, Trainable, save_policy};
use super::session::Outcome;
use super::state::{restore_weights, trained_weights};
use crate::data::{Batches, Example, Prompt, Tokenizer, micro_batches};
use crate::error::Result;
use crate::host::{Later, indices};
use crate::loss::cross_entropy;
use crate::model::CausalLm;
use crate::model::Tape;
use crate::ops::ModelBackend;
use crate::optim::{AdamW, GradientSum, lr_at};
use crate::params::Parameters;
use crate::tokens::TokenBatch;

/// What the loop needs of either stage.
pub(super) struct Supervised<'a> {
    pub(super) stage: &'a str,
    pub(super) peft: &'a Peft,
    pub(super) optim: &'a OptimConfig,
    pub(super) epochs: usize,
    pub(super) batch_size: usize,
    pub(super) shuffle: bool,
    pub(super) micro_batch_tokens: usize,
    pub(super) gradient_checkpointing: bool,
    pub(super) cadence: &'a Cadence,
    pub(super) train: Vec<Example>,
    pub(super) valid: Vec<Example>,
    /// Held-out prompts to answer at each evaluation; none for plain language modelling.
    pub(super) prompts: Vec<Prompt>,
}

/// Trains, evaluates, checkpoints and saves.
pub(super) fn run<B: ModelBackend>(
    session: &mut Session<'_, B>,
    work: Supervised<'_>,
    policy: Policy<B>,
) -> Result<Outcome> {
    let device = session.device.clone();
    let seed = session.stage_seed(work.stage);
    let (config, tokenizer) = (policy.config.clone(), policy.tokenizer.clone());
    let base = policy.base.clone();
    let mut trained = policy.into_trainable(work.peft, seed)?;
    if trained.lora.is_none() {
        session.forget_bases();
    }
    let batches = Batches::new(
        work.train.len(),
        work.batch_size,
        work.epochs,
        work.shuffle.then(|| seed.fork("order")),
    );
    let (num_trained, total) = trained.model.count_parameters();
    let summary = format!(
        "{} rows, {} of {} parameters trained",
        work.train.len(),
        crate::report::format_value(num_trained as f64),
        crate::report::format_value(total as f64)
    );
    let steps = batches.num_steps();
    let (mut journal, restored) =
        Journal::open(session, work.stage, &summary, steps, work.cadence)?;
    let mut optim = AdamW::<B>::new(work.optim.clone());
    if let Some((folder, checkpoint)) = restored {
        restore_weights(
            &checkpoint.weights,
            "",
            &mut trained.model,
            &device,
            &folder,
        )?;
        optim.restore(checkpoint.optim, journal.position.updates[0], &device);
    }
    // A resumed run has its evaluations up to here in the journal.
    let mut first_loss = None;
    if journal.position.step == 0 {
        first_loss = evaluate(session, &mut journal, &work, &tokenizer, &trained, &device)?;
    }
    let mut last_loss = None;
    while journal.position.step < steps {
        let done = journal.position.step;
        let rows: Vec<&Example> = batches
            .batch(done)
            .into_iter()
            .map(|i| &work.train[i])
            .collect();
        let lens: Vec<usize> = rows.iter().map(|e| e.ids.len()).collect();
        let tokens: usize = lens.iter().sum();
        let targets: usize = rows
            .iter()
            .map(|e| e.trained.iter().filter(|&&t| t).count())
            .sum();
        let (mut sum, mut losses) = (GradientSum::<B>::default(), Later::default());
        let parts = micro_batches(&lens, work.micro_batch_tokens);
        for part in &parts {
            let part: Vec<&Example> = part.iter().map(|&i| rows[i]).collect();
            let ids: Vec<&[u32]> = part.iter().map(|e| e.ids.as_slice()).collect();
            let batch = TokenBatch::<Autodiff<B>>::from_rows(&ids, &device);
            let (positions, targets) = trained_positions(&part, &batch.segments);
            let dropout = seed.fork("dropout").fork_index(done as u64);
            let positions = Some(indices(&positions, &device));
            let model = &trained.model;
            let checkpointing = work.gradient_checkpointing;
            let (hidden, tape) =
                Tape::states_at(model, batch, positions, Some(dropout), checkpointing);
            let (logprobs, _) = trained.model.logprobs(hidden, &Arc::new(targets), 1.0);
            let part_loss = cross_entropy(logprobs);
            losses.push(part_loss.clone().inner());
            tape.backward(&part_loss, &mut trained.model, &mut sum);
        }
        let mut loss = 0.0;
        for (part, value) in parts.iter().zip(losses.read()) {
            if !value[0].is_finite() {
                let ids: Vec<&[u32]> = part.iter().map(|&i| rows[i].ids.as_slice()).collect();
                return Err(journal.non_finite("loss", &ids));
            }
            loss += f64::from(value[0]);
        }
        let lr = lr_at(&work.optim.schedule, work.optim.lr, done, steps);
        let norm = optim.update(&mut trained.model, sum, targets as f64, lr);
        if !norm.is_finite() {
            let ids: Vec<&[u32]> = rows.iter().map(|e| e.ids.as_slice()).collect();
            return Err(journal.non_finite("gradient norm", &ids));
        }
        journal.position.updates = vec![optim.num_updates()];
        let metrics = [
            ("loss", loss / targets as f64),
            ("grad_norm", norm),
            ("lr", lr),
            ("trained_tokens", targets as f64),
        ];
        journal.step(session, tokens as u64, &metrics)?;
        if journal.evaluates() {
            last_loss = evaluate(session, &mut journal, &work, &tokenizer, &trained, &device)?;
        }
        if journal.must_save() {
            let weights = trained_weights(&mut trained.model);
            journal.save(session, &weights, &optim.state())?;
        }
    }
    save_policy(journal.dir(), &trained, &config, &tokenizer, &base)?;
    let summary = match (first_loss, last_loss) {
        (Some(first), Some(last)) => {
            format!("held-out loss {first:.4} -> {last:.4} nats per trained token")
        }
        (None, Some(last)) => format!("held-out loss {last:.4} nats per trained token"),
        _ => format!("{steps} steps"),
    };
    journal.finish(session, &summary, "")?;
    Ok(Outcome {
        summary,
        table: String::new(),
    })
}

/// Held-out loss, if there is held-out data, and samples.
fn evaluate<B: ModelBackend>(
    session: &mut Session<'_, B>,
    journal: &mut Journal,
    work: &Supervised<'_>,
    tokenizer: &Tokenizer,
    trained: &Trainable<B>,
    device: &B::Device,
) -> Result<Option<f64>> {
    if work.valid.is_empty() {
        return Ok(None);
    }
    let model = trained.model.valid();
    let (sum, count) = example_loss(&model, &work.valid, work.micro_batch_tokens, device);
    let loss = sum / count as f64;
    journal.eval(
        session,
        &[("eval/loss", loss), ("eval/perplexity", loss.exp())],
    )?;
    let longest = work
        .valid
        .iter()
        .map(|e| e.ids.len() - e.prompt_len)
        .max()
        .unwrap_or(0);
    let request = SampleRequest {
        prompts: &work.prompts[..journal.num_samples().min(work.prompts.len())],
        max_new_tokens: longest.max(1),
        step: journal.position.step,
    };
    for sample in draw_samples(&model, tokenizer, &request, device)? {
        journal.sample(&sample)?;
    }
    Ok(Some(loss))
}
