//! Gemma: zero-centred RMSNorm, GEGLU, scaled embeddings.
//!
//! # Source
//! Gemma Team 2024, arXiv:2403.08295, section 2.

use super::Architecture;
use super::config::keys::Keys;
use super::config::rope::RopeKeys;
use super::family::Family;
use super::gated_decoder::{EMBEDDING, HEAD};
use super::gemma_decoder::GemmaConfig;
use crate::error::Result;
use crate::ops::{Gate, Gelu};

pub(super) const FAMILY: Family = Family {
    model_type: "gemma",
    causal: "GemmaForCausalLM",
    classifier: "GemmaForSequenceClassification",
    embedding: EMBEDDING,
    head: HEAD,
    parse,
};

fn parse(keys: &Keys<'_>) -> Result<Architecture> {
    let gate = match keys.gate("hidden_act", "gelu_pytorch_tanh")? {
        // Files of the first release say "gelu" and mean its approximation, as transformers reads them.
        Gate::Gelu(_) => Gate::Gelu(Gelu::Tanh),
        gate => gate,
    };
    let rope = RopeKeys::WHOLE.read(keys, GemmaConfig::head_dim(keys)?)?;
    Ok(Architecture::Gemma(GemmaConfig::plain(keys, gate, rope)?))
}
