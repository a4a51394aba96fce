//! The layers of a stored LoRA adapter, for formats that have nothing else.

use std::path::Path;

use super::adapter_weights;
use super::config::ModelConfig;
use super::stored_adapter::StoredAdapter;
use super::weights::gguf::LowRankLayer;
use crate::error::{Error, Result};
use crate::peft::{
    AdapterConfig, AdapterMethod, Bias, LayerKind, LinearSpec, LoraConfig, tensor_key,
};

/// Reads the adapter of `folder` on a model with `config`, layer by layer.
///
/// # Errors
/// `Error::Usage` for what is more than low-rank changes of linear layers, with what; those of reading and checking the adapter.
pub fn low_rank_layers(folder: &Path, config: &ModelConfig) -> Result<Vec<LowRankLayer>> {
    let (adapter, _) = AdapterConfig::load(folder)?;
    let refuse = |what: &str| {
        Err(Error::Usage(format!(
            "{}: llama.cpp has no form for {what}; add --merge to write the whole model",
            folder.display()
        )))
    };
    let Some(lora) = adapter.spec.lora() else {
        return refuse(&format!("adapters of {}", adapter.spec.peft_type()));
    };
    if let Some(what) = more_than_low_rank(lora) {
        return refuse(what);
    }
    let source = adapter_weights::open(folder, config)?;
    let stored = StoredAdapter::check(&adapter, source.as_ref(), config)?;
    if stored.tables.rows(source.as_ref(), config).is_some() {
        return refuse("an embedding of the adapter's own");
    }
    adapter_weights::check_finite(source.as_ref())?;
    let layers = config.adaptable_modules(&adapter.spec);
    let adapted = layers
        .iter()
        .filter(|layer| stored.modules.contains(&layer.name));
    let mut found = Vec::new();
    for layer in adapted {
        if layer.kind != LayerKind::Linear {
            return refuse(&format!("LoRA on {}", layer.name));
        }
        found.push(read(lora, layer, |name| {
            source.read(stored.name(&tensor_key(&layer.name, name)))
        })?);
    }
    Ok(found)
}

fn read(
    lora: &LoraConfig,
    layer: &LinearSpec,
    values: impl Fn(&str) -> Result<Vec<f32>>,
) -> Result<LowRankLayer> {
    let names: Vec<&str> = (lora.tensors(layer).iter())
        .map(|(name, _)| *name)
        .collect();
    Ok(LowRankLayer {
        path: layer.name.clone(),
        rank: lora.rank_of(&layer.name),
        scale: lora.scale_of(&layer.name),
        a: values(names[0])?,
        b: values(names[1])?,
    })
}

/// What an adapter has beside low-rank changes.
fn more_than_low_rank(lora: &LoraConfig) -> Option<&'static str> {
    let found = [
        (lora.use_dora, "DoRA (use_dora)"),
        (lora.lora_bias, "biases of the up projection (lora_bias)"),
        (lora.bias != Bias::None, "trained biases (bias)"),
        (!lora.modules_to_save.is_empty(), "modules_to_save"),
        (
            lora.trainable_token_indices.is_some(),
            "trained tokens (trainable_token_indices)",
        ),
        (
            lora.init_lora_weights.takes_of_weight(),
            "a base without the part of the weight that init_lora_weights took",
        ),
    ];
    found
        .into_iter()
        .find(|(has, _)| *has)
        .map(|(_, what)| what)
}
