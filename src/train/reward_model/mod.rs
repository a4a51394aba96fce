//! Trains a reward model on comparisons. A batch element is a prompt with all its responses.

mod calibration;
mod config;
mod held_out;
mod micro_batch;
mod spec;

pub use config::RewardModelConfig;

use burn::backend::Autodiff;
use burn::module::AutodiffModule;

use super::Session;
use super::policy::{Policy, save_reward_model, token_ids};
use super::session::{Outcome, data_files};
use super::shared::{Accumulator, Training, finite};
use crate::data::{
    Batches, Comparisons, Preferences, Ratings, TextsOrCompletions, TokenRows, Tokenizer,
    step_parts_with,
};
use crate::error::{Error, Result};
use crate::loss::RewardLoss;
use crate::model::{PreparedAdapters, ScalarModel, prepare_adapters, trained_tensors};
use crate::ops::ModelBackend;
use crate::report::StageRecord;
use crate::train::config::DataConfig;
use held_out::{HeldOut, evaluate, measure};
use micro_batch::MicroBatch;

/// Rows in memory while labels are counted.
const ROWS_AT_ONCE: usize = 1024;

/// Trains, evaluates accuracy on held-out comparisons, and centres the scores.
///
/// # Errors
/// Those of data and models; `Error::NonFinite`; `Error::Interrupted`.
pub(super) fn reward_model<B: ModelBackend>(
    session: &mut Session<'_, B>,
    config: &RewardModelConfig,
) -> Result<Outcome> {
    let device = session.device.clone();
    let seed = session.stage_seed(&config.name);
    let Policy {
        model,
        config: model_config,
        tokenizer,
        adapter: present,
        base,
        score,
    } = session.policy(&config.init)?;
    let names = match config.loss_type {
        RewardLoss::Regression => ["ratings", "held-out ratings"],
        RewardLoss::BradleyTerry | RewardLoss::BestOfK => ["comparisons", "held-out comparisons"],
    };
    let train = comparisons(session, config, &tokenizer, &config.data, names[0])?;
    if config.safety_coef.is_some() || config.soft_labels {
        check_labels(session, config, &train)?;
    }
    // Rows of files were looked at before.
    if !config.data.source.stages().is_empty() && !config.soft_labels && !train.is_empty() {
        let first = train.get(0..1)?;
        if first[0].judgements.chosen_probability.is_some() {
            session.reporter.message(
                "comparisons: the rows have a `chosen_probability`, which is not used without `soft_labels: true`",
            );
        }
    }
    let valid = match &config.eval_data {
        Some(data) => comparisons(session, config, &tokenizer, data, names[1])?.into_vec()?,
        None => Vec::new(),
    };
    let data = (
        data_files(&config.data, session.run.path()),
        train.num_read(),
    );
    session.record(&config.name, &format!("{:?}", config.init), &[data])?;

    let mut backbone = model.into_backbone();
    let peft = token_ids(&config.peft, &tokenizer)?;
    trained_tensors(&model_config, true, &peft)?;
    let PreparedAdapters { adapter, merged } = prepare_adapters(
        &mut backbone,
        &model_config,
        present.as_ref(),
        &peft,
        seed,
        &|text| tokenizer.encode_document(text),
    )?;
    if config.peft.trains_base() {
        session.free_bases();
    }
    if merged {
        return Err(Error::Stage {
            stage: config.name.clone(),
            message: "its adapters differ in rank, scale or layers from those of `init`; give both the same `peft`".into(),
        });
    }
    let hidden = model_config.output_size();
    let mut model = ScalarModel::with_random_head(backbone, hidden, seed.fork("head"), &device);
    if let Some(head) = score {
        model.set_score(head, &device);
    }
    let references = match &config.center_on {
        Some(data) => reference_rows(session, config, data, &tokenizer)?,
        None => Vec::new(),
    };
    let reference_scores = |model: &ScalarModel<B>| {
        let rows: Vec<&[u32]> = references.iter().map(Vec::as_slice).collect();
        model.row_scores(&rows, config.micro_batch_tokens, &device, &mut |_, _| {})
    };
    if config.standardize {
        model.scale(1.0 / spread(config, &reference_scores(&model))?, &device);
    }
    let mut model = ScalarModel::<Autodiff<B>>::from_inner(model);
    config.peft.mark_trained(&mut model);

    let batches = Batches::new(
        train.len(),
        config.batch_size,
        config.epochs,
        config.shuffle.then(|| seed.fork("order")),
    )
    .with_steps(config.max_steps);
    let steps = batches.num_steps();
    let summary = match config.loss_type {
        RewardLoss::Regression => format!("ratings of responses to {} prompts", train.len()),
        RewardLoss::BradleyTerry | RewardLoss::BestOfK => format!(
            "{} comparisons of {} prompts",
            train.num_pairs(),
            train.len()
        ),
    };
    let mut training = Training::open(
        session,
        &config.name,
        &summary,
        steps,
        &config.cadence,
        &config.optim,
        &mut model,
    )?
    .at_rates_of(&config.peft);
    let mut held_out = None;
    if training.is_fresh() {
        evaluate(
            session,
            &mut training.journal,
            config,
            &model.valid(),
            &valid,
        )?;
    }
    while let Some(step) = training.next_step() {
        let batch = train.get(batches.batch(step))?;
        let items: Vec<&Comparisons> = batch.iter().map(AsRef::as_ref).collect();
        let lens: Vec<usize> = items.iter().map(|c| c.packed_len()).collect();
        let rows: Vec<&[u32]> = (items.iter())
            .flat_map(|c| c.responses.iter().map(Vec::as_slice))
            .collect();
        let dropout = seed.fork("dropout").fork_index(step as u64);
        let (mut sum, mut micros) = (Accumulator::default(), Vec::new());
        let drops = config.peft.dropout() > 0.0;
        let parts = step_parts_with(&lens, config.micro_batch_tokens, drops);
        for (place, part) in parts.all().iter().enumerate() {
            let micro = MicroBatch::new(part.iter().map(|&i| items[i]), config);
            if parts.has(place) {
                micro.backward(&mut model, config, dropout, &mut sum, &device);
            }
            micros.push(micro);
        }
        let (mut loss, mut correct, mut pairs) = (0.0, 0, 0);
        let mut numbers = sum.read_numbers();
        for micro in &micros {
            let mut next = || numbers.next().expect("two for each micro-batch");
            let (scores, value) = (next(), f64::from(next()[0]));
            loss += finite("loss", value)
                .map_err(|problem| training.non_finite(problem, &micro.groups.concat()))?;
            correct += micro.pairs.num_correct(&scores);
            pairs += micro.pairs.num_decided();
        }
        let prompts = items.len() as f64;
        let taken = training.optimise(&mut model, sum.gradients, prompts, &rows)?;
        let mut metrics = vec![("loss", loss / prompts)];
        if pairs > 0 {
            metrics.push(("accuracy", correct as f64 / pairs as f64));
        }
        metrics.extend(taken);
        let tokens = rows.iter().map(|row| row.len() as u64).sum();
        training.journal.step(session, tokens, &metrics)?;
        if training.journal.evaluates() {
            held_out = evaluate(
                session,
                &mut training.journal,
                config,
                &model.valid(),
                &valid,
            )?;
        }
        training.save_if_due(session, &mut model)?;
    }
    let journal = training.finish(session, &mut model)?;
    let mut model = model.valid();
    if held_out.is_none() || config.cadence.keep_best.is_some() {
        // Resumed after the last step, whose evaluation is in the metrics already; or the best checkpoint is an earlier one.
        held_out = measure(config, &model, &valid, &device).map(|(_, found)| found);
    }
    let mut centre = String::new();
    if !references.is_empty() {
        if config.standardize {
            model.scale(1.0 / spread(config, &reference_scores(&model))?, &device);
        }
        model.offset = crate::rl::mean(&reference_scores(&model));
        let scaled = if config.standardize {
            " with variance 1"
        } else {
            ""
        };
        centre = format!(
            "; scores shifted by {:.4} so that {} reference responses average 0{scaled}",
            -model.offset,
            references.len()
        );
    }
    save_reward_model(
        journal.dir(),
        &mut model,
        adapter.as_ref(),
        &model_config,
        &tokenizer,
        &base,
    )?;
    let results = match held_out {
        Some(HeldOut {
            summary,
            table,
            calibration,
        }) => StageRecord {
            summary: format!("{summary}{centre}"),
            table,
            calibration,
            ..StageRecord::default()
        },
        None => StageRecord {
            summary: format!("{steps} steps{centre}"),
            ..StageRecord::default()
        },
    };
    journal.finish(session, results)
}

