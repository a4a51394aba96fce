//! Hindsight instruction relabelling: rounds of sampling under one instruction, and of supervised learning of what was sampled under the
//! instruction that it fits.
//!
//! # Source
//! Zhang et al. 2023, arXiv:2302.05206, algorithm 1; section 4.2 for parts of outputs, whose places it leaves open.

mod config;
mod relabel;
mod spec;

pub use config::{HirConfig, Instructions};

use std::collections::BTreeMap;
use std::sync::Arc;

use burn::backend::Autodiff;
use burn::module::AutodiffModule;

use crate::data::{Prompt, TokenRows, step_parts};
use crate::error::{Error, Result};
use crate::generate::{GenerateOptions, Response, SamplingConfig, generate};
use crate::host::indices;
use crate::loss::{HirObjective, hir as hir_loss};
use crate::model::{CausalLm, LanguageModel, Tape};
use crate::ops::ModelBackend;
use crate::report::{RolloutReport, StageRecord};
use crate::reward::RewardSource;
use crate::rng::Seed;
use crate::tokens::TokenBatch;
use crate::train::evaluate::{Evaluator, completions};
use crate::train::generation::Generation;
use crate::train::policy::save_policy;
use crate::train::rescue::attempt;
use crate::train::rollout::{HeldOut, SCORE, evaluate, held_out_prompts, next_prompts, prompts};
use crate::train::session::{Outcome, data_files};
use crate::train::shared::{Accumulator, NonFinite, Training, finite};
use crate::train::{Policy, Session};
use relabel::{InstructedPrompt, Output, Relabelled, cuts, relabelled};

/// Samples, relabels and trains, `iterations` times.
///
/// # Errors
/// Those of data, models and the reward source; `Error::NonFinite`; `Error::Interrupted`.
pub(super) fn hir<B: ModelBackend>(
    session: &mut Session<'_, B>,
    config: &HirConfig,
) -> Result<Outcome> {
    let device = session.device.clone();
    let seed = session.stage_seed(&config.name);
    let policy = session.policy(&config.init)?;
    let longest = config.max_prompt_length;
    let train = prompts(session, &policy, &config.data, longest, "prompts")?;
    let held_out = held_out_prompts(session, &policy, config.eval_data.as_ref(), longest)?;
    let held_out: Vec<Prompt> = (held_out.iter())
        .map(|prompt| config.instructed(prompt, &policy).map(|both| both.correct))
        .collect::<Result<_>>()?;
    let source = session.reward_source(&config.reward, &policy.tokenizer)?;
    let mut sources = BTreeMap::from([(SCORE.to_owned(), source)]);
    let data = (data_files(&config.data, session.run.path()), train.len());
    session.record(&config.name, &format!("{:?}", config.init), &[data])?;

    let reference = policy.model.clone();
    let mut trained = policy.clone().into_trainable(&config.peft, seed)?;
    let summary = format!(
        "{} rounds of {} responses to each of {} prompts, {} prompts",
        config.iterations,
        config.num_responses,
        config.prompts_per_iteration,
        train.len()
    );
    let mut training = Training::open(
        session,
        &config.name,
        &summary,
        config.iterations,
        &config.cadence,
        &config.optim,
        &mut trained.model,
    )?
    .at_rates_of(&config.peft);
    let options = config.options(&policy)?;
    let evaluator = Evaluator {
        prompts: &held_out,
        tokenizer: &policy.tokenizer,
        options: options.clone(),
        reference: Some(&reference),
        micro_batch_tokens: config.micro_batch_tokens,
        seed: seed.fork("evaluation"),
    };
    let first = if training.is_fresh() {
        let now = trained.model.valid();
        evaluate(
            session,
            &mut training.journal,
            &evaluator,
            &now,
            &mut sources,
        )?
    } else {
        HeldOut::logged(&mut training.journal)?
    };
    let mut last = None;
    while let Some(round) = training.next_step() {
        let source = sources.get_mut(SCORE).expect("made above");
        let sampled = attempt(|| {
            // Dropped before the training: weights with a second owner could not be updated in place.
            let now = trained.model.valid();
            let batch = batch(config, &train, &policy, round, seed.fork("prompts"))?;
            let seed = seed.fork("rollout").fork_index(round as u64);
            sample(
                session,
                config,
                &policy,
                &now,
                &batch,
                source.as_mut(),
                &options,
                seed,
            )
        });
        let samples =
            sampled.map_err(|failed| training.failed(session, &mut trained.model, failed))?;
        let order = seed.fork("order").fork_index(round as u64);
        let losses = learn(
            config,
            &mut trained.model,
            &mut training,
            &samples.rows,
            order,
            &device,
        )?;
        let mut metrics = samples.metrics;
        metrics.extend(losses);
        training.journal.step(session, samples.tokens, &metrics)?;
        if training.journal.evaluates() {
            let now = trained.model.valid();
            last = evaluate(
                session,
                &mut training.journal,
                &evaluator,
                &now,
                &mut sources,
            )?;
        }
        training.save_if_due(session, &mut trained.model)?;
    }
    let journal = training.finish(session, &mut trained.model)?;
    let (tokenizer, base) = (&policy.tokenizer, &policy.base);
    save_policy(journal.dir(), &trained, &policy.config, tokenizer, base)?;
    session.warn_of_sources(sources.values());
    let summary = HeldOut::change(first, last, "score under the instruction")
        .unwrap_or_else(|| format!("{} rounds", config.iterations));
    let results = StageRecord {
        summary,
        ..StageRecord::default()
    };
    journal.finish(session, results)
}

