//! Gemma 2: norms also after attention and MLP, capped scores and logits, a window in every other layer.
//!
//! # Source
//! Gemma Team 2024, arXiv:2408.00118, section 2.

use super::Architecture;
use super::config::keys::Keys;
use super::config::rope::RopeKeys;
use super::family::Family;
use super::gated_decoder::{EMBEDDING, HEAD};
use super::gemma_decoder::GemmaConfig;
use crate::error::Result;

pub(super) const FAMILY: Family = Family {
    model_type: "gemma2",
    causal: "Gemma2ForCausalLM",
    classifier: "Gemma2ForSequenceClassification",
    embedding: EMBEDDING,
    head: HEAD,
    parse,
};

fn parse(keys: &Keys<'_>) -> Result<Architecture> {
    let gate = keys.gate("hidden_activation", "gelu_pytorch_tanh")?;
    let rope = RopeKeys::WHOLE.read(keys, GemmaConfig::head_dim(keys)?)?;
    let config = GemmaConfig::plain(keys, gate, rope)?;
    let window = keys.count_or_null("sliding_window", 4096)?;
    Ok(Architecture::Gemma(GemmaConfig {
        query_pre_attn_scalar: keys.positive("query_pre_attn_scalar", 256.0)?,
        post_norms: true,
        masks: keys.masks(config.num_hidden_layers, window, |layer| layer % 2 == 0)?,
        attn_logit_softcapping: keys.positive_or_null("attn_logit_softcapping", 50.0)?,
        final_logit_softcapping: keys.positive_or_null("final_logit_softcapping", 30.0)?,
        ..config
    }))
}
