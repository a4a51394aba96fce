//! The configuration of llama, Qwen2 and Qwen3, which differ in little, and their tensors.

use serde_json::{Map, Value};

use super::keys::Keys;
use super::rope::{self, RopeScaling};
use super::{Decoder, LinearSpec, Sizes, TensorSpec, linear_tensors, spec};
use crate::error::Result;
use crate::ops::HeadLayout;

/// Configuration of a decoder with RMSNorm, rotary grouped-query attention and a gated MLP; field names are Hugging
/// Face's where it has one.
#[derive(Debug, Clone, PartialEq)]
pub struct GatedDecoderConfig {
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
    /// Width of a head; even, and not always `hidden_size / num_attention_heads`.
    pub head_dim: usize,
    /// Whether queries, keys and values have biases: Qwen2 always, the others with `attention_bias`.
    pub qkv_bias: bool,
    /// Whether the attention output has a bias: never in Qwen2, in the others with `attention_bias`.
    pub o_bias: bool,
    /// Whether the MLP's layers have biases (llama only).
    pub mlp_bias: bool,
    /// Whether each query and key head is normed before the rotation (Qwen3 only).
    pub qk_norm: bool,
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

impl GatedDecoderConfig {
    pub(super) fn llama(keys: &Keys<'_>) -> Result<Self> {
        let bias = keys.boolean("attention_bias", false)?;
        Ok(Self {
            qkv_bias: bias,
            o_bias: bias,
            mlp_bias: keys.boolean("mlp_bias", false)?,
            ..Self::plain(keys, None)?
        })
    }

    pub(super) fn qwen2(keys: &Keys<'_>) -> Result<Self> {
        Ok(Self {
            qkv_bias: true,
            ..Self::plain(keys, None)?
        })
    }

    pub(super) fn qwen3(keys: &Keys<'_>) -> Result<Self> {
        let bias = keys.boolean("attention_bias", false)?;
        Ok(Self {
            qkv_bias: bias,
            o_bias: bias,
            qk_norm: true,
            // transformers' default, whatever the hidden size.
            ..Self::plain(keys, Some(128))?
        })
    }

    /// What the families have in common, without biases and norms of heads. `head_dim` is that of a file without the
    /// key; `None` divides the hidden size among the heads.
    fn plain(keys: &Keys<'_>, head_dim: Option<usize>) -> Result<Self> {
        keys.one_of("hidden_act", "silu", &["silu"])?;
        let heads = keys.count("num_attention_heads")?;
        let hidden_size = keys.count("hidden_size")?;
        let head_dim = match keys.optional_count("head_dim")?.or(head_dim) {
            Some(head_dim) => head_dim,
            None => keys.divide("hidden_size", hidden_size, "num_attention_heads", heads)?,
        };
        let rope = rope::read(keys, "rope_theta", "partial_rotary_factor")?;
        if let Some(factor) = rope.partial_factor.filter(|&factor| factor != 1.0) {
            return Err(keys.mismatch("partial_rotary_factor", "1", &factor.into()));
        }
        let num_hidden_layers = keys.count("num_hidden_layers")?;
        keys.full_attention(num_hidden_layers)?;
        Ok(Self {
            vocab_size: keys.count("vocab_size")?,
            hidden_size,
            intermediate_size: keys.count("intermediate_size")?,
            num_hidden_layers,
            num_attention_heads: heads,
            num_key_value_heads: keys.kv_heads(heads)?,
            head_dim: keys.even("head_dim", head_dim)?,
            qkv_bias: false,
            o_bias: false,
            mlp_bias: false,
            qk_norm: false,
            rms_norm_eps: keys.positive("rms_norm_eps", 1e-6)?,
            rope_theta: rope.theta,
            rope_scaling: rope.scaling,
            tie_word_embeddings: keys.boolean("tie_word_embeddings", false)?,
            max_position_embeddings: keys.count("max_position_embeddings")?,
            initializer_range: keys.positive("initializer_range", 0.02)?,
            raw: keys.raw.clone(),
        })
    }

    /// Attention heads.
    pub fn layout(&self) -> HeadLayout {
        HeadLayout {
            heads: self.num_attention_heads,
            kv_heads: self.num_key_value_heads,
            head_dim: self.head_dim,
        }
    }
}

impl Decoder for GatedDecoderConfig {
    fn sizes(&self) -> Sizes {
        Sizes {
            vocab: self.vocab_size,
            hidden: self.hidden_size,
            output: self.hidden_size,
            intermediate: self.intermediate_size,
            layers: self.num_hidden_layers,
            layout: self.layout(),
            max_positions: self.max_position_embeddings,
            learned_positions: false,
            initializer_range: self.initializer_range,
            tied: self.tie_word_embeddings,
        }
    }

    fn raw(&self) -> &Map<String, Value> {
        &self.raw
    }

    fn backbone_tensors(&self) -> Vec<TensorSpec> {
        let hidden = self.hidden_size;
        let mut specs = vec![spec(
            "model.embed_tokens.weight".into(),
            &[self.vocab_size, hidden],
        )];
        let biases = [
            self.qkv_bias,
            self.qkv_bias,
            self.qkv_bias,
            self.o_bias,
            self.mlp_bias,
            self.mlp_bias,
            self.mlp_bias,
        ];
        for (layer, seven) in self.linear_modules().chunks(biases.len()).enumerate() {
            for (l, with_bias) in seven.iter().zip(biases) {
                specs.extend(linear_tensors(l, with_bias));
            }
            if self.qk_norm {
                for which in ["q_norm", "k_norm"] {
                    specs.push(spec(
                        format!("model.layers.{layer}.self_attn.{which}.weight"),
                        &[self.head_dim],
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

    fn linear_modules(&self) -> Vec<LinearSpec> {
        let (hidden, inner) = (self.hidden_size, self.intermediate_size);
        let (q_width, kv_width) = (self.layout().q_width(), self.layout().kv_width());
        (0..self.num_hidden_layers)
            .flat_map(|layer| {
                [
                    ("self_attn.q_proj", hidden, q_width),
                    ("self_attn.k_proj", hidden, kv_width),
                    ("self_attn.v_proj", hidden, kv_width),
                    ("self_attn.o_proj", q_width, hidden),
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
