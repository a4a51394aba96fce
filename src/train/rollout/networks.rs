//! The trained networks of an on-policy method.

use std::path::Path;

use burn::backend::Autodiff;

use super::value::{ValueFunction, WithHead};
use crate::checkpoint::TensorMap;
use crate::error::Result;
use crate::model::LanguageModel;
use crate::ops::ModelBackend;
use crate::optim::Optimiser;
use crate::snapshot::Snapshot;
use crate::train::state::{Position, restore_weights, trained_weights, under};

/// Prefix of the policy's weights and moments in checkpoints.
const POLICY: &str = "policy.";
/// Prefix of the value function's.
const VALUE: &str = "value.";

/// The trained networks with their optimisers.
#[derive(Debug)]
pub struct Networks<B: ModelBackend> {
    /// The policy.
    pub policy: LanguageModel<Autodiff<B>>,
    /// Optimiser of the policy, and of a value head on it.
    pub policy_optim: Optimiser<B>,
    /// The value function; `None` for a method without one.
    pub value: Option<ValueFunction<B>>,
}

impl<B: ModelBackend> Networks<B> {
    /// Optimiser steps done, by network; a value head shares those of the policy.
    pub(super) fn num_updates(&self) -> Vec<usize> {
        let policy = self.policy_optim.num_updates();
        match &self.value {
            Some(ValueFunction::Network { optim, .. }) => vec![policy, optim.num_updates()],
            Some(ValueFunction::Head(_)) => vec![policy, policy],
            None => vec![policy],
        }
    }

    /// Trained weights.
    pub(super) fn weights<'a>(&mut self) -> Snapshot<'a> {
        let mut weights = Snapshot::default();
        weights.extend(POLICY, trained_weights(&mut self.policy));
        if let Some(value) = &mut self.value {
            weights.extend(VALUE, trained_weights(value.parameters()));
        }
        weights
    }

    /// Trained weights and moments, for a checkpoint.
    pub(super) fn state(&mut self) -> (Snapshot<'_>, Snapshot<'_>) {
        let (weights, mut moments) = (self.weights(), Snapshot::default());
        moments.extend(POLICY, self.policy_optim.state());
        if let Some(ValueFunction::Network { optim, .. }) = &self.value {
            moments.extend(VALUE, optim.state());
        }
        (weights, moments)
    }

    /// Continues from [`Networks::state`] after the updates of `position`; `folder` is the checkpoint's.
    ///
    /// # Errors
    /// `Error::Format` if the checkpoint belongs to other models.
    pub(super) fn restore(
        &mut self,
        (weights, moments): (&TensorMap, &TensorMap),
        position: &Position,
        device: &B::Device,
        folder: &Path,
    ) -> Result<()> {
        let (policy, optim) = (&mut self.policy, &mut self.policy_optim);
        restore_weights(weights, POLICY, policy, device, folder)?;
        if let Some(value) = &mut self.value {
            restore_weights(weights, VALUE, value.parameters(), device, folder)?;
        }
        let done = position.updates_of(0, folder)?;
        let of_policy = under(moments, POLICY);
        match &mut self.value {
            None => optim.restore(of_policy, done, policy, device, folder),
            Some(ValueFunction::Head(head)) => {
                let mut both = WithHead { policy, head };
                optim.restore(of_policy, done, &mut both, device, folder)
            }
            Some(ValueFunction::Network {
                model,
                optim: value_optim,
            }) => {
                optim.restore(of_policy, done, policy, device, folder)?;
                let done = position.updates_of(1, folder)?;
                value_optim.restore(under(moments, VALUE), done, model, device, folder)
            }
        }
    }
}
