//! Qwen3: RMSNorm on each query and key head before the rotation; windows as in Qwen2.

use super::config::keys::Keys;
use super::family::Family;
use super::gated_decoder::{Defaults, EMBEDDING, GatedDecoderConfig, HEAD, QkNorm};
use super::{Architecture, qwen2};
use crate::error::Result;

pub(super) const FAMILY: Family = Family {
    model_type: "qwen3",
    causal: "Qwen3ForCausalLM",
    classifier: "Qwen3ForSequenceClassification",
    embedding: EMBEDDING,
    head: HEAD,
    parse,
};

fn parse(keys: &Keys<'_>) -> Result<Architecture> {
    let bias = keys.boolean("attention_bias", false)?;
    let config = GatedDecoderConfig::plain(
        keys,
        Defaults {
            // Independent of the hidden size.
            head_dim: Some(128),
            ..Defaults::LLAMA
        },
    )?;
    Ok(Architecture::Gated(GatedDecoderConfig {
        qkv_bias: bias,
        o_bias: bias,
        qk_norm: Some(QkNorm::Head),
        masks: qwen2::masks(keys, config.num_hidden_layers)?,
        ..config
    }))
}
