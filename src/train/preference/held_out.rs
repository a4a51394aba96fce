//! Evaluation on held-out comparisons.

use serde_json::Map;

use super::{MicroBatch, PairSums, Settings, all_logprobs, packed};
use crate::data::{Comparisons, Prompt, TokenRows, Tokenizer};
use crate::error::Result;
use crate::host::read;
use crate::model::LanguageModel;
use crate::ops::ModelBackend;
use crate::train::Session;
use crate::train::evaluate::{SampleRequest, greedy_samples};
use crate::train::shared::{Training, finite};

/// Held-out comparisons.
pub(super) struct HeldOut<'a> {
    pub(super) items: TokenRows<Comparisons>,
    /// Of all tokens that are read, in the order of [`MicroBatch::packed`]; `None` without a reference.
    pub(super) ref_logprobs: Option<Vec<f32>>,
    pub(super) prompts: Vec<Prompt>,
    pub(super) tokenizer: &'a Tokenizer,
}

/// The first held-out prompts, for samples; the best response is shown beside the generated one.
pub(super) fn prompts(
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

/// Evaluates loss, accuracy and margins on the held-out comparisons and generates samples; returns accuracy and margin.
pub(super) fn evaluate<B: ModelBackend>(
    session: &mut Session<'_, B>,
    training: &mut Training<B>,
    settings: &Settings<'_>,
    model: &LanguageModel<B>,
    held_out: &HeldOut<'_>,
) -> Result<Option<(f64, f64)>> {
    if held_out.items.is_empty() {
        return Ok(None);
    }
    let (device, journal) = (session.device.clone(), &mut training.journal);
    let logprobs = all_logprobs(session, model, &held_out.items, settings)?;
    let logprobs = packed(logprobs.iter());
    let items = held_out.items.get(0..held_out.items.len())?;
    let objective = &settings.objective;
    let micro = MicroBatch::new(items.iter().map(AsRef::as_ref), objective.reads_prompts());
    let reference = held_out.ref_logprobs.as_deref();
    let loss = objective.held_out_loss::<B>(&logprobs, reference, &micro, &device);
    let loss = f64::from(read(loss)[0]);
    if journal.position.step == 0
        && let Err(problem) = finite(objective.loss_name(), loss)
    {
        let rows: Vec<&[u32]> = micro.groups.concat();
        return Err(journal.non_finite(&format!("held-out {}", problem.0), &rows));
    }
    let mut sums = PairSums::new(objective);
    sums.add(&micro, &logprobs, reference, loss);
    let metrics = sums.means(true);
    journal.eval(session, &metrics)?;
    let longest = micro.lens.iter().copied().max().unwrap_or(1);
    let request = SampleRequest {
        prompts: &held_out.prompts,
        max_new_tokens: SampleRequest::within(settings.keys.max_length, &held_out.prompts, longest),
        step: journal.position.step,
    };
    for sample in greedy_samples(model, held_out.tokenizer, &request, &device)? {
        journal.sample(&sample)?;
    }
    Ok(Some((metrics[3].1, metrics[4].1)))
}