impl HirConfig {
    fn instructed<B: ModelBackend>(
        &self,
        prompt: &Prompt,
        policy: &Policy<B>,
    ) -> Result<InstructedPrompt> {
        let both = InstructedPrompt::new(prompt, &self.instructions, &policy.tokenizer)?;
        let most = policy.config.max_positions();
        let longest = both.longest() + self.response_length;
        match policy.config.has_learned_positions() && longest > most {
            true => Err(Error::Stage {
                stage: self.name.clone(),
                message: format!(
                    "a prompt with its instruction and response may have {longest} tokens, and the model's table of positions takes at \
                     most {most}: lower `max_prompt_length` or `response_length`"
                ),
            }),
            false => Ok(both),
        }
    }

    fn options<B: ModelBackend>(&self, policy: &Policy<B>) -> Result<GenerateOptions> {
        Generation {
            response_length: self.response_length,
            sampling: SamplingConfig {
                temperature: self.temperature,
                ..SamplingConfig::default()
            },
            truncate: None,
            batch_size: self.generation_batch_size,
        }
        .options(&policy.tokenizer)
    }

    fn objective(&self) -> HirObjective {
        HirObjective {
            label_smoothing: self.label_smoothing,
            contrastive_coef: self.contrastive_coef,
            entropy_coef: self.entropy_coef,
            contrast: self.contrast,
        }
    }
}

/// The prompts of a round: plain ones, which rewards read, and those under both instructions.
struct RoundPrompts {
    plain: Vec<Prompt>,
    instructed: Vec<InstructedPrompt>,
}

fn batch<B: ModelBackend>(
    config: &HirConfig,
    train: &TokenRows<Prompt>,
    policy: &Policy<B>,
    round: usize,
    seed: Seed,
) -> Result<RoundPrompts> {
    let plain = next_prompts(train, config.prompts_per_iteration, round, seed)?;
    let instructed = plain.iter().map(|prompt| config.instructed(prompt, policy));
    Ok(RoundPrompts {
        instructed: instructed.collect::<Result<_>>()?,
        plain,
    })
}

