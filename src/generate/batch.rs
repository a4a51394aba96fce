//! Batched generation: packed prefill, then one token per row and step; waiting prompts take the slots of finished rows.
//! Equal prompts share one prefill.

use burn::tensor::Tensor;
use rayon::prelude::*;

use super::SamplingConfig;
use super::ranks::over_ranks;
use super::sampler::{SampledToken, sample_penalised};
use crate::host::{indices, read};
use crate::model::{CausalLm, KvCache};
use crate::ops::ModelBackend;
use crate::rng::Seed;
use crate::tokens::TokenBatch;

/// How much to generate, and when to stop.
#[derive(Debug, Clone)]
pub struct GenerateOptions {
    /// Most tokens of a response.
    pub max_new_tokens: usize,
    /// How tokens are sampled.
    pub sampling: SamplingConfig,
    /// Divides the positive logits of tokens of the prompt and of the response so far; 1 changes nothing. See [`sample_penalised`].
    pub repetition_penalty: f64,
    /// A response ends with the first of these, which is part of it.
    pub stop_ids: Vec<u32>,
    /// Another token that ends a response, from some index on.
    pub truncate: Option<TruncateAt>,
    /// Rows decoded at once.
    pub batch_size: usize,
}

impl GenerateOptions {
    /// Whether token `id` at 0-based `index` ends a response.
    pub(super) fn ends(&self, id: u32, index: usize) -> bool {
        let truncates = |at: &TruncateAt| id == at.id && index >= at.after;
        self.stop_ids.contains(&id) || self.truncate.as_ref().is_some_and(truncates)
    }

    /// Samples the token after `prompt` and `response` by the number of `seed` that belongs to its place.
    pub(super) fn sample(
        &self,
        logits: &[f32],
        prompt: &[u32],
        response: &[u32],
        seed: Seed,
    ) -> SampledToken {
        sample_penalised(
            logits,
            prompt.iter().chain(response).copied(),
            self.repetition_penalty as f32,
            &self.sampling,
            seed.uniform(response.len() as u64),
        )
    }
}

/// [`Truncate`](super::Truncate) as a token id.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TruncateAt {
    /// The token.
    pub id: u32,
    /// 0-based index in the response before which the token does not end it.
    pub after: usize,
}

/// A generated response.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Response {
    /// Token ids, the stop token included.
    pub ids: Vec<u32>,
    /// Log-probability of each token, nats.
    pub logprobs: Vec<f32>,
    /// Whether it ended with a stop token and not at `max_new_tokens`.
    pub stopped: bool,
}

/// Progress callback: finished responses and tokens sampled so far.
pub type OnProgress<'a> = &'a mut dyn FnMut(usize, u64);

/// Sees responses while they are sampled.
pub trait Watch {
    /// `ids` is the response to prompt `prompt` so far; its last token is new. Returns whether the response ends with it.
    fn token(&mut self, prompt: usize, ids: &[u32]) -> bool;

    /// Finished responses and tokens sampled so far, after each pass of the model.
    fn progress(&mut self, finished: usize, tokens: u64);

    /// Whether generation is to end before its next pass. Responses in progress are left as they are.
    fn stops(&self) -> bool {
        false
    }
}

/// Counts only.
struct Counting<'a>(OnProgress<'a>);

impl Watch for Counting<'_> {
    fn token(&mut self, _: usize, _: &[u32]) -> bool {
        false
    }

    fn progress(&mut self, finished: usize, tokens: u64) {
        (self.0)(finished, tokens);
    }
}

/// Reads one number off each state of the model: `[rows, hidden]` to `[rows]`.
pub type ReadOut<'a, B> = &'a dyn Fn(Tensor<B, 2>) -> Tensor<B, 1>;

/// A response in progress.
struct ActiveRow {
    prompt: usize,
    slot: usize,
    last: u32,
    /// Whether the response has ended and only the state after its last token is still to be read.
    ended: bool,
}

/// Generates one response per prompt, in order. Token `t` of prompt `i` is sampled with counter `t` of `seed.fork_index(i)`,
/// so that a response depends neither on the batch size nor on its neighbours.
///
/// # Panics
/// If a prompt is empty.
pub fn generate<B: ModelBackend, M: CausalLm<B>>(
    model: &M,
    prompts: &[&[u32]],
    options: &GenerateOptions,
    seed: Seed,
    device: &B::Device,
    on_progress: OnProgress<'_>,
) -> Vec<Response> {
    let mut watch = Counting(on_progress);
    let prompts = Numbered::all(prompts);
    run(model, None, prompts, options, seed, device, &mut watch).0
}

