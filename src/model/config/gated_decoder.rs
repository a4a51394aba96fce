//! The configurations of llama and Qwen3, which differ in little, and their tensors.

use serde_json::{Map, Value};

use super::keys::Keys;
use super::{LinearSpec, TensorSpec, spec};
use crate::error::Result;

/// Llama 3's stretching of long rotary wavelengths.
///
/// # Source
/// transformers, `modeling_rope_utils.py`, `rope_type` "llama3".
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RopeScaling {
    /// Long wavelengths are stretched by this.
    pub factor: f64,
    /// Wavelengths above `original_max_position_embeddings / low_freq_factor` are stretched in full.
    pub low_freq_factor: f64,
    /// Wavelengths below `original_max_position_embeddings / high_freq_factor` stay.
    pub high_freq_factor: f64,
    /// Context length of pretraining, in tokens.
    pub original_max_position_embeddings: usize,
}

/// Configuration of a llama model; field names are Hugging Face's.
#[derive(Debug, Clone, PartialEq)]
pub struct LlamaConfig {
    /// Rows of the embedding.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width of the gated MLP.
    pub intermediate_size: usize,
    /// Number of layers.
    pub num_hidden_layers: usize,
    /// Query heads.
    pub num_attention_heads: usize,
    /// Key and value heads; divides `num_attention_heads`.
    pub num_key_value_heads: usize,
    /// Width of a head; even.
    pub head_dim: usize,
    /// Added to the mean square inside RMSNorm.
    pub rms_norm_eps: f64,
    /// Base of the rotary frequencies.
    pub rope_theta: f64,
    /// Llama 3's scaling, if any.
    pub rope_scaling: Option<RopeScaling>,
    /// Whether the output head is the embedding.
    pub tie_word_embeddings: bool,
    /// Longest row in tokens.
    pub max_position_embeddings: usize,
    /// Standard deviation of fresh weights.
    pub initializer_range: f64,
    /// The file as read; written back on export.
    pub raw: Map<String, Value>,
}

/// Configuration of a Qwen3 model: llama's with RMSNorm on queries and keys, per head, before the rotation.
#[derive(Debug, Clone, PartialEq)]
pub struct Qwen3Config {
    /// Rows of the embedding.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width of the gated MLP.
    pub intermediate_size: usize,
    /// Number of layers.
    pub num_hidden_layers: usize,
    /// Query heads.
    pub num_attention_heads: usize,
    /// Key and value heads; divides `num_attention_heads`.
    pub num_key_value_heads: usize,
    /// Width of a head; even and independent of `hidden_size / num_attention_heads`.
    pub head_dim: usize,
    /// Added to the mean square inside RMSNorm.
    pub rms_norm_eps: f64,
    /// Base of the rotary frequencies.
    pub rope_theta: f64,
    /// Llama 3's scaling, if any.
    pub rope_scaling: Option<RopeScaling>,
    /// Whether the output head is the embedding.
    pub tie_word_embeddings: bool,
    /// Longest row in tokens.
    pub max_position_embeddings: usize,
    /// Standard deviation of fresh weights.
    pub initializer_range: f64,
    /// The file as read; written back on export.
    pub raw: Map<String, Value>,
}

/// The numbers in which llama and Qwen3 agree; the one place that knows their tensors.
pub(super) struct GatedDecoder {
    vocab_size: usize,
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    q_size: usize,
    kv_size: usize,
    qk_norm: Option<usize>,
}

impl LlamaConfig {
    pub(super) fn parse(keys: &Keys<'_>) -> Result<Self> {
        keys.gated_decoder_features()?;
        keys.must_be_false("mlp_bias")?;
        let heads = keys.count("num_attention_heads")?;
        let hidden_size = keys.count("hidden_size")?;
        let head_dim = match keys.optional_count("head_dim")? {
            Some(head_dim) => head_dim,
            None => keys.divide("hidden_size", hidden_size, "num_attention_heads", heads)?,
        };
        Ok(Self {
            vocab_size: keys.count("vocab_size")?,
            hidden_size,
            intermediate_size: keys.count("intermediate_size")?,
            num_hidden_layers: keys.count("num_hidden_layers")?,
            num_attention_heads: heads,
            num_key_value_heads: keys.kv_heads(heads)?,
            head_dim: keys.even("head_dim", head_dim)?,
            rms_norm_eps: keys.positive("rms_norm_eps", 1e-6)?,
            rope_theta: keys.rope_theta()?,
            rope_scaling: keys.rope_scaling()?,
            tie_word_embeddings: keys.boolean("tie_word_embeddings", false)?,
            max_position_embeddings: keys.count("max_position_embeddings")?,
            initializer_range: keys.positive("initializer_range", 0.02)?,
            raw: keys.raw.clone(),
        })
    }

