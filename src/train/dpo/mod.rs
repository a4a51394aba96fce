//! Direct preference optimisation. A batch element is a prompt with all its pairs; chosen and rejected responses share one packed
//! forward pass.
//!
//! # Source
//! Rafailov et al. 2023, arXiv:2305.18290; keys, metrics and details of TRL 1.16's `DPOTrainer`, on packed rows.

mod config;
mod pair_sums;
mod spec;

pub use config::DpoConfig;

use std::sync::Arc;

use burn::backend::Autodiff;
use burn::module::AutodiffModule;
use burn::tensor::{Int, Tensor};
use serde_json::Map;

use crate::data::{Batches, Comparisons, Preferences, Prompt, TokenRows, Tokenizer, micro_batches};
use crate::error::Result;
use crate::host::{floats, indices, read};
use crate::loss::{self, DpoObjective, response_sums};
use crate::model::{CausalLm, LanguageModel, Tape};
use crate::ops::ModelBackend;
use crate::report::{RolloutReport, StageRecord};
use crate::tokens::TokenBatch;
use crate::train::Session;
use crate::train::evaluate::{SampleRequest, greedy_samples};
use crate::train::policy::save_policy;
use crate::train::session::{Outcome, data_files, stopping};
use crate::train::shared::{Accumulator, Training};
use pair_sums::{EVAL_NAMES, NAMES, PairSums};

/// Trains, and evaluates on held-out comparisons.
///
/// The reference is the policy before training: with fresh adapters the base alone, with continued ones the base and a copy of
/// them, in full fine-tuning a frozen copy of the model. There is no dropout (TRL's `disable_dropout`): before the first step
/// the policy must equal its reference.
///
/// # Errors
/// Those of data and models; `Error::NonFinite`; `Error::Interrupted`.
pub(super) fn dpo<B: ModelBackend>(
    session: &mut Session<'_, B>,
    config: &DpoConfig,
) -> Result<Outcome> {
    let device = session.device.clone();
    let seed = session.stage_seed(&config.name);
    let policy = session.policy(&config.init)?;
    let (model_config, tokenizer) = (policy.config.clone(), policy.tokenizer.clone());
    let base = policy.base.clone();
    let encoding = Preferences {
        max_length: config.max_length,
        with_best: false,
    };
    let train = session.token_rows("comparisons", &config.data, &tokenizer, &encoding)?;
    let valid = match &config.eval_data {
        Some(data) => session.token_rows("held-out comparisons", data, &tokenizer, &encoding)?,
        None => TokenRows::default(),
    };
    let tokenizer = stopping(&tokenizer, train.report())?;
    let data = (
        data_files(&config.data, session.run.path()),
        train.num_read(),
    );
    session.record(
        &config.name,
        &format!("{:?}", config.init),
        &policy.files,
        &[data],
    )?;

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
    let summary = format!(
        "{} comparisons of {} prompts",
        train.num_pairs(),
        train.len()
    );
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
    let held_out = HeldOut {
        ref_logprobs: all_logprobs(session, &reference, &valid, config)?.concat(),
        prompts: prompts(&valid, &tokenizer, config.cadence.num_samples)?,
        items: valid,
        tokenizer: &tokenizer,
    };
    let reference = Reference::new(session, reference, &train, config)?;

    let mut last = None;
    if training.is_fresh() {
        let model = trained.model.valid();
        evaluate(session, &mut training, config, &model, &held_out)?;
    }
    while let Some(step) = training.next_step() {
        let batch = batches.batch(step);
        let items = train.get(batch.iter().copied())?;
        let lens: Vec<usize> = items.iter().map(|item| item.packed_len()).collect();
        let parts = micro_batches(&lens, config.micro_batch_tokens);
        let micros: Vec<MicroBatch<'_>> = (parts.iter())
            .map(|part| MicroBatch::new(part.iter().map(|&i| items[i].as_ref())))
            .collect();
        let mut sum = Accumulator::default();
        for (micro, part) in micros.iter().zip(&parts) {
            let part: Vec<usize> = part.iter().map(|&i| batch[i]).collect();
            let ref_logprobs = reference.logprobs(micro, &part, &device);
            micro.backward(&mut trained.model, ref_logprobs, config, &mut sum, &device);
        }
        let mut sums = PairSums::default();
        let mut numbers = sum.numbers.read();
        for micro in &micros {
            sums.add_reported(micro, &mut numbers)
                .map_err(|problem| training.non_finite(problem, &micro.groups.concat()))?;
        }
        let rows: Vec<&[u32]> = micros
            .iter()
            .flat_map(|micro| micro.groups.concat())
            .collect();
        let prompts = batch.len() as f64;
        let taken = training.optimise(&mut trained.model, sum.gradients, prompts, &rows)?;
        let mut metrics = sums.means(NAMES, config.beta);
        metrics.extend(taken);
        let tokens = micros.iter().map(MicroBatch::num_tokens).sum();
        training.journal.step(session, tokens, &metrics)?;
        if training.journal.evaluates() {
            let model = trained.model.valid();
            last = evaluate(session, &mut training, config, &model, &held_out)?;
        }
        training.save_if_due(session, &mut trained.model)?;
    }
    let journal = training.journal;
    save_policy(journal.dir(), &trained, &model_config, &tokenizer, &base)?;
    let summary = match last {
        Some((accuracy, margin)) => format!(
            "held-out accuracy {:.1} % of the implicit reward, mean margin {margin:.3}",
            100.0 * accuracy
        ),
        None => format!("{steps} steps"),
    };
    let results = StageRecord {
        summary,
        ..StageRecord::default()
    };
    journal.finish(session, results)
}

