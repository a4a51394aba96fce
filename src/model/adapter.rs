//! Adapters on a model: attaching, continuing and merging them, and PEFT's folders.

use std::path::Path;

use burn::tensor::backend::Backend;

use super::config::{ModelConfig, TensorSpec};
use super::host_tensors;
use super::weights::{self, WeightSource, write_safetensors};
use crate::error::{Error, Problem, Result};
use crate::ops::ModelBackend;
use crate::params::{ParamKind, Parameters};
use crate::peft::files::{ADAPTER_WEIGHTS, weights_file};
use crate::peft::keys::{StoredKey, parse_key};
use crate::peft::only::TensorName;
use crate::peft::{
    Adaptable, AdapterConfig, AdapterSpec, LinearSpec, Peft, TaskType, saved_key, tensor_key,
};
use crate::rng::Seed;

/// Name of a classifier's head in weight files.
const SCORE_WEIGHT: &str = "score.weight";

/// The contents of an adapter folder beside the adapter tensors.
#[derive(Debug, Clone)]
pub struct LoadedAdapter {
    /// Its configuration.
    pub config: AdapterConfig,
    /// `score.weight` of a classification adapter.
    pub score: Option<Vec<f32>>,
    /// Warnings for the user.
    pub warnings: Vec<String>,
}

/// Attaches the adapter of `folder` to a model without adapters.
///
/// # Errors
/// `Error::Format` for an unsupported configuration, and for weights that are missing or pickled; `Error::Weights` listing every
/// tensor that is missing, surplus or mis-shaped; `Error::Io`.
pub fn load_adapter<B: Backend, M: Adaptable<B>>(
    model: &mut M,
    config: &ModelConfig,
    folder: &Path,
    device: &B::Device,
) -> Result<LoadedAdapter> {
    let (adapter, mut warnings) = AdapterConfig::load(folder)?;
    let source = weights::open(weights_file(folder)?)?;
    let stored = StoredAdapter::check(&adapter, source.as_ref(), config)?;
    warnings.extend(stored.unused.iter().cloned());
    model.attach(&adapter.spec, Seed::new(0), &|path| {
        stored.modules.iter().any(|module| module == path)
    });
    let mut outcome = Ok(());
    model.for_each_projection(&mut |projection| {
        projection.for_each_parameter(&mut |meta, mut slot| {
            if outcome.is_ok() && meta.kind == ParamKind::Adapter {
                outcome = slot.load(meta, device, |key| source.read(stored.name(key)));
            }
        });
    });
    outcome?;
    let score = match &stored.score {
        Some(name) => Some(source.read(name)?),
        None => None,
    };
    Ok(LoadedAdapter {
        config: adapter,
        score,
        warnings,
    })
}

/// Checks the files of an adapter against a model's configuration; reads no tensor.
///
/// # Errors
/// As [`load_adapter`].
pub(super) fn check_adapter(config: &ModelConfig, folder: &Path) -> Result<()> {
    let (adapter, _) = AdapterConfig::load(folder)?;
    let source = weights::open(weights_file(folder)?)?;
    StoredAdapter::check(&adapter, source.as_ref(), config)?;
    Ok(())
}

/// The tensors of an adapter file, checked against a model.
#[derive(Default)]
struct StoredAdapter {
    /// Paths of the layers that have an adapter.
    modules: Vec<String>,
    /// Each key with its spelling in the file.
    names: Vec<(String, String)>,
    score: Option<String>,
    /// Warnings about patterns without a matching layer.
    unused: Vec<String>,
}

