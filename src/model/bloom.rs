//! BLOOM: ALiBi in place of positions, LayerNorm after the embedding, GELU.
//!
//! # Source
//! BigScience Workshop 2022, arXiv:2211.05100, section 3.2.

use std::sync::Arc;

use burn::module::Module;
use burn::tensor::backend::Backend;
use burn::tensor::{Int, Tensor};

use super::activation::Activation;
use super::config::Sizes;
use super::config::keys::Keys;
use super::family::Family;
use super::gpt_neox::column_order;
use super::mlp::Mlp;
use super::norm::LayerNorm;
use super::parts::{Part, Parts};
use super::pass::{Layers, Pass};
use super::{Architecture, Table, alibi};
use crate::error::Result;
use crate::ops::{Attend, Head, HeadLayout, ModelBackend};
use crate::peft::Projection;

pub(super) const FAMILY: Family = Family {
    model_type: "bloom",
    causal: "BloomForCausalLM",
    classifier: "BloomForSequenceClassification",
    embedding: "transformer.word_embeddings.weight",
    head: "lm_head.weight",
    parse: |keys| Ok(Architecture::Bloom(BloomConfig::read(keys)?)),
};

/// Configuration of a BLOOM model; field names are Hugging Face's where it has one.
#[derive(Debug, Clone, PartialEq)]
pub struct BloomConfig {
    /// Rows of the embedding.
    pub vocab_size: usize,
    /// Width of the residual stream; a quarter of the MLP's.
    pub hidden_size: usize,
    /// Number of layers.
    pub n_layer: usize,
    /// Number of heads; divides `hidden_size`.
    pub n_head: usize,
    /// Whether the residual stream continues from the outputs of norms, not from their inputs.
    pub apply_residual_connection_post_layernorm: bool,
    /// Added to the variance inside LayerNorm.
    pub layer_norm_epsilon: f64,
    /// Whether the output head is the embedding.
    pub tie_word_embeddings: bool,
    /// Length of pretraining's rows in tokens.
    pub seq_length: usize,
    /// Standard deviation of initial weights.
    pub initializer_range: f64,
}

impl BloomConfig {
    fn read(keys: &Keys<'_>) -> Result<Self> {
        // The later key overrides, as in transformers.
        let either = |key: &str, other: &str| match keys.optional_count(other)? {
            Some(count) => Ok(count),
            None => keys.count(key),
        };
        let hidden_size = either("hidden_size", "n_embed")?;
        let n_head = either("n_head", "num_attention_heads")?;
        keys.divide("hidden_size", hidden_size, "n_head", n_head)?;
        Ok(Self {
            vocab_size: keys.count("vocab_size")?,
            hidden_size,
            n_layer: either("n_layer", "num_hidden_layers")?,
            n_head,
            apply_residual_connection_post_layernorm: keys
                .boolean("apply_residual_connection_post_layernorm", false)?,
            layer_norm_epsilon: keys.positive("layer_norm_epsilon", 1e-5)?,
            tie_word_embeddings: keys.boolean("tie_word_embeddings", true)?,
            // ALiBi has no end; files of transformers do not name the length.
            seq_length: keys.optional_count("seq_length")?.unwrap_or(2048),
            initializer_range: keys.positive("initializer_range", 0.02)?,
        })
    }

    /// Attention heads.
    pub fn layout(&self) -> HeadLayout {
        HeadLayout {
            heads: self.n_head,
            kv_heads: self.n_head,
            head_dim: self.hidden_size / self.n_head,
        }
    }

    pub(super) fn sizes(&self) -> Sizes {
        Sizes {
            vocab: self.vocab_size,
            hidden: self.hidden_size,
            output: self.hidden_size,
            intermediate: 4 * self.hidden_size,
            layers: self.n_layer,
            layout: self.layout(),
            max_positions: self.seq_length,
            learned_positions: false,
            initializer_range: self.initializer_range,
            fresh_norm: 1.0,
            tied: self.tie_word_embeddings,
        }
    }
}

/// One decoder layer.
#[derive(Module, Debug)]
pub struct BloomLayer<B: Backend> {
    /// Norm before attention.
    pub input_layernorm: LayerNorm<B>,
    /// Queries, keys and values; one matrix in files too, head by head, see [`column_order`].
    pub query_key_value: Projection<B>,
    /// Attention output.
    pub dense: Projection<B>,
    /// Norm before the MLP.
    pub post_attention_layernorm: LayerNorm<B>,
    /// `dense_h_to_4h` and `dense_4h_to_h`.
    pub mlp: Mlp<B>,
}

/// A BLOOM model.
#[derive(Module, Debug)]
pub struct Bloom<B: Backend> {
    /// `[vocab, hidden]`.
    pub word_embeddings: Table<B>,
    /// Norm of the embeddings.
    pub word_embeddings_layernorm: LayerNorm<B>,
    /// Decoder layers.
    pub h: Vec<BloomLayer<B>>,
    /// Final norm.
    pub ln_f: LayerNorm<B>,
    /// `[vocab, hidden]`; absent when the embedding is the head.
    pub lm_head: Option<Table<B>>,
    #[module(skip)]
    config: BloomConfig,
    /// ALiBi's, by head.
    #[module(skip)]
    slopes: Arc<[f32]>,
}

