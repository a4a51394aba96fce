//! Supervised fine-tuning on prompts and completions.

mod config;
mod spec;

pub use config::SftConfig;

use crate::data::{TokenRows, encode_prompts};
use crate::error::Result;
use crate::ops::ModelBackend;
use crate::train::Session;
use crate::train::session::{Outcome, data_files, stopping};
use crate::train::supervised::{SupervisedTraining, run};

/// Trains on the completions (or on prompts too), token-weighted over the batch.
///
/// # Errors
/// Those of data and models; `Error::NonFinite`; `Error::Interrupted`.
pub(super) fn sft<B: ModelBackend>(
    session: &mut Session<'_, B>,
    config: &SftConfig,
) -> Result<Outcome> {
    let mut policy = session.policy(&config.init)?;
    let tokenizer = policy.tokenizer.clone();
    let encoding = config.encoding();
    let train = session.token_rows("training data", &config.data, &tokenizer, &encoding)?;
    policy.tokenizer = stopping(&tokenizer, train.report())?;
    let (mut valid, mut prompts) = (TokenRows::default(), Vec::new());
    if let Some(data) = &config.eval_data {
        valid = session.token_rows("held-out data", data, &tokenizer, &encoding)?;
        if config.cadence.num_samples > 0 {
            // No samples for conversations: they have no single prompt.
            let head = session.first_rows(data, config.cadence.num_samples)?;
            prompts = encode_prompts(&head, &tokenizer, &data.format, config.max_length)
                .map_or(Vec::new(), |p| p.items);
        }
    }
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
        cadence: &config.cadence,
        train,
        valid,
        prompts,
    };
    run(session, work, policy)
}
