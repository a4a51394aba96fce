//! The thread that computes: one loop over all models.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};

use super::desk::{Desk, Work};
use super::metrics::Metrics;
use crate::error::Result;
use crate::generate::continuous::{Room, Scheduler};
use crate::generate::prompt_logprobs;
use crate::guard;
use crate::model::{LanguageModel, ScalarModel};
use crate::ops::ModelBackend;

/// Most tokens of rows that are measured or scored in one pass beside responses in progress, which wait for it; one row may have more.
const ROWS_BESIDE: usize = 256;
/// The same without any.
const ROWS_ALONE: usize = 2048;

/// All models on a device.
pub(crate) struct Engine<B: ModelBackend> {
    /// By base: its adapters, or itself alone.
    policies: Vec<Scheduler<B, LanguageModel<B>>>,
    rewards: Vec<ScalarModel<B>>,
    /// Rows to measure and to score.
    rows: VecDeque<Work>,
    device: B::Device,
}

impl<B: ModelBackend> Engine<B> {
    /// An engine for `policies`, by base, and reward models.
    pub(crate) fn new(
        policies: Vec<Vec<LanguageModel<B>>>,
        rewards: Vec<ScalarModel<B>>,
        room: Room,
        device: B::Device,
    ) -> Self {
        let scheduler = |models| Scheduler::new(models, room, device.clone());
        Self {
            policies: policies.into_iter().map(scheduler).collect(),
            rewards,
            rows: VecDeque::new(),
            device,
        }
    }

    /// Works until the desk is closed and everything is done.
    ///
    /// # Errors
    /// When the device fails.
    pub(crate) fn run(mut self, desk: &Desk, metrics: &Metrics) -> Result<()> {
        while let Some(work) = desk.take(self.is_idle()) {
            for work in work {
                match work {
                    Work::Generate { base, job } => self.policies[base].submit(job),
                    row => self.rows.push_back(row),
                }
            }
            self.do_rows(metrics);
            let mut running = 0;
            for policies in &mut self.policies {
                let stepped = policies.step();
                running += policies.num_running();
                let add = |counter: &AtomicU64, n: usize| {
                    counter.fetch_add(n as u64, Ordering::Relaxed);
                };
                add(&metrics.prompt_tokens, stepped.prompt_tokens);
                add(&metrics.generated_tokens, stepped.sampled);
            }
            metrics.running.store(running as u64, Ordering::Relaxed);
            guard::check::<B>(&self.device)?;
        }
        Ok(())
    }

    fn is_idle(&self) -> bool {
        self.rows.is_empty() && self.policies.iter().all(Scheduler::is_idle)
    }

    /// One pass over rows at the front of the queue that are of one kind and model.
    fn do_rows(&mut self, metrics: &Metrics) {
        let budget = match self.policies.iter().all(Scheduler::is_idle) {
            true => ROWS_ALONE,
            false => ROWS_BESIDE,
        };
        let mut part = Vec::new();
        let mut tokens = 0;
        while let Some(work) = self.rows.pop_front() {
            if is_gone(&work) {
                continue;
            }
            let len = num_tokens(&work);
            let joins = part
                .first()
                .is_none_or(|first| is_alike(first, &work) && tokens + len <= budget);
            if !joins {
                self.rows.push_front(work);
                break;
            }
            tokens += len;
            part.push(work);
        }
        metrics
            .prompt_tokens
            .fetch_add(tokens as u64, Ordering::Relaxed);
        match part.first() {
            None => {}
            Some(Work::Score { reward, .. }) => self.score(*reward, part),
            Some(_) => self.measure(part),
        }
    }

    fn score(&self, reward: usize, part: Vec<Work>) {
        let (mut rows, mut replies) = (Vec::new(), Vec::new());
        for work in part {
            if let Work::Score {
                ids, reply, ticket, ..
            } = work
            {
                rows.push(ids);
                replies.push((reply, ticket));
            }
        }
        let rows: Vec<&[u32]> = rows.iter().map(Vec::as_slice).collect();
        let model = &self.rewards[reward];
        let scores = model.row_scores(&rows, usize::MAX, &self.device, &mut |_, _| {});
        for ((reply, _ticket), score) in replies.into_iter().zip(scores) {
            // Whoever asked may have gone.
            let _ = reply.send(score);
        }
    }

    fn measure(&self, part: Vec<Work>) {
        let (mut rows, mut replies) = (Vec::new(), Vec::new());
        let mut place = None;
        let mut most = 0;
        for work in part {
            if let Work::Measure {
                policy,
                ids,
                num_top,
                reply,
                ticket,
            } = work
            {
                place = Some(policy);
                most = most.max(num_top);
                rows.push(ids);
                replies.push((num_top, reply, ticket));
            }
        }
        let Some(place) = place else {
            return;
        };
        let rows: Vec<&[u32]> = rows.iter().map(|ids| &ids[..]).collect();
        let model = &self.policies[place.base].models()[place.model];
        let measured = prompt_logprobs(model, &rows, most, &self.device);
        for ((num_top, reply, _ticket), mut measured) in replies.into_iter().zip(measured) {
            for token in &mut measured {
                token.top.truncate(num_top);
            }
            let _ = reply.send(measured);
        }
    }
}

fn is_gone(work: &Work) -> bool {
    match work {
        Work::Generate { job, .. } => job.listener.is_gone(),
        Work::Measure { reply, .. } => reply.is_closed(),
        Work::Score { reply, .. } => reply.is_closed(),
    }
}

fn num_tokens(work: &Work) -> usize {
    match work {
        Work::Generate { job, .. } => job.prompt.len(),
        Work::Measure { ids, .. } => ids.len(),
        Work::Score { ids, .. } => ids.len(),
    }
}

/// Whether two rows can go through a model in one pass.
fn is_alike(a: &Work, b: &Work) -> bool {
    match (a, b) {
        (Work::Measure { policy: a, .. }, Work::Measure { policy: b, .. }) => a == b,
        (Work::Score { reward: a, .. }, Work::Score { reward: b, .. }) => a == b,
        _ => false,
    }
}