/// The first held-out prompts, for samples; the best response is shown beside the generated one.
fn prompts(
    items: &TokenRows<Comparisons>,
    tokenizer: &Tokenizer,
    count: usize,
) -> Result<Vec<Prompt>> {
    let mut prompts = Vec::new();
    for item in items.iter() {
        if prompts.len() == count {
            break;
        }
        let item = item?;
        if item.prompt_len == 0 {
            continue;
        }
        let best = &item.responses[item.pairs[0].0];
        let (prompt, response) = best.split_at(item.prompt_len);
        let response = tokenizer.decode(response, true)?;
        prompts.push(Prompt {
            ids: prompt.to_vec(),
            text: tokenizer.decode(prompt, true)?,
            conversation: None,
            row: Map::from_iter([("completion".to_owned(), response.into())]),
        });
    }
    Ok(prompts)
}

fn objective(config: &DpoConfig) -> DpoObjective {
    DpoObjective {
        loss_type: config.loss_type,
        beta: config.beta,
        label_smoothing: config.label_smoothing,
    }
}

/// Responses to some prompts and the pairs among them, as indices into all responses.
struct MicroBatch<'a> {
    /// Token ids of prompt and response, by prompt.
    groups: Vec<Vec<&'a [u32]>>,
    /// Length of each prompt in tokens; at least 1, because nothing predicts a row's first token.
    prompt_lens: Vec<usize>,
    /// Length of each response in tokens.
    lens: Vec<usize>,
    pairs: loss::Comparisons,
}

impl<'a> MicroBatch<'a> {
    fn new(items: impl Iterator<Item = &'a Comparisons>) -> Self {
        let mut micro = Self {
            groups: Vec::new(),
            prompt_lens: Vec::new(),
            lens: Vec::new(),
            pairs: loss::Comparisons::new(),
        };
        for item in items {
            let first = micro.lens.len();
            let pairs = item.pairs.iter();
            micro.pairs.push_prompt(
                pairs.map(|&(chosen, rejected, _)| (first + chosen, first + rejected, 0.0)),
            );
            let prompt_len = item.prompt_len.max(1);
            micro.prompt_lens.push(prompt_len);
            let lens = item.responses.iter().map(|row| row.len() - prompt_len);
            micro.lens.extend(lens);
            let group = item.responses.iter().map(Vec::as_slice).collect();
            micro.groups.push(group);
        }
        micro
    }

