//! Adapters on a model: attaching, continuing and merging them, and PEFT's folders.

use std::path::Path;

use burn::tensor::backend::Backend;
use burn::tensor::{Tensor, TensorData};

use super::adapter_weights;
use super::beside::{tensors_beside, tied_module};
use super::config::{ModelConfig, TensorSpec};
use super::host_tensors;
use super::prompt::{self, StoredPrompt};
use super::sidecar::{note_in_sidecar, read_sidecar};
use super::stored_adapter::StoredAdapter;
use super::stored_tables::own_tables;
use super::token_rows::{
    TableRows, attach_token_rows, beside_rows, present_rows, tied_rows, token_rows,
};
use super::trained::no_head;
use super::weights::write_safetensors;
use crate::error::{Error, Result};
use crate::host;
use crate::ops::{ModelBackend, Precision};
use crate::params::{HostTensor, ParamKind, Parameters};
use crate::peft::{
    Adaptable, Adapter, AdapterConfig, AdapterSpec, Encode, LayerKind, Peft, TableAdapter,
    TaskType, no_text, prompt_saved_key, saved_key,
};
use crate::rng::Seed;

/// Key, beside an adapter, of what it began with: what is stored as one LoRA is then trained on in part.
const START: &str = "init_lora_weights";

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
pub fn load_adapter<B: ModelBackend, M: Parameters<B> + Adaptable<B>>(
    model: &mut M,
    config: &ModelConfig,
    folder: &Path,
    device: &B::Device,
) -> Result<LoadedAdapter> {
    let (mut adapter, mut warnings) = AdapterConfig::load(folder)?;
    let source = adapter_weights::open(folder, config)?;
    if !adapter.spec.on_layers() {
        return prompt::load(model, config, adapter, warnings, source.as_ref(), device);
    }
    let stored = StoredAdapter::check(&adapter, source.as_ref(), config)?;
    warnings.extend(stored.unused.iter().cloned());
    let mut shared = Vec::new();
    for (key, [rows, columns], name) in &stored.shared {
        let values = TensorData::new(source.read(name)?, [*rows, *columns]);
        shared.push((*key, Tensor::from_data(values, device)));
    }
    let chosen = |path: &str| stored.modules.iter().any(|module| module == path);
    model.attach(&adapter.spec, Seed::new(0), shared, &chosen);
    attach_tables(model, config, &adapter.spec, Seed::new(0), device, &chosen)?;
    let mut outcome = Ok(());
    model.for_each_projection(&mut |projection| {
        projection.for_each_parameter(&mut |meta, mut slot| {
            if outcome.is_ok() && meta.kind == ParamKind::Adapter {
                outcome = slot.load(meta, device, |key| source.read(stored.name(key)));
            }
        });
    });
    model.for_each_table_adapter(&mut |_, adapter| {
        adapter.walk(&mut |meta, mut slot| {
            if outcome.is_ok() {
                outcome = slot.load(meta, device, |key| source.read(stored.name(key)));
            }
        });
    });
    outcome?;
    stored.beside.load(model, source.as_ref(), device)?;
    (stored.tables).load(model, config, source.as_ref(), device)?;
    (stored.rows).load(model, config, source.as_ref(), device)?;
    let start = read_sidecar(folder)?.remove(START);
    if let Some(spec) = start.and_then(|start| adapter.spec.restored(start.as_str()?)) {
        model.for_each_projection(&mut |projection| {
            let adapters = projection.adapters.iter_mut().flatten();
            adapters.for_each(|adapter| adapter.restore(&spec));
        });
        adapter.spec = spec;
    }
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

/// Gives embedding and output head, where `targeted` accepts their paths, a fresh adapter.
///
/// # Errors
/// `Error::Usage` for a head that the model does not have.
fn attach_tables<B: ModelBackend, M: Adaptable<B>>(
    model: &mut M,
    config: &ModelConfig,
    spec: &AdapterSpec,
    seed: Seed,
    device: &B::Device,
    targeted: &dyn Fn(&str) -> bool,
) -> Result<()> {
    let modules = config.adaptable_modules(spec);
    let tables = modules
        .iter()
        .filter(|layer| layer.kind != LayerKind::Linear && targeted(&layer.name));
    for table in tables {
        let mut found = false;
        model.for_each_table(&mut |kind, adapter| {
            if kind == table.kind {
                *adapter = TableAdapter::fresh(spec, table, seed, device);
                found = true;
            }
        });
        if !found {
            return Err(no_head("target_modules", &table.name));
        }
    }
    Ok(())
}

/// Checks the files of an adapter against a model's configuration, and that all its numbers are finite. Reads the adapter's tensors,
/// none of the model's.
///
/// # Errors
/// As [`load_adapter`] and [`adapter_weights::check_finite`].
pub(super) fn check_adapter(config: &ModelConfig, folder: &Path) -> Result<()> {
    let (adapter, _) = AdapterConfig::load(folder)?;
    let source = adapter_weights::open(folder, config)?;
    match adapter.spec.on_layers() {
        true => drop(StoredAdapter::check(&adapter, source.as_ref(), config)?),
        false => drop(StoredPrompt::check(&adapter, source.as_ref(), config)?),
    }
    adapter_weights::check_finite(source.as_ref())
}

/// Attaches fresh adapters to the target layers, or fresh virtual tokens to the model; returns the layers' paths.
///
/// # Errors
/// As [`AdapterSpec::targets`] and [`ModelConfig::check_virtual_tokens`]; `Error::Usage` for virtual tokens from a text, as there
/// is no tokenizer.
pub fn attach_adapters<B: ModelBackend, M: Adaptable<B>>(
    model: &mut M,
    config: &ModelConfig,
    spec: impl Into<AdapterSpec>,
    seed: Seed,
) -> Result<Vec<String>> {
    attach_with(model, config, &spec.into(), seed, &no_text)
}

/// [`attach_adapters`] with a tokenizer.
fn attach_with<B: ModelBackend, M: Adaptable<B>>(
    model: &mut M,
    config: &ModelConfig,
    spec: &AdapterSpec,
    seed: Seed,
    encode: Encode<'_>,
) -> Result<Vec<String>> {
    if !spec.on_layers() {
        prompt::attach(model, config, spec, seed, encode)?;
        return Ok(Vec::new());
    }
    let paths = target_paths(spec, config)?;
    let chosen = |path: &str| paths.iter().any(|chosen| chosen == path);
    model.attach(spec, seed, Vec::new(), &chosen);
    let mut device = B::Device::default();
    model.for_each_projection(&mut |projection| device = projection.weight.val().device());
    attach_tables(model, config, spec, seed, &device, &chosen)?;
    let tables = token_rows(spec, config, false, &paths)?;
    attach_token_rows(model, config, &tables, &device)?;
    Ok(paths)
}

fn target_paths(spec: &AdapterSpec, config: &ModelConfig) -> Result<Vec<String>> {
    let linear = config.adaptable_modules(spec);
    let targets = spec.targets(&linear)?.into_iter();
    Ok(targets.map(|index| linear[index].name.clone()).collect())
}

/// Merges a model's adapters for training on what they give.
///
/// # Errors
/// As [`Adaptable::merge_adapters`]; `Error::Usage` for an adapter that parts embedding and output head, which `config` says are one.
pub(super) fn merge_for_training<B: ModelBackend, M: Adaptable<B>>(
    model: &mut M,
    config: &ModelConfig,
) -> Result<()> {
    let (mut on_tables, mut has_head) = (None, false);
    model.for_each_table(&mut |kind, adapter| {
        has_head |= kind == LayerKind::Head;
        on_tables = on_tables
            .take()
            .or(adapter.as_ref().map(|adapter| adapter.path().to_owned()));
    });
    match on_tables {
        Some(path) if has_head && config.tie_word_embeddings() => Err(Error::Usage(format!(
            "{path}: its adapter changes one side of a table that is embedding and output head at once; merge it first, \
             `temper export --merge`, and start from that folder"
        ))),
        _ => model.merge_adapters(),
    }
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
/// and value share one base; others are merged into the weights and replaced by fresh ones. `encode`: the model's tokenizer.
///
/// # Errors
/// `Error::Usage` for a target that matches no layer, and for adapters that cannot be merged.
pub fn prepare_adapters<B: ModelBackend, M: Adaptable<B>>(
    model: &mut M,
    config: &ModelConfig,
    present: Option<&AdapterSpec>,
    peft: &Peft,
    seed: Seed,
    encode: Encode<'_>,
) -> Result<PreparedAdapters> {
    let Some(wanted) = peft.adapter() else {
        merge_for_training(model, config)?;
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
        model.for_each_table_adapter(&mut |_, adapter| adapter.continue_as(&wanted));
        return Ok(PreparedAdapters {
            adapter: Some(wanted),
            merged: false,
        });
    }
    merge_for_training(model, config)?;
    attach_with(model, config, &wanted, seed.fork("adapters"), encode)?;
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
    if !wanted.on_layers() {
        return Ok(wanted.continues_tokens(present) && model.virtual_tokens().is_some());
    }
    // Other tensors of the base would have to begin from the base again.
    let same_beside = |tensor: &TensorSpec| {
        let trains = |spec: &AdapterSpec| spec.beside().trains(&tensor.name, |_| true);
        // A head that is the embedding is no tensor of its own, though files may name it.
        tensor.tied_to.is_some() || trains(present) == trains(wanted)
    };
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
    model.for_each_table_adapter(&mut |_, adapter| {
        same_shape &= adapter.continues(wanted, present);
        adapted.push(adapter.path().to_owned());
    });
    let tables = token_rows(wanted, config, false, &targets)?;
    let ids = |table: &TableRows| Ok((table.key.clone(), table.ids()?));
    let mut wanted_rows = tables.iter().map(ids).collect::<Result<Vec<_>>>()?;
    let mut present_rows = present_rows(model);
    wanted_rows.sort();
    present_rows.sort();
    adapted.sort();
    targets.sort();
    let same_beside = config.tensors().iter().all(same_beside);
    Ok(same_shape && same_beside && present_rows == wanted_rows && adapted == targets)
}

/// The tensors of a model's adapters as files hold them. Reads the device.
fn adapter_tensors<B: Backend, M: Parameters<B> + Adaptable<B>>(model: &mut M) -> Vec<HostTensor> {
    let mut kept = Vec::new();
    model.for_each_projection(&mut |projection| {
        let stored: Vec<_> = (projection.adapters.iter())
            .map(|adapter| adapter.as_ref().and_then(Adapter::stored))
            .collect();
        for (adapter, stored) in projection.adapters.iter_mut().zip(stored) {
            kept.push(stored.and_then(|stored| adapter.replace(stored)));
        }
    });
    let mut tensors = host_tensors(model, &|kind| kind == ParamKind::Adapter);
    let mut kept = kept.into_iter();
    model.for_each_projection(&mut |projection| {
        for (adapter, kept) in projection.adapters.iter_mut().zip(kept.by_ref()) {
            if let Some(kept) = kept {
                *adapter = Some(kept);
            }
        }
    });
    let mut shared = Vec::new();
    model.for_each_projection(&mut |projection| {
        if let (true, Some(adapter)) = (
            shared.is_empty(),
            projection.adapters.iter().flatten().next(),
        ) {
            shared = adapter.shared();
        }
    });
    for (key, tensor) in shared {
        tensors.push((key.to_owned(), tensor.dims().to_vec(), host::read(tensor)));
    }
    tensors
}

/// Writes a model's adapters, its score head if it has one, and embedding and head if they are not those of the base's files, in
/// PEFT's format.
///
/// # Errors
/// `Error::Io`.
pub fn save_adapter<B: ModelBackend, M: Parameters<B> + Adaptable<B>>(
    model: &mut M,
    config: &ModelConfig,
    spec: &AdapterSpec,
    base: &str,
    folder: &Path,
) -> Result<()> {
    let mut tensors = match model.virtual_tokens() {
        Some(tokens) => vec![tokens.host_tensor()],
        None => adapter_tensors(model),
    };
    let mut task = TaskType::CausalLm;
    // The layers themselves, not the recipe's patterns: PEFT has no regular expressions inside lists.
    let mut paths = Vec::new();
    model.for_each_projection(&mut |projection| {
        let layers = projection.layers().iter().zip(&projection.adapters);
        let adapted = layers.filter(|(_, adapter)| adapter.is_some());
        paths.extend(adapted.map(|(layer, _)| layer.path.clone()));
    });
    model.for_each_table_adapter(&mut |_, adapter| paths.push(adapter.path().to_owned()));
    let mut whole = own_tables(model, config);
    let rows = present_rows(model);
    let score = host_tensors(model, &|kind| kind == ParamKind::Score);
    if !score.is_empty() {
        task = TaskType::SeqCls;
    }
    whole.extend(score);
    for (name, shape, values) in whole {
        // PEFT puts a table that an adapter is on one level deeper.
        let table = name.strip_suffix(".weight");
        let adapted = table.filter(|path| paths.iter().any(|adapted| adapted == path));
        let rows = rows.iter().map(|(key, _)| key);
        let key = match (
            spec.on_layers(),
            adapted,
            table.and_then(|path| beside_rows(path, rows)),
        ) {
            (true, Some(path), _) => saved_key(&format!("{path}.base_layer.weight")),
            (true, None, Some(key)) => key,
            (true, None, None) => saved_key(&name),
            (false, ..) => prompt_saved_key(&name),
        };
        tensors.push((key, shape, values));
    }
    let own = match task {
        TaskType::CausalLm => config.tensors(),
        TaskType::SeqCls => config.classifier_tensors(),
    };
    for tensor in tensors_beside(model, spec, &own, &paths) {
        // Tables with added rows are stored in any case.
        if !(tensors.iter()).any(|(key, ..)| *key == tensor.0) {
            tensors.push(tensor);
        }
    }
    if task == TaskType::CausalLm {
        tensors.extend(tied_rows(spec, config, &tensors));
    }
    let mut adapter = AdapterConfig::new(task, spec.stored(), paths);
    let tied = tied_module(spec, &own).map(str::to_owned);
    adapter.modules_to_save.extend(tied);
    adapter.base_model_name_or_path = Some(base.to_owned());
    adapter.fan_in_fan_out = config.family() == "gpt2";
    adapter.shape = Some(config.decoder_shape());
    std::fs::create_dir_all(folder).map_err(Error::io("create", folder))?;
    adapter.save(folder)?;
    if let Some(start) = spec.start() {
        note_in_sidecar(folder, START, start.into())?;
    }
    for (name, ..) in &mut tensors {
        *name = spec.file_key(name);
    }
    write_safetensors(folder.join(adapter_weights::file_name(spec)), &tensors)
}

/// How the weights are kept that a model's adapters sit on.
pub fn adapted_precision<B: Backend, M: Adaptable<B>>(model: &mut M) -> Precision {
    let (mut precision, mut with_rows) = (Precision::F32, false);
    model.for_each_token_rows(&mut |_, rows| with_rows |= rows.is_some());
    model.for_each_projection(&mut |projection| {
        if with_rows || projection.adapters.iter().any(Option::is_some) {
            precision = projection.storage();
        }
    });
    precision
}
