//! The optimiser: an update rule with its state of every parameter, keyed by parameter name.

use std::collections::BTreeMap;
use std::path::Path;

use burn::tensor::backend::{AutodiffBackend, Backend};
use burn::tensor::ops::FloatTensor;

use super::groups::{Groups, Unit};
use super::rule::{ParamUpdate, UpdateRule, UpdateStep};
use super::state::{StateSpec, StateTensor};
use super::{GradientSum, OptimConfig};
use crate::error::{Error, Result};
use crate::ops::ModelBackend;
use crate::params::{Parameters, columns_of, with_columns};
use crate::snapshot::Snapshot;

/// Named numbers of a checkpoint: shape and values.
pub type StateMap = BTreeMap<String, (Vec<usize>, Vec<f32>)>;

/// An update rule at work. Weight decay is of everything but norms and biases.
///
/// # Source
/// What decays is what `Trainer` of transformers decays, embeddings and score heads included.
#[derive(Debug)]
pub struct Optimiser<B: Backend> {
    config: OptimConfig,
    groups: Groups,
    /// Updates done.
    step: usize,
    state: BTreeMap<String, ParamState<B>>,
}

/// What is kept of a parameter.
#[derive(Debug)]
struct ParamState<B: Backend> {
    specs: Vec<StateSpec>,
    tensors: Vec<StateTensor<B>>,
}

/// A parameter between the walk that takes it out and the one that puts it back.
struct Taken<B: Backend> {
    name: String,
    units: Vec<(Unit, Vec<StateSpec>)>,
    /// The parameter, where its units are parts of it.
    whole: Option<FloatTensor<B>>,
}

impl<B: ModelBackend> Optimiser<B> {
    /// An optimiser without history.
    pub fn new(config: OptimConfig) -> Self {
        Self {
            groups: Groups::new(&config.groups, config.lr, config.weight_decay),
            config,
            step: 0,
            state: BTreeMap::new(),
        }
    }

    /// The same with another learning rate of biases and norms of the model: so many times that of others.
    pub fn with_vector_lr_factor(mut self, factor: f64) -> Self {
        self.groups.vector_lr_factor = factor;
        self
    }

    /// Updates done.
    pub fn num_updates(&self) -> usize {
        self.step
    }

    /// One update with the gradient `sum / count`, scaled down if its norm exceeds `max_grad_norm`, at the rate `lr`: that of
    /// parameters outside groups. Returns the norm before clipping; if it is not finite nothing is updated.
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
        // All parameters at once: taken out in one walk, put back in the next.
        let (mut taken, mut params) = (Vec::new(), Vec::new());
        model.for_each_parameter(&mut |meta, mut slot| {
            let Some(gradient) = sum.gradients.remove(meta.key()) else {
                return;
            };
            let units = self.groups.units(meta, &slot);
            let Some(value) = slot.take_value() else {
                return;
            };
            let (mut whole, mut kept) = (None, Vec::new());
            for unit in units {
                // Columns that are not trained neither move nor decay.
                let value = match &unit.columns {
                    None => value.clone(),
                    Some(columns) => {
                        whole.get_or_insert_with(|| value.clone());
                        columns_of::<B>(value.clone(), columns)
                    }
                };
                let grad = match &unit.gradient {
                    None => gradient.clone(),
                    Some(columns) => columns_of::<B>(gradient.clone(), columns),
                };
                let ParamState { specs, tensors } =
                    (self.state.remove(&unit.key)).unwrap_or_else(|| {
                        let specs = self.config.algorithm.state(&unit.form);
                        let device = B::float_device(&grad);
                        let zeros = specs.iter().map(|spec| spec.zeros::<B>(&device));
                        ParamState {
                            tensors: zeros.collect(),
                            specs,
                        }
                    });
                params.push(ParamUpdate {
                    value,
                    grad,
                    state: tensors,
                    form: unit.form.clone(),
                    lr: lr * unit.rates.lr_factor,
                    weight_decay: unit.rates.weight_decay,
                    decays: unit.decays,
                });
                kept.push((unit, specs));
            }
            taken.push(Taken::<B> {
                name: meta.key().to_owned(),
                units: kept,
                whole,
            });
        });
        let step = UpdateStep {
            number: self.step,
            grad_scale: clip / count,
            config: &self.config,
        };
        let mut updated = self.config.algorithm.update(params, &step).into_iter();
        let mut taken = taken.into_iter().peekable();
        model.for_each_parameter(&mut |meta, mut slot| {
            let Some(Taken {
                units, mut whole, ..
            }) = taken.next_if(|taken| taken.name == meta.key())
            else {
                return;
            };
            for ((unit, specs), (value, tensors)) in units.into_iter().zip(updated.by_ref()) {
                self.state.insert(unit.key, ParamState { specs, tensors });
                whole = Some(match (whole, &unit.columns) {
                    (Some(whole), Some(columns)) => with_columns::<B>(whole, value, columns),
                    _ => value,
                });
            }
            if let Some(value) = whole {
                slot.put_value(value);
            }
        });
        norm
    }

    /// The state of every parameter, as `<parameter>.<tensor>`: both moments of AdamW as `<name>.m` and `<name>.v`.
    pub fn state(&self) -> Snapshot<'_> {
        let mut snapshot = Snapshot::default();
        for (name, state) in &self.state {
            for (spec, tensor) in state.specs.iter().zip(&state.tensors) {
                let name = format!("{name}.{}", spec.name);
                let read = move || tensor.read().into();
                match spec.bytes {
                    true => snapshot.insert_bytes(name, spec.shape.clone(), read),
                    false => snapshot.insert(name, spec.shape.clone(), read),
                }
            }
        }
        snapshot
    }

    /// Continues from [`Optimiser::state`] after `num_updates` updates of `model`.
    ///
    /// # Errors
    /// `Error::Format` at `folder` unless the state is of parameters that are trained, in their shapes, and there is some after
    /// an update, if the update rule keeps any.
    pub fn restore<A: AutodiffBackend<InnerBackend = B>>(
        &mut self,
        mut saved: StateMap,
        num_updates: usize,
        model: &mut dyn Parameters<A>,
        device: &B::Device,
        folder: &Path,
    ) -> Result<()> {
        let (mut restored, mut keeps) = (BTreeMap::new(), false);
        model.for_each_parameter(&mut |meta, slot| {
            if !slot.is_trained() {
                return;
            }
            for unit in self.groups.units(meta, &slot) {
                let specs = self.config.algorithm.state(&unit.form);
                keeps |= !specs.is_empty();
                let name = |spec: &StateSpec| format!("{}.{}", unit.key, spec.name);
                let found = |spec: &StateSpec| {
                    (saved.get(&name(spec))).is_some_and(|(shape, _)| *shape == spec.shape)
                };
                if !specs.iter().all(found) {
                    continue;
                }
                let take = |spec: &StateSpec| {
                    let (_, values) = saved.remove(&name(spec)).unwrap_or_default();
                    spec.restored::<B>(values, device)
                };
                let tensors = specs.iter().map(take).collect();
                restored.insert(unit.key, ParamState { specs, tensors });
            }
        });
        if let Some((name, (shape, _))) = saved.first_key_value() {
            let message = format!(
                "the optimiser state is of another model: no trained parameter has moments `{name}` of shape {shape:?}"
            );
            return Err(Error::format(folder, message));
        }
        if num_updates > 0 && keeps && restored.is_empty() {
            let message = format!(
                "the optimiser state holds no moments, expected those of {num_updates} updates"
            );
            return Err(Error::format(folder, message));
        }
        (self.step, self.state) = (num_updates, restored);
        Ok(())
    }
}
