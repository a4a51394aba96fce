//! Gemma 3's text model: RMSNorm on each query and key head, windows in five of six layers, which have rotary frequencies of their own.
//!
//! # Source
//! Gemma Team 2025, arXiv:2503.19786, section 2.

use serde_json::{Map, Value, json};

use super::Architecture;
use super::config::keys::Keys;
use super::config::rope::{Rope, RopeKeys, Rotated};
use super::family::Family;
use super::gated_decoder::{EMBEDDING, HEAD};
use super::gemma_decoder::{GemmaConfig, LocalRope};
use crate::error::Result;

pub(super) const FAMILY: Family = Family {
    model_type: "gemma3_text",
    causal: "Gemma3ForCausalLM",
    classifier: "Gemma3TextForSequenceClassification",
    embedding: EMBEDDING,
    head: HEAD,
    parse,
};

/// The `model_type` of models for text and images, which hold one of [`FAMILY`].
pub(super) const WITH_IMAGES: &str = "gemma3";

/// Settings that files leave out where they are transformers' defaults.
const DEFAULTS: [(&str, usize); 5] = [
    ("vocab_size", 262_208),
    ("num_attention_heads", 8),
    ("num_key_value_heads", 4),
    ("head_dim", 256),
    ("max_position_embeddings", 131_072),
];

/// The configuration of the text model in one of [`WITH_IMAGES`], with all settings that such files leave out.
pub(super) fn text_config(keys: &Keys<'_>) -> Result<Map<String, Value>> {
    let Some(Value::Object(text)) = keys.get("text_config") else {
        return Err(keys.error(format!(
            "model_type \"{WITH_IMAGES}\" needs \"text_config\", a dictionary"
        )));
    };
    let mut text = text.clone();
    text.insert("model_type".into(), json!(FAMILY.model_type));
    text.insert("architectures".into(), json!([FAMILY.causal]));
    for (key, value) in DEFAULTS {
        text.entry(key).or_insert(json!(value));
    }
    for key in [
        "bos_token_id",
        "eos_token_id",
        "pad_token_id",
        "dtype",
        "torch_dtype",
    ] {
        if let Some(value) = keys.get(key) {
            text.entry(key).or_insert(value.clone());
        }
    }
    Ok(text)
}

fn parse(keys: &Keys<'_>) -> Result<Architecture> {
    if let Some(cap) = keys.get("attn_logit_softcapping") {
        return Err(keys.error(format!(
            "\"attn_logit_softcapping\": {cap} is not supported: transformers computes gemma3_text without it; supported is null"
        )));
    }
    let gate = keys.gate("hidden_activation", "gelu_pytorch_tanh")?;
    let head_dim = GemmaConfig::head_dim(keys)?;
    let local = rope(keys, "sliding_attention", head_dim)?;
    let config = GemmaConfig::plain(keys, gate, rope(keys, "full_attention", head_dim)?)?;
    let window = keys.count_or_null("sliding_window", 4096)?;
    let period = keys.optional_count("sliding_window_pattern")?.unwrap_or(6);
    let windowed = |layer: usize| !(layer + 1).is_multiple_of(period);
    Ok(Architecture::Gemma(GemmaConfig {
        query_pre_attn_scalar: keys.positive("query_pre_attn_scalar", 256.0)?,
        post_norms: true,
        qk_norm: true,
        masks: keys.masks(config.num_hidden_layers, window, windowed)?,
        local_rope: Some(LocalRope {
            theta: local.theta,
            scaling: local.scaling,
        }),
        final_logit_softcapping: keys.optional_positive("final_logit_softcapping")?,
        ..config
    }))
}

/// The rotary positions of a kind of layer: `rope_parameters` has them by kind. In older files the two bases are keys of their own,
/// and `rope_scaling` is of layers without a window.
fn rope(keys: &Keys<'_>, kind: &str, head_dim: usize) -> Result<Rope> {
    let dictionary = |key: &str, value: Option<&Value>| match value {
        None | Some(Value::Null) => Ok(Map::new()),
        Some(Value::Object(dict)) => Ok(dict.clone()),
        Some(other) => Err(keys.mismatch(key, "a dictionary", other)),
    };
    let by_kind = dictionary("rope_parameters", keys.get("rope_parameters"))?;
    let kinds = ["full_attention", "sliding_attention"];
    if let Some(key) = by_kind.keys().find(|key| !kinds.contains(&key.as_str())) {
        return Err(keys.error(format!(
            "\"rope_parameters\": \"{key}\" is no kind of layer; expected {} with a dictionary each",
            kinds.join(" and ")
        )));
    }
    let mut dict = dictionary(kind, by_kind.get(kind))?;
    let mut place = "rope_parameters";
    let (theta, default_theta) = match kind {
        "full_attention" => ("rope_theta", 1_000_000.0),
        _ => ("rope_local_base_freq", 10_000.0),
    };
    if kind == "full_attention" && keys.get("rope_scaling").is_some() {
        dict.extend(dictionary("rope_scaling", keys.get("rope_scaling"))?);
        place = "rope_scaling";
    }
    let names = RopeKeys {
        theta,
        default_theta,
        rotated: Rotated::Whole,
    };
    names.read_from(keys, Some((place, &dict)), head_dim)
}
