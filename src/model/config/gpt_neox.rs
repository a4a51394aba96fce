//! The configuration of GPT-NeoX and its tensors.

use serde_json::{Map, Value};

use super::keys::Keys;
use super::rope::{self, RopeScaling};
use super::{Decoder, LinearSpec, Sizes, TensorSpec, layer_norm_tensors, linear_tensors, spec};
use crate::error::Result;
use crate::model::activation::Activation;
use crate::ops::HeadLayout;

/// Configuration of a GPT-NeoX model; field names are Hugging Face's.
#[derive(Debug, Clone, PartialEq)]
pub struct GptNeoxConfig {
    /// Rows of the embedding.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width of the MLP.
    pub intermediate_size: usize,
    /// Number of layers.
    pub num_hidden_layers: usize,
    /// Number of heads; divides `hidden_size`.
    pub num_attention_heads: usize,
    /// How many of a head's entries are rotated, from the first on; even.
    pub rotary_dim: usize,
    /// Base of the rotary frequencies.
    pub rope_theta: f64,
    /// Llama 3's scaling, if any.
    pub rope_scaling: Option<RopeScaling>,
    /// Whether attention and MLP read the same state and are added to it together.
    pub use_parallel_residual: bool,
    /// Whether the attention's layers have biases.
    pub attention_bias: bool,
    /// What lies between the MLP's products.
    pub hidden_act: Activation,
    /// Added to the variance inside LayerNorm.
    pub layer_norm_eps: f64,
    /// Whether the output head is the embedding.
    pub tie_word_embeddings: bool,
    /// Longest row in tokens.
    pub max_position_embeddings: usize,
    /// Standard deviation of fresh weights.
    pub initializer_range: f64,
    /// The file as read; written back on export.
    pub raw: Map<String, Value>,
}

impl GptNeoxConfig {
    pub(super) fn parse(keys: &Keys<'_>) -> Result<Self> {
        let hidden_size = keys.count("hidden_size")?;
        let heads = keys.count("num_attention_heads")?;
        let head_dim = keys.divide("hidden_size", hidden_size, "num_attention_heads", heads)?;
        keys.even("hidden_size / num_attention_heads", head_dim)?;
        let rope = rope::read(keys, "rotary_emb_base", "rotary_pct")?;
        let rotary_dim = (head_dim as f64 * rope.partial_factor.unwrap_or(0.25)) as usize;
        if rotary_dim == 0 || rotary_dim > head_dim || !rotary_dim.is_multiple_of(2) {
            return Err(keys.error(format!(
                "\"rotary_pct\" or \"partial_rotary_factor\" rotates {rotary_dim} of a head's {head_dim} entries; expected \
                 an even number between 2 and {head_dim}"
            )));
        }
        Ok(Self {
            vocab_size: keys.count("vocab_size")?,
            hidden_size,
            intermediate_size: keys.count("intermediate_size")?,
            num_hidden_layers: keys.count("num_hidden_layers")?,
            num_attention_heads: heads,
            rotary_dim,
            rope_theta: rope.theta,
            rope_scaling: rope.scaling,
            use_parallel_residual: keys.boolean("use_parallel_residual", true)?,
            attention_bias: keys.boolean("attention_bias", true)?,
            hidden_act: keys.activation("hidden_act", "gelu")?,
            layer_norm_eps: keys.positive("layer_norm_eps", 1e-5)?,
            tie_word_embeddings: keys.boolean("tie_word_embeddings", false)?,
            max_position_embeddings: keys.count("max_position_embeddings")?,
            initializer_range: keys.positive("initializer_range", 0.02)?,
            raw: keys.raw.clone(),
        })
    }

    /// Attention heads.
    pub fn layout(&self) -> HeadLayout {
        let heads = self.num_attention_heads;
        HeadLayout {
            heads,
            kv_heads: heads,
            head_dim: self.hidden_size / heads,
        }
    }
}

impl Decoder for GptNeoxConfig {
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
        let embedding = "gpt_neox.embed_in.weight".to_owned();
        let mut specs = vec![spec(embedding, &[self.vocab_size, hidden])];
        for (layer, four) in self.linear_modules().chunks(4).enumerate() {
            for norm in ["input_layernorm", "post_attention_layernorm"] {
                let path = format!("gpt_neox.layers.{layer}.{norm}");
                specs.extend(layer_norm_tensors(&path, hidden));
            }
            for (i, l) in four.iter().enumerate() {
                specs.extend(linear_tensors(l, i >= 2 || self.attention_bias));
            }
        }
        specs.extend(layer_norm_tensors("gpt_neox.final_layer_norm", hidden));
        specs
    }

    fn linear_modules(&self) -> Vec<LinearSpec> {
        let (hidden, inner) = (self.hidden_size, self.intermediate_size);
        (0..self.num_hidden_layers)
            .flat_map(|layer| {
                [
                    ("attention.query_key_value", hidden, 3 * hidden),
                    ("attention.dense", hidden, hidden),
                    ("mlp.dense_h_to_4h", hidden, inner),
                    ("mlp.dense_4h_to_h", inner, hidden),
                ]
                .map(|(name, in_features, out_features)| LinearSpec {
                    name: format!("gpt_neox.layers.{layer}.{name}"),
                    in_features,
                    out_features,
                })
            })
            .collect()
    }
}
