//! Undoes the renaming and reordering of tensors by llama.cpp's converter, by architecture.

use std::collections::BTreeMap;

use super::header::MetadataValue;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Architecture {
    Llama,
    Qwen2,
    Qwen3,
    Phi3,
    Olmo2,
    SmolLm3,
    Gemma,
    Gemma2,
    Gemma3,
    Gpt2,
    Bloom,
}

/// The conversion from the stored layout to Hugging Face's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Layout {
    Same,
    /// Rows of each head were interleaved for ggml's rotation of neighbouring pairs.
    Rotary {
        heads: usize,
    },
    /// Stored as `[out, in]`; Hugging Face has `[in, out]`.
    Transposed,
    /// Rows are all queries, then all keys, then all values; Hugging Face has query, key and value of one head after another.
    ByKind {
        heads: usize,
    },
    /// Stored with one added.
    PlusOne,
}

impl Architecture {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Llama => "llama",
            Self::Qwen2 => "qwen2",
            Self::Qwen3 => "qwen3",
            Self::Phi3 => "phi3",
            Self::Olmo2 => "olmo2",
            Self::SmolLm3 => "smollm3",
            Self::Gemma => "gemma",
            Self::Gemma2 => "gemma2",
            Self::Gemma3 => "gemma3",
            Self::Gpt2 => "gpt2",
            Self::Bloom => "bloom",
        }
    }
}

/// Our families, and how llama.cpp calls them. Mistral's tensors and computation are llama's.
pub(super) const FAMILIES: [(&str, Architecture); 12] = [
    ("llama", Architecture::Llama),
    ("mistral", Architecture::Llama),
    ("qwen2", Architecture::Qwen2),
    ("qwen3", Architecture::Qwen3),
    ("phi3", Architecture::Phi3),
    ("olmo2", Architecture::Olmo2),
    ("smollm3", Architecture::SmolLm3),
    ("gemma", Architecture::Gemma),
    ("gemma2", Architecture::Gemma2),
    ("gemma3_text", Architecture::Gemma3),
    ("gpt2", Architecture::Gpt2),
    ("bloom", Architecture::Bloom),
];

/// How llama.cpp calls a family of ours.
pub(super) fn architecture_of(family: &str) -> Option<Architecture> {
    let known = FAMILIES.iter().find(|(name, _)| *name == family);
    known.map(|(_, architecture)| *architecture)
}

pub(super) fn architecture(
    metadata: &BTreeMap<String, MetadataValue>,
) -> Result<Architecture, String> {
    let name = metadata
        .get("general.architecture")
        .and_then(MetadataValue::as_str)
        .ok_or("the GGUF metadata has no general.architecture")?;
    let mut known: Vec<Architecture> = FAMILIES.iter().map(|(_, known)| *known).collect();
    known.dedup();
    let found = known.iter().find(|known| known.name() == name);
    found.copied().ok_or_else(|| {
        let known: Vec<&str> = known.iter().map(|known| known.name()).collect();
        format!(
            "GGUF architecture \"{name}\" is not supported; supported are {}",
            known.join(", ")
        )
    })
}

/// Undoes the converter's order of q and k rows: `[heads, head_dim / 2, 2, width]` becomes `[heads, 2, head_dim / 2, width]`.
pub(super) fn unpermute<T: Copy>(stored: &[T], heads: usize, width: usize) -> Vec<T> {
    let head_dim = stored.len() / (heads * width);
    let mut out = Vec::with_capacity(stored.len());
    for head in stored.chunks_exact(head_dim * width) {
        for part in 0..2 {
            for pair in head.chunks_exact(2 * width) {
                out.extend_from_slice(&pair[part * width..(part + 1) * width]);
            }
        }
    }
    out
}

/// The inverse of [`unpermute`].
pub(super) fn permute<T: Copy>(values: &[T], heads: usize, width: usize) -> Vec<T> {
    let head_dim = values.len() / (heads * width);
    let half = head_dim / 2 * width;
    let mut out = Vec::with_capacity(values.len());
    for head in values.chunks_exact(head_dim * width) {
        let (first, second) = head.split_at(half);
        for (a, b) in first.chunks_exact(width).zip(second.chunks_exact(width)) {
            out.extend_from_slice(a);
            out.extend_from_slice(b);
        }
    }
    out
}

/// Swaps the groups of `[a, b, ..]`: the result is `[b, a, ..]`.
pub(super) fn swap_groups<T: Copy>(values: &[T], [a, b]: [usize; 2]) -> Vec<T> {
    let len = values.len() / (a * b);
    let groups = (0..b).flat_map(|second| (0..a).map(move |first| (first * b + second) * len));
    groups
        .flat_map(|start| values[start..start + len].iter().copied())
        .collect()
}