    pub(super) fn decoder(&self) -> GatedDecoder {
        GatedDecoder {
            vocab_size: self.vocab_size,
            hidden_size: self.hidden_size,
            intermediate_size: self.intermediate_size,
            num_hidden_layers: self.num_hidden_layers,
            q_size: self.num_attention_heads * self.head_dim,
            kv_size: self.num_key_value_heads * self.head_dim,
            qk_norm: None,
        }
    }
}

impl Qwen3Config {
    pub(super) fn parse(keys: &Keys<'_>) -> Result<Self> {
        keys.gated_decoder_features()?;
        keys.must_be_false("use_sliding_window")?;
        let heads = keys.count("num_attention_heads")?;
        Ok(Self {
            vocab_size: keys.count("vocab_size")?,
            hidden_size: keys.count("hidden_size")?,
            intermediate_size: keys.count("intermediate_size")?,
            num_hidden_layers: keys.count("num_hidden_layers")?,
            num_attention_heads: heads,
            num_key_value_heads: keys.kv_heads(heads)?,
            // transformers' default, whatever the hidden size.
            head_dim: keys.even("head_dim", keys.optional_count("head_dim")?.unwrap_or(128))?,
            rms_norm_eps: keys.positive("rms_norm_eps", 1e-6)?,
            rope_theta: keys.rope_theta()?,
            rope_scaling: keys.rope_scaling()?,
            tie_word_embeddings: keys.boolean("tie_word_embeddings", false)?,
            max_position_embeddings: keys.count("max_position_embeddings")?,
            initializer_range: keys.positive("initializer_range", 0.02)?,
            raw: keys.raw.clone(),
        })
    }

    pub(super) fn decoder(&self) -> GatedDecoder {
        GatedDecoder {
            vocab_size: self.vocab_size,
            hidden_size: self.hidden_size,
            intermediate_size: self.intermediate_size,
            num_hidden_layers: self.num_hidden_layers,
            q_size: self.num_attention_heads * self.head_dim,
            kv_size: self.num_key_value_heads * self.head_dim,
            qk_norm: Some(self.head_dim),
        }
    }
}

impl GatedDecoder {
    pub(super) fn tensors(&self) -> Vec<TensorSpec> {
        let hidden = self.hidden_size;
        let mut specs = vec![spec(
            "model.embed_tokens.weight".into(),
            &[self.vocab_size, hidden],
        )];
        for (layer, seven) in self.linear_modules().chunks(7).enumerate() {
            for l in seven {
                specs.push(spec(
                    format!("{}.weight", l.name),
                    &[l.out_features, l.in_features],
                ));
            }
            if let Some(head_dim) = self.qk_norm {
                for which in ["q_norm", "k_norm"] {
                    specs.push(spec(
                        format!("model.layers.{layer}.self_attn.{which}.weight"),
                        &[head_dim],
                    ));
                }
            }
            for which in ["input_layernorm", "post_attention_layernorm"] {
                specs.push(spec(
                    format!("model.layers.{layer}.{which}.weight"),
                    &[hidden],
                ));
            }
        }
        specs.push(spec("model.norm.weight".into(), &[hidden]));
        specs
    }

    pub(super) fn linear_modules(&self) -> Vec<LinearSpec> {
        let (hidden, inner) = (self.hidden_size, self.intermediate_size);
        (0..self.num_hidden_layers)
            .flat_map(|layer| {
                [
                    ("self_attn.q_proj", hidden, self.q_size),
                    ("self_attn.k_proj", hidden, self.kv_size),
                    ("self_attn.v_proj", hidden, self.kv_size),
                    ("self_attn.o_proj", self.q_size, hidden),
                    ("mlp.gate_proj", hidden, inner),
                    ("mlp.up_proj", hidden, inner),
                    ("mlp.down_proj", inner, hidden),
                ]
                .map(|(name, in_features, out_features)| LinearSpec {
                    name: format!("model.layers.{layer}.{name}"),
                    in_features,
                    out_features,
                })
            })
            .collect()
    }
}