/// Relabelled responses of a round.
struct RoundSamples {
    rows: Vec<Relabelled>,
    tokens: u64,
    metrics: Vec<(&'static str, f64)>,
}

#[allow(clippy::too_many_arguments, reason = "all of a round's parts, once")]
fn sample<B: ModelBackend>(
    session: &mut Session<'_, B>,
    config: &HirConfig,
    policy: &Policy<B>,
    model: &LanguageModel<B>,
    batch: &RoundPrompts,
    source: &mut dyn RewardSource,
    options: &GenerateOptions,
    seed: Seed,
) -> Result<RoundSamples> {
    let of_prompt: Vec<usize> = (0..batch.plain.len())
        .flat_map(|prompt| std::iter::repeat_n(prompt, config.num_responses))
        .collect();
    let ids: Vec<&[u32]> = (of_prompt.iter())
        .map(|&prompt| batch.instructed[prompt].correct.ids.as_slice())
        .collect();
    let total = ids.len();
    let device = session.device.clone();
    let reporter = &mut *session.reporter;
    let responses = generate(model, &ids, options, seed, &device, &mut |done, tokens| {
        reporter.rollout(&RolloutReport {
            what: "responses",
            done,
            total,
            tokens,
        });
    });
    // A reward reads the prompt as it is in the data.
    let plain: Vec<Prompt> = of_prompt.iter().map(|&i| batch.plain[i].clone()).collect();
    let completions = completions(&plain, &responses, &policy.tokenizer)?;
    let scores = session.score(source, &completions)?;
    let fits: Vec<bool> = (scores.iter())
        .map(|&score| f64::from(score) > config.threshold)
        .collect();
    let whole =
        (of_prompt.iter().zip(&responses).zip(&fits)).map(|((&prompt, of), &fits)| Output {
            prompt,
            response: &of.ids,
            from: 0,
            fits,
        });
    let mut outputs: Vec<Output<'_>> = whole.collect();
    let parts = sub_outputs(
        session, config, policy, batch, source, &of_prompt, &responses,
    )?;
    outputs.extend(&parts);
    let rows = relabelled(&batch.instructed, &outputs);
    let count = responses.len() as f64;
    let correct_parts = parts.iter().filter(|part| part.fits).count() as f64;
    let tokens: u64 = responses.iter().map(|r| r.ids.len() as u64).sum();
    let correct = fits.iter().filter(|&&fits| fits).count() as f64;
    let ended = responses.iter().filter(|r| r.stopped).count() as f64;
    let mut metrics = vec![
        ("score", crate::rl::mean(&scores)),
        ("hir/correct", correct / count),
        (
            "hir/duplicates",
            1.0 - rows.len() as f64 / outputs.len() as f64,
        ),
        ("eos_rate", ended / count),
        ("response_length", tokens as f64 / count),
    ];
    if !parts.is_empty() {
        let share = correct_parts / parts.len() as f64;
        metrics.push(("hir/correct_parts", share));
    }
    Ok(RoundSamples {
        metrics,
        rows,
        tokens,
    })
}

/// The rests of responses from some places on, each with whether it fits by itself.
fn sub_outputs<'a, B: ModelBackend>(
    session: &mut Session<'_, B>,
    config: &HirConfig,
    policy: &Policy<B>,
    batch: &RoundPrompts,
    source: &mut dyn RewardSource,
    of_prompt: &[usize],
    responses: &'a [Response],
) -> Result<Vec<Output<'a>>> {
    let places: Vec<(usize, usize)> = (responses.iter().enumerate())
        .flat_map(|(i, of)| cuts(of.ids.len(), config.sub_outputs).map(move |from| (i, from)))
        .collect();
    if places.is_empty() {
        return Ok(Vec::new());
    }
    let plain: Vec<Prompt> = (places.iter())
        .map(|&(i, _)| batch.plain[of_prompt[i]].clone())
        .collect();
    let rests: Vec<Response> = (places.iter())
        .map(|&(i, from)| Response {
            ids: responses[i].ids[from..].to_vec(),
            logprobs: responses[i].logprobs[from..].to_vec(),
            stopped: responses[i].stopped,
        })
        .collect();
    let completions = completions(&plain, &rests, &policy.tokenizer)?;
    let scores = session.score(source, &completions)?;
    let part = |(&(i, from), &score): (&(usize, usize), &f32)| Output {
        prompt: of_prompt[i],
        response: &responses[i].ids,
        from,
        fits: f64::from(score) > config.threshold,
    };
    Ok(places.iter().zip(&scores).map(part).collect())
}

