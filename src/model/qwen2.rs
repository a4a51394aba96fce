//! Qwen2 and Qwen2.5: biases of queries, keys and values; optional windows in the upper layers.

use super::Architecture;
use super::config::keys::Keys;
use super::family::Family;
use super::gated_decoder::{Defaults, EMBEDDING, GatedDecoderConfig, HEAD};
use crate::error::Result;
use crate::ops::Mask;

pub(super) const FAMILY: Family = Family {
    model_type: "qwen2",
    causal: "Qwen2ForCausalLM",
    classifier: "Qwen2ForSequenceClassification",
    embedding: EMBEDDING,
    head: HEAD,
    parse,
};

fn parse(keys: &Keys<'_>) -> Result<Architecture> {
    let config = GatedDecoderConfig::plain(keys, Defaults::LLAMA)?;
    Ok(Architecture::Gated(GatedDecoderConfig {
        qkv_bias: true,
        masks: masks(keys, config.num_hidden_layers)?,
        ..config
    }))
}

/// As in transformers, layers from `max_window_layers` on have the window if `use_sliding_window` is set; `layer_types` overrides
/// this.
pub(super) fn masks(keys: &Keys<'_>, num_layers: usize) -> Result<Vec<Mask>> {
    let window = match keys.boolean("use_sliding_window", false)? {
        true => keys.count_or_null("sliding_window", 4096)?,
        false => None,
    };
    let first = keys.whole("max_window_layers")?.unwrap_or(28);
    keys.masks(num_layers, window, |layer| layer >= first)
}
