//! The configuration of GPT-2 and its tensors.

use serde_json::{Map, Value};

use super::keys::Keys;
use super::{Decoder, LinearSpec, Sizes, TensorSpec, layer_norm_tensors, spec};
use crate::error::Result;
use crate::model::activation::Activation;
use crate::ops::HeadLayout;

/// Configuration of a GPT-2 model; its linear layers are stored as `[in, out]` (Hugging Face's `Conv1D`).
#[derive(Debug, Clone, PartialEq)]
pub struct Gpt2Config {
    /// Rows of the token embedding.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub n_embd: usize,
    /// Number of layers.
    pub n_layer: usize,
    /// Number of heads; divides `n_embd`.
    pub n_head: usize,
    /// Rows of the position embedding: the longest row in tokens.
    pub n_positions: usize,
    /// Width of the MLP.
    pub n_inner: usize,
    /// What lies between the MLP's products.
    pub activation_function: Activation,
    /// Added to the variance inside LayerNorm.
    pub layer_norm_epsilon: f64,
    /// Whether the output head is the token embedding.
    pub tie_word_embeddings: bool,
    /// Standard deviation of fresh weights.
    pub initializer_range: f64,
    /// The file as read; written back on export.
    pub raw: Map<String, Value>,
}

impl Gpt2Config {
    pub(super) fn parse(keys: &Keys<'_>) -> Result<Self> {
        for key in [
            "scale_attn_by_inverse_layer_idx",
            "reorder_and_upcast_attn",
            "add_cross_attention",
        ] {
            keys.must_be(key, false)?;
        }
        keys.must_be("scale_attn_weights", true)?;
        let n_embd = keys.count("n_embd")?;
        let n_head = keys.count("n_head")?;
        keys.divide("n_embd", n_embd, "n_head", n_head)?;
        Ok(Self {
            vocab_size: keys.count("vocab_size")?,
            n_embd,
            n_layer: keys.count("n_layer")?,
            n_head,
            n_positions: keys.count("n_positions")?,
            n_inner: keys.optional_count("n_inner")?.unwrap_or(4 * n_embd),
            activation_function: keys.activation("activation_function", "gelu_new")?,
            layer_norm_epsilon: keys.positive("layer_norm_epsilon", 1e-5)?,
            tie_word_embeddings: keys.boolean("tie_word_embeddings", true)?,
            initializer_range: keys.positive("initializer_range", 0.02)?,
            raw: keys.raw.clone(),
        })
    }
}

impl Decoder for Gpt2Config {
    fn sizes(&self) -> Sizes {
        Sizes {
            vocab: self.vocab_size,
            hidden: self.n_embd,
            output: self.n_embd,
            intermediate: self.n_inner,
            layers: self.n_layer,
            layout: HeadLayout {
                heads: self.n_head,
                kv_heads: self.n_head,
                head_dim: self.n_embd / self.n_head,
            },
            max_positions: self.n_positions,
            learned_positions: true,
            initializer_range: self.initializer_range,
            tied: self.tie_word_embeddings,
        }
    }

    fn raw(&self) -> &Map<String, Value> {
        &self.raw
    }

    fn backbone_tensors(&self) -> Vec<TensorSpec> {
        let hidden = self.n_embd;
        let mut specs = vec![
            spec("transformer.wte.weight".into(), &[self.vocab_size, hidden]),
            spec("transformer.wpe.weight".into(), &[self.n_positions, hidden]),
        ];
        for (layer, four) in self.linear_modules().chunks(4).enumerate() {
            let norm =
                |name: &str| layer_norm_tensors(&format!("transformer.h.{layer}.{name}"), hidden);
            // Conv1D holds [in, out].
            let conv = |l: &LinearSpec| {
                [
                    spec(
                        format!("{}.weight", l.name),
                        &[l.in_features, l.out_features],
                    ),
                    spec(format!("{}.bias", l.name), &[l.out_features]),
                ]
            };
            specs.extend(norm("ln_1"));
            specs.extend(four[..2].iter().flat_map(conv));
            specs.extend(norm("ln_2"));
            specs.extend(four[2..].iter().flat_map(conv));
        }
        specs.extend(layer_norm_tensors("transformer.ln_f", hidden));
        specs
    }

    fn linear_modules(&self) -> Vec<LinearSpec> {
        let (hidden, inner) = (self.n_embd, self.n_inner);
        (0..self.n_layer)
            .flat_map(|layer| {
                [
                    ("attn.c_attn", hidden, 3 * hidden),
                    ("attn.c_proj", hidden, hidden),
                    ("mlp.c_fc", hidden, inner),
                    ("mlp.c_proj", inner, hidden),
                ]
                .map(|(name, in_features, out_features)| LinearSpec {
                    name: format!("transformer.h.{layer}.{name}"),
                    in_features,
                    out_features,
                })
            })
            .collect()
    }
}