/// The transpose, with rows of `width` values.
pub(super) fn transpose(stored: &[f32], width: usize) -> Vec<f32> {
    let height = stored.len() / width.max(1);
    let mut out = Vec::with_capacity(stored.len());
    for column in 0..height {
        out.extend((0..width).map(|row| stored[row * height + column]));
    }
    out
}

pub(super) fn layout(
    architecture: Architecture,
    name: &str,
    shape: &[usize],
    metadata: &BTreeMap<String, MetadataValue>,
) -> Result<Layout, String> {
    if architecture == Architecture::Gpt2 {
        let conv = name.starts_with("transformer.h.") && shape.len() == 2;
        return Ok(if conv {
            Layout::Transposed
        } else {
            Layout::Same
        });
    }
    if architecture.norms_plus_one() && shape.len() == 1 && name.ends_with("norm.weight") {
        return Ok(Layout::PlusOne);
    }
    // Rows of which each head has `share` or a multiple of it.
    let heads = |keys: &[&str], share: usize| {
        let key = |key: &&str| metadata.get(&format!("{}.{key}", architecture.name()));
        let value = keys.iter().find_map(key);
        let heads = value.and_then(MetadataValue::as_u64).unwrap_or(0) as usize;
        match shape.first() {
            Some(rows)
                if heads > 0
                    && (share.checked_mul(heads))
                        .is_some_and(|n| n > 0 && rows.is_multiple_of(n)) =>
            {
                Ok(heads)
            }
            _ => Err(format!(
                "{name} of shape {shape:?} cannot have {heads} heads"
            )),
        }
    };
    let joint = name.contains(".self_attention.query_key_value.");
    if architecture == Architecture::Bloom && joint {
        let heads = heads(&["attention.head_count"], 3)?;
        return Ok(Layout::ByKind { heads });
    }
    if !architecture.interleaves() {
        return Ok(Layout::Same);
    }
    let rotary = |keys: &[&str]| heads(keys, 2).map(|heads| Layout::Rotary { heads });
    let of = |layer: &str| {
        let kind = name.rsplit_once(layer).map_or("", |(_, kind)| kind);
        matches!(kind, ".weight" | ".bias")
    };
    if of("self_attn.q_proj") {
        rotary(&["attention.head_count"])
    } else if of("self_attn.k_proj") {
        rotary(&["attention.head_count_kv", "attention.head_count"])
    } else {
        Ok(Layout::Same)
    }
}

/// Names outside of layers: llama.cpp's and Hugging Face's, without `.weight` or `.bias`.
const GATED_OUTER: [(&str, &str); 3] = [
    ("output", "lm_head"),
    ("token_embd", "model.embed_tokens"),
    ("output_norm", "model.norm"),
];
const GPT2_OUTER: [(&str, &str); 4] = [
    ("output", "lm_head"),
    ("token_embd", "transformer.wte"),
    ("position_embd", "transformer.wpe"),
    ("output_norm", "transformer.ln_f"),
];
const BLOOM_OUTER: [(&str, &str); 4] = [
    ("output", "lm_head"),
    ("token_embd_norm", "transformer.word_embeddings_layernorm"),
    ("token_embd", "transformer.word_embeddings"),
    ("output_norm", "transformer.ln_f"),
];
/// Names inside of a layer.
const GATED_INNER: [(&str, &str); 11] = [
    ("attn_norm", "input_layernorm"),
    ("attn_q", "self_attn.q_proj"),
    ("attn_k", "self_attn.k_proj"),
    ("attn_v", "self_attn.v_proj"),
    ("attn_output", "self_attn.o_proj"),
    ("attn_q_norm", "self_attn.q_norm"),
    ("attn_k_norm", "self_attn.k_norm"),
    ("ffn_norm", "post_attention_layernorm"),
    ("ffn_gate", "mlp.gate_proj"),
    ("ffn_up", "mlp.up_proj"),
    ("ffn_down", "mlp.down_proj"),
];
const PHI3_INNER: [(&str, &str); 6] = [
    ("attn_norm", "input_layernorm"),
    ("attn_qkv", "self_attn.qkv_proj"),
    ("attn_output", "self_attn.o_proj"),
    ("ffn_norm", "post_attention_layernorm"),
    ("ffn_up", "mlp.gate_up_proj"),
    ("ffn_down", "mlp.down_proj"),
];
const OLMO2_INNER: [(&str, &str); 11] = [
    ("attn_q", "self_attn.q_proj"),
    ("attn_k", "self_attn.k_proj"),
    ("attn_v", "self_attn.v_proj"),
    ("attn_output", "self_attn.o_proj"),
    ("attn_q_norm", "self_attn.q_norm"),
    ("attn_k_norm", "self_attn.k_norm"),
    ("post_attention_norm", "post_attention_layernorm"),
    ("ffn_gate", "mlp.gate_proj"),
    ("ffn_up", "mlp.up_proj"),
    ("ffn_down", "mlp.down_proj"),
    ("post_ffw_norm", "post_feedforward_layernorm"),
];
/// Of Gemma from its second version on, which has norms after attention and MLP, too.
const GEMMA_INNER: [(&str, &str); 13] = [
    ("attn_norm", "input_layernorm"),
    ("attn_q", "self_attn.q_proj"),
    ("attn_k", "self_attn.k_proj"),
    ("attn_v", "self_attn.v_proj"),
    ("attn_output", "self_attn.o_proj"),
    ("attn_q_norm", "self_attn.q_norm"),
    ("attn_k_norm", "self_attn.k_norm"),
    ("post_attention_norm", "post_attention_layernorm"),
    ("ffn_norm", "pre_feedforward_layernorm"),
    ("ffn_gate", "mlp.gate_proj"),
    ("ffn_up", "mlp.up_proj"),
    ("ffn_down", "mlp.down_proj"),
    ("post_ffw_norm", "post_feedforward_layernorm"),
];
const BLOOM_INNER: [(&str, &str); 6] = [
    ("attn_norm", "input_layernorm"),
    ("attn_qkv", "self_attention.query_key_value"),
    ("attn_output", "self_attention.dense"),
    ("ffn_norm", "post_attention_layernorm"),
    ("ffn_up", "mlp.dense_h_to_4h"),
    ("ffn_down", "mlp.dense_4h_to_h"),
];
const GPT2_INNER: [(&str, &str); 6] = [
    ("attn_norm", "ln_1"),
    ("attn_qkv", "attn.c_attn"),
    ("attn_output", "attn.c_proj"),
    ("ffn_norm", "ln_2"),
    ("ffn_up", "mlp.c_fc"),
    ("ffn_down", "mlp.c_proj"),
];