/// The comparisons of a data set that the loss can use.
fn comparisons<B: ModelBackend>(
    session: &mut Session<'_, B>,
    config: &RewardModelConfig,
    tokenizer: &Tokenizer,
    data: &DataConfig,
    what: &str,
) -> Result<TokenRows<Comparisons>> {
    let max_length = config.max_length;
    if config.loss_type == RewardLoss::Regression {
        return session.token_rows(what, data, tokenizer, &Ratings { max_length });
    }
    let encoding = Preferences {
        max_length,
        with_best: config.loss_type == RewardLoss::BestOfK,
    };
    let rows = session.token_rows(what, data, tokenizer, &encoding)?;
    let (used, before) = (rows.len(), rows.report().kept);
    if used == 0 {
        return Err(Error::Stage {
            stage: config.name.clone(),
            message: format!(
                "of {before} prompts none has a response that is better than all its others, which `loss_type: best_of_k` needs"
            ),
        });
    }
    if used < before {
        session.reporter.message(&format!(
            "{what}: {} of {before} prompts left out without a best response",
            before - used
        ));
    }
    Ok(rows)
}

/// Refuses comparisons without the probabilities or the safety labels that the loss needs, and counts those that some lack: the rows of
/// earlier stages are not known when the recipe is checked.
fn check_labels<B: ModelBackend>(
    session: &mut Session<'_, B>,
    config: &RewardModelConfig,
    rows: &TokenRows<Comparisons>,
) -> Result<()> {
    let (mut counts, mut probabilities) = ([0, 0], 0);
    for first in (0..rows.len()).step_by(ROWS_AT_ONCE) {
        for row in rows.get(first..(first + ROWS_AT_ONCE).min(rows.len()))? {
            probabilities += usize::from(row.judgements.chosen_probability.is_some());
            for safe in row.judgements.safe.iter().flatten() {
                counts[usize::from(!safe)] += 1;
            }
        }
    }
    let refused = |message: String| Error::Stage {
        stage: config.name.clone(),
        message,
    };
    if config.safety_coef.is_some()
        && let Some(message) = spec::safety_problem(counts)
    {
        return Err(refused(format!("`safety_coef`: {message}")));
    }
    if config.soft_labels && probabilities == 0 {
        return Err(refused(format!(
            "`soft_labels`: none of the {} rows has a `chosen_probability`, which a Judge stage writes and a Rank stage does not",
            rows.len()
        )));
    }
    if config.soft_labels && probabilities < rows.len() {
        session.reporter.message(&format!(
            "comparisons: {} of {} rows have no `chosen_probability`; theirs is taken as 1",
            rows.len() - probabilities,
            rows.len()
        ));
    }
    Ok(())
}

/// Token ids of the responses that scores are centred on.
fn reference_rows<B: ModelBackend>(
    session: &mut Session<'_, B>,
    config: &RewardModelConfig,
    data: &DataConfig,
    tokenizer: &Tokenizer,
) -> Result<Vec<Vec<u32>>> {
    let encoding = TextsOrCompletions {
        max_length: config.max_length,
        completion_only: true,
        texts: false,
    };
    let examples = session.token_rows("reference responses", data, tokenizer, &encoding)?;
    Ok(examples.into_vec()?.into_iter().map(|e| e.ids).collect())
}

/// Standard deviation of the scores of the reference responses.
fn spread(config: &RewardModelConfig, scores: &[f32]) -> Result<f64> {
    let spread = crate::rl::variance(scores).sqrt();
    if spread > 0.0 && spread.is_finite() {
        return Ok(spread);
    }
    Err(Error::Stage {
        stage: config.name.clone(),
        message: format!(
            "`standardize` divides by the standard deviation of the scores of `center_on`, which is {spread} over {} responses",
            scores.len()
        ),
    })
}
