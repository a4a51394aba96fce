//! The configuration of OPT and its tensors.

use serde_json::{Map, Value};

use super::keys::Keys;
use super::{Decoder, LinearSpec, Sizes, TensorSpec, layer_norm_tensors, linear_tensors, spec};
use crate::error::Result;
use crate::model::activation::Activation;
use crate::ops::HeadLayout;

/// Rows of the position table before the one of position 0.
pub const POSITION_OFFSET: usize = 2;

/// Configuration of an OPT model; field names are Hugging Face's.
#[derive(Debug, Clone, PartialEq)]
pub struct OptConfig {
    /// Rows of the token embedding.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width of the token embedding and of the states that the output head reads. Where it is not `hidden_size` (350m),
    /// a linear layer leads in and another one out.
    pub word_embed_proj_dim: usize,
    /// Width of the MLP.
    pub ffn_dim: usize,
    /// Number of layers.
    pub num_hidden_layers: usize,
    /// Number of heads; divides `hidden_size`.
    pub num_attention_heads: usize,
    /// Longest row in tokens; the position table has [`POSITION_OFFSET`] rows more.
    pub max_position_embeddings: usize,
    /// Whether norms stand before attention and MLP, or after the sums (350m).
    pub do_layer_norm_before: bool,
    /// Whether a norm follows the last layer: with norms before the layers, unless `_remove_final_layer_norm` is set.
    pub final_layer_norm: bool,
    /// Whether the layers' linear modules have biases.
    pub enable_bias: bool,
    /// What lies between the MLP's products.
    pub activation_function: Activation,
    /// Whether the output head is the token embedding.
    pub tie_word_embeddings: bool,
    /// Standard deviation of fresh weights.
    pub init_std: f64,
    /// The file as read; written back on export.
    pub raw: Map<String, Value>,
}

impl OptConfig {
    pub(super) fn parse(keys: &Keys<'_>) -> Result<Self> {
        keys.must_be("layer_norm_elementwise_affine", true)?;
        let hidden_size = keys.count("hidden_size")?;
        let heads = keys.count("num_attention_heads")?;
        keys.divide("hidden_size", hidden_size, "num_attention_heads", heads)?;
        let do_layer_norm_before = keys.boolean("do_layer_norm_before", true)?;
        let word_embed_proj_dim = keys.optional_count("word_embed_proj_dim")?;
        Ok(Self {
            vocab_size: keys.count("vocab_size")?,
            hidden_size,
            word_embed_proj_dim: word_embed_proj_dim.unwrap_or(hidden_size),
            ffn_dim: keys.count("ffn_dim")?,
            num_hidden_layers: keys.count("num_hidden_layers")?,
            num_attention_heads: heads,
            max_position_embeddings: keys.count("max_position_embeddings")?,
            do_layer_norm_before,
            final_layer_norm: do_layer_norm_before
                && !keys.boolean("_remove_final_layer_norm", false)?,
            enable_bias: keys.boolean("enable_bias", true)?,
            activation_function: keys.activation("activation_function", "relu")?,
            tie_word_embeddings: keys.boolean("tie_word_embeddings", true)?,
            init_std: keys.positive("init_std", 0.02)?,
            raw: keys.raw.clone(),
        })
    }

    /// Whether linear layers lead from the embedding into the residual stream and out of it.
    pub fn has_projections(&self) -> bool {
        self.word_embed_proj_dim != self.hidden_size
    }

    fn projection(&self, name: &str, in_features: usize, out_features: usize) -> LinearSpec {
        LinearSpec {
            name: format!("model.decoder.{name}"),
            in_features,
            out_features,
        }
    }
}

impl Decoder for OptConfig {
    fn sizes(&self) -> Sizes {
        let heads = self.num_attention_heads;
        Sizes {
            vocab: self.vocab_size,
            hidden: self.hidden_size,
            output: self.word_embed_proj_dim,
            intermediate: self.ffn_dim,
            layers: self.num_hidden_layers,
            layout: HeadLayout {
                heads,
                kv_heads: heads,
                head_dim: self.hidden_size / heads,
            },
            max_positions: self.max_position_embeddings,
            learned_positions: true,
            initializer_range: self.init_std,
            tied: self.tie_word_embeddings,
        }
    }

    fn raw(&self) -> &Map<String, Value> {
        &self.raw
    }

    fn backbone_tensors(&self) -> Vec<TensorSpec> {
        let hidden = self.hidden_size;
        let table = |name: &str, rows: usize, width: usize| {
            spec(format!("model.decoder.{name}.weight"), &[rows, width])
        };
        let positions = self.max_position_embeddings + POSITION_OFFSET;
        let mut specs = vec![
            table("embed_tokens", self.vocab_size, self.word_embed_proj_dim),
            table("embed_positions", positions, hidden),
        ];
        for l in self.linear_modules() {
            specs.extend(linear_tensors(
                &l,
                self.enable_bias && l.name.contains(".layers."),
            ));
        }
        for layer in 0..self.num_hidden_layers {
            for norm in ["self_attn_layer_norm", "final_layer_norm"] {
                let path = format!("model.decoder.layers.{layer}.{norm}");
                specs.extend(layer_norm_tensors(&path, hidden));
            }
        }
        if self.final_layer_norm {
            specs.extend(layer_norm_tensors("model.decoder.final_layer_norm", hidden));
        }
        specs
    }

    fn linear_modules(&self) -> Vec<LinearSpec> {
        let (hidden, inner, outer) = (self.hidden_size, self.ffn_dim, self.word_embed_proj_dim);
        let layers = (0..self.num_hidden_layers).flat_map(|layer| {
            [
                ("self_attn.q_proj", hidden, hidden),
                ("self_attn.k_proj", hidden, hidden),
                ("self_attn.v_proj", hidden, hidden),
                ("self_attn.out_proj", hidden, hidden),
                ("fc1", hidden, inner),
                ("fc2", inner, hidden),
            ]
            .map(|(name, in_features, out_features)| {
                self.projection(&format!("layers.{layer}.{name}"), in_features, out_features)
            })
        });
        let (into, out) = (
            self.projection("project_in", outer, hidden),
            self.projection("project_out", hidden, outer),
        );
        let through = |l| self.has_projections().then_some(l);
        through(into)
            .into_iter()
            .chain(layers)
            .chain(through(out))
            .collect()
    }
}