/// Trains on the responses of a round; returns means over its tokens and responses.
fn learn<B: ModelBackend>(
    config: &HirConfig,
    model: &mut LanguageModel<Autodiff<B>>,
    training: &mut Training<B>,
    rows: &[Relabelled],
    seed: Seed,
    device: &B::Device,
) -> Result<Vec<(&'static str, f64)>> {
    let mut sums = [0.0; 3];
    let (mut tokens, mut outputs, mut norms, mut steps, mut lr) = (0usize, 0usize, 0.0, 0, 0.0);
    for epoch in 0..config.epochs {
        let order = seed.fork_index(epoch as u64).permutation(rows.len());
        for batch in order.chunks(config.batch_size) {
            let batch: Vec<&Relabelled> = batch.iter().map(|&i| &rows[i]).collect();
            let ids: Vec<&[u32]> = batch.iter().map(|row| row.own.as_slice()).collect();
            let count: usize = batch.iter().map(|row| row.len).sum();
            let mut accumulated = gradients(config, model, &batch, count, device);
            let mut parts = [0.0; 3];
            for (i, number) in accumulated.read_numbers().flatten().enumerate() {
                parts[i % 3] += f64::from(number);
            }
            let non_finite = |problem: NonFinite| training.non_finite(problem, &ids);
            finite("loss", parts.iter().sum()).map_err(non_finite)?;
            let taken = training.optimise(model, accumulated.gradients, 1.0, &ids)?;
            for (sum, part) in sums.iter_mut().zip(parts) {
                *sum += part;
            }
            norms += taken[0].1;
            lr = taken[1].1;
            steps += 1;
            tokens += count;
            outputs += batch.len();
        }
    }
    let [supervised, contrastive, negative_entropy] = sums;
    let (supervised, entropy) = (
        supervised / tokens as f64,
        -negative_entropy / tokens as f64,
    );
    let contrastive = contrastive / outputs as f64;
    let loss = supervised + config.contrastive_coef * contrastive - config.entropy_coef * entropy;
    Ok(vec![
        ("loss", loss),
        ("loss/supervised", supervised),
        ("loss/contrastive", contrastive),
        ("hir/entropy", entropy),
        ("grad_norm", norms / f64::from(steps)),
        ("lr", lr),
    ])
}

/// Gradients of the loss of a batch with `count` tokens in its responses, and its three sums for each micro-batch.
fn gradients<B: ModelBackend>(
    config: &HirConfig,
    model: &mut LanguageModel<Autodiff<B>>,
    batch: &[&Relabelled],
    count: usize,
    device: &B::Device,
) -> Accumulator<B> {
    let objective = config.objective();
    let lens: Vec<usize> = batch
        .iter()
        .map(|row| row.own.len() + row.other.len())
        .collect();
    let mut sum = Accumulator::<B>::default();
    let parts = step_parts(&lens, config.micro_batch_tokens);
    for part in parts.own() {
        let part: Vec<&Relabelled> = part.iter().map(|&i| batch[i]).collect();
        let rows: Vec<&[u32]> = (part.iter().map(|row| row.own.as_slice()))
            .chain(part.iter().map(|row| row.other.as_slice()))
            .collect();
        let packed = TokenBatch::<Autodiff<B>>::from_rows(&rows, device);
        let lens: Vec<usize> = part.iter().map(|row| row.len).collect();
        let targets: Vec<u32> = (part.iter())
            .flat_map(|row| &row.own[row.own.len() - row.len..])
            .copied()
            .collect();
        let positions: Vec<usize> = (packed.segments.iter())
            .zip(lens.iter().chain(&lens))
            .flat_map(|(range, len)| range.end - len - 1..range.end - 1)
            .collect();
        let at = Some(indices(&positions, device));
        let checkpointing = config.gradient_checkpointing;
        let (states, tape) = Tape::states_at(model, packed, at, None, checkpointing);
        let [_, width] = states.dims();
        let own = states.clone().slice([0..targets.len(), 0..width]);
        let other = states.slice([targets.len()..2 * targets.len(), 0..width]);
        let logits = model.logits(own);
        let targets = Arc::new(targets);
        let (others, _) = model.logprobs(other, &targets, 1.0);
        let terms = hir_loss(logits, others, &targets, &lens, &objective);
        for value in [
            &terms.supervised,
            &terms.contrastive,
            &terms.negative_entropy,
        ] {
            sum.report(value.clone());
        }
        let loss = terms.loss(&objective, count, batch.len());
        sum.backward(&loss, tape, model);
    }
    sum
}
