//! On-policy distillation: the divergence of a student from a frozen teacher over the whole vocabulary, token by token, on responses of
//! the student's own, of the teacher or of the data.
//!
//! # Source
//! Agarwal et al. 2024, arXiv:2306.13649 (GKD, algorithm 1); keys, defaults and details of TRL 1.16's `GKDTrainer`, on packed rows.
//! Sequence-level distillation (`seq_kd`): Kim and Rush 2016, arXiv:1606.07947.

mod config;
mod passes;
mod responses;
mod spec;

pub use config::DistillConfig;

use burn::module::AutodiffModule;

use crate::checkpoint::ModelRole;
use crate::collective;
use crate::data::{Batches, Prompt, Tokenizer, encode_prompts, own_micro_batches, step_parts_with};
use crate::error::Result;
use crate::generate::GenerateOptions;
use crate::model::LanguageModel;
use crate::ops::{Divergence, ModelBackend};
use crate::report::StageRecord;
use crate::rng::Seed;
use crate::train::Session;
use crate::train::evaluate::{SampleRequest, greedy_samples};
use crate::train::policy::save_policy;
use crate::train::rescue::attempt;
use crate::train::session::{Outcome, data_files, stopping};
use crate::train::shared::{Accumulator, Training, finite};
use passes::{PassSettings, backward, divergence};
use responses::{Rows, Sequence, respond};

/// Trains the student, evaluates on held-out rows, and saves the student.
///
/// # Errors
/// Those of data and models; `Error::NonFinite`; `Error::Interrupted`.
pub(super) fn distill<B: ModelBackend>(
    session: &mut Session<'_, B>,
    config: &DistillConfig,
) -> Result<Outcome> {
    let device = session.device.clone();
    let seed = session.stage_seed(&config.name);
    let student = session.policy(&config.init)?;
    let teacher = session
        .policy_as(ModelRole::Teacher, &config.teacher)?
        .model;
    let (model_config, base) = (student.config.clone(), student.base.clone());
    let tokenizer = student.tokenizer.clone();
    let train = Rows::read(session, "training data", &config.data, config, &tokenizer)?;
    let valid = match &config.eval_data {
        Some(data) => {
            let rows = Rows::read(session, "held-out data", data, config, &tokenizer)?;
            let prompts = sample_prompts(session, config, &student.tokenizer)?;
            Some((rows, prompts))
        }
        None => None,
    };
    let tokenizer = match &train {
        Rows::Completions(rows) => stopping(&tokenizer, rows.report())?,
        Rows::Prompts(rows) => stopping(&tokenizer, rows.report())?,
    };
    let options = config.generation().options(&tokenizer)?;
    let data = data_files(&config.data, session.run.path());
    session.record(
        &config.name,
        &format!("{:?}", config.init),
        &[(data, train.num_read())],
    )?;

    let mut trained = student.into_trainable(&config.peft, seed)?;
    if config.peft.trains_base() {
        session.free_bases();
    }
    let order = config.shuffle.then(|| seed.fork("order"));
    let batches = Batches::new(train.len(), config.batch_size, config.epochs, order)
        .with_steps(config.max_steps);
    let steps = batches.num_steps();
    let summary = format!(
        "{} rows, {:.0} % on-policy",
        train.len(),
        100.0 * config.lmbda
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
    let held_out = valid.map(|(rows, prompts)| HeldOut {
        rows,
        prompts,
        teacher: &teacher,
        tokenizer: &tokenizer,
        options: &options,
        config,
        seed: seed.fork("evaluation"),
    });
    let of = config.divergence();
    let first = if training.is_fresh() {
        let model = trained.model.valid();
        evaluate(session, &mut training, held_out.as_ref(), &model)?
    } else {
        training.journal.first("eval/loss")?
    };
    let mut last = None;
    while let Some(step) = training.next_step() {
        let batch = batches.batch(step);
        let sampled = attempt(|| {
            // Dropped before the update: weights with a second owner could not be updated in place.
            let model = trained.model.valid();
            step_rows(
                session,
                config,
                &train,
                &batch,
                (&model, &teacher),
                &options,
                step,
            )
        });
        let (rows, on_policy) =
            sampled.map_err(|failed| training.failed(session, &mut trained.model, failed))?;
        let lens: Vec<usize> = rows.iter().map(|row| row.ids.len()).collect();
        let targets: usize = rows.iter().map(|row| row.targets.len()).sum();
        let drops = config.peft.dropout() > 0.0;
        let parts = step_parts_with(&lens, config.micro_batch_tokens, drops);
        let settings = PassSettings {
            divergence: of,
            dropout: seed.fork("dropout").fork_index(step as u64),
            gradient_checkpointing: config.gradient_checkpointing,
        };
        let mut sum = Accumulator::<B>::default();
        for part in parts.own() {
            let part: Vec<&Sequence> = part.iter().map(|&i| &rows[i]).collect();
            backward(
                &mut trained.model,
                &teacher,
                &part,
                settings,
                &mut sum,
                &device,
            );
        }
        let ids = |part: &[usize]| -> Vec<&[u32]> {
            part.iter().map(|&i| rows[i].ids.as_slice()).collect()
        };
        let mut loss = 0.0;
        for (part, value) in parts.all().iter().zip(sum.read_numbers()) {
            loss += finite("loss", f64::from(value[0]))
                .map_err(|problem| training.non_finite(problem, &ids(part)))?;
        }
        let all: Vec<usize> = (0..rows.len()).collect();
        let count = targets.max(1) as f64;
        let taken = training.optimise(&mut trained.model, sum.gradients, count, &ids(&all))?;
        let mut metrics = vec![("loss", loss / count)];
        metrics.extend(taken);
        metrics.extend([
            ("on_policy", f64::from(u8::from(on_policy))),
            ("response_length", targets as f64 / rows.len() as f64),
            ("trained_tokens", targets as f64),
        ]);
        let tokens = lens.iter().sum::<usize>() as u64;
        training.journal.step(session, tokens, &metrics)?;
        if training.journal.evaluates() {
            let model = trained.model.valid();
            last = evaluate(session, &mut training, held_out.as_ref(), &model)?;
        }
        training.save_if_due(session, &mut trained.model)?;
    }
    let journal = training.finish(session, &mut trained.model)?;
    save_policy(journal.dir(), &trained, &model_config, &tokenizer, &base)?;
    let summary = match (first, last) {
        (Some(first), Some(last)) => {
            format!("held-out divergence {first:.4} -> {last:.4} nats per token")
        }
        (None, Some(last)) => format!("held-out divergence {last:.4} nats per token"),
        _ => format!("{steps} steps"),
    };
    let results = StageRecord {
        summary,
        ..StageRecord::default()
    };
    journal.finish(session, results)
}

impl DistillConfig {
    /// The loss.
    fn divergence(&self) -> Divergence {
        Divergence {
            beta: self.beta,
            temperature: self.loss_temperature,
        }
    }
}

/// The rows of a step, and whether the student generated their responses.
fn step_rows<B: ModelBackend>(
    session: &mut Session<'_, B>,
    config: &DistillConfig,
    train: &Rows,
    batch: &[usize],
    (student, teacher): (&LanguageModel<B>, &LanguageModel<B>),
    options: &GenerateOptions,
    step: usize,
) -> Result<(Vec<Sequence>, bool)> {
    let seed = session.stage_seed(&config.name);
    let on_policy = seed.fork("share").uniform(step as u64) < config.lmbda;
    if !on_policy
        && !config.seq_kd
        && let Some(rows) = train.completions(batch)?
    {
        return Ok((rows, false));
    }
    let (model, label) = match on_policy {
        true => (student, "student"),
        false => (teacher, "teacher"),
    };
    let prompts = train.prompts(batch)?;
    let seed = seed.fork(label).fork_index(step as u64);
    Ok((respond(session, model, &prompts, options, seed), on_policy))
}

/// The first held-out prompts, for samples.
fn sample_prompts<B: ModelBackend>(
    session: &Session<'_, B>,
    config: &DistillConfig,
    tokenizer: &Tokenizer,
) -> Result<Vec<Prompt>> {
    let (Some(data), 1..) = (&config.eval_data, config.cadence.num_samples) else {
        return Ok(Vec::new());
    };
    let head = session.first_rows(data, config.cadence.num_samples)?;
    // No samples for conversations without a single prompt.
    let encoded = encode_prompts(&head, tokenizer, &data.format, config.max_length);
    Ok(encoded.map_or(Vec::new(), |encoded| encoded.items))
}

/// Held-out rows with what their evaluation takes.
struct HeldOut<'a, B: ModelBackend> {
    rows: Rows,
    prompts: Vec<Prompt>,
    teacher: &'a LanguageModel<B>,
    tokenizer: &'a Tokenizer,
    options: &'a GenerateOptions,
    config: &'a DistillConfig,
    seed: Seed,
}

