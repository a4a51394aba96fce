//! The reference policy's log-probabilities.

use burn::tensor::Tensor;

use super::{KtoConfig, ResponseRows, mismatched};
use crate::collective;
use crate::data::{Batches, Labelled, TokenRows, own_micro_batches};
use crate::error::Result;
use crate::host::{floats, read};
use crate::loss::response_sums;
use crate::model::LanguageModel;
use crate::ops::ModelBackend;
use crate::report::RolloutReport;
use crate::train::Session;

/// The reference policy.
pub(super) enum Reference<B: ModelBackend> {
    /// A frozen model, evaluated at every step.
    Model(Box<LanguageModel<B>>),
    /// Its log-probabilities; the model has been freed.
    Precomputed {
        /// Of the tokens of every response.
        own: Vec<Vec<f32>>,
        /// From this step on ..
        first: usize,
        /// .. of the other responses of each step, summed over their tokens.
        others: Vec<Vec<f32>>,
    },
}

/// The reference's log-probabilities of a step, by micro-batch.
pub(super) struct StepReference<B: ModelBackend> {
    /// Of the tokens of the batch's responses.
    pub(super) own: Vec<Tensor<B, 1>>,
    /// Sums of the responses to other prompts, `[responses]`; empty if there are none.
    pub(super) others: Vec<Tensor<B, 1>>,
}

impl<B: ModelBackend> Reference<B> {
    /// The reference of the steps from `first` on.
    pub(super) fn new(
        session: &mut Session<'_, B>,
        model: LanguageModel<B>,
        train: &TokenRows<Labelled>,
        batches: &Batches,
        first: usize,
        config: &KtoConfig,
    ) -> Result<Self> {
        if !config.precompute_ref_log_probs {
            return Ok(Self::Model(Box::new(model)));
        }
        let all: Vec<usize> = (0..train.len()).collect();
        let mut own = Vec::with_capacity(train.len());
        // A batch at a time, so that no more than its rows are in memory.
        for part in all.chunks(config.batch_size) {
            let items = train.get(part.iter().copied())?;
            let items: Vec<&Labelled> = items.iter().map(AsRef::as_ref).collect();
            own.extend(all_logprobs(
                session,
                &model,
                &items,
                config.micro_batch_tokens,
            ));
        }
        let mut others = Vec::new();
        if config.estimates_kl() {
            for step in first..batches.num_steps() {
                let items = train.get(batches.batch(step))?;
                let items: Vec<&Labelled> = items.iter().map(AsRef::as_ref).collect();
                let strangers = mismatched(&items, config.max_length);
                let strangers: Vec<&Labelled> = strangers.iter().collect();
                let logprobs = all_logprobs(session, &model, &strangers, config.micro_batch_tokens);
                let sum = |row: &Vec<f32>| row.iter().map(|&x| f64::from(x)).sum::<f64>() as f32;
                others.push(logprobs.iter().map(sum).collect());
            }
        }
        if config.peft.trains_base() {
            session.free_bases();
        }
        Ok(Self::Precomputed { own, first, others })
    }

    /// Its log-probabilities of the responses `items`, the rows `batch` of the data, and of the responses to other prompts `others`, of
    /// which there may be none, by micro-batch `parts`.
    pub(super) fn step(
        &self,
        step: usize,
        batch: &[usize],
        items: &[&Labelled],
        others: &[Labelled],
        parts: &[Vec<usize>],
        device: &B::Device,
    ) -> StepReference<B> {
        let mut found = StepReference {
            own: Vec::new(),
            others: Vec::new(),
        };
        for part in parts {
            match self {
                Self::Model(model) if others.is_empty() => {
                    let rows = ResponseRows::new(part.iter().map(|&i| items[i]));
                    found.own.push(rows.logprobs(model, device));
                }
                // Both responses to a prompt in one pass, where the prompt's tokens are shared.
                Self::Model(model) => {
                    let groups = part.iter().map(|&i| vec![items[i], &others[i]]);
                    let rows = ResponseRows::of_groups(groups);
                    let logprobs = rows.logprobs(model, device);
                    let (own, strangers) = split(logprobs, &rows.lens);
                    found.own.push(own);
                    let lens: Vec<usize> = rows.lens.iter().skip(1).step_by(2).copied().collect();
                    found.others.push(response_sums(strangers, &lens));
                }
                Self::Precomputed {
                    own,
                    first,
                    others: sums,
                } => {
                    let tokens = part.iter().flat_map(|&i| &own[batch[i]]);
                    let tokens: Vec<f32> = tokens.copied().collect();
                    found.own.push(floats(&tokens, device));
                    if !others.is_empty() {
                        let sums = &sums[step - first];
                        let sums: Vec<f32> = part.iter().map(|&i| sums[i]).collect();
                        found.others.push(floats(&sums, device));
                    }
                }
            }
        }
        found
    }
}

/// The values of every first and every second row, of lengths `lens`, concatenated.
fn split<B: ModelBackend>(values: Tensor<B, 1>, lens: &[usize]) -> (Tensor<B, 1>, Tensor<B, 1>) {
    let (mut places, mut at) = ([Vec::new(), Vec::new()], 0);
    for (row, len) in lens.iter().enumerate() {
        places[row % 2].extend(at..at + len);
        at += len;
    }
    let device = values.device();
    let [first, second] = places.map(|places| {
        values
            .clone()
            .select(0, crate::host::indices(&places, &device))
    });
    (first, second)
}

/// Log-probabilities of the tokens of responses, row by row.
pub(super) fn all_logprobs<B: ModelBackend>(
    session: &mut Session<'_, B>,
    model: &LanguageModel<B>,
    items: &[&Labelled],
    micro_batch_tokens: usize,
) -> Vec<Vec<f32>> {
    let device = session.device.clone();
    let mut out = vec![Vec::new(); items.len()];
    let lens: Vec<usize> = items.iter().map(|item| item.ids.len()).collect();
    let (mut done, mut tokens) = (0, 0);
    let own = own_micro_batches(&lens, micro_batch_tokens);
    for part in &own {
        let rows = ResponseRows::new(part.iter().map(|&i| items[i]));
        let mut values = read(rows.logprobs(model, &device)).into_iter();
        for (&i, &len) in part.iter().zip(&rows.lens) {
            out[i] = values.by_ref().take(len).collect();
        }
        done += part.len();
        tokens += part.iter().map(|&i| lens[i] as u64).sum::<u64>();
        session.reporter.rollout(&RolloutReport {
            what: "log-probabilities",
            done,
            total: items.len(),
            tokens,
        });
    }
    collective::share(&mut out, own.concat());
    out
}
