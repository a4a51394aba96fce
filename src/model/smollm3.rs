//! SmolLM3: no rotation in every fourth layer, optional windows in these, biases by configuration.

use serde_json::Value;

use super::Architecture;
use super::config::keys::Keys;
use super::config::rope::RopeKeys;
use super::family::Family;
use super::gated_decoder::{Defaults, EMBEDDING, GatedDecoderConfig, HEAD};
use crate::error::Result;

pub(super) const FAMILY: Family = Family {
    model_type: "smollm3",
    causal: "SmolLM3ForCausalLM",
    classifier: "SmolLM3ForSequenceClassification",
    embedding: EMBEDDING,
    head: HEAD,
    parse,
};

/// As in transformers.
const DEFAULTS: Defaults = Defaults {
    rope: RopeKeys {
        default_theta: 2_000_000.0,
        ..RopeKeys::WHOLE
    },
    tie_word_embeddings: true,
    ..Defaults::LLAMA
};

fn parse(keys: &Keys<'_>) -> Result<Architecture> {
    let bias = keys.boolean("attention_bias", false)?;
    let config = GatedDecoderConfig::plain(keys, DEFAULTS)?;
    let num_layers = config.num_hidden_layers;
    let rotated_layers = rotated_layers(keys, num_layers)?;
    let windows = keys.boolean("use_sliding_window", false)?;
    let window = keys.optional_count("sliding_window")?;
    let windowed = |layer: usize| windows && !rotated_layers[layer];
    Ok(Architecture::Gated(GatedDecoderConfig {
        qkv_bias: bias,
        o_bias: bias,
        mlp_bias: keys.boolean("mlp_bias", false)?,
        masks: keys.masks(num_layers, window, windowed)?,
        rotated_layers,
        ..config
    }))
}

/// Whether each layer rotates: by `no_rope_layers` if given (1: it does), otherwise all but every `no_rope_layer_interval`-th.
fn rotated_layers(keys: &Keys<'_>, num_layers: usize) -> Result<Vec<bool>> {
    let key = "no_rope_layers";
    let Some(value) = keys.get(key) else {
        let interval = keys.optional_count("no_rope_layer_interval")?.unwrap_or(4);
        let rotated = |layer: usize| !(layer + 1).is_multiple_of(interval);
        return Ok((0..num_layers).map(rotated).collect());
    };
    let list = value.as_array().filter(|list| list.len() >= num_layers);
    let switches = list.into_iter().flatten().take(num_layers);
    let switches: Option<Vec<bool>> = switches.map(switch).collect();
    let switches = switches.filter(|switches| switches.len() == num_layers);
    switches.ok_or_else(|| {
        let expected = format!("a list of 1 (rotated) or 0 for each of the {num_layers} layers");
        keys.mismatch(key, &expected, value)
    })
}

fn switch(value: &Value) -> Option<bool> {
    match value.as_u64() {
        Some(0) => Some(false),
        Some(1) => Some(true),
        _ => value.as_bool(),
    }
}
