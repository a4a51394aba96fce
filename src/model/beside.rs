//! Tensors of the base that are trained beside adapters, biases and whole modules: chosen, stored with them, and put back.

use std::collections::BTreeMap;

use burn::tensor::backend::Backend;

use super::config::TensorSpec;
use super::trained::module;
use super::weights::WeightSource;
use crate::error::{Error, Problem, Result};
use crate::params::{HostTensor, ParamKind, Parameters};
use crate::peft::keys::{StoredKey, parse_key};
use crate::peft::{Adaptable, AdapterSpec, Bias, beside_key, names_module};

/// Of a model's `tensors` those that are trained beside adapters on the layers at `adapted`.
///
/// # Errors
/// `Error::Usage` for biases and modules that there are none of, and for modules that cannot be trained whole.
pub(super) fn trained_beside(
    spec: &AdapterSpec,
    tensors: &[TensorSpec],
    adapted: &[String],
) -> Result<Vec<TensorSpec>> {
    let chosen = chosen_beside(spec, tensors, adapted);
    let mut problems = impossible(spec, tensors, adapted);
    let is_adapted = |path: &str| adapted.iter().any(|known| known == path);
    let bias = spec.beside().bias;
    if bias != Bias::None && !(chosen.iter()).any(|tensor| bias.trains(&tensor.name, is_adapted)) {
        problems.push(
            "bias: none of these layers has a bias in this model, so none would be trained; leave it out".into(),
        );
    }
    let classifier = (tensors.iter()).any(|tensor| tensor.kind == ParamKind::Score);
    let headless = match classifier {
        true => {
            "; reward and value models have no output head (PPO trains its value network by `value_peft`)"
        }
        false => "",
    };
    for entry in spec.beside().entries() {
        if !(tensors.iter()).any(|tensor| names_module(entry, &tensor.name)) {
            problems.push(format!(
                "modules_to_save: \"{entry}\" is the end of no module's path; this model has {}{headless}",
                modules_outside(tensors).join(", ")
            ));
        }
    }
    match problems.is_empty() {
        true => Ok(chosen),
        false => Err(Error::Usage(problems.join("; "))),
    }
}

/// The same, which may be none.
fn chosen_beside(
    spec: &AdapterSpec,
    tensors: &[TensorSpec],
    adapted: &[String],
) -> Vec<TensorSpec> {
    let is_adapted = |path: &str| adapted.iter().any(|known| known == path);
    let trains = |tensor: &&TensorSpec| {
        tensor.tied_to.is_none()
            && tensor.kind != ParamKind::Score
            && spec.beside().trains(&tensor.name, is_adapted)
    };
    tensors.iter().filter(trains).cloned().collect()
}

/// Why modules that are to be trained whole cannot be.
fn impossible(spec: &AdapterSpec, tensors: &[TensorSpec], adapted: &[String]) -> Vec<String> {
    let has_adapter = |tensor: &str| adapted.iter().any(|path| path == module(tensor));
    let mut problems = Vec::new();
    for entry in spec.beside().entries() {
        let named = || (tensors.iter()).filter(|tensor| names_module(entry, &tensor.name));
        if let Some(linear) = named().find(|tensor| tensor.kind == ParamKind::Matrix) {
            problems.push(format!(
                "modules_to_save: \"{entry}\" names the linear layer {}; beside adapters embeddings, norms and the output head can be \
                 trained whole, and `peft: Only([..])` trains any weight",
                module(&linear.name)
            ));
        }
        let mut tables = named().filter(|tensor| tensor.kind != ParamKind::Matrix);
        if let Some(table) = tables.find(|tensor| has_adapter(&tensor.name)) {
            problems.push(format!(
                "modules_to_save: \"{entry}\" trains {} whole, which has an adapter by target_modules; leave one of them out",
                module(&table.name)
            ));
        }
    }
    let tied = (tensors.iter()).find_map(|head| Some((head, head.tied_to.as_deref()?)));
    let Some((head, embedding)) = tied else {
        return problems;
    };
    if spec.ensure_weight_tying() && (has_adapter(embedding) || has_adapter(&head.name)) {
        problems.push(format!(
            "ensure_weight_tying: an adapter on {} or {}, which are one parameter in this model, changes one side of it; only \
             modules_to_save can train the two as one",
            module(embedding),
            module(&head.name)
        ));
    }
    let saved = |name: &str| {
        spec.beside()
            .entries()
            .any(|entry| names_module(entry, name))
    };
    let one = spec.ensure_weight_tying() && saved(embedding);
    if !one && (saved(embedding) || saved(&head.name)) {
        problems.push(format!(
            "modules_to_save: {} is tied to {} in this model, the two are one parameter; with `ensure_weight_tying: true` and \"{}\" among \
             modules_to_save it is trained as both",
            module(&head.name),
            module(embedding),
            module(embedding).rsplit('.').next().unwrap_or_default()
        ));
    }
    problems
}

/// Modules that can be trained whole, those inside blocks as one.
fn modules_outside(tensors: &[TensorSpec]) -> Vec<String> {
    let mut modules: Vec<String> = Vec::new();
    for tensor in (tensors.iter()).filter(|tensor| tensor.kind != ParamKind::Score) {
        let is_linear = |other: &TensorSpec| {
            other.kind == ParamKind::Matrix && module(&other.name) == module(&tensor.name)
        };
        let parts = module(&tensor.name).split('.');
        let path: Vec<&str> = parts
            .map(|part| part.parse::<usize>().map_or(part, |_| "N"))
            .collect();
        let path = path.join(".");
        if !modules.contains(&path) && !tensors.iter().any(is_linear) {
            modules.push(path);
        }
    }
    modules
}

