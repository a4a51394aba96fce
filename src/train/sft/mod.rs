//! Supervised fine-tuning on prompts and completions.

mod config;
mod spec;

pub use config::{EvalReward, SftConfig};

use crate::data::{DataConfig, Prompts, TokenRows, encode_prompts};
use crate::error::Result;
use crate::generate::SamplingConfig;
use crate::ops::ModelBackend;
use crate::train::Session;
use crate::train::generation::Generation;
use crate::train::policy::Policy;
use crate::train::session::{Outcome, data_files, stopping};
use crate::train::supervised::{Graded, SupervisedTraining, run};

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
    session.record(&config.name, &format!("{:?}", config.init), &[data])?;
    let graded = match (&config.eval_reward, &config.eval_data) {
        (Some(reward), Some(data)) => Some(graded(session, config, reward, data, &policy)?),
        _ => None,
    };
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
        dropout: config.dropout,
        cadence: &config.cadence,
        train,
        valid,
        prompts,
        graded,
    };
    run(session, work, policy)
}

/// The prompts and the source of `eval_reward`.
fn graded<B: ModelBackend>(
    session: &mut Session<'_, B>,
    config: &SftConfig,
    eval: &EvalReward,
    data: &DataConfig,
    policy: &Policy<B>,
) -> Result<Graded> {
    let first = DataConfig {
        limit: Some(
            data.limit
                .map_or(eval.num_prompts, |l| l.min(eval.num_prompts)),
        ),
        ..data.clone()
    };
    let encoding = Prompts {
        max_length: config.max_length - eval.response_length,
    };
    let what = "prompts of eval_reward";
    let prompts = session.token_rows(what, &first, &policy.tokenizer, &encoding)?;
    let options = Generation {
        response_length: eval.response_length,
        sampling: eval.sampling.clone().unwrap_or(SamplingConfig {
            temperature: 0.0,
            ..SamplingConfig::default()
        }),
        truncate: None,
        batch_size: eval.generation_batch_size,
    }
    .options(&policy.tokenizer)?;
    Ok(Graded {
        prompts: prompts.into_vec()?,
        options,
        sources: std::iter::once((
            "reward".to_owned(),
            session.reward_source(&eval.reward, &policy.tokenizer)?,
        ))
        .collect(),
    })
}
