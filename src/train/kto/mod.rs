//! Kahneman-Tversky optimisation: learning from single responses with a label.
//!
//! # Source
//! Ethayarajh et al. 2024, arXiv:2402.01306; keys, metrics and details of TRL 1.16's `KTOTrainer`, on packed rows. The KL divergence is
//! estimated over the whole batch of a step, in TRL over a micro-batch.

mod balance;
mod config;
mod held_out;
mod mismatched;
mod reference;
mod response_sums;
mod rows;
mod spec;

use burn::backend::Autodiff;
use burn::module::AutodiffModule;
use burn::tensor::Tensor;

use super::Session;
use super::policy::save_policy;
use super::session::{Outcome, data_files, stopping};
use super::shared::{Accumulator, Training};
use crate::collective;
use crate::data::{Batches, Labelled, Labels, TokenRows, step_parts};
use crate::error::{Error, Result};
use crate::loss::{self, KtoLoss, KtoObjective, response_sums as sums_of};
use crate::model::{CausalLm, LanguageModel, Tape};
use crate::ops::ModelBackend;
use crate::report::StageRecord;
use held_out::{HeldOut, evaluate};
use mismatched::mismatched;
use reference::{Reference, StepReference};
use response_sums::ResponseSums;
use rows::ResponseRows;

pub use config::KtoConfig;

impl KtoConfig {
    /// The loss with its parameters.
    fn objective(&self) -> KtoObjective {
        KtoObjective {
            loss_type: self.loss_type,
            beta: self.beta,
            desirable_weight: self.desirable_weight,
            undesirable_weight: self.undesirable_weight,
        }
    }

    /// Weights of desirable and undesirable responses.
    fn weights(&self) -> [f64; 2] {
        [self.desirable_weight, self.undesirable_weight]
    }

    /// Whether the loss needs an estimate of the KL divergence.
    fn estimates_kl(&self) -> bool {
        self.loss_type == KtoLoss::Kto
    }
}

/// Trains, and evaluates on held-out responses.
///
/// The reference is the policy before training, as in Dpo.
///
/// # Errors
/// Those of data and models; `Error::Usage` if all labels are equal; `Error::NonFinite`; `Error::Interrupted`.
fn kto<B: ModelBackend>(session: &mut Session<'_, B>, config: &KtoConfig) -> Result<Outcome> {
    let device = session.device.clone();
    let seed = session.stage_seed(&config.name);
    let policy = session.policy(&config.init)?;
    let (model_config, tokenizer) = (policy.config.clone(), policy.tokenizer.clone());
    let base = policy.base.clone();
    let encoding = Labels {
        max_length: config.max_length,
    };
    let train = session.token_rows("labelled responses", &config.data, &tokenizer, &encoding)?;
    let valid = match &config.eval_data {
        Some(data) => session.token_rows("held-out responses", data, &tokenizer, &encoding)?,
        None => TokenRows::default(),
    };
    let labels = num_labels(&train)?;
    if let Some(problem) = balance::problem(labels) {
        return Err(Error::Usage(format!("stage {}: {problem}", config.name)));
    }
    let tokenizer = stopping(&tokenizer, train.report())?;
    let data = (
        data_files(&config.data, session.run.path()),
        train.num_read(),
    );
    session.record(&config.name, &format!("{:?}", config.init), &[data])?;

    let reference = policy.model.clone();
    let mut trained = policy.into_trainable(&config.peft, seed)?;
    let batches = Batches::new(
        train.len(),
        config.batch_size,
        config.epochs,
        config.shuffle.then(|| seed.fork("order")),
    )
    .with_steps(config.max_steps);
    let steps = batches.num_steps();
    let [desirable, undesirable] = labels;
    let summary = format!("{desirable} desirable and {undesirable} undesirable responses");
    let mut training = Training::open(
        session,
        &config.name,
        &summary,
        steps,
        &config.cadence,
        &config.optim,
        &mut trained.model,
    )?
    .at_rates_of(&config.peft);
    let held_out = HeldOut::new(session, config, &reference, valid, &tokenizer)?;
    let first = training.next_step().unwrap_or(steps);
    let reference = Reference::new(session, reference, &train, &batches, first, config)?;

    let mut last = None;
    if training.is_fresh() {
        let model = trained.model.valid();
        evaluate(session, &mut training, config, &model, &held_out)?;
    }
    while let Some(step) = training.next_step() {
        let batch = batches.batch(step);
        let items = train.get(batch.iter().copied())?;
        let items: Vec<&Labelled> = items.iter().map(AsRef::as_ref).collect();
        let others = match config.estimates_kl() {
            true => mismatched(&items, config.max_length),
            false => Vec::new(),
        };
        let lens: Vec<usize> = items.iter().map(|item| item.ids.len()).collect();
        let parts = step_parts(&lens, config.micro_batch_tokens);
        let own = parts.own();
        let of_reference = reference.step(step, &batch, &items, &others, own, &device);
        let kl = kl_estimate(
            &trained.model.valid(),
            &items,
            &others,
            own,
            &of_reference,
            &device,
        );
        let mut sum = Accumulator::default();
        // All ranks have the same, and rank 0's numbers come first.
        if collective::ranks().is_first() {
            sum.numbers.push(kl.clone());
        }
        let rows: Vec<ResponseRows<'_>> = (parts.all().iter())
            .map(|part| ResponseRows::new(part.iter().map(|&i| items[i])))
            .collect();
        let own_rows = rows
            .iter()
            .enumerate()
            .filter(|(place, _)| parts.has(*place));
        for ((_, rows), ref_logprobs) in own_rows.zip(of_reference.own) {
            backward(
                rows,
                ref_logprobs,
                &kl,
                config,
                &mut trained.model,
                &mut sum,
                &device,
            );
        }
        let mut numbers = sum.read_numbers();
        let kl = (numbers.next()).map_or(0.0, |kl| f64::from(kl[0]));
        let mut sums = ResponseSums::with_kl(kl);
        let all: Vec<&[u32]> = items.iter().map(|item| item.ids.as_slice()).collect();
        for rows in &rows {
            sums.add_reported(rows, &mut numbers)
                .map_err(|problem| training.non_finite(problem, &all))?;
        }
        let count = batch.len() as f64;
        let taken = training.optimise(&mut trained.model, sum.gradients, count, &all)?;
        let mut metrics = sums.means(config, false);
        metrics.extend(taken);
        let tokens = lens.iter().map(|&len| len as u64).sum();
        training.journal.step(session, tokens, &metrics)?;
        if training.journal.evaluates() {
            let model = trained.model.valid();
            last = evaluate(session, &mut training, config, &model, &held_out)?;
        }
        training.save_if_due(session, &mut trained.model)?;
    }
    let journal = training.finish(session, &mut trained.model)?;
    save_policy(journal.dir(), &trained, &model_config, &tokenizer, &base)?;
    let results = StageRecord {
        summary: match last {
            Some(margin) => format!("held-out margin of the implicit reward {margin:.3}"),
            None => format!("{steps} steps"),
        },
        ..StageRecord::default()
    };
    journal.finish(session, results)
}

