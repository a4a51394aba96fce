//! A training run of one model: optimiser, schedule and journal.

use burn::backend::Autodiff;

use super::compare_weights;
use super::optimise::{NonFinite, optimise};
use crate::error::{Error, Result};
use crate::ops::ModelBackend;
use crate::optim::{GradientSum, OptimConfig, Optimiser, lr_at};
use crate::params::Parameters;
use crate::peft::Peft;
use crate::train::Session;
use crate::train::config::Cadence;
use crate::train::journal::Journal;
use crate::train::rescue::{Failed, rescue};
use crate::train::state::{restore_weights, trained_weights};

/// The training of one model over a known number of optimiser steps, resumable after each.
pub(crate) struct Training<B: ModelBackend> {
    /// Metrics, samples, checkpoints and the current position.
    pub(crate) journal: Journal,
    optim: Optimiser<B>,
    config: OptimConfig,
    num_steps: usize,
}

impl<B: ModelBackend> Training<B> {
    /// Starts the training of `model`, or on resume continues from the newest checkpoint.
    ///
    /// # Errors
    /// `Error::Io`, and `Error::Format` if the checkpoint belongs to another model.
    pub(crate) fn open(
        session: &mut Session<'_, B>,
        stage: &str,
        summary: &str,
        num_steps: usize,
        cadence: &Cadence,
        config: &OptimConfig,
        model: &mut dyn Parameters<Autodiff<B>>,
    ) -> Result<Self> {
        let (journal, restored) = Journal::open(session, stage, summary, num_steps, cadence)?;
        let mut optim = Optimiser::new(config.clone());
        if let Some((folder, checkpoint)) = restored {
            let device = &session.device;
            restore_weights(&checkpoint.weights, "", model, device, &folder)?;
            let done = journal.position.updates_of(0, &folder)?;
            optim.restore(checkpoint.optim, done, model, device, &folder)?;
        }
        Ok(Self {
            journal,
            optim,
            config: config.clone(),
            num_steps,
        })
    }

    /// The same at the learning rates that `peft` asks for.
    pub(crate) fn at_rates_of(mut self, peft: &Peft) -> Self {
        self.optim = (self.optim).with_vector_lr_factor(peft.vector_lr_factor());
        self
    }

    /// Whether no step has been done yet, before a resume included.
    pub(crate) fn is_fresh(&self) -> bool {
        self.journal.position.step == 0
    }

    /// Index of the next step; `None` when all are done.
    pub(crate) fn next_step(&self) -> Option<usize> {
        let step = self.journal.position.step;
        (step < self.num_steps).then_some(step)
    }

    /// Does the optimiser step, see [`optimise`]; returns its metrics `grad_norm` and `lr`. `rows`, the rows of the batch, are
    /// saved if the gradient is not finite.
    ///
    /// # Errors
    /// `Error::NonFinite`.
    pub(crate) fn optimise(
        &mut self,
        model: &mut dyn Parameters<Autodiff<B>>,
        gradients: GradientSum<B>,
        count: f64,
        rows: &[&[u32]],
    ) -> Result<[(&'static str, f64); 2]> {
        let step = self.journal.position.step;
        let lr = lr_at(&self.config.schedule, self.config.lr, step, self.num_steps);
        let norm = optimise(model, &mut self.optim, gradients, count, lr)
            .map_err(|problem| self.non_finite(problem, rows))?;
        self.journal.position.updates = vec![self.optim.num_updates()];
        Ok([("grad_norm", norm), ("lr", lr)])
    }

    /// The error for a number that is not finite; saves the `rows` that caused it.
    pub(crate) fn non_finite(&self, problem: NonFinite, rows: &[&[u32]]) -> Error {
        self.journal.non_finite(problem.0, rows)
    }

    /// Keeps the weights if they are the best so far, and writes a checkpoint if one is due or the user wants to stop.
    ///
    /// # Errors
    /// `Error::Io`; `Error::Interrupted` if the user wants to stop.
    pub(crate) fn save_if_due(
        &mut self,
        session: &Session<'_, B>,
        model: &mut dyn Parameters<Autodiff<B>>,
    ) -> Result<()> {
        let (is_best, saves) = (self.journal.is_best()?, self.journal.must_save());
        let (stage, step) = (self.journal.stage(), self.journal.position.step);
        compare_weights(stage, step, is_best || saves, || trained_weights(model))?;
        if is_best {
            self.journal.save_best(&trained_weights(model))?;
        }
        if !saves {
            return Ok(());
        }
        let weights = trained_weights(model);
        self.journal.save(session, &weights, &self.optim.state())
    }

    /// The error of a part of a step before its update: the steps before it are kept in a checkpoint first.
    pub(crate) fn failed(
        &mut self,
        session: &mut Session<'_, B>,
        model: &mut dyn Parameters<Autodiff<B>>,
        failed: Failed,
    ) -> Error {
        let optim = &self.optim;
        rescue(session, &mut self.journal, |journal| {
            journal.keep(&trained_weights(model), &optim.state())
        });
        failed.end()
    }

    /// Ends the training: `model` gets the weights that the stage leaves, see [`Journal::restore_best`].
    ///
    /// # Errors
    /// As there.
    pub(crate) fn finish(
        mut self,
        session: &Session<'_, B>,
        model: &mut dyn Parameters<Autodiff<B>>,
    ) -> Result<Journal> {
        self.journal.restore_best(session, model)?;
        Ok(self.journal)
    }
}
