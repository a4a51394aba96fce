//! Several adapters' folders as one.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use burn::tensor::{Tensor, TensorData};

use super::adapter_weights::check_finite;
use super::weights::{self, write_safetensors};
use crate::error::Result;
use crate::ops::ModelBackend;
use crate::peft::files::{ADAPTER_WEIGHTS, weights_file};
use crate::peft::keys::{StoredKey, parse_key};
use crate::peft::{
    AdapterConfig, AdapterFiles, CombineSettings, LayerKind, LinearSpec, combine, largest_singular,
    saved_key, tensor_key,
};

/// Writes to the folder `to` the LoRA adapter that stands for those of `folders`; returns what the user should know, to be put behind
/// a sentence.
///
/// # Errors
/// As [`combine`], with the folder; `Error::Format` for files that are no LoRA adapter; `Error::Invalid` for numbers that are not finite;
/// `Error::Io`.
pub fn combine_adapters<B: ModelBackend>(
    folders: &[PathBuf],
    settings: &CombineSettings,
    to: &Path,
    device: &B::Device,
) -> Result<String> {
    let adapters: Vec<AdapterFiles> = folders
        .iter()
        .map(|folder| read(folder))
        .collect::<Result<_>>()?;
    let (config, tensors) = combine(&adapters, settings, &|matrix, shape, rank| {
        let matrix = TensorData::new(matrix.to_vec(), shape);
        largest_singular::<B>(&Tensor::from_data(matrix, device), rank)
    })?;
    config.save(to)?;
    write_safetensors(to.join(ADAPTER_WEIGHTS), &tensors)?;
    let base = config.base_model_name_or_path.as_deref();
    let others = adapters
        .iter()
        .filter_map(|(config, _)| config.base_model_name_or_path.as_deref());
    let mut others = others.filter(|other| Some(*other) != base);
    Ok(match (base, others.next()) {
        (Some(base), Some(other)) => {
            format!("; their bases are named {base} and {other}, the first counts")
        }
        (Some(base), None) => format!("; its base is {base}"),
        (None, _) => String::new(),
    })
}

/// An adapter's configuration, and its tensors by the keys that PEFT writes.
fn read(folder: &Path) -> Result<AdapterFiles> {
    let (config, _) = AdapterConfig::load(folder)?;
    let source = weights::open(weights_file(folder)?)?;
    check_finite(source.as_ref())?;
    // The names depend on the kind of a layer only.
    let any = |kind| LinearSpec {
        kind,
        name: String::new(),
        in_features: 1,
        out_features: 1,
    };
    let kinds = [LayerKind::Linear, LayerKind::Embedding].into_iter();
    let names: Vec<&'static str> = kinds
        .flat_map(|kind| config.spec.tensors(&any(kind)))
        .map(|(name, _)| name)
        .collect();
    let mut tensors = BTreeMap::new();
    for name in source.names() {
        let key = match parse_key(&name, &names) {
            StoredKey::Layer { path, name, .. } => tensor_key(&path, name),
            StoredKey::Whole(parameter) => saved_key(&parameter),
            StoredKey::Original => continue,
        };
        let values = source.read(&name)?;
        let shape = source.shape(&name).unwrap_or_default();
        tensors.insert(key.clone(), (key, shape, values));
    }
    Ok((config, tensors))
}