    fn num_tokens(&self) -> u64 {
        self.groups
            .iter()
            .flatten()
            .map(|row| row.len() as u64)
            .sum()
    }

    /// Log-probabilities of all responses' tokens, concatenated. The common prefix of the responses to a prompt passes through
    /// the model once.
    fn logprobs<B: ModelBackend>(
        &self,
        model: &LanguageModel<B>,
        device: &B::Device,
    ) -> Tensor<B, 1> {
        let (batch, at, targets) = self.packed(device);
        let hidden = model.states_at(&batch, Some(at), None, None);
        model.logprobs(hidden, &targets, 1.0).0
    }

    /// Adds the gradient of the loss, summed over prompts, to `sum`, with the numbers that [`PairSums::add_reported`] reads.
    fn backward<B: ModelBackend>(
        &self,
        policy: &mut LanguageModel<Autodiff<B>>,
        ref_logprobs: Tensor<B, 1>,
        config: &DpoConfig,
        sum: &mut Accumulator<B>,
        device: &B::Device,
    ) {
        let (packed, at, targets) = self.packed(device);
        let checkpointing = config.gradient_checkpointing;
        let (states, tape) = Tape::states_at(policy, packed, Some(at), None, checkpointing);
        let (logprobs, _) = policy.logprobs(states, &targets, 1.0);
        sum.report(logprobs.clone());
        sum.numbers.push(ref_logprobs.clone());
        let log_ratios = response_sums(logprobs - Tensor::from_inner(ref_logprobs), &self.lens);
        let loss = loss::dpo(log_ratios, &self.lens, &self.pairs, objective(config));
        sum.report(loss.clone());
        sum.backward(&loss, tape, policy);
    }

    /// The packed rows, the positions of the states that predict response tokens, and these tokens.
    fn packed<B: ModelBackend>(
        &self,
        device: &B::Device,
    ) -> (TokenBatch<B>, Tensor<B, 1, Int>, Arc<Vec<u32>>) {
        let (batch, spans) = TokenBatch::from_groups(&self.groups, device);
        let prompt_lens = self.groups.iter().zip(&self.prompt_lens);
        let rows = prompt_lens.flat_map(|(group, &len)| group.iter().map(move |row| (row, len)));
        let (mut positions, mut targets) = (Vec::new(), Vec::new());
        for ((row, prompt_len), span) in rows.zip(&spans) {
            positions.extend((prompt_len..row.len()).map(|token| span.token(token - 1)));
            targets.extend(&row[prompt_len..]);
        }
        (batch, indices(&positions, device), Arc::new(targets))
    }

    /// Sums over each response of its tokens' `values`.
    fn sums(&self, values: impl Iterator<Item = f32>) -> Vec<f64> {
        let mut values = values.map(f64::from);
        let sum = |&len: &usize| values.by_ref().take(len).sum();
        self.lens.iter().map(sum).collect()
    }

    /// Log ratio of policy to reference for each response, nats.
    fn log_ratios(&self, logprobs: &[f32], ref_logprobs: &[f32]) -> Vec<f64> {
        self.sums(logprobs.iter().zip(ref_logprobs).map(|(a, b)| a - b))
    }
}

/// Log-probabilities of the responses' tokens of a whole data set, item by item.
fn all_logprobs<B: ModelBackend>(
    session: &mut Session<'_, B>,
    model: &LanguageModel<B>,
    items: &TokenRows<Comparisons>,
    config: &DpoConfig,
) -> Result<Vec<Vec<f32>>> {
    let device = session.device.clone();
    let mut out = vec![Vec::new(); items.len()];
    let lens = items.lens()?;
    let (mut done, mut tokens) = (0, 0);
    for part in micro_batches(&lens, config.micro_batch_tokens) {
        let rows = items.get(part.iter().copied())?;
        let micro = MicroBatch::new(rows.iter().map(AsRef::as_ref));
        let mut values = read(micro.logprobs(model, &device)).into_iter();
        let mut lens = micro.lens.iter();
        for (&i, row) in part.iter().zip(&rows) {
            let len = lens.by_ref().take(row.responses.len()).sum();
            out[i] = values.by_ref().take(len).collect();
        }
        done += part.len();
        tokens += micro.num_tokens();
        session.reporter.rollout(&RolloutReport {
            what: "log-probabilities",
            done,
            total: items.len(),
            tokens,
        });
    }
    Ok(out)
}

