//! Gradients summed over micro-batches, their global norm, and the AdamW optimiser. State is keyed by parameter name.

use std::collections::BTreeMap;
use std::path::Path;

use burn::tensor::backend::{AutodiffBackend, Backend};
use burn::tensor::ops::FloatTensor;
use burn::tensor::{DType, TensorData, TensorMetadata};

use super::OptimConfig;
use crate::error::{Error, Result};
use crate::host;
use crate::ops::{AdamWParam, AdamWResult, AdamWStep, ModelBackend};
use crate::params::{Parameters, columns_of, with_columns};
use crate::snapshot::Snapshot;

/// Named numbers of a checkpoint: shape and values.
pub type StateMap = BTreeMap<String, (Vec<usize>, Vec<f32>)>;

/// Gradients of the trained parameters, summed over backward passes.
#[derive(Debug)]
pub struct GradientSum<B: Backend> {
    gradients: BTreeMap<String, FloatTensor<B>>,
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

/// AdamW with decoupled weight decay on everything but norms and biases.
///
/// # Source
/// Loshchilov and Hutter 2019, arXiv:1711.05101; what decays is what `Trainer` of transformers decays, embeddings and score
/// heads included.
#[derive(Debug)]
pub struct AdamW<B: Backend> {
    config: OptimConfig,
    /// Updates done.
    step: usize,
    moments: BTreeMap<String, [FloatTensor<B>; 2]>,
}

impl<B: ModelBackend> AdamW<B> {
    /// An optimiser without history.
    pub fn new(config: OptimConfig) -> Self {
        Self {
            config,
            step: 0,
            moments: BTreeMap::new(),
        }
    }

    /// Updates done.
    pub fn num_updates(&self) -> usize {
        self.step
    }

    /// One update with the gradient `sum / count`, scaled down if its norm exceeds `max_grad_norm`. Returns the norm
    /// before clipping; if it is not finite nothing is updated.
    pub fn update<A: AutodiffBackend<InnerBackend = B>>(
        &mut self,
        model: &mut dyn Parameters<A>,
        mut sum: GradientSum<B>,
        count: f64,
        lr: f64,
    ) -> f64 {
        let norm = sum.norm() / count;
        if !norm.is_finite() {
            return norm;
        }
        // PyTorch's clip_grad_norm_: max / (norm + 1e-6), at most 1.
        let clip = self
            .config
            .max_grad_norm
            .map_or(1.0, |max| (max / (norm + 1e-6)).min(1.0));
        self.step += 1;
        let OptimConfig {
            beta1,
            beta2,
            eps,
            weight_decay,
            ..
        } = self.config;
        let power = self.step as i32;
        let step = AdamWStep {
            lr: lr as f32,
            beta1,
            beta2,
            eps: eps as f32,
            weight_decay: weight_decay as f32,
            grad_scale: (clip / count) as f32,
            bias_correction1: (1.0 - beta1.powi(power)) as f32,
            bias_correction2: (1.0 - beta2.powi(power)) as f32,
        };
        // All parameters at once: taken out in one walk, put back in the next.
        let (mut names, mut params, mut lr_factors) = (Vec::new(), Vec::new(), Vec::new());
        // Parameters of which some columns are trained: neither steps nor decay touch the others.
        let mut wholes = BTreeMap::new();
        model.for_each_parameter(&mut |meta, mut slot| {
            let Some(grad) = sum.gradients.remove(meta.key()) else {
                return;
            };
            let Some(mut value) = slot.take_value() else {
                return;
            };
            if let Some(columns) = &meta.trained_columns {
                let whole = value;
                value = columns_of::<B>(whole.clone(), columns);
                wholes.insert(meta.key().to_owned(), whole);
            }
            let moments = self.moments.remove(meta.key()).unwrap_or_else(|| {
                let device = B::float_device(&grad);
                [(); 2].map(|()| B::float_zeros(grad.shape(), &device, DType::F32.into()))
            });
            names.push(meta.key().to_owned());
            lr_factors.push(meta.lr_factor);
            params.push(AdamWParam {
                value,
                grad,
                moments,
                decays: meta.decays(),
            });
        });
        let mut updated = (names.into_iter())
            .zip(updated::<B>(params, &lr_factors, step))
            .peekable();
        model.for_each_parameter(&mut |meta, mut slot| {
            if let Some((name, (value, moments))) = updated.next_if(|(name, _)| name == meta.key())
            {
                let value = match (&meta.trained_columns, wholes.remove(&name)) {
                    (Some(columns), Some(whole)) => with_columns::<B>(whole, value, columns),
                    _ => value,
                };
                self.moments.insert(name, moments);
                slot.put_value(value);
            }
        });
        norm
    }

