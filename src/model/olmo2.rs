//! OLMo 2: norms after attention and MLP in place of before, and one norm over all query heads and one over all key heads.
//!
//! # Source
//! Team OLMo 2024, arXiv:2501.00656, section 3.

use super::Architecture;
use super::config::keys::Keys;
use super::family::Family;
use super::gated_decoder::{Defaults, EMBEDDING, GatedDecoderConfig, HEAD, QkNorm};
use crate::error::Result;

pub(super) const FAMILY: Family = Family {
    model_type: "olmo2",
    causal: "Olmo2ForCausalLM",
    classifier: "Olmo2ForSequenceClassification",
    embedding: EMBEDDING,
    head: HEAD,
    parse,
};

fn parse(keys: &Keys<'_>) -> Result<Architecture> {
    let bias = keys.boolean("attention_bias", false)?;
    let config = GatedDecoderConfig::plain(
        keys,
        Defaults {
            rms_norm_eps: 1e-5,
            ..Defaults::LLAMA
        },
    )?;
    keys.masks(config.num_hidden_layers, None, |_| false)?;
    Ok(Architecture::Gated(GatedDecoderConfig {
        qkv_bias: bias,
        o_bias: bias,
        qk_norm: Some(QkNorm::Joint),
        post_norms: true,
        ..config
    }))
}
