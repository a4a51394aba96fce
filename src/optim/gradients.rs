//! Gradients summed over micro-batches, and their global norm.

use std::collections::BTreeMap;

use burn::tensor::backend::{AutodiffBackend, Backend};
use burn::tensor::ops::FloatTensor;

use super::state::values;
use crate::ops::ModelBackend;
use crate::params::{Parameters, columns_of};

/// Gradients of the trained parameters, summed over backward passes.
#[derive(Debug)]
pub struct GradientSum<B: Backend> {
    pub(super) gradients: BTreeMap<String, FloatTensor<B>>,
}

impl<B: Backend> Default for GradientSum<B> {
    fn default() -> Self {
        Self {
            gradients: BTreeMap::new(),
        }
    }
}

impl<B: ModelBackend> GradientSum<B> {
    /// Adds the gradients of one backward pass.
    pub fn add<A: AutodiffBackend<InnerBackend = B>>(
        &mut self,
        model: &mut dyn Parameters<A>,
        grads: &mut A::Gradients,
    ) {
        model.for_each_parameter(&mut |meta, slot| {
            if let Some(gradient) = slot.take_gradient(grads) {
                let gradient = match &meta.trained_columns {
                    Some(columns) => columns_of::<B>(gradient, columns),
                    None => gradient,
                };
                let sum = match self.gradients.remove(meta.key()) {
                    Some(sum) => B::float_add(sum, gradient),
                    None => gradient,
                };
                self.gradients.insert(meta.key().to_owned(), sum);
            }
        });
    }

    /// Euclidean norm over all entries. Reads the device.
    pub fn norm(&self) -> f64 {
        B::sum_of_squares(self.gradients.values().cloned().collect()).sqrt()
    }

    /// Names of the parameters that have a gradient.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.gradients.keys().map(String::as_str)
    }

    /// A parameter's gradient on the host, in the parameter's own layout.
    pub fn values(&self, name: &str) -> Option<Vec<f32>> {
        self.gradients
            .get(name)
            .map(|gradient| values::<B>(gradient.clone()))
    }
}
