//! Continuous batching: responses join and leave a running batch at every token.
//!
//! One [`Scheduler`] serves several models that share their base's weights, such as adapters: their responses lie in one cache, and
//! a pass of the model is over the rows of one of them. A pass takes the last token of each response in progress and pieces of the
//! prompts that have joined, so that a long prompt delays others by a piece and not by its whole length.
//!
//! What a response says depends on its prompt, options and seed alone, but for rounding: a product of other height sums in
//! another order, which moves logits by some units in the last place of f32. A sampled token differs only where its random number
//! falls into such a gap between two tokens.

mod job;
mod room;
mod row;

use std::collections::VecDeque;

use rayon::prelude::*;

pub use self::job::{Ending, GeneratedToken, Job, JobOptions, Listener};
pub use self::room::Room;
use self::room::Shape;
use self::row::{Prefill, Row};
use crate::host::{indices, read};
use crate::model::{CausalLm, KvCache};
use crate::ops::ModelBackend;
use crate::tokens::TokenBatch;

/// Most tokens of prompts in a pass with responses in progress, which wait for it.
const PREFILL_BESIDE: usize = 512;
/// The same in a pass without any.
const PREFILL_ALONE: usize = 4096;

/// What a step has done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Stepped {
    /// Tokens of prompts that were computed.
    pub prompt_tokens: usize,
    /// Tokens that were sampled.
    pub sampled: usize,
}

/// Generates responses to prompts that come at any time.
pub struct Scheduler<B: ModelBackend, M> {
    models: Vec<M>,
    room: Room,
    cache: Option<KvCache<B>>,
    shape: Shape,
    free: Vec<usize>,
    waiting: VecDeque<Job>,
    prefills: Vec<Prefill>,
    rows: Vec<Row>,
    device: B::Device,
}

impl<B: ModelBackend, M: CausalLm<B>> Scheduler<B, M> {
    /// A scheduler without jobs. The models have layers and heads of the same shape.
    pub fn new(models: Vec<M>, room: Room, device: B::Device) -> Self {
        Self {
            models,
            room,
            cache: None,
            shape: Shape::default(),
            free: Vec::new(),
            waiting: VecDeque::new(),
            prefills: Vec::new(),
            rows: Vec::new(),
            device,
        }
    }

    /// The models, by their number in jobs.
    pub fn models(&self) -> &[M] {
        &self.models
    }

    /// Adds a job behind those that wait.
    ///
    /// # Panics
    /// If its prompt is empty, it may have no token, or there is no such model.
    pub fn submit(&mut self, job: Job) {
        assert!(!job.prompt.is_empty(), "a prompt needs at least one token");
        assert!(job.options.max_new_tokens > 0, "a response without tokens");
        assert!(job.model < self.models.len(), "no model {}", job.model);
        self.waiting.push_back(job);
    }

    /// Responses in progress.
    pub fn num_running(&self) -> usize {
        let prefilled: usize = self.prefills.iter().map(|prefill| prefill.rows.len()).sum();
        self.rows.len() + prefilled
    }

