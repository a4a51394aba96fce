//! Exponential moving average of the policy's weights.

use std::path::Path;

use burn::backend::Autodiff;

use crate::checkpoint::TensorMap;
use crate::error::{Error, Result};
use crate::model::LanguageModel;
use crate::ops::ModelBackend;
use crate::snapshot::{Snapshot, SnapshotTensor};
use crate::train::state::{restore_weights, trained_weights};

/// Exponential moving average of a policy's trained weights, on the host.
///
/// # Source
/// Ouyang et al. 2022, arXiv:2203.02155, appendix C.4, with a decay of 0.992 per update.
#[derive(Debug, Clone)]
pub(super) struct WeightAverage {
    decay: f64,
    weights: TensorMap,
}

impl WeightAverage {
    /// Starts at the policy's weights.
    pub(super) fn new<B: ModelBackend>(
        decay: f64,
        policy: &mut LanguageModel<Autodiff<B>>,
    ) -> Self {
        let weights = trained_weights(policy);
        let entry = |tensor: &SnapshotTensor<'_>| {
            let values = tensor.read().into_owned();
            (tensor.name.clone(), (tensor.shape.clone(), values))
        };
        Self {
            decay,
            weights: weights.tensors().iter().map(entry).collect(),
        }
    }

    /// `average * decay + weights * (1 - decay)`.
    pub(super) fn update<B: ModelBackend>(&mut self, policy: &mut LanguageModel<Autodiff<B>>) {
        for tensor in trained_weights(policy).tensors() {
            let Some((_, values)) = self.weights.get_mut(&tensor.name) else {
                continue;
            };
            for (value, new) in values.iter_mut().zip(&*tensor.read()) {
                let mixed = self.decay * f64::from(*value) + (1.0 - self.decay) * f64::from(*new);
                *value = mixed as f32;
            }
        }
    }

    /// The policy with the averaged weights.
    ///
    /// # Errors
    /// `Error::Format` if the average is of another model.
    pub(super) fn applied<B: ModelBackend>(
        &self,
        policy: &LanguageModel<Autodiff<B>>,
        device: &B::Device,
    ) -> Result<LanguageModel<Autodiff<B>>> {
        let mut policy = policy.clone();
        restore_weights(&self.weights, "", &mut policy, device, Path::new("average"))?;
        Ok(policy)
    }

    /// Its weights, for a checkpoint.
    pub(super) fn weights(&self) -> Snapshot<'_> {
        let mut weights = Snapshot::default();
        for (name, (shape, values)) in &self.weights {
            weights.insert(name, shape.clone(), move || values.into());
        }
        weights
    }

    /// Restores the average from the weights of the checkpoint `folder`, given without their prefix.
    ///
    /// # Errors
    /// `Error::Format` if they are of another model.
    pub(super) fn restore(&mut self, weights: TensorMap, folder: &Path) -> Result<()> {
        let shapes = |map: &TensorMap| -> Vec<(String, Vec<usize>)> {
            (map.iter())
                .map(|(name, (shape, _))| (name.clone(), shape.clone()))
                .collect()
        };
        if shapes(&weights) != shapes(&self.weights) {
            return Err(Error::format(
                folder,
                "the averaged weights are of another model",
            ));
        }
        self.weights = weights;
        Ok(())
    }
}
