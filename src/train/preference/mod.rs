//! Learning from comparisons: the loop of the stages Dpo, Cpo and Orpo. A batch element is a prompt with all its pairs; chosen and
//! rejected responses share one packed forward pass.
//!
//! # Source
//! Rafailov et al. 2023, arXiv:2305.18290; keys, metrics and details of TRL 1.16's `DPOTrainer`, `CPOTrainer` and `ORPOTrainer`, on packed
//! rows.

mod config;
mod held_out;
mod micro_batch;
mod objective;
mod pair_sums;
mod reference;
mod sorted;
mod spec;
mod step;

use burn::module::AutodiffModule;

use crate::data::{Batches, Comparisons, Preferences, TokenRows};
use crate::error::Result;
use crate::ops::ModelBackend;
use crate::report::StageRecord;
use crate::train::Session;
use crate::train::policy::save_policy;
use crate::train::session::{Outcome, data_files, stopping};
use crate::train::shared::Training;
pub(in crate::train) use config::{PreferenceKeys, preference_config, whole};
use held_out::{HeldOut, evaluate, prompts};
pub(in crate::train) use micro_batch::MicroBatch;
pub(in crate::train) use objective::Objective;
use pair_sums::PairSums;
use reference::{Reference, all_logprobs, packed};
pub(in crate::train) use spec::{
    PreferenceMethod, ReferencePasses, check, check_reference, inputs, plan, preference_stage,
};
pub(in crate::train) use step::{Step, StepTaken};

/// The settings of a stage on comparisons.
pub(in crate::train) struct Settings<'a> {
    pub(in crate::train) keys: PreferenceKeys<'a>,
    pub(in crate::train) objective: Objective,
    /// Whether the reference's log-probabilities are computed before training.
    pub(in crate::train) precompute_ref_log_probs: bool,
}

/// Trains, and evaluates on held-out comparisons.
///
/// The reference, where the loss has one, is the policy before training: with fresh adapters the base alone, with continued ones the
/// base and a copy of them, in full fine-tuning a frozen copy of the model. There is no dropout (TRL's `disable_dropout`): before the
/// first step the policy must equal its reference.
///
/// # Errors
/// Those of data and models; `Error::NonFinite`; `Error::Interrupted`.
pub(in crate::train) fn train<B: ModelBackend>(
    session: &mut Session<'_, B>,
    settings: &Settings<'_>,
) -> Result<Outcome> {
    let keys = settings.keys;
    let device = session.device.clone();
    let seed = session.stage_seed(keys.name);
    let policy = session.policy(keys.init)?;
    let (model_config, tokenizer) = (policy.config.clone(), policy.tokenizer.clone());
    let base = policy.base.clone();
    let encoding = Preferences {
        max_length: keys.max_length,
        with_best: false,
    };
    let train = session.token_rows("comparisons", keys.data, &tokenizer, &encoding)?;
    let valid = match keys.eval_data {
        Some(data) => session.token_rows("held-out comparisons", data, &tokenizer, &encoding)?,
        None => TokenRows::default(),
    };
    let tokenizer = stopping(&tokenizer, train.report())?;
    let data = (data_files(keys.data, session.run.path()), train.num_read());
    session.record(keys.name, &format!("{:?}", keys.init), &[data])?;

    let objective = &settings.objective;
    let reference = objective.has_reference().then(|| policy.model.clone());
    let mut trained = policy.into_trainable(keys.peft, seed)?;
    let batches = Batches::new(
        train.len(),
        keys.batch_size,
        keys.epochs,
        keys.shuffle.then(|| seed.fork("order")),
    )
    .with_steps(keys.max_steps);
    let steps = batches.num_steps();
    let summary = format!(
        "{} comparisons of {} prompts",
        train.num_pairs(),
        train.len()
    );
    let mut training = Training::open(
        session,
        keys.name,
        &summary,
        steps,
        keys.cadence,
        keys.optim,
        &mut trained.model,
    )?
    .at_rates_of(keys.peft);
    let held_out = HeldOut {
        ref_logprobs: match &reference {
            Some(reference) => {
                let logprobs = all_logprobs(session, reference, &valid, settings)?;
                Some(packed(logprobs.iter()))
            }
            None => None,
        },
        prompts: prompts(&valid, &tokenizer, keys.cadence.num_samples)?,
        items: valid,
        tokenizer: &tokenizer,
    };
    let reference = Reference::new(session, reference, &train, settings)?;

    let mut last = None;
    if training.is_fresh() {
        let model = trained.model.valid();
        evaluate(session, &mut training, settings, &model, &held_out)?;
    }
    let step = Step {
        objective,
        micro_batch_tokens: keys.micro_batch_tokens,
        gradient_checkpointing: keys.gradient_checkpointing,
        device: &device,
    };
    while let Some(index) = training.next_step() {
        let batch = batches.batch(index);
        let items = train.get(batch.iter().copied())?;
        let items: Vec<&Comparisons> = items.iter().map(AsRef::as_ref).collect();
        let taken = step.take(&mut training, &mut trained.model, &items, |micro, part| {
            let part: Vec<usize> = part.iter().map(|&i| batch[i]).collect();
            reference.logprobs(micro, &part, &device)
        })?;
        let StepTaken { metrics, tokens } = taken;
        training.journal.step(session, tokens, &metrics)?;
        if training.journal.evaluates() {
            let model = trained.model.valid();
            last = evaluate(session, &mut training, settings, &model, &held_out)?;
        }
        training.save_if_due(session, &mut trained.model)?;
    }
    let journal = training.finish(session, &mut trained.model)?;
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