/// Numbers of desirable and undesirable responses.
fn num_labels(rows: &TokenRows<Labelled>) -> Result<[usize; 2]> {
    let mut counts = [0, 0];
    for row in rows.iter() {
        counts[usize::from(!row?.label)] += 1;
    }
    Ok(counts)
}

/// The KL divergence of the policy from the reference over a batch, `[1]`, nats per response, at least 0: the mean log ratio of responses
/// that belong to other prompts. 0 without such `others`.
///
/// # Source
/// arXiv:2402.01306, section 4.1.
fn kl_estimate<B: ModelBackend>(
    policy: &LanguageModel<B>,
    items: &[&Labelled],
    others: &[Labelled],
    parts: &[Vec<usize>],
    reference: &StepReference<B>,
    device: &B::Device,
) -> Tensor<B, 1> {
    if others.is_empty() {
        return Tensor::zeros([1], device);
    }
    let mut total = Tensor::zeros([1], device);
    for (part, of_reference) in parts.iter().zip(&reference.others) {
        let rows = ResponseRows::new(part.iter().map(|&i| &others[i]));
        let logps = sums_of(rows.logprobs(policy, device), &rows.lens);
        total = total + (logps - of_reference.clone()).sum();
    }
    let total = collective::total(total, device);
    (total / items.len() as f64).clamp_min(0.0)
}

/// Adds the gradient of the summed loss of some responses to `sum`, with the numbers that [`ResponseSums::add_reported`] reads.
fn backward<B: ModelBackend>(
    rows: &ResponseRows<'_>,
    ref_logprobs: Tensor<B, 1>,
    kl: &Tensor<B, 1>,
    config: &KtoConfig,
    policy: &mut LanguageModel<Autodiff<B>>,
    sum: &mut Accumulator<B>,
    device: &B::Device,
) {
    let (packed, at, targets) = rows.packed(device);
    let checkpointing = config.gradient_checkpointing;
    let (states, tape) = Tape::states_at(policy, packed, Some(at), None, checkpointing);
    let (logprobs, _) = policy.logprobs(states, &targets, 1.0);
    sum.report(logprobs.clone());
    sum.numbers.push(ref_logprobs.clone());
    let log_ratios = sums_of(logprobs - Tensor::from_inner(ref_logprobs), &rows.lens);
    let kl = Tensor::from_inner(kl.clone());
    let loss = loss::kto(log_ratios, &rows.labels, kl, &config.objective());
    sum.report(loss.clone());
    sum.backward(&loss, tape, policy);
}
