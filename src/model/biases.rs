//! Biases of the base that are trained beside adapters: chosen, stored with them, and put back.

use std::collections::BTreeMap;

use burn::tensor::backend::Backend;

use super::config::{ModelConfig, TensorSpec};
use super::weights::WeightSource;
use crate::error::{Error, Problem, Result};
use crate::params::{HostTensor, ParamKind, Parameters};
use crate::peft::{Adaptable, AdapterSpec, Bias, bias_key};

/// Of a model's tensors the biases that are trained beside adapters on the layers at `adapted`.
///
/// # Errors
/// `Error::Usage` where biases are asked for and there are none.
pub fn trained_biases(
    spec: &AdapterSpec,
    config: &ModelConfig,
    adapted: &[String],
) -> Result<Vec<TensorSpec>> {
    let chosen = chosen_biases(spec, config, adapted);
    match chosen.is_empty() && spec.bias() != Bias::None {
        true => Err(Error::Usage(
            "bias: none of these layers has a bias in this model, so none would be trained; leave it out".into(),
        )),
        false => Ok(chosen),
    }
}

/// The same, which may be none.
pub(super) fn chosen_biases(
    spec: &AdapterSpec,
    config: &ModelConfig,
    adapted: &[String],
) -> Vec<TensorSpec> {
    let is_adapted = |path: &str| adapted.iter().any(|known| known == path);
    let tensors = config.tensors().into_iter();
    tensors
        .filter(|tensor| spec.bias().trains(&tensor.name, is_adapted))
        .collect()
}

/// Trained biases in an adapter's file: the parameter's name, and the file's.
#[derive(Debug, Default)]
pub(super) struct StoredBiases(BTreeMap<String, String>);

impl StoredBiases {
    /// Finds those of `expected` in the file, and what is wrong with them.
    pub(super) fn check(
        expected: &[TensorSpec],
        adapted: &[String],
        source: &dyn WeightSource,
    ) -> (Self, Vec<Problem>) {
        let is_adapted = |path: &str| adapted.iter().any(|known| known == path);
        let (mut stored, mut problems) = (Self::default(), Vec::new());
        for tensor in expected {
            let key = bias_key(&tensor.name, is_adapted);
            let shape = &tensor.shape;
            match source.shape(&key) {
                None => problems.push(Problem::new(
                    &key,
                    format!("missing; expected shape {shape:?}"),
                )),
                Some(found) if found != *shape => {
                    let message = format!("expected shape {shape:?}, found {found:?}");
                    problems.push(Problem::new(&key, message));
                }
                Some(_) => drop(stored.0.insert(tensor.name.clone(), key)),
            }
        }
        (stored, problems)
    }

    /// Whether the file's tensor of that name is one of them.
    pub(super) fn holds(&self, name: &str) -> bool {
        self.0.values().any(|key| key == name)
    }

    /// Puts them into the model.
    ///
    /// # Errors
    /// Those of reading.
    pub(super) fn load<B: Backend, M: Parameters<B> + Adaptable<B>>(
        &self,
        model: &mut M,
        source: &dyn WeightSource,
        device: &B::Device,
    ) -> Result<()> {
        if self.0.is_empty() {
            return Ok(());
        }
        let mut outcome = Ok(());
        model.for_each_parameter(&mut |meta, mut slot| {
            let named = meta
                .pieces
                .iter()
                .any(|(name, _)| self.0.contains_key(name));
            if outcome.is_err() || meta.kind != ParamKind::Vector || !named {
                return;
            }
            // Of layers that are one parameter, those without an adapter keep theirs.
            let present = slot.save(meta);
            outcome = slot.load(meta, device, |name| match self.0.get(name) {
                Some(key) => source.read(key),
                None => Ok(value_of(&present, name)),
            });
        });
        model.for_each_projection(&mut |projection| projection.own_bias());
        outcome
    }
}

fn value_of(tensors: &[HostTensor], name: &str) -> Vec<f32> {
    let found = tensors.iter().find(|(known, ..)| known == name);
    found.map_or_else(Vec::new, |(.., values)| values.clone())
}

/// The trained biases of a model as an adapter's file holds them. Reads the device.
pub(super) fn bias_tensors<B: Backend, M: Parameters<B>>(
    model: &mut M,
    spec: &AdapterSpec,
    adapted: &[String],
) -> Vec<HostTensor> {
    let is_adapted = |path: &str| adapted.iter().any(|known| known == path);
    let mut tensors = Vec::new();
    model.for_each_parameter(&mut |meta, slot| {
        let chosen = |name: &str| spec.bias().trains(name, is_adapted);
        if meta.kind == ParamKind::Vector && meta.pieces.iter().any(|(name, _)| chosen(name)) {
            let saved = slot.save(meta).into_iter();
            let saved = saved.filter(|(name, ..)| chosen(name));
            tensors.extend(
                saved.map(|(name, shape, values)| (bias_key(&name, is_adapted), shape, values)),
            );
        }
    });
    tensors
}
