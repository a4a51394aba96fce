//! Gradients summed over micro-batches, and their global norm.

use std::collections::BTreeMap;

use burn::tensor::backend::{AutodiffBackend, Backend};
use burn::tensor::ops::FloatTensor;
use burn::tensor::{TensorData, TensorMetadata};

use super::state::values;
use crate::collective;
use crate::ops::ModelBackend;
use crate::params::{Parameters, columns_of};

/// Gradients that are summed over ranks at once: 32 MiB of small ones together.
const VALUES_AT_ONCE: usize = 8 << 20;

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

    /// The sum over ranks, added in their order, in the order of the parameters' names. With one process, these gradients.
    ///
    /// A rank may lack parameters, if it had no rows that reach them.
    pub fn over_ranks(mut self, device: &B::Device) -> Self {
        let ranks = collective::ranks();
        if ranks.is_alone() {
            return self;
        }
        let own: Vec<(&String, Vec<usize>)> = (self.gradients.iter())
            .map(|(name, gradient)| (name, gradient.shape().to_vec()))
            .collect();
        // Invariant: names and numbers are representable in JSON.
        let own = serde_json::to_vec(&own).expect("names and shapes");
        let mut shapes: BTreeMap<String, Vec<usize>> = BTreeMap::new();
        let mut known: Option<Vec<u8>> = None;
        for bytes in ranks.gather(&own) {
            if known.as_ref() == Some(&bytes) {
                continue;
            }
            let of_rank: Vec<(String, Vec<usize>)> =
                serde_json::from_slice(&bytes).expect("written by the same program");
            shapes.extend(of_rank);
            known = Some(bytes);
        }
        // Parameters of some megabytes together: small ones would each take a message of their own.
        let mut waiting: Vec<(String, Vec<usize>)> = Vec::new();
        let mut values: Vec<f32> = Vec::new();
        let mut summed = Self::default();
        let mut shapes = shapes.into_iter().peekable();
        while let Some((name, shape)) = shapes.next() {
            let entries: usize = shape.iter().product();
            match self.gradients.remove(&name) {
                Some(gradient) => values.extend(super::state::values::<B>(gradient)),
                None => values.resize(values.len() + entries, 0.0),
            }
            waiting.push((name, shape));
            if values.len() < VALUES_AT_ONCE && shapes.peek().is_some() {
                continue;
            }
            ranks.sum_in_place(&mut values);
            let mut rest = std::mem::take(&mut values);
            for (name, shape) in waiting.drain(..) {
                let tail = rest.split_off(shape.iter().product());
                let data = TensorData::new(std::mem::replace(&mut rest, tail), shape);
                let gradient = B::float_from_data(data, device);
                summed.gradients.insert(name, gradient);
            }
        }
        summed
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
