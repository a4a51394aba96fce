//! Moving average of the policy's weights.

use std::path::Path;

use burn::backend::Autodiff;

use crate::checkpoint::TensorMap;
use crate::error::Result;
use crate::model::LanguageModel;
use crate::ops::ModelBackend;
use crate::train::state::{restore_weights, trained_weights};

/// The exponential moving average of what is trained of a policy, on the host.
///
/// # Source
/// Ouyang et al. 2022, arXiv:2203.02155, appendix C.4, with a decay of 0.992 per update.
#[derive(Debug, Clone)]
pub(super) struct Average {
    decay: f64,
    weights: TensorMap,
}

impl Average {
    /// Starts at the policy's weights.
    pub(super) fn new<B: ModelBackend>(
        decay: f64,
        policy: &mut LanguageModel<Autodiff<B>>,
    ) -> Self {
        let mut weights = TensorMap::new();
        trained_weights(&mut weights, "", policy);
        Self { decay, weights }
    }

    /// `average * decay + weights * (1 - decay)`.
    pub(super) fn update<B: ModelBackend>(&mut self, policy: &mut LanguageModel<Autodiff<B>>) {
        let mut now = TensorMap::new();
        trained_weights(&mut now, "", policy);
        for (name, (_, values)) in &mut self.weights {
            for (value, new) in values.iter_mut().zip(&now[name].1) {
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

    /// Its weights under `prefix`, for a checkpoint.
    pub(super) fn save(&self, prefix: &str, weights: &mut TensorMap) {
        let named = self.weights.iter();
        weights.extend(named.map(|(name, value)| (format!("{prefix}{name}"), value.clone())));
    }

    /// Takes the weights of a checkpoint, without their prefix.
    pub(super) fn restore(&mut self, weights: TensorMap) {
        self.weights = weights;
    }
}