/// The held-out divergence in nats per token: on the completions of the data, or without them on responses that the student generates, by
/// the same random numbers at every evaluation.
fn evaluate<B: ModelBackend>(
    session: &mut Session<'_, B>,
    training: &mut Training<B>,
    held_out: Option<&HeldOut<'_, B>>,
    student: &LanguageModel<B>,
) -> Result<Option<f64>> {
    let Some(held_out) = held_out.filter(|held_out| held_out.rows.len() > 0) else {
        return Ok(None);
    };
    let (config, device) = (held_out.config, session.device.clone());
    let all: Vec<usize> = (0..held_out.rows.len()).collect();
    let (mut sum, mut count) = (0.0, 0.0);
    for (index, part) in all.chunks(config.generation_batch_size).enumerate() {
        let rows = match held_out.rows.completions(part)? {
            Some(rows) => rows,
            None => {
                let prompts = held_out.rows.prompts(part)?;
                let seed = held_out.seed.fork_index(index as u64);
                respond(session, student, &prompts, held_out.options, seed)
            }
        };
        let lens: Vec<usize> = rows.iter().map(|row| row.ids.len()).collect();
        for part in own_micro_batches(&lens, config.micro_batch_tokens) {
            let part: Vec<&Sequence> = part.iter().map(|&i| &rows[i]).collect();
            let teacher = held_out.teacher;
            sum += divergence(student, teacher, &part, config.divergence(), &device);
            count += part.iter().map(|row| row.targets.len()).sum::<usize>() as f64;
        }
    }
    let [sum, count] = collective::sum_f64([sum, count]);
    let loss = sum / f64::max(count, 1.0);
    let journal = &mut training.journal;
    journal.eval(session, &[("eval/loss", loss)])?;
    let prompts = &held_out.prompts[..journal.num_samples().min(held_out.prompts.len())];
    let request = SampleRequest {
        prompts,
        max_new_tokens: config.response_length,
        step: journal.position.step,
    };
    for sample in greedy_samples(student, held_out.tokenizer, &request, &device)? {
        journal.sample(&sample)?;
    }
    Ok(Some(loss))
}
