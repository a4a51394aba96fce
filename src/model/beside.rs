//! Tensors of the base that are trained beside adapters, biases and whole modules: chosen, stored with them, and put back.

use std::collections::BTreeMap;

use burn::tensor::backend::Backend;

use super::config::{ModelConfig, TensorSpec};
use super::resize::with_rows;
use super::stored_tables::HEAD_IN_MEMORY;
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
    problems.extend(not_as_one(spec, tensors));
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
    if let Some(tied) = Tied::of(spec, tensors)
        && spec.ensure_weight_tying()
        && (has_adapter(tied.embedding) || has_adapter(tied.head))
    {
        problems.push(format!(
            "ensure_weight_tying: an adapter on {} or {}, which are one parameter in this model, changes one side of it; only \
             modules_to_save can train the two as one",
            module(tied.embedding),
            module(tied.head)
        ));
    }
    problems
}

/// An embedding that is the output head, too.
struct Tied<'a> {
    embedding: &'a str,
    head: &'a str,
    /// Whether `modules_to_save` names the one and the other.
    saved: [bool; 2],
}

impl<'a> Tied<'a> {
    /// That of a model with these tensors, if it has one.
    fn of(spec: &AdapterSpec, tensors: &'a [TensorSpec]) -> Option<Self> {
        let (embedding, head) = (tensors.iter())
            .find_map(|head| Some((head.tied_to.as_deref()?, head.name.as_str())))?;
        let saved = |name: &str| {
            let mut entries = spec.beside().entries();
            entries.any(|entry| names_module(entry, name))
        };
        Some(Self {
            embedding,
            head,
            saved: [embedding, head].map(saved),
        })
    }

    /// Whether one of them is trained, and they are not said to stay one.
    fn may_part(&self, spec: &AdapterSpec) -> bool {
        let [embedding, head] = self.saved;
        (embedding || head) && !(embedding && spec.ensure_weight_tying())
    }
}

/// Why embedding and output head, which are one parameter, cannot be trained as settings say.
fn not_as_one(spec: &AdapterSpec, tensors: &[TensorSpec]) -> Option<String> {
    let tied = Tied::of(spec, tensors).filter(|tied| tied.may_part(spec))?;
    Some(format!(
        "modules_to_save: {} is tied to {} in this model, the two are one parameter; with `ensure_weight_tying: true` and \"{}\" among \
         modules_to_save it is trained as both",
        module(tied.head),
        module(tied.embedding),
        module(tied.embedding)
            .rsplit('.')
            .next()
            .unwrap_or_default()
    ))
}

/// Whether an adapter's file holds other numbers for one side of what is embedding and output head at once: where `modules_to_save`
/// names one of them or both without `ensure_weight_tying`, PEFT trains copies, and leaves what it does not name to the base.
///
/// # Errors
/// Those of reading.
pub(super) fn stored_apart(
    spec: &AdapterSpec,
    tensors: &[TensorSpec],
    source: &dyn WeightSource,
) -> Result<bool> {
    let Some(tied) = Tied::of(spec, tensors).filter(|tied| tied.may_part(spec)) else {
        return Ok(false);
    };
    let stored = parameters(source);
    let find = |name: &str| stored.get(&beside_parameter(name, |_| false));
    Ok(match (find(tied.embedding), find(tied.head)) {
        (Some(embedding), Some(head)) => {
            source.shape(embedding) != source.shape(head) || !source.same_values(embedding, head)?
        }
        (None, None) => false,
        _ => true,
    })
}

/// The module that an adapter's file names as trained beside those of its settings: a head that is the trained embedding, where files
/// of the method do not say that the two are one.
pub(super) fn tied_module(spec: &AdapterSpec, tensors: &[TensorSpec]) -> Option<&'static str> {
    let tied = Tied::of(spec, tensors)?;
    let unsaid = spec.ensure_weight_tying() && !spec.stores_weight_tying();
    (unsaid && tied.saved == [true, false]).then(|| module(HEAD_IN_MEMORY))
}

/// The parameters that a file holds whole, each with its name in the file.
fn parameters(source: &dyn WeightSource) -> BTreeMap<String, String> {
    let names = source.names().into_iter();
    let whole = names.filter_map(|name| match parse_key(&name, &[]) {
        StoredKey::Whole(parameter) => Some((parameter, name)),
        _ => None,
    });
    whole.collect()
}

/// The key of [`parameters`] for a parameter that is trained beside adapters.
fn beside_parameter(name: &str, is_adapted: impl Fn(&str) -> bool) -> String {
    let key = beside_key(name, is_adapted);
    match parse_key(&key, &[]) {
        StoredKey::Whole(parameter) => parameter,
        _ => key,
    }
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
    /// The model's names of embedding and head.
    tables: [&'static str; 2],
}

impl StoredBeside {
    /// Finds those of `tensors` that were trained beside adapters in the file, and what is wrong with them.
    ///
    /// # Errors
    /// Those of reading.
    pub(super) fn check(
        spec: &AdapterSpec,
        config: &ModelConfig,
        tensors: &[TensorSpec],
        adapted: &[String],
        source: &dyn WeightSource,
    ) -> Result<(Self, Vec<Problem>)> {
        let is_adapted = |path: &str| adapted.iter().any(|known| known == path);
        let mut stored = Self {
            tables: config.tables(),
            ..Self::default()
        };
        let mut problems = impossible(spec, tensors, adapted);
        if let (Some(tied), true) = (
            Tied::of(spec, tensors),
            stored_apart(spec, tensors, source)?,
        ) {
            problems.push(format!(
                "modules_to_save: {} and {} are one in this model, and the file holds one of them or two that differ; \
                 `ModelSource::with_adapter` makes two of them",
                tied.embedding, tied.head
            ));
        }
        let mut problems: Vec<Problem> = (problems.into_iter())
            .map(|message| Problem::new("adapter_config.json", message))
            .collect();
        if spec.beside().is_empty() || !problems.is_empty() {
            return Ok((stored, problems));
        }
        let parameters = parameters(source);
        let find = |name: &str| (parameters.get(&beside_parameter(name, is_adapted))).cloned();
        for tensor in chosen_beside(spec, tensors, adapted) {
            let shape = &tensor.shape;
            let Some(name) = find(&tensor.name) else {
                let message = format!("missing; expected shape {shape:?}");
                problems.push(Problem::new(beside_key(&tensor.name, is_adapted), message));
                continue;
            };
            let found = source.shape(&name).unwrap_or_default();
            // A table of a model may have more rows, for tokens that were added later.
            let fits = match (&*found, &**shape) {
                ([rows, width], [most, expected]) if stored.is_table(&tensor.name) => {
                    rows <= most && width == expected
                }
                (found, expected) => found == expected,
            };
            match fits {
                true => drop(stored.names.insert(tensor.name, name)),
                false => {
                    let message = format!("expected shape {shape:?}, found {found:?}");
                    problems.push(Problem::new(name, message));
                }
            }
        }
        for head in tensors {
            let Some(embedding) = (head.tied_to.as_ref()).and_then(|name| stored.names.get(name))
            else {
                continue;
            };
            stored.head = find(&head.name);
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

    fn is_table(&self, parameter: &str) -> bool {
        self.tables.contains(&parameter)
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
            let shape = slot.shape();
            outcome = slot.load(meta, device, |name| match (self.names.get(name), &*shape) {
                (Some(key), &[rows, width]) if self.is_table(name) => source
                    .read(key)
                    .map(|values| with_rows(values, rows, width)),
                (Some(key), _) => source.read(key),
                (None, _) => Ok(value_of(&present, name)),
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
