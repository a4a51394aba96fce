//! Llama (SmolLM2, Llama 2 and 3): biases by configuration.

use super::Architecture;
use super::config::keys::Keys;
use super::family::Family;
use super::gated_decoder::{Defaults, EMBEDDING, GatedDecoderConfig, HEAD};
use crate::error::Result;

pub(super) const FAMILY: Family = Family {
    model_type: "llama",
    causal: "LlamaForCausalLM",
    classifier: "LlamaForSequenceClassification",
    embedding: EMBEDDING,
    head: HEAD,
    parse,
};

fn parse(keys: &Keys<'_>) -> Result<Architecture> {
    let bias = keys.boolean("attention_bias", false)?;
    let config = GatedDecoderConfig::plain(keys, Defaults::LLAMA)?;
    keys.masks(config.num_hidden_layers, None, |_| false)?;
    Ok(Architecture::Gated(GatedDecoderConfig {
        qkv_bias: bias,
        o_bias: bias,
        mlp_bias: keys.boolean("mlp_bias", false)?,
        ..config
    }))
}
