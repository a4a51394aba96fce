//! Evaluation on held-out labelled responses.

use serde_json::Map;

use super::reference::all_logprobs;
use super::{KtoConfig, ResponseRows, ResponseSums, mismatched};
use crate::data::{Labelled, Prompt, TokenRows, Tokenizer};
use crate::error::Result;
use crate::host::{floats, read};
use crate::loss;
use crate::model::LanguageModel;
use crate::ops::ModelBackend;
use crate::train::Session;
use crate::train::evaluate::{SampleRequest, greedy_samples};
use crate::train::shared::Training;

/// Held-out responses.
pub(super) struct HeldOut<'a> {
    items: Vec<Labelled>,
    /// The same prompts with responses to others, for the KL estimate.
    others: Vec<Labelled>,
    /// Of all responses' tokens, concatenated; likewise below of `others`.
    ref_logprobs: Vec<f32>,
    ref_others: Vec<f32>,
    prompts: Vec<Prompt>,
    tokenizer: &'a Tokenizer,
}

impl<'a> HeldOut<'a> {
    pub(super) fn new<B: ModelBackend>(
        session: &mut Session<'_, B>,
        config: &KtoConfig,
        reference: &LanguageModel<B>,
        items: TokenRows<Labelled>,
        tokenizer: &'a Tokenizer,
    ) -> Result<Self> {
        let items = items.into_vec()?;
        let references: Vec<&Labelled> = items.iter().collect();
        let others = match config.estimates_kl() && !items.is_empty() {
            true => mismatched(&references, config.max_length),
            false => Vec::new(),
        };
        let tokens = config.micro_batch_tokens;
        let ref_logprobs = all_logprobs(session, reference, &references, tokens).concat();
        let strangers: Vec<&Labelled> = others.iter().collect();
        Ok(Self {
            ref_others: all_logprobs(session, reference, &strangers, tokens).concat(),
            ref_logprobs,
            prompts: prompts(&items, tokenizer, config.cadence.num_samples)?,
            items,
            others,
            tokenizer,
        })
    }
}

/// The first prompts of desirable responses, which are shown beside the generated ones.
pub(super) fn prompts(
    items: &[Labelled],
    tokenizer: &Tokenizer,
    count: usize,
) -> Result<Vec<Prompt>> {
    let desirable = items
        .iter()
        .filter(|item| item.label && item.prompt_len > 0);
    desirable
        .take(count)
        .map(|item| {
            let (prompt, response) = item.ids.split_at(item.prompt_len);
            let response = tokenizer.decode(response, true)?;
            Ok(Prompt {
                ids: prompt.to_vec(),
                text: tokenizer.decode(prompt, true)?,
                conversation: None,
                row: Map::from_iter([("completion".to_owned(), response.into())]),
            })
        })
        .collect()
}

/// Evaluates loss, KL estimate and rewards on the held-out responses and generates samples; returns the margin of rewards.
pub(super) fn evaluate<B: ModelBackend>(
    session: &mut Session<'_, B>,
    training: &mut Training<B>,
    config: &KtoConfig,
    model: &LanguageModel<B>,
    held_out: &HeldOut<'_>,
) -> Result<Option<f64>> {
    if held_out.items.is_empty() {
        return Ok(None);
    }
    let device = session.device.clone();
    let tokens = config.micro_batch_tokens;
    let mut logprobs = |items: &[Labelled]| {
        let items: Vec<&Labelled> = items.iter().collect();
        all_logprobs(session, model, &items, tokens).concat()
    };
    let (own, others) = (logprobs(&held_out.items), logprobs(&held_out.others));
    let differences = others.iter().zip(&held_out.ref_others);
    let total: f64 = differences.map(|(a, b)| f64::from(a - b)).sum();
    let kl = (total / held_out.items.len() as f64).max(0.0);

    let rows = ResponseRows::new(held_out.items.iter());
    let log_ratios = rows.sums(own.iter().zip(&held_out.ref_logprobs).map(|(a, b)| a - b));
    let log_ratios: Vec<f32> = log_ratios.into_iter().map(|x| x as f32).collect();
    let loss = loss::kto(
        floats::<B>(&log_ratios, &device),
        &rows.labels,
        floats(&[kl as f32], &device),
        &config.objective(),
    );
    let mut sums = ResponseSums::with_kl(kl);
    sums.add(
        &rows,
        &own,
        &held_out.ref_logprobs,
        f64::from(read(loss)[0]),
    );
    let journal = &mut training.journal;
    journal.eval(session, &sums.means(config, true))?;
    let longest = rows.lens.iter().copied().max().unwrap_or(1);
    let request = SampleRequest {
        prompts: &held_out.prompts,
        max_new_tokens: SampleRequest::within(config.max_length, &held_out.prompts, longest),
        step: journal.position.step,
    };
    for sample in greedy_samples(model, held_out.tokenizer, &request, &device)? {
        journal.sample(&sample)?;
    }
    Ok(sums.margin(config))
}
