//! LoRA adapters in PEFT's folder layout.

use std::path::Path;

use burn::tensor::backend::Backend;

use super::config::ModelConfig;
use super::host_tensors;
use super::weights::{self, WeightSource, write_safetensors};
use crate::error::{Error, Problem, Result};
use crate::params::{ParamKind, Parameters};
use crate::peft::files::ADAPTER_WEIGHTS;
use crate::peft::{
    Adaptable, AdapterConfig, AdapterKey, LinearSpec, LoraConfig, LoraMatrix, TargetModules,
    TaskType, lora_key, parse_key, saved_key,
};
use crate::rng::Seed;

/// What an adapter folder holds beside the low-rank matrices.
#[derive(Debug, Clone)]
pub struct LoadedAdapter {
    /// Its configuration.
    pub config: AdapterConfig,
    /// `score.weight` of a classification adapter.
    pub score: Option<Vec<f32>>,
    /// What the user should know.
    pub warnings: Vec<String>,
}

/// Attaches the adapter of `folder` to a model without adapters.
///
/// # Errors
/// `Error::Format` for a configuration that cannot be honoured; `Error::Weights` listing every tensor that is missing,
/// surplus or mis-shaped; `Error::Io`.
pub fn load_adapter<B: Backend, M: Adaptable<B>>(
    model: &mut M,
    config: &ModelConfig,
    folder: &Path,
    device: &B::Device,
) -> Result<LoadedAdapter> {
    let (adapter, mut warnings) = AdapterConfig::load(folder)?;
    let source = weights::open(folder.join(ADAPTER_WEIGHTS))?;
    let stored = StoredAdapter::check(&adapter, source.as_ref(), config)?;
    warnings.extend(stored.unused.iter().cloned());
    let lora = adapter.lora();
    let mut outcome = Ok(());
    model.for_each_projection(&mut |projection| {
        for index in 0..projection.layers().len() {
            let layer = projection.layers()[index].clone();
            if !stored.modules.contains(&layer.path) {
                continue;
            }
            projection.attach(index, &lora, Seed::new(0));
        }
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
    let source = weights::open(folder.join(ADAPTER_WEIGHTS))?;
    StoredAdapter::check(&adapter, source.as_ref(), config)?;
    Ok(())
}

/// The tensors of an adapter file, checked against a model.
struct StoredAdapter {
    modules: Vec<String>,
    names: Vec<(String, String)>,
    score: Option<String>,
    /// Warnings about patterns that name no layer.
    unused: Vec<String>,
}

impl StoredAdapter {
    fn check(
        adapter: &AdapterConfig,
        source: &dyn WeightSource,
        config: &ModelConfig,
    ) -> Result<Self> {
        let mut stored = Self {
            modules: Vec::new(),
            names: Vec::new(),
            score: None,
            unused: Vec::new(),
        };
        let linear = config.linear_modules();
        let selection = adapter.selection();
        let targeted: Vec<&LinearSpec> = (linear.iter())
            .filter(|layer| selection.selects(&layer.name))
            .collect();
        stored.unused = adapter.unused(&targeted);
        let mut problems = Vec::new();
        for name in source.names() {
            match parse_key(&name) {
                Some(AdapterKey::Lora(path, _))
                    if linear.iter().any(|layer| layer.name == path)
                        && !targeted.iter().any(|layer| layer.name == path) =>
                {
                    problems.push(Problem::new(
                        &name,
                        "surplus; the configuration puts no adapter on this layer",
                    ));
                }
                Some(AdapterKey::Lora(path, matrix))
                    if targeted.iter().any(|layer| layer.name == path) =>
                {
                    stored.names.push((lora_key(&path, matrix), name));
                    if !stored.modules.contains(&path) {
                        stored.modules.push(path);
                    }
                }
                Some(AdapterKey::Saved(parameter)) if parameter == "score.weight" => {
                    let expected = [1, config.output_size()];
                    match source.shape(&name) {
                        Some(shape) if shape == expected => stored.score = Some(name),
                        shape => problems.push(Problem::new(
                            &name,
                            format!("expected shape {expected:?}, found {:?}", shape.unwrap_or_default()),
                        )),
                    }
                }
                _ => problems.push(Problem::new(
                    &name,
                    "surplus; low-rank matrices of linear layers inside the blocks and score.weight are supported",
                )),
            }
        }
        if adapter.task_type == TaskType::SeqCls && stored.score.is_none() && problems.is_empty() {
            problems.push(Problem::new(saved_key("score.weight"), "missing"));
        }
        let lora = adapter.lora();
        for layer in &targeted {
            let rank = lora.rank_of(&layer.name);
            for (matrix, expected) in [
                (LoraMatrix::A, [rank, layer.in_features]),
                (LoraMatrix::B, [layer.out_features, rank]),
            ] {
                let key = lora_key(&layer.name, matrix);
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
        }
        if stored.modules.is_empty() && problems.is_empty() {
            problems.push(Problem::new(
                "lora_A",
                "the file holds no low-rank matrices",
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

    /// The file's own spelling of a matrix's key.
    fn name<'a>(&'a self, key: &'a str) -> &'a str {
        let found = self.names.iter().find(|(known, _)| known == key);
        found.map_or(key, |(_, stored)| stored)
    }
}

/// Gives fresh adapters to the layers that the configuration targets; returns their paths.
///
/// # Errors
/// As [`LoraConfig::targets`].
pub fn attach_lora<B: Backend, M: Adaptable<B>>(
    model: &mut M,
    config: &ModelConfig,
    lora: &LoraConfig,
    seed: Seed,
) -> Result<Vec<String>> {
    let linear = config.linear_modules();
    let chosen = lora.targets(&linear)?;
    let paths: Vec<String> = chosen
        .into_iter()
        .map(|index| linear[index].name.clone())
        .collect();
    model.attach_lora(lora, seed, &|path| {
        paths.iter().any(|chosen| chosen == path)
    });
    Ok(paths)
}

/// Writes a model's adapters, and its score head if it has one, as PEFT does.
///
/// # Errors
/// `Error::Io`.
pub fn save_adapter<B: Backend>(
    model: &mut dyn Parameters<B>,
    config: &ModelConfig,
    lora: &LoraConfig,
    base: &str,
    folder: &Path,
) -> Result<()> {
    let tensors = host_tensors(model, &|kind| {
        matches!(kind, ParamKind::Adapter | ParamKind::Score)
    });
    let mut paths = Vec::new();
    let mut task = TaskType::CausalLm;
    let tensors: Vec<_> = tensors
        .into_iter()
        .map(|(name, shape, values)| {
            let name = match parse_key(&name) {
                Some(AdapterKey::Lora(path, LoraMatrix::A)) => {
                    paths.push(path);
                    name
                }
                Some(_) => name,
                None => {
                    task = TaskType::SeqCls;
                    saved_key(&name)
                }
            };
            (name, shape, values)
        })
        .collect();
    // The layers themselves, not the recipe's patterns: PEFT knows no regular expressions inside lists.
    let mut adapter = AdapterConfig::new(task, lora.rank, lora.alpha, TargetModules::List(paths));
    adapter.base_model_name_or_path = Some(base.to_owned());
    adapter.lora_dropout = lora.dropout;
    adapter.use_rslora = lora.use_rslora;
    adapter.rank_pattern = lora.rank_pattern.clone();
    adapter.alpha_pattern = lora.alpha_pattern.clone();
    adapter.fan_in_fan_out = config.family() == "gpt2";
    std::fs::create_dir_all(folder).map_err(Error::io("create", folder))?;
    adapter.save(folder)?;
    write_safetensors(folder.join(ADAPTER_WEIGHTS), &tensors)
}
