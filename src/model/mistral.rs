//! Mistral: as Llama without biases, and with a window in all layers unless `sliding_window` is null.

use super::Architecture;
use super::config::keys::Keys;
use super::family::Family;
use super::gated_decoder::{Defaults, EMBEDDING, GatedDecoderConfig, HEAD};
use crate::error::Result;
use crate::ops::Mask;

pub(super) const FAMILY: Family = Family {
    model_type: "mistral",
    causal: "MistralForCausalLM",
    classifier: "MistralForSequenceClassification",
    embedding: EMBEDDING,
    head: HEAD,
    parse,
};

fn parse(keys: &Keys<'_>) -> Result<Architecture> {
    let config = GatedDecoderConfig::plain(keys, Defaults::LLAMA)?;
    let window = keys.count_or_null("sliding_window", 4096)?;
    // transformers' Mistral does not read "layer_types".
    let mask = window.map_or(Mask::Causal, Mask::Window);
    Ok(Architecture::Gated(GatedDecoderConfig {
        masks: vec![mask; config.num_hidden_layers],
        ..config
    }))
}