/// [`generate`], which `watch` sees and may end earlier.
///
/// # Panics
/// If a prompt is empty.
pub fn generate_watched<B: ModelBackend, M: CausalLm<B>>(
    model: &M,
    prompts: &[&[u32]],
    options: &GenerateOptions,
    seed: Seed,
    device: &B::Device,
    watch: &mut dyn Watch,
) -> Vec<Response> {
    let prompts = Numbered::all(prompts);
    run(model, None, prompts, options, seed, device, watch).0
}

/// [`generate_watched`] for some of many prompts: `numbers[i]` is the index of `prompts[i]` among all, so that the response is the same
/// as in a call with all of them.
///
/// # Panics
/// If a prompt is empty, or the lengths differ.
pub fn generate_numbered<B: ModelBackend, M: CausalLm<B>>(
    model: &M,
    (prompts, numbers): (&[&[u32]], &[usize]),
    options: &GenerateOptions,
    seed: Seed,
    device: &B::Device,
    watch: &mut dyn Watch,
) -> Vec<Response> {
    assert_eq!(prompts.len(), numbers.len(), "each prompt has a number");
    let numbers = Some(numbers);
    let prompts = Numbered { prompts, numbers };
    run(model, None, prompts, options, seed, device, watch).0
}

/// [`generate`], and what `read_out` reads off the states of each response: the state before each of its tokens and, if it is
/// shorter than `max_new_tokens`, the state after its last one.
///
/// # Panics
/// If a prompt is empty.
pub fn generate_with<B: ModelBackend, M: CausalLm<B>>(
    model: &M,
    read_out: ReadOut<'_, B>,
    prompts: &[&[u32]],
    options: &GenerateOptions,
    seed: Seed,
    device: &B::Device,
    on_progress: OnProgress<'_>,
) -> (Vec<Response>, Vec<Vec<f32>>) {
    let (read_out, mut watch) = (Some(read_out), Counting(on_progress));
    let prompts = Numbered::all(prompts);
    run(model, read_out, prompts, options, seed, device, &mut watch)
}

/// Prompts with the numbers by which their random numbers are drawn.
#[derive(Clone, Copy)]
struct Numbered<'a> {
    prompts: &'a [&'a [u32]],
    /// Their places in `prompts` if absent.
    numbers: Option<&'a [usize]>,
}

impl<'a> Numbered<'a> {
    fn all(prompts: &'a [&'a [u32]]) -> Self {
        let numbers = None;
        Self { prompts, numbers }
    }

    fn number(&self, prompt: usize) -> u64 {
        self.numbers.map_or(prompt, |numbers| numbers[prompt]) as u64
    }
}

fn run<B: ModelBackend, M: CausalLm<B>>(
    model: &M,
    read_out: Option<ReadOut<'_, B>>,
    numbered: Numbered<'_>,
    options: &GenerateOptions,
    seed: Seed,
    device: &B::Device,
    watch: &mut dyn Watch,
) -> (Vec<Response>, Vec<Vec<f32>>) {
    over_ranks(numbered.prompts, watch, |places, watch| {
        let prompts: Vec<&[u32]> = (places.iter())
            .map(|&place| numbered.prompts[place])
            .collect();
        let share = Share {
            prompts: &prompts,
            places,
            all: numbered,
        };
        run_some(model, read_out, share, options, seed, device, watch)
    })
}

/// Some of a call's prompts, and their places among all of them.
struct Share<'a> {
    prompts: &'a [&'a [u32]],
    places: &'a [usize],
    all: Numbered<'a>,
}

