//! The state of an on-policy method between updates.

use burn::backend::Autodiff;

use super::Networks;
use super::average::WeightAverage;
use crate::error::{Error, Result};
use crate::model::LanguageModel;
use crate::ops::ModelBackend;
use crate::rl::KlController;
use crate::snapshot::Snapshot;
use crate::train::Session;
use crate::train::journal::{Journal, RestoredCheckpoint};
use crate::train::rescue::{Failed, rescue};
use crate::train::shared::compare_weights;
use crate::train::state::{trained_weights, under};

/// Prefix of the averaged weights in checkpoints.
const AVERAGE: &str = "average.";

/// Networks, moving average and KL coefficient: the contents of a checkpoint.
pub(crate) struct State<B: ModelBackend> {
    /// The trained networks.
    pub(crate) networks: Networks<B>,
    /// Moving average of the policy's weights, if the recipe has one.
    average: Option<WeightAverage>,
    /// Controller of the KL coefficient.
    pub(crate) kl: KlController,
}

impl<B: ModelBackend> State<B> {
    /// The state before the first update. `ema_decay`: decay per update of a moving average of the policy's weights, which is then
    /// evaluated and saved.
    pub(crate) fn new(mut networks: Networks<B>, kl: KlController, ema_decay: Option<f64>) -> Self {
        Self {
            average: ema_decay.map(|decay| WeightAverage::new(decay, &mut networks.policy)),
            networks,
            kl,
        }
    }

    /// Continues from a checkpoint of [`State::save_if_due`].
    ///
    /// # Errors
    /// `Error::Format` if it belongs to other models.
    pub(crate) fn restore(
        &mut self,
        (folder, checkpoint): RestoredCheckpoint,
        device: &B::Device,
    ) -> Result<()> {
        let position = &checkpoint.state;
        let state = (&checkpoint.weights, &checkpoint.optim);
        (self.networks).restore(state, position, device, &folder)?;
        self.kl = position.kl.unwrap_or(self.kl);
        if let Some(average) = &mut self.average {
            average.restore(under(&checkpoint.weights, AVERAGE), &folder)?;
        }
        Ok(())
    }

    /// The policy that is evaluated and saved: the average, if there is one.
    ///
    /// # Errors
    /// `Error::Format` if the average is of another model.
    pub(crate) fn result(&self, device: &B::Device) -> Result<LanguageModel<Autodiff<B>>> {
        match &self.average {
            Some(average) => average.applied(&self.networks.policy, device),
            None => Ok(self.networks.policy.clone()),
        }
    }

    /// Records an update in the journal and averages the policy's weights.
    pub(crate) fn updated(&mut self, journal: &mut Journal, mean_kl: f64, num_episodes: usize) {
        if let Some(average) = &mut self.average {
            average.update(&mut self.networks.policy);
        }
        self.kl.update(mean_kl, num_episodes);
        journal.position.kl = Some(self.kl);
        journal.position.updates = self.networks.num_updates();
    }

    /// Keeps the weights of [`State::result`] if they are the best so far, and writes a checkpoint if one is due or the user wants to
    /// stop.
    ///
    /// # Errors
    /// `Error::Io`; `Error::Interrupted` if the user wants to stop.
    pub(crate) fn save_if_due(
        &mut self,
        session: &Session<'_, B>,
        journal: &mut Journal,
    ) -> Result<()> {
        let (is_best, saves) = (journal.is_best()?, journal.must_save());
        let (stage, step) = (journal.stage(), journal.position.step);
        compare_weights(stage, step, is_best || saves, || self.networks.weights())?;
        if is_best {
            let mut result = self.result(&session.device)?;
            journal.save_best(&trained_weights(&mut result))?;
        }
        if !saves {
            return Ok(());
        }
        let (weights, moments) = self.snapshots();
        journal.save(session, &weights, &moments)
    }

    /// The error of a part of a step before its update: the updates before it are kept in a checkpoint first.
    pub(crate) fn failed(
        &mut self,
        session: &mut Session<'_, B>,
        journal: &mut Journal,
        failed: Failed,
    ) -> Error {
        rescue(session, journal, |journal| {
            let (weights, moments) = self.snapshots();
            journal.keep(&weights, &moments)
        });
        failed.end()
    }

    /// Weights and moments, as a checkpoint has them.
    fn snapshots(&mut self) -> (Snapshot<'_>, Snapshot<'_>) {
        let (mut weights, moments) = self.networks.state();
        if let Some(average) = &self.average {
            weights.extend(AVERAGE, average.weights());
        }
        (weights, moments)
    }
}