impl<B: Backend> Bloom<B> {
    /// An unfilled model; `with_head`: whether it has an output head.
    pub fn new(config: &BloomConfig, with_head: bool, device: &B::Device) -> Self {
        let (layout, hidden) = (config.layout(), config.hidden_size);
        let norm = |path: String| LayerNorm::new(path, hidden, config.layer_norm_epsilon, device);
        let order = Arc::new(column_order(layout, layout.head_dim));
        let layers = (0..config.n_layer).map(|i| {
            let path = |name: &str| format!("transformer.h.{i}.{name}");
            let linear = |name: &str, [inputs, outputs]: [usize; 2]| {
                Projection::new(inputs, &[(path(name), outputs)], true, true, device)
            };
            BloomLayer {
                input_layernorm: norm(path("input_layernorm")),
                query_key_value: linear("self_attention.query_key_value", [hidden, 3 * hidden])
                    .with_order(order.clone()),
                dense: linear("self_attention.dense", [hidden, hidden]),
                post_attention_layernorm: norm(path("post_attention_layernorm")),
                mlp: Mlp::new(
                    linear("mlp.dense_h_to_4h", [hidden, 4 * hidden]),
                    Activation::GeluTanh,
                    linear("mlp.dense_4h_to_h", [4 * hidden, hidden]),
                ),
            }
        });
        let table = |name| Table::new(name, [config.vocab_size, hidden], device);
        Self {
            word_embeddings: table(FAMILY.embedding),
            word_embeddings_layernorm: norm("transformer.word_embeddings_layernorm".into()),
            h: layers.collect(),
            ln_f: norm("transformer.ln_f".into()),
            lm_head: (with_head && !config.tie_word_embeddings).then(|| table(FAMILY.head)),
            config: config.clone(),
            slopes: alibi::slopes(config.n_head),
        }
    }
}

impl<B: ModelBackend> Layers<B> for Bloom<B> {
    fn look_up(&self, ids: &Tensor<B, 1, Int>) -> Tensor<B, 2> {
        self.word_embeddings.look_up(ids)
    }

    fn embed(&self, embeddings: Tensor<B, 2>, _: &Pass<'_, B>) -> Tensor<B, 2> {
        self.word_embeddings_layernorm.forward(embeddings)
    }

    fn layer(&self, index: usize, x: Tensor<B, 2>, pass: &mut Pass<'_, B>) -> Tensor<B, 2> {
        let (layer, dropout) = (&self.h[index], pass.layer_dropout(index));
        let continued = |x: Tensor<B, 2>, normed: &Tensor<B, 2>| match self
            .config
            .apply_residual_connection_post_layernorm
        {
            true => normed.clone(),
            false => x,
        };
        let normed = layer.input_layernorm.forward(x.clone());
        let x = continued(x, &normed);
        let qkv = layer.query_key_value.forward(normed, dropout);
        let attend = Attend {
            alibi: Some(self.slopes.clone()),
            ..Attend::causal(self.config.layout(), &pass.segments)
        };
        let attended = pass.attend(index, qkv, &attend);
        let attended = layer.dense.forward(attended, dropout);
        let x = layer.dense.add_to(
            pass.keep(index, x),
            pass.drop_residual(index, "attention", attended),
        );
        let normed = layer.post_attention_layernorm.forward(x.clone());
        let x = continued(x, &normed);
        let mlp = layer.mlp.forward(normed, dropout);
        layer
            .mlp
            .down
            .add_to(x, pass.drop_residual(index, "mlp", mlp))
    }

    fn finish(&self, x: Tensor<B, 2>, _: &Pass<'_, B>) -> Tensor<B, 2> {
        self.ln_f.forward(x)
    }

    fn head(&self) -> Head<B> {
        self.lm_head
            .as_ref()
            .unwrap_or(&self.word_embeddings)
            .head()
    }

    fn head_layout(&self) -> HeadLayout {
        self.config.layout()
    }

    fn num_layers(&self) -> usize {
        self.h.len()
    }
}

impl<B: Backend> Parts<B> for Bloom<B> {
    fn for_each_part(&mut self, visit: &mut dyn FnMut(Part<'_, B>)) {
        visit(Part::Embedding(&mut self.word_embeddings));
        visit(Part::Other(&mut self.word_embeddings_layernorm));
        for layer in &mut self.h {
            visit(Part::Other(&mut layer.input_layernorm));
            visit(Part::Linear(&mut layer.query_key_value));
            visit(Part::Linear(&mut layer.dense));
            visit(Part::Other(&mut layer.post_attention_layernorm));
            visit(Part::Linear(&mut layer.mlp.up));
            visit(Part::Linear(&mut layer.mlp.down));
        }
        visit(Part::Other(&mut self.ln_f));
        if let Some(head) = &mut self.lm_head {
            visit(Part::Head(head));
        }
    }

    fn untie(&mut self) {
        let table = &mut self.word_embeddings;
        (self.lm_head).get_or_insert_with(|| table.part(FAMILY.head));
    }

    fn remove_head(&mut self) {
        self.lm_head = None;
    }
}