impl Architecture {
    /// Whether rows of queries and keys are interleaved for ggml's rotation of neighbouring pairs.
    pub(super) fn interleaves(self) -> bool {
        matches!(self, Self::Llama | Self::SmolLm3)
    }

    /// Whether llama.cpp stores norms with one added.
    pub(super) fn norms_plus_one(self) -> bool {
        matches!(self, Self::Gemma | Self::Gemma2 | Self::Gemma3)
    }

    fn outer(self) -> &'static [(&'static str, &'static str)] {
        match self {
            Self::Gpt2 => &GPT2_OUTER,
            Self::Bloom => &BLOOM_OUTER,
            _ => &GATED_OUTER,
        }
    }

    fn inner(self) -> &'static [(&'static str, &'static str)] {
        match self {
            Self::Gpt2 => &GPT2_INNER,
            Self::Bloom => &BLOOM_INNER,
            Self::Gemma2 | Self::Gemma3 => &GEMMA_INNER,
            Self::Phi3 => &PHI3_INNER,
            Self::Olmo2 => &OLMO2_INNER,
            Self::Llama | Self::Qwen2 | Self::Qwen3 | Self::SmolLm3 | Self::Gemma => &GATED_INNER,
        }
    }

    /// What Hugging Face's names of layers begin with.
    fn layers(self) -> &'static str {
        match self {
            Self::Gpt2 | Self::Bloom => "transformer.h.",
            _ => "model.layers.",
        }
    }
}

pub(super) fn hugging_face_name(architecture: Architecture, name: &str) -> Option<String> {
    let (stem, kind) = name.rsplit_once('.')?;
    let known = |names: &'static [(&str, &'static str)], stem: &str| {
        let found = names.iter().find(|(name, _)| *name == stem);
        found.map(|(_, name)| *name)
    };
    let Some(block) = stem.strip_prefix("blk.") else {
        let stem = known(architecture.outer(), stem)?;
        return Some(format!("{stem}.{kind}"));
    };
    let (layer, module) = block.split_once('.')?;
    layer.parse::<usize>().ok()?;
    let module = known(architecture.inner(), module)?;
    Some(format!("{}{layer}.{module}.{kind}", architecture.layers()))
}

/// The inverse of [`hugging_face_name`].
pub(super) fn llama_cpp_name(architecture: Architecture, name: &str) -> Option<String> {
    let (stem, kind) = name.rsplit_once('.')?;
    let known = |names: &'static [(&'static str, &str)], stem: &str| {
        let found = names.iter().find(|(_, name)| *name == stem);
        found.map(|(name, _)| *name)
    };
    let Some(layer) = stem.strip_prefix(architecture.layers()) else {
        let stem = known(architecture.outer(), stem)?;
        return Some(format!("{stem}.{kind}"));
    };
    let (layer, module) = layer.split_once('.')?;
    let module = known(architecture.inner(), module)?;
    Some(format!("blk.{layer}.{module}.{kind}"))
}
