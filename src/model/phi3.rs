//! Phi-3 and Phi-4: one tensor for queries, keys and values and one for gate and up, partly rotated heads, LongRoPE, and a window in
//! all layers unless `sliding_window` is null.
//!
//! # Source
//! Abdin et al. 2024, arXiv:2404.14219.

use serde_json::{Value, json};

use super::Architecture;
use super::config::RopeScaling;
use super::config::keys::Keys;
use super::config::rope::{RopeKeys, Rotated};
use super::family::Family;
use super::gated_decoder::{Defaults, EMBEDDING, GatedDecoderConfig, HEAD};
use crate::error::Result;
use crate::ops::Mask;

pub(super) const FAMILY: Family = Family {
    model_type: "phi3",
    causal: "Phi3ForCausalLM",
    classifier: "Phi3ForSequenceClassification",
    embedding: EMBEDDING,
    head: HEAD,
    parse,
};

/// As in transformers.
const DEFAULTS: Defaults = Defaults {
    rms_norm_eps: 1e-5,
    rope: RopeKeys {
        rotated: Rotated::Part {
            key: "partial_rotary_factor",
            default: 1.0,
        },
        ..RopeKeys::WHOLE
    },
    ..Defaults::LLAMA
};

fn parse(keys: &Keys<'_>) -> Result<Architecture> {
    let raw = with_longrope(keys);
    let keys = &Keys {
        path: keys.path,
        raw: &raw,
    };
    let config = GatedDecoderConfig::plain(keys, DEFAULTS)?;
    if let Some(scaling) = config.rope_scaling.as_ref()
        && !matches!(scaling, RopeScaling::LongRope(_))
    {
        return Err(keys.error(format!(
            "RoPE scaling \"{}\" is not Phi-3's; supported are default and longrope",
            scaling.name()
        )));
    }
    let window = keys.optional_count("sliding_window")?;
    // transformers' Phi-3 does not read "layer_types".
    let mask = window.map_or(Mask::Causal, Mask::Window);
    Ok(Architecture::Gated(GatedDecoderConfig {
        joint_tensors: true,
        masks: vec![mask; config.num_hidden_layers],
        ..config
    }))
}

/// The file's keys with transformers' default of the original context, and with longrope in place of its older names "su" and "yarn".
fn with_longrope(keys: &Keys<'_>) -> serde_json::Map<String, Value> {
    let mut raw = keys.raw.clone();
    let original = raw.entry("original_max_position_embeddings");
    original.or_insert(json!(4096));
    for place in ["rope_scaling", "rope_parameters"] {
        let Some(dict) = raw.get_mut(place).and_then(Value::as_object_mut) else {
            continue;
        };
        for key in ["rope_type", "type"] {
            if let Some(kind) = dict.get_mut(key)
                && matches!(kind.as_str(), Some("su" | "yarn"))
            {
                *kind = json!("longrope");
            }
        }
    }
    raw
}