fn run_some<B: ModelBackend, M: CausalLm<B>>(
    model: &M,
    read_out: Option<ReadOut<'_, B>>,
    share: Share<'_>,
    options: &GenerateOptions,
    seed: Seed,
    device: &B::Device,
    watch: &mut dyn Watch,
) -> (Vec<Response>, Vec<Vec<f32>>) {
    let Share {
        prompts,
        places,
        all,
    } = share;
    let mut responses = vec![Response::default(); prompts.len()];
    let mut readings = vec![Vec::new(); prompts.len()];
    if prompts.is_empty() || options.max_new_tokens == 0 {
        return (responses, readings);
    }
    assert!(
        prompts.iter().all(|prompt| !prompt.is_empty()),
        "a prompt needs at least one token"
    );
    let slots = options.batch_size.clamp(1, prompts.len());
    let longest = prompts.iter().map(|prompt| prompt.len()).max().unwrap_or(0);
    let capacity = model.num_virtual_tokens() + longest + options.max_new_tokens;
    let mut cache = KvCache::new(
        model.num_layers(),
        slots,
        capacity,
        model.head_layout(),
        device,
    );
    let mut free: Vec<usize> = (0..slots).rev().collect();
    let mut active: Vec<ActiveRow> = Vec::new();
    let mut next = 0;
    let (mut finished, mut tokens) = (0, 0u64);
    while (next < prompts.len() || !active.is_empty()) && !watch.stops() {
        // Refilling costs a prefill pass: wait until a quarter of the slots is free, or nothing else is left to do.
        let refill = next < prompts.len() && (active.is_empty() || free.len() * 4 >= slots);
        let rows: Vec<ActiveRow> = if refill {
            let count = free.len().min(prompts.len() - next);
            (0..count)
                .map(|i| ActiveRow {
                    prompt: next + i,
                    slot: free.pop().expect("counted above"),
                    last: 0,
                    ended: false,
                })
                .collect()
        } else {
            std::mem::take(&mut active)
        };
        let PassOutput { logits, readout } = if refill {
            next += rows.len();
            rows.iter().for_each(|row| cache.clear(row.slot));
            let equal: Vec<&[ActiveRow]> = rows
                .chunk_by(|a, b| prompts[a.prompt] == prompts[b.prompt])
                .collect();
            let inputs: Vec<&[u32]> = equal.iter().map(|rows| prompts[rows[0].prompt]).collect();
            let slots = equal
                .iter()
                .map(|rows| rows.iter().map(|row| row.slot).collect())
                .collect();
            cache.select_copies(slots);
            // All rows of one prompt continue from the same state.
            let copies: Vec<usize> = equal.iter().map(|rows| rows.len()).collect();
            forward(model, read_out, &inputs, &mut cache, device).repeated(&copies)
        } else {
            let inputs: Vec<[u32; 1]> = rows.iter().map(|row| [row.last]).collect();
            cache.select(&rows.iter().map(|row| row.slot).collect::<Vec<_>>());
            forward(model, read_out, &inputs, &mut cache, device)
        };
        for (row, value) in rows.iter().zip(readout) {
            readings[row.prompt].push(value);
        }
        let vocab = logits.len() / rows.len();
        let samples: Vec<SampledToken> = logits
            .par_chunks(vocab)
            .zip(&rows)
            .map(|(logits, row)| {
                let response = &responses[row.prompt].ids;
                let seed = seed.fork_index(all.number(places[row.prompt]));
                options.sample(logits, prompts[row.prompt], response, seed)
            })
            .collect();
        for (mut row, token) in rows.into_iter().zip(samples) {
            if row.ended {
                free.push(row.slot);
                finished += 1;
                continue;
            }
            let response = &mut responses[row.prompt];
            response.ids.push(token.id);
            response.logprobs.push(token.logprob);
            tokens += 1;
            response.stopped = options.ends(token.id, response.ids.len() - 1)
                | watch.token(places[row.prompt], &response.ids);
            let full = response.ids.len() == options.max_new_tokens;
            row.ended = response.stopped;
            if full || row.ended && read_out.is_none() {
                free.push(row.slot);
                finished += 1;
            } else {
                row.last = token.id;
                active.push(row);
            }
        }
        watch.progress(finished, tokens);
    }
    (responses, readings)
}

/// Numbers of the state after each row's last token, on the host.
pub(super) struct PassOutput {
    /// `[rows * vocab]`.
    pub(super) logits: Vec<f32>,
    /// `[rows]`; empty without a read-out.
    readout: Vec<f32>,
}

impl PassOutput {
    /// Repeats row `i` `copies[i]` times.
    fn repeated(self, copies: &[usize]) -> Self {
        let each = |values: &[f32]| -> Vec<f32> {
            let rows = values.chunks((values.len() / copies.len()).max(1));
            let rows = rows.zip(copies).map(|(row, &n)| row.repeat(n));
            rows.flatten().collect()
        };
        Self {
            logits: each(&self.logits),
            readout: each(&self.readout),
        }
    }
}

pub(super) fn forward<B: ModelBackend, M: CausalLm<B>, R: AsRef<[u32]>>(
    model: &M,
    read_out: Option<ReadOut<'_, B>>,
    inputs: &[R],
    cache: &mut KvCache<B>,
    device: &B::Device,
) -> PassOutput {
    let batch = TokenBatch::from_rows(inputs, device);
    // With one token a row, every token is a last one.
    let last = (batch.segments.num_tokens() > inputs.len())
        .then(|| indices(&batch.segments.last_tokens(), device));
    let hidden = model.states_at(&batch, last, Some(cache), None);
    let read_out = read_out.map(|read_out| read_out(hidden.clone()));
    PassOutput {
        readout: read_out.map_or(Vec::new(), read),
        logits: read(model.logits(hidden)),
    }
}