    /// Both moments of every parameter, as `<name>.m` and `<name>.v`.
    pub fn state(&self) -> Snapshot<'_> {
        let mut state = Snapshot::default();
        for (name, moments) in &self.moments {
            for (suffix, moment) in ["m", "v"].iter().zip(moments) {
                let name = format!("{name}.{suffix}");
                state.insert(name, moment.shape().to_vec(), move || {
                    values::<B>(moment.clone()).into()
                });
            }
        }
        state
    }

    /// Continues from [`AdamW::state`] after `num_updates` updates of `model`.
    ///
    /// # Errors
    /// `Error::Format` at `folder` unless the moments are pairs of parameters that are trained, in their shapes, and there are
    /// some after an update.
    pub fn restore<A: AutodiffBackend<InnerBackend = B>>(
        &mut self,
        mut state: StateMap,
        num_updates: usize,
        model: &mut dyn Parameters<A>,
        device: &B::Device,
        folder: &Path,
    ) -> Result<()> {
        let mut moments = BTreeMap::new();
        model.for_each_parameter(&mut |meta, slot| {
            if !slot.is_trained() {
                return;
            }
            let shape = meta.trained_shape(slot.shape());
            let mut take = |suffix: &str| {
                let name = format!("{}.{suffix}", meta.key());
                let (found, values) = state.remove(&name)?;
                if found == shape {
                    return Some(B::float_from_data(TensorData::new(values, found), device));
                }
                state.insert(name, (found, values));
                None
            };
            if let (Some(m), Some(v)) = (take("m"), take("v")) {
                moments.insert(meta.key().to_owned(), [m, v]);
            }
        });
        if let Some((name, (shape, _))) = state.first_key_value() {
            let message = format!(
                "the optimiser state is of another model: no trained parameter has moments `{name}` of shape {shape:?}"
            );
            return Err(Error::format(folder, message));
        }
        if num_updates > 0 && moments.is_empty() {
            let message = format!(
                "the optimiser state holds no moments, expected those of {num_updates} updates"
            );
            return Err(Error::format(folder, message));
        }
        (self.step, self.moments) = (num_updates, moments);
        Ok(())
    }
}

/// The updated parameters, those of one learning rate at once.
fn updated<B: ModelBackend>(
    params: Vec<AdamWParam<B>>,
    lr_factors: &[f64],
    step: AdamWStep,
) -> Vec<AdamWResult<B>> {
    let mut by_factor: BTreeMap<u64, Vec<(usize, AdamWParam<B>)>> = BTreeMap::new();
    for ((index, param), factor) in params.into_iter().enumerate().zip(lr_factors) {
        let params = by_factor.entry(factor.to_bits()).or_default();
        params.push((index, param));
    }
    let mut results = Vec::new();
    for (bits, params) in by_factor {
        let lr = (f64::from(step.lr) * f64::from_bits(bits)) as f32;
        let (indices, params): (Vec<_>, Vec<_>) = params.into_iter().unzip();
        let updated = B::adamw(params, AdamWStep { lr, ..step });
        results.extend(indices.into_iter().zip(updated));
    }
    results.sort_by_key(|(index, _)| *index);
    results.into_iter().map(|(_, result)| result).collect()
}

/// Its numbers, row-major.
fn values<B: Backend>(tensor: FloatTensor<B>) -> Vec<f32> {
    let entries = tensor.shape().num_elements();
    let flat = B::float_reshape(tensor, [entries].into());
    host::read(crate::ops::wrap::<B, 1>(flat))
}