    /// Whether there is nothing to do.
    pub fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.num_running() == 0
    }

    /// Admits jobs as far as there is room, and passes the rows of each model through it once.
    pub fn step(&mut self) -> Stepped {
        self.admit();
        let mut stepped = Stepped::default();
        for model in 0..self.models.len() {
            let done = self.pass(model);
            stepped.prompt_tokens += done.prompt_tokens;
            stepped.sampled += done.sampled;
        }
        stepped
    }

    /// Takes jobs from the front until one has to wait: nobody is overtaken.
    fn admit(&mut self) {
        self.drop_gone();
        while let Some(job) = self.waiting.front() {
            let rows = self.num_running() + 1;
            let needed = self.needed(job.model, job.prompt.len(), job.options.max_new_tokens);
            let longest = self.longest().max(needed);
            let Some(shape) = self.room.shape_for(self.shape, rows, longest) else {
                return;
            };
            let Some(job) = self.waiting.pop_front() else {
                return;
            };
            self.reshape(shape);
            let slot = self.free.pop().expect("the shape has room for the row");
            if let Some(cache) = &mut self.cache {
                cache.clear(slot);
            }
            let row = Row::new(job, slot, needed);
            match self.prefills.last_mut() {
                Some(prefill) if prefill.takes(&row) => prefill.rows.push(row),
                _ => self.prefills.push(Prefill::of(row)),
            }
        }
    }

    /// Ends the jobs that nobody waits for before they cost anything.
    fn drop_gone(&mut self) {
        self.waiting.retain_mut(|job| {
            let gone = job.listener.is_gone();
            if gone {
                job.listener.end(Ending::Gone);
            }
            !gone
        });
        let free = &mut self.free;
        let mut keep = |row: &mut Row| {
            let gone = row.listener.is_gone();
            if gone {
                row.listener.end(Ending::Gone);
                free.push(row.slot);
            }
            !gone
        };
        self.rows.retain_mut(&mut keep);
        for prefill in &mut self.prefills {
            prefill.rows.retain_mut(&mut keep);
        }
        self.prefills.retain(|prefill| !prefill.rows.is_empty());
    }

    fn needed(&self, model: usize, prompt: usize, max_new_tokens: usize) -> usize {
        self.models[model].num_virtual_tokens() + prompt + max_new_tokens
    }

    /// Most tokens that a row in progress may reach.
    fn longest(&self) -> usize {
        let prefilled = self.prefills.iter().flat_map(|prefill| &prefill.rows);
        let all = self.rows.iter().chain(prefilled);
        all.map(|row| row.needed).max().unwrap_or(0)
    }

    /// Gives the cache this shape; rows keep what they have computed.
    fn reshape(&mut self, shape: Shape) {
        if shape == self.shape {
            return;
        }
        let prefilled = self.prefills.iter_mut().flat_map(|p| &mut p.rows);
        let live: Vec<&mut Row> = self.rows.iter_mut().chain(prefilled).collect();
        let kept: Vec<usize> = live.iter().map(|row| row.slot).collect();
        match &mut self.cache {
            Some(cache) => cache.resize(&kept, shape.slots, shape.capacity, &self.device),
            None => {
                let model = &self.models[0];
                self.cache = Some(KvCache::new(
                    model.num_layers(),
                    shape.slots,
                    shape.capacity,
                    model.head_layout(),
                    &self.device,
                ));
            }
        }
        self.free = (live.len()..shape.slots).rev().collect();
        for (slot, row) in live.into_iter().enumerate() {
            row.slot = slot;
        }
        self.shape = shape;
    }

    /// Passes the rows of one model through it, and samples a token of each whose prompt is complete.
    fn pass(&mut self, model: usize) -> Stepped {
        let (mut rows, others): (Vec<Row>, Vec<Row>) = std::mem::take(&mut self.rows)
            .into_iter()
            .partition(|row| row.model == model);
        self.rows = others;
        let budget = match rows.is_empty() {
            true => PREFILL_ALONE,
            false => PREFILL_BESIDE,
        };
        let pieces = self.pieces(model, budget);
        if rows.is_empty() && pieces.is_empty() {
            return Stepped::default();
        }
        let prompt_tokens = pieces.iter().map(|(_, piece)| piece.len()).sum();
        let last: Vec<[u32; 1]> = rows.iter().map(|row| [row.last()]).collect();
        let mut inputs: Vec<&[u32]> = last.iter().map(|last| &last[..]).collect();
        let mut slots: Vec<Vec<usize>> = rows.iter().map(|row| vec![row.slot]).collect();
        let mut complete = vec![true; rows.len()];
        for (place, piece) in &pieces {
            let prefill = &self.prefills[*place];
            inputs.push(&prefill.rows[0].prompt[piece.clone()]);
            slots.push(prefill.rows.iter().map(|row| row.slot).collect());
            complete.push(piece.end == prefill.rows[0].prompt.len());
        }
        let cache = self.cache.as_mut().expect("made as the rows were admitted");
        cache.select_copies(slots);
        let logits = logits(&self.models[model], &inputs, &complete, cache, &self.device);
        for (place, piece) in &pieces {
            self.prefills[*place].fed = piece.end;
        }
        // Rows of one prompt share their logits.
        let mut copies = vec![1; rows.len()];
        let (done, unfinished): (Vec<Prefill>, Vec<Prefill>) = std::mem::take(&mut self.prefills)
            .into_iter()
            .partition(Prefill::is_complete);
        self.prefills = unfinished;
        for prefill in done {
            copies.push(prefill.rows.len());
            rows.extend(prefill.rows);
        }
        let sampled = rows.len();
        if sampled > 0 {
            let vocab = logits.len() / copies.len();
            let each = logits.chunks(vocab).zip(copies);
            let logits: Vec<&[f32]> = each
                .flat_map(|(logits, copies)| std::iter::repeat_n(logits, copies))
                .collect();
            let ended: Vec<bool> = rows
                .par_iter_mut()
                .zip(logits)
                .map(|(row, logits)| row.sample(logits))
                .collect();
            for (row, ended) in rows.into_iter().zip(ended) {
                match ended {
                    true => self.free.push(row.slot),
                    false => self.rows.push(row),
                }
            }
        }
        Stepped {
            prompt_tokens,
            sampled,
        }
    }

    /// The next piece of each prompt of a model, of `budget` tokens together: the prefill and the range of its prompt.
    fn pieces(&self, model: usize, budget: usize) -> Vec<(usize, std::ops::Range<usize>)> {
        let mut left = budget;
        let mut pieces = Vec::new();
        for (place, prefill) in self.prefills.iter().enumerate() {
            let first = &prefill.rows[0];
            if first.model == model && left > 0 {
                let end = first.prompt.len().min(prefill.fed + left);
                left -= end - prefill.fed;
                pieces.push((place, prefill.fed..end));
            }
        }
        pieces
    }
}

/// The logits after the last token of each complete row, on the host: `[complete rows * vocab]`. Waits for the device.
fn logits<B: ModelBackend, M: CausalLm<B>>(
    model: &M,
    inputs: &[&[u32]],
    complete: &[bool],
    cache: &mut KvCache<B>,
    device: &B::Device,
) -> Vec<f32> {
    let batch = TokenBatch::from_rows(inputs, device);
    let last = batch.segments.last_tokens();
    let mut wanted: Vec<usize> = last
        .iter()
        .zip(complete)
        .filter_map(|(&last, &complete)| complete.then_some(last))
        .collect();
    let any = !wanted.is_empty();
    if !any {
        // The pass is for its keys and values; kernels need a position.
        wanted.push(last[0]);
    }
    let all = wanted.len() == batch.segments.num_tokens();
    let positions = (!all).then(|| indices(&wanted, device));
    let hidden = model.states_at(&batch, positions, Some(cache), None);
    match any {
        true => read(model.logits(hidden)),
        false => Vec::new(),
    }
}

#[cfg(test)]
mod tests;