impl StoredAdapter {
    fn check(
        adapter: &AdapterConfig,
        source: &dyn WeightSource,
        config: &ModelConfig,
    ) -> Result<Self> {
        let mut stored = Self::default();
        let linear = config.linear_modules();
        let selection = adapter.selection();
        let targeted: Vec<&LinearSpec> = (linear.iter())
            .filter(|layer| selection.selects(&layer.name))
            .collect();
        stored.unused = adapter.unused(&targeted);
        let mut tensors = Vec::new();
        for layer in &linear {
            for (name, shape) in adapter.spec.tensors(layer) {
                tensors.push((layer, name, shape));
            }
        }
        let mut names: Vec<&'static str> = tensors.iter().map(|(_, name, _)| *name).collect();
        names.sort_unstable();
        names.dedup();
        let (mut problems, mut whole, mut own_names) = (Vec::new(), Vec::new(), Vec::new());
        for name in source.names() {
            match parse_key(&name, &names) {
                StoredKey::Layer {
                    path,
                    name: tensor,
                    adapter: own,
                } => {
                    if !own_names.contains(&own) {
                        own_names.push(own);
                    }
                    match layer_at(&linear, &path) {
                        Some(layer) if targeted.contains(&layer) => {
                            stored.names.push((tensor_key(&layer.name, tensor), name));
                            if !stored.modules.contains(&layer.name) {
                                stored.modules.push(layer.name.clone());
                            }
                        }
                        Some(_) => problems.push(Problem::new(
                            &name,
                            "surplus; the configuration has no adapter on this layer",
                        )),
                        None => problems.push(Problem::new(
                            &name,
                            "surplus; the model has no such layer inside its blocks",
                        )),
                    }
                }
                StoredKey::Whole(parameter) if parameter == SCORE_WEIGHT => {
                    let expected = [1, config.output_size()];
                    match source.shape(&name) {
                        Some(shape) if shape == expected => stored.score = Some(name),
                        shape => problems.push(Problem::new(
                            &name,
                            format!(
                                "expected shape {expected:?}, found {:?}",
                                shape.unwrap_or_default()
                            ),
                        )),
                    }
                }
                StoredKey::Whole(parameter) => whole.push((name, parameter)),
                StoredKey::Original => {}
            }
        }
        problems.extend(stored_whole(&whole, config));
        if own_names.len() > 1 {
            let named: Vec<&str> = (own_names.iter())
                .map(|name| name.as_deref().unwrap_or("(without a name)"))
                .collect();
            problems.push(Problem::new(
                ADAPTER_WEIGHTS,
                format!(
                    "holds tensors of {} adapters: {}; keep those of one",
                    named.len(),
                    named.join(", ")
                ),
            ));
        }
        if adapter.task_type == TaskType::SeqCls && stored.score.is_none() && problems.is_empty() {
            problems.push(Problem::new(saved_key(SCORE_WEIGHT), "missing"));
        }
        for (layer, tensor, expected) in &tensors {
            if !targeted.contains(layer) {
                continue;
            }
            let key = tensor_key(&layer.name, tensor);
            let name = stored.name(&key);
            match source.shape(name) {
                None => problems.push(Problem::new(
                    name,
                    format!("missing; expected shape {expected:?}"),
                )),
                Some(shape) if shape != expected => {
                    problems.push(Problem::new(
                        name,
                        format!("expected shape {expected:?}, found {shape:?}"),
                    ));
                }
                Some(_) => {}
            }
        }
        if stored.modules.is_empty() && problems.is_empty() {
            problems.push(Problem::new(
                names.join(", "),
                format!(
                    "the file holds no tensor of a {} adapter",
                    adapter.spec.peft_type()
                ),
            ));
        }
        if problems.is_empty() {
            return Ok(stored);
        }
        Err(Error::Weights {
            path: source.path().to_path_buf(),
            problems,
        })
    }

    /// The spelling of a tensor's key in the file.
    fn name<'a>(&'a self, key: &'a str) -> &'a str {
        let found = self.names.iter().find(|(known, _)| known == key);
        found.map_or(key, |(_, stored)| stored)
    }
}

/// The layer at `path`, or the only one whose path ends with it: models saved without a head have shorter paths.
fn layer_at<'a>(linear: &'a [LinearSpec], path: &str) -> Option<&'a LinearSpec> {
    let whole = linear.iter().find(|layer| layer.name == path);
    whole.or_else(|| {
        let end = format!(".{path}");
        let mut ending = linear.iter().filter(|layer| layer.name.ends_with(&end));
        ending.next().filter(|_| ending.next().is_none())
    })
}

/// Problems of tensors that are not part of an adapter, given their names in the file and the parameters that they hold.
fn stored_whole(tensors: &[(String, String)], config: &ModelConfig) -> Vec<Problem> {
    let specs = config.tensors();
    let of_model = |parameter: &str| {
        let end = format!(".{parameter}");
        specs
            .iter()
            .any(|spec| spec.name == parameter || spec.name.ends_with(&end))
    };
    let (whole, unknown): (Vec<_>, Vec<_>) = tensors
        .iter()
        .partition(|(_, parameter)| of_model(parameter));
    let some = |tensors: &[&(String, String)]| match tensors {
        [only] => only.0.clone(),
        [first, second] => format!("{}, {}", first.0, second.0),
        [first, ..] => format!("{} and {} more", first.0, tensors.len() - 1),
        [] => String::new(),
    };
    let mut problems = Vec::new();
    if !whole.is_empty() {
        problems.push(
            Problem::new(
                some(&whole),
                "stored whole (PEFT's modules_to_save, or save_embedding_layers); beside adapters only a classifier's \"score\" can be",
            )
            .with_help(
                "if they were not trained, save the adapter again with save_pretrained(.., save_embedding_layers=False); \
                 else merge it into its base with PEFT (merge_and_unload) and take the merged model",
            ),
        );
    }
    if !unknown.is_empty() {
        problems.push(Problem::new(
            some(&unknown),
            "surplus; expected base_model.model.<layer>.<tensor of the adapter> for linear layers inside the blocks, and score.weight",
        ));
    }
    problems
}

/// Attaches fresh adapters to the target layers; returns their paths.
///
/// # Errors
/// As [`AdapterSpec::targets`].
pub fn attach_adapters<B: Backend, M: Adaptable<B>>(
    model: &mut M,
    config: &ModelConfig,
    spec: impl Into<AdapterSpec>,
    seed: Seed,
) -> Result<Vec<String>> {
    let spec = spec.into();
    let paths = target_paths(&spec, config)?;
    model.attach(&spec, seed, &|path| {
        paths.iter().any(|chosen| chosen == path)
    });
    Ok(paths)
}

