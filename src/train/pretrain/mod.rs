//! Plain language modelling on text.

mod config;
mod spec;

pub use config::PretrainConfig;

use crate::data::encode_text;
use crate::error::Result;
use crate::ops::ModelBackend;
use crate::train::Session;
use crate::train::session::{Outcome, data_files, stopping};
use crate::train::supervised::{SupervisedTraining, run};

/// Trains on every token of the text.
///
/// # Errors
/// Those of data and models; `Error::NonFinite`; `Error::Interrupted`.
pub(super) fn pretrain<B: ModelBackend>(
    session: &mut Session<'_, B>,
    config: &PretrainConfig,
) -> Result<Outcome> {
    let mut policy = session.policy(&config.init)?;
    let rows = session.rows(&config.data)?;
    let train = encode_text(
        &rows,
        &policy.tokenizer,
        &config.data.format,
        config.max_length,
    )?;
    session.report_rows("training data", &train.report);
    let valid = match &config.eval_data {
        Some(data) => {
            let rows = session.rows(data)?;
            encode_text(&rows, &policy.tokenizer, &data.format, config.max_length)?.items
        }
        None => Vec::new(),
    };
    policy.tokenizer = stopping(&policy.tokenizer, &train.report)?;
    let data = (data_files(&config.data, session.run.path()), rows.len());
    session.record(
        &config.name,
        &format!("{:?}", config.init),
        &policy.files,
        &[data],
    )?;
    let work = SupervisedTraining {
        stage: &config.name,
        peft: &config.peft,
        optim: &config.optim,
        epochs: config.epochs,
        max_steps: config.max_steps,
        batch_size: config.batch_size,
        shuffle: config.shuffle,
        micro_batch_tokens: config.micro_batch_tokens,
        gradient_checkpointing: config.gradient_checkpointing,
        cadence: &config.cadence,
        train: train.items,
        valid,
        prompts: Vec::new(),
    };
    run(session, work, policy)
}
