//! The reference policy's log-probabilities.

use burn::tensor::Tensor;

use super::{MicroBatch, Settings};
use crate::collective::{self, Words};
use crate::data::{Comparisons, TokenRows, own_micro_batches};
use crate::error::Result;
use crate::host::{floats, read};
use crate::model::LanguageModel;
use crate::ops::ModelBackend;
use crate::report::RolloutReport;
use crate::train::Session;

/// Log-probabilities of the tokens of an item: of its responses, concatenated, and of its prompt where prompts are read.
#[derive(Debug, Clone, Default)]
pub(super) struct ItemLogprobs {
    responses: Vec<f32>,
    prompt: Vec<f32>,
}

impl Words for ItemLogprobs {
    fn words(&self) -> Vec<u32> {
        let mut words = vec![self.responses.len() as u32];
        words.extend(self.responses.words());
        words.extend(self.prompt.words());
        words
    }

    fn from_words(words: &[u32]) -> Self {
        let Some((&len, numbers)) = words.split_first() else {
            return Self::default();
        };
        let (responses, prompt) = numbers.split_at(len as usize);
        Self {
            responses: Vec::from_words(responses),
            prompt: Vec::from_words(prompt),
        }
    }
}

/// The log-probabilities of items, in the order of [`MicroBatch::packed`].
pub(super) fn packed<'a>(items: impl Iterator<Item = &'a ItemLogprobs> + Clone) -> Vec<f32> {
    let responses = items.clone().flat_map(|item| &item.responses);
    let prompts = items.flat_map(|item| &item.prompt);
    responses.chain(prompts).copied().collect()
}

/// Log-probabilities of a whole data set, item by item.
pub(super) fn all_logprobs<B: ModelBackend>(
    session: &mut Session<'_, B>,
    model: &LanguageModel<B>,
    items: &TokenRows<Comparisons>,
    settings: &Settings<'_>,
) -> Result<Vec<ItemLogprobs>> {
    let device = session.device.clone();
    let mut out = vec![ItemLogprobs::default(); items.len()];
    let lens = items.lens()?;
    let (mut done, mut tokens) = (0, 0);
    let own = own_micro_batches(&lens, settings.keys.micro_batch_tokens);
    for part in &own {
        let rows = items.get(part.iter().copied())?;
        let with_prompts = settings.objective.reads_prompts();
        let micro = MicroBatch::new(rows.iter().map(AsRef::as_ref), with_prompts);
        let mut values = read(micro.logprobs(model, &device)).into_iter();
        let mut lens = micro.lens.iter();
        for (&i, row) in part.iter().zip(&rows) {
            let len = lens.by_ref().take(row.responses.len()).sum();
            out[i].responses = values.by_ref().take(len).collect();
        }
        for (&i, len) in part.iter().zip(micro.prompt_targets()) {
            out[i].prompt = values.by_ref().take(len).collect();
        }
        done += part.len();
        tokens += micro.num_tokens();
        session.reporter.rollout(&RolloutReport {
            what: "log-probabilities",
            done,
            total: items.len(),
            tokens,
        });
    }
    collective::share(&mut out, own.concat());
    Ok(out)
}

/// The reference policy.
pub(super) enum Reference<B: ModelBackend> {
    /// There is none.
    None,
    /// A frozen model, evaluated at every step.
    Model(Box<LanguageModel<B>>),
    /// Its log-probabilities of every item; the model has been freed.
    Precomputed(Vec<ItemLogprobs>),
}

impl<B: ModelBackend> Reference<B> {
    pub(super) fn new(
        session: &mut Session<'_, B>,
        model: Option<LanguageModel<B>>,
        train: &TokenRows<Comparisons>,
        settings: &Settings<'_>,
    ) -> Result<Self> {
        let Some(model) = model else {
            return Ok(Self::None);
        };
        if !settings.precompute_ref_log_probs {
            return Ok(Self::Model(Box::new(model)));
        }
        let logprobs = all_logprobs(session, &model, train, settings)?;
        if settings.keys.peft.trains_base() {
            session.free_bases();
        }
        Ok(Self::Precomputed(logprobs))
    }

    /// Its log-probabilities of the tokens of `micro`, which holds the items `part`; `None` without a reference.
    pub(super) fn logprobs(
        &self,
        micro: &MicroBatch<'_>,
        part: &[usize],
        device: &B::Device,
    ) -> Option<Tensor<B, 1>> {
        match self {
            Self::None => None,
            Self::Model(model) => Some(micro.logprobs(model, device)),
            Self::Precomputed(all) => {
                let all = packed(part.iter().map(|&i| &all[i]));
                Some(floats(&all, device))
            }
        }
    }
}