fn target_paths(spec: &AdapterSpec, config: &ModelConfig) -> Result<Vec<String>> {
    let linear = config.linear_modules();
    let targets = spec.targets(&linear)?.into_iter();
    Ok(targets.map(|index| linear[index].name.clone()).collect())
}

/// The adapters of a model prepared for training.
#[derive(Debug, Clone)]
pub struct PreparedAdapters {
    /// Settings of the trained adapters; `None` if weights of the model itself are trained.
    pub adapter: Option<AdapterSpec>,
    /// Whether other adapters were merged into the base first, which is then no longer the shared one.
    pub merged: bool,
}

/// Prepares a model's adapters for training by `peft`. Adapters of the same shape are continued, so that policy, reference, reward
/// and value share one base; others are merged into the weights and replaced by fresh ones.
///
/// # Errors
/// `Error::Usage` for a target that matches no layer, and for adapters that cannot be merged.
pub fn prepare_adapters<B: ModelBackend, M: Adaptable<B>>(
    model: &mut M,
    config: &ModelConfig,
    present: Option<&AdapterSpec>,
    peft: &Peft,
    seed: Seed,
) -> Result<PreparedAdapters> {
    let Some(wanted) = peft.adapter() else {
        model.merge_adapters()?;
        return Ok(PreparedAdapters {
            adapter: None,
            merged: false,
        });
    };
    if let Some(present) = present
        && continues(model, config, present, &wanted)?
    {
        model.for_each_projection(&mut |projection| {
            let adapters = projection.adapters.iter_mut().flatten();
            adapters.for_each(|adapter| adapter.continue_as(&wanted));
        });
        return Ok(PreparedAdapters {
            adapter: Some(wanted),
            merged: false,
        });
    }
    model.merge_adapters()?;
    attach_adapters(model, config, &wanted, seed.fork("adapters"))?;
    Ok(PreparedAdapters {
        adapter: Some(wanted),
        merged: present.is_some(),
    })
}

/// Whether a model's adapters have the layers and shapes of `wanted`, so that training can continue them.
fn continues<B: ModelBackend, M: Adaptable<B>>(
    model: &mut M,
    config: &ModelConfig,
    present: &AdapterSpec,
    wanted: &AdapterSpec,
) -> Result<bool> {
    let mut targets = target_paths(wanted, config)?;
    let (mut adapted, mut same_shape) = (Vec::new(), true);
    model.for_each_projection(&mut |projection| {
        for (layer, adapter) in projection.layers().iter().zip(&projection.adapters) {
            if let Some(adapter) = adapter {
                same_shape &= wanted.continues(present, adapter, &layer.path);
                adapted.push(layer.path.clone());
            }
        }
    });
    adapted.sort();
    targets.sort();
    Ok(same_shape && adapted == targets)
}

/// The model's own tensors that `peft` trains; none if it trains adapters.
///
/// # Errors
/// `Error::Usage` for an entry that names no tensor, or a head that is tied to the embedding.
pub fn trained_tensors<'a>(peft: &Peft, tensors: &'a [TensorSpec]) -> Result<Vec<&'a TensorSpec>> {
    let name = |tensor: &'a TensorSpec| TensorName {
        name: &tensor.name,
        tied_to: tensor.tied_to.as_deref(),
    };
    let names: Vec<TensorName<'_>> = tensors.iter().map(name).collect();
    let trained = peft.trained(&names)?;
    Ok((tensors.iter())
        .filter(|tensor| tensor.tied_to.is_none() && trained.contains(&tensor.name))
        .collect())
}

/// Writes a model's adapters, and its score head if it has one, in PEFT's format.
///
/// # Errors
/// `Error::Io`.
pub fn save_adapter<B: Backend, M: Parameters<B> + Adaptable<B>>(
    model: &mut M,
    config: &ModelConfig,
    spec: &AdapterSpec,
    base: &str,
    folder: &Path,
) -> Result<()> {
    let mut tensors = host_tensors(model, &|kind| kind == ParamKind::Adapter);
    let mut task = TaskType::CausalLm;
    for (name, shape, values) in host_tensors(model, &|kind| kind == ParamKind::Score) {
        task = TaskType::SeqCls;
        tensors.push((saved_key(&name), shape, values));
    }
    // The layers themselves, not the recipe's patterns: PEFT has no regular expressions inside lists.
    let mut paths = Vec::new();
    model.for_each_projection(&mut |projection| {
        let layers = projection.layers().iter().zip(&projection.adapters);
        let adapted = layers.filter(|(_, adapter)| adapter.is_some());
        paths.extend(adapted.map(|(layer, _)| layer.path.clone()));
    });
    let mut adapter = AdapterConfig::new(task, spec.clone(), paths);
    adapter.base_model_name_or_path = Some(base.to_owned());
    adapter.fan_in_fan_out = config.family() == "gpt2";
    std::fs::create_dir_all(folder).map_err(Error::io("create", folder))?;
    adapter.save(folder)?;
    write_safetensors(folder.join(ADAPTER_WEIGHTS), &tensors)
}