/// Trained tensors of the base in an adapter's file: the parameter's name, and the file's.
#[derive(Debug, Default)]
pub(super) struct StoredBeside {
    names: BTreeMap<String, String>,
    /// The file's name of a tied head, a second copy of the embedding.
    head: Option<String>,
}

impl StoredBeside {
    /// Finds those of `tensors` that were trained beside adapters in the file, and what is wrong with them.
    ///
    /// # Errors
    /// Those of reading.
    pub(super) fn check(
        spec: &AdapterSpec,
        tensors: &[TensorSpec],
        adapted: &[String],
        source: &dyn WeightSource,
    ) -> Result<(Self, Vec<Problem>)> {
        let is_adapted = |path: &str| adapted.iter().any(|known| known == path);
        let mut stored = Self::default();
        let mut problems: Vec<Problem> = (impossible(spec, tensors, adapted).into_iter())
            .map(|message| Problem::new("adapter_config.json", message))
            .collect();
        if spec.beside().is_empty() || !problems.is_empty() {
            return Ok((stored, problems));
        }
        let parameters = source.names().into_iter();
        let parameters = parameters.filter_map(|name| match parse_key(&name, &[]) {
            StoredKey::Whole(parameter) => Some((parameter, name)),
            _ => None,
        });
        let parameters: BTreeMap<String, String> = parameters.collect();
        let find = |key: &str| match parse_key(key, &[]) {
            StoredKey::Whole(parameter) => parameters.get(&parameter).cloned(),
            _ => None,
        };
        for tensor in chosen_beside(spec, tensors, adapted) {
            let key = beside_key(&tensor.name, is_adapted);
            let shape = &tensor.shape;
            let Some(name) = find(&key) else {
                let message = format!("missing; expected shape {shape:?}");
                problems.push(Problem::new(key, message));
                continue;
            };
            match source.shape(&name) {
                Some(found) if found != *shape => {
                    let message = format!("expected shape {shape:?}, found {found:?}");
                    problems.push(Problem::new(name, message));
                }
                _ => drop(stored.names.insert(tensor.name, name)),
            }
        }
        for head in tensors {
            let Some(embedding) = (head.tied_to.as_ref()).and_then(|name| stored.names.get(name))
            else {
                continue;
            };
            stored.head = find(&beside_key(&head.name, is_adapted));
            if let Some(head) = &stored.head
                && (source.shape(head) != source.shape(embedding)
                    || !source.same_values(embedding, head)?)
            {
                let message = format!("other numbers than {embedding}, to which it is tied");
                problems.push(Problem::new(head, message));
            }
        }
        Ok((stored, problems))
    }

    /// Whether the file's tensor of that name is one of them.
    pub(super) fn holds(&self, name: &str) -> bool {
        self.names.values().chain(&self.head).any(|key| key == name)
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
        if self.names.is_empty() {
            return Ok(());
        }
        let is_stored = |(name, _): &(String, usize)| self.names.contains_key(name);
        // What is trained in f32 is not rounded again.
        model.for_each_parameter(&mut |meta, mut slot| {
            if meta.pieces.iter().any(is_stored) {
                slot.keep_in_f32();
            }
        });
        let mut outcome = Ok(());
        model.for_each_parameter(&mut |meta, mut slot| {
            if outcome.is_err() || !meta.pieces.iter().any(is_stored) {
                return;
            }
            // Of layers that are one parameter, those without an adapter keep theirs.
            let present = match meta.pieces.iter().all(is_stored) {
                true => Vec::new(),
                false => slot.save(meta),
            };
            outcome = slot.load(meta, device, |name| match self.names.get(name) {
                Some(key) => source.read(key),
                None => Ok(value_of(&present, name)),
            });
        });
        model.for_each_projection(&mut |projection| projection.own_tensors());
        outcome
    }
}

fn value_of(tensors: &[HostTensor], name: &str) -> Vec<f32> {
    let found = tensors.iter().find(|(known, ..)| known == name);
    found.map_or_else(Vec::new, |(.., values)| values.clone())
}

/// The tensors of a model's base that are trained beside adapters, as an adapter's file holds them; `tensors` are those of the
/// model. Reads the device.
pub(super) fn tensors_beside<B: Backend, M: Parameters<B>>(
    model: &mut M,
    spec: &AdapterSpec,
    tensors: &[TensorSpec],
    adapted: &[String],
) -> Vec<HostTensor> {
    let is_adapted = |path: &str| adapted.iter().any(|known| known == path);
    let chosen = |name: &str| spec.beside().trains(name, is_adapted);
    let mut saved = Vec::new();
    model.for_each_parameter(&mut |meta, slot| {
        let own = !matches!(meta.kind, ParamKind::Adapter | ParamKind::Score);
        if own && meta.pieces.iter().any(|(name, _)| chosen(name)) {
            let tensors = slot.save(meta).into_iter();
            saved.extend(tensors.filter(|(name, ..)| chosen(name)));
        }
    });
    // PEFT reads the module that is tied to a saved one from the file, too.
    let mut tied = Vec::new();
    for head in tensors {
        let of_embedding = |(name, ..): &&HostTensor| Some(name) == head.tied_to.as_ref();
        if let Some((_, shape, values)) = saved.iter().find(of_embedding) {
            tied.push((head.name.clone(), shape.clone(), values.clone()));
        }
    }
    saved.extend(tied);
    for (name, ..) in &mut saved {
        *name = beside_key(name, is_adapted);
    }
    saved
}
