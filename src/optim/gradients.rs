//! Gradients summed over micro-batches, and their global norm.

use std::collections::BTreeMap;

use burn::tensor::backend::{AutodiffBackend, Backend};
use burn::tensor::ops::FloatTensor;
use burn::tensor::{TensorData, TensorMetadata};

use super::state::values;
use crate::collective;
use crate::ops::ModelBackend;
use crate::params::{Parameters, columns_of};

/// Gradients that are summed over ranks at once: 16 MiB of small ones together.
const VALUES_AT_ONCE: usize = 4 << 20;

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
                // A large gradient is not copied.
                Some(gradient) if values.is_empty() => {
                    values = super::state::values::<B>(gradient);
                }
                Some(gradient) => values.extend(super::state::values::<B>(gradient)),
                None => values.resize(values.len() + entries, 0.0),
            }
            waiting.push((name, shape));
            if values.len() < VALUES_AT_ONCE && shapes.peek().is_some() {
                continue;
            }
            ranks.sum_in_place(&mut values);
            let lens: Vec<usize> = (waiting.iter())
                .map(|(_, shape)| shape.iter().product())
                .collect();
            let parts = split(std::mem::take(&mut values), &lens);
            for ((name, shape), part) in waiting.drain(..).zip(parts) {
                let gradient = B::float_from_data(TensorData::new(part, shape), device);
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

/// Consecutive parts of `values`, each in memory of its own length; one that is all of it is not copied.
fn split(values: Vec<f32>, lens: &[usize]) -> Vec<Vec<f32>> {
    if lens.len() == 1 {
        return vec![values];
    }
    // Not `Vec::split_off`, which leaves the first part all of the memory: kept as tensors, parts would hold the square of their number.
    let mut rest = values.as_slice();
    let next = |&len: &usize| {
        let (part, tail) = rest.split_at(len);
        rest = tail;
        part.to_vec()
    };
    lens.iter().map(next).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_hold_no_memory_of_others() {
        let values: Vec<f32> = (0..6).map(|value| value as f32).collect();
        let parts = split(values.clone(), &[1, 0, 3, 2]);
        let want: [&[f32]; 4] = [&[0.0], &[], &[1.0, 2.0, 3.0], &[4.0, 5.0]];
        assert_eq!(parts, want);
        assert!(parts.iter().all(|part| part.capacity() == part.len()));
        assert_eq!(split(values.clone(), &[6]), [values]);
    }
}
