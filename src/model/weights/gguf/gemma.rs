//! What llama.cpp is told of a Gemma model, and what it computes otherwise.

use super::file::Value;
use super::layout::Architecture;
use super::write::{count, number};
use crate::model::GemmaConfig;
use crate::model::config::RopeScaling;
use crate::ops::{Gate, Gelu, Mask};

/// Attention scores are divided by the square root of this. The largest Gemma 2 and Gemma 3, which llama.cpp knows by their number of
/// layers, have the width of the states for each head, others the width of a head.
pub(super) fn query_scalar(
    architecture: Architecture,
    layers: usize,
    [hidden, heads, head_dim]: [usize; 3],
) -> usize {
    match (architecture, layers) {
        (Architecture::Gemma2, 46) | (Architecture::Gemma3, 62) => hidden / heads.max(1),
        _ => head_dim,
    }
}

/// Keys beside those of all decoders.
///
/// # Errors
/// A message about what llama.cpp computes otherwise.
pub(super) fn keys(
    architecture: Architecture,
    config: &GemmaConfig,
) -> Result<Vec<(String, Value)>, String> {
    let sizes = [
        config.hidden_size,
        config.num_attention_heads,
        config.head_dim,
    ];
    let scalar = query_scalar(architecture, config.num_hidden_layers, sizes);
    let window = config.masks.iter().find_map(|mask| match mask {
        Mask::Window(width) => Some(*width),
        Mask::Causal | Mask::Full => None,
    });
    // All layers have windows but the last of each so many.
    let period = match architecture {
        Architecture::Gemma2 => 2,
        Architecture::Gemma3 => 6,
        _ => 1,
    };
    let mask = |layer: usize| match window {
        Some(width) if !(layer + 1).is_multiple_of(period) => Mask::Window(width),
        _ => Mask::Causal,
    };
    let masks: Vec<Mask> = (0..config.num_hidden_layers).map(mask).collect();
    let capped = architecture == Architecture::Gemma2;
    let local = config.local_rope.as_ref();
    let otherwise = [
        (
            config.hidden_activation != Gate::Gelu(Gelu::Tanh),
            "an MLP with another gate than GELU's approximation by tanh",
        ),
        (config.attention_bias, "biases in attention"),
        (!config.tie_word_embeddings, "an output head of its own"),
        (
            config.query_pre_attn_scalar != scalar as f64,
            "another \"query_pre_attn_scalar\" than the width of a head",
        ),
        (
            config.masks != masks || (period > 1 && window.is_none()),
            "windows in other layers than the family's, or none",
        ),
        (
            config.attn_logit_softcapping.is_some() != capped
                || (capped && config.final_logit_softcapping.is_none()),
            "attention scores or logits without the family's caps",
        ),
        (
            local.is_some_and(|rope| rope.scaling.is_some()),
            "scaled RoPE in layers with a window",
        ),
    ];
    if let Some((_, what)) = otherwise.iter().find(|(found, _)| *found) {
        return Err(format!("{what}, which llama.cpp does not compute"));
    }
    let mut keys = Vec::new();
    if let Some(window) = window {
        keys.push(count(architecture, "attention.sliding_window", window));
    }
    let numbers = [
        ("attn_logit_softcapping", config.attn_logit_softcapping),
        ("final_logit_softcapping", config.final_logit_softcapping),
        ("rope.freq_base_swa", local.map(|rope| rope.theta)),
    ];
    let numbers = numbers.into_iter().filter_map(|(key, x)| Some((key, x?)));
    keys.extend(numbers.map(|(key, x)| number(architecture, key, x)));
    match &config.rope_scaling {
        None => {}
        Some(RopeScaling::Linear { factor }) if architecture == Architecture::Gemma3 => {
            let kind = format!("{}.rope.scaling.type", architecture.name());
            keys.push((kind, Value::Text("linear".into())));
            keys.push(number(architecture, "rope.scaling.factor", *factor));
        }
        Some(_) => {
            return Err(
                "RoPE scaled in another way than linearly, and in another family than gemma3_text"
                    .into(),
            );
        }
    }
    Ok(keys)
}
