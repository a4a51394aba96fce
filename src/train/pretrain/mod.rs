//! Plain language modelling on text.

mod config;
mod spec;

pub use config::PretrainConfig;

use crate::data::{Texts, TokenRows};
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
    let encoding = Texts {
        max_length: config.max_length,
    };
    let tokenizer = policy.tokenizer.clone();
    let train = session.token_rows("training data", &config.data, &tokenizer, &encoding)?;
    let valid = match &config.eval_data {
        Some(data) => session.token_rows("held-out data", data, &tokenizer, &encoding)?,
        None => TokenRows::default(),
    };
    policy.tokenizer = stopping(&tokenizer, train.report())?;
    let data = (
        data_files(&config.data, session.run.path()),
        train.num_read(),
    );
    session.record(&config.name, &format!("{:?}", config.init), &[data])?;
    let work = SupervisedTraining {
        stage: &config.name,
        peft: &config.peft,
        optim: &config.optim,
        epochs: config.epochs,
        max_steps: config.max_steps,
        batch_size: config.batch_size,
        max_length: config.max_length,
        shuffle: config.shuffle,
        micro_batch_tokens: config.micro_batch_tokens,
        gradient_checkpointing: config.gradient_checkpointing,
        dropout: 0.0,
        cadence: &config.cadence,
        train,
        valid,
        prompts: Vec::new(),
        graded: None,
    };
    run(session, work, policy)
}