/// The reference policy.
enum Reference<B: ModelBackend> {
    /// A frozen model, evaluated at every step.
    Model(Box<LanguageModel<B>>),
    /// Its log-probabilities of every item; the model has been freed.
    Precomputed(Vec<Vec<f32>>),
}

impl<B: ModelBackend> Reference<B> {
    fn new(
        session: &mut Session<'_, B>,
        model: LanguageModel<B>,
        train: &TokenRows<Comparisons>,
        config: &DpoConfig,
    ) -> Result<Self> {
        if !config.precompute_ref_log_probs {
            return Ok(Self::Model(Box::new(model)));
        }
        let logprobs = all_logprobs(session, &model, train, config)?;
        if config.peft.trains_base() {
            session.free_bases();
        }
        Ok(Self::Precomputed(logprobs))
    }

    /// Its log-probabilities of the tokens of `micro`, which holds the items `part`.
    fn logprobs(&self, micro: &MicroBatch<'_>, part: &[usize], device: &B::Device) -> Tensor<B, 1> {
        match self {
            Self::Model(model) => micro.logprobs(model, device),
            Self::Precomputed(all) => {
                let all: Vec<f32> = part.iter().flat_map(|&i| all[i].clone()).collect();
                floats(&all, device)
            }
        }
    }
}

/// Held-out comparisons.
struct HeldOut<'a> {
    items: TokenRows<Comparisons>,
    /// Of all responses' tokens, concatenated.
    ref_logprobs: Vec<f32>,
    prompts: Vec<Prompt>,
    tokenizer: &'a Tokenizer,
}

/// Evaluates loss, accuracy and margins on the held-out comparisons and generates samples; returns accuracy and margin.
fn evaluate<B: ModelBackend>(
    session: &mut Session<'_, B>,
    training: &mut Training<B>,
    config: &DpoConfig,
    model: &LanguageModel<B>,
    held_out: &HeldOut<'_>,
) -> Result<Option<(f64, f64)>> {
    if held_out.items.is_empty() {
        return Ok(None);
    }
    let (device, journal) = (session.device.clone(), &mut training.journal);
    let logprobs = all_logprobs(session, model, &held_out.items, config)?.concat();
    let items = held_out.items.get(0..held_out.items.len())?;
    let micro = MicroBatch::new(items.iter().map(AsRef::as_ref));
    let log_ratios = micro.log_ratios(&logprobs, &held_out.ref_logprobs);
    let log_ratios: Vec<f32> = log_ratios.into_iter().map(|x| x as f32).collect();
    let loss = loss::dpo(
        floats::<B>(&log_ratios, &device),
        &micro.lens,
        &micro.pairs,
        objective(config),
    );
    let loss = f64::from(read(loss)[0]);
    let mut sums = PairSums::default();
    sums.add(&micro, &logprobs, &held_out.ref_logprobs, loss);
    let metrics = sums.means(EVAL_NAMES, config.beta);
    journal.eval(session, &metrics)?;
    let longest = micro.lens.iter().copied().max().unwrap_or(1);
    let request = SampleRequest {
        prompts: &held_out.prompts,
        max_new_tokens: SampleRequest::within(config.max_length, &held_out.prompts, longest),
        step: journal.position.step,
    };
    for sample in greedy_samples(model, held_out.tokenizer, &request, &device)? {
        journal.sample(&sample)?;
    }
    Ok(Some((metrics[3].1, metrics[4].1)))
}
