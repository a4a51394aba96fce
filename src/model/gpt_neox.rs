//! GPT-NeoX (Pythia): LayerNorm, partly rotated heads, attention and MLP in parallel or in sequence.

use std::sync::Arc;

use burn::module::Module;
use burn::tensor::backend::Backend;
use burn::tensor::{Int, Tensor};

use super::activation::Activation;
use super::config::keys::Keys;
use super::config::rope::{RopeKeys, Rotated};
use super::config::{RopeScaling, Sizes};
use super::family::Family;
use super::mlp::Mlp;
use super::norm::LayerNorm;
use super::parts::{Part, Parts};
use super::pass::{Layers, Pass};
use super::rotary::{Rotary, head_order};
use super::{Architecture, Table};
use crate::error::Result;
use crate::ops::{Attend, Head, HeadLayout, ModelBackend};
use crate::peft::Projection;

pub(super) const FAMILY: Family = Family {
    model_type: "gpt_neox",
    causal: "GPTNeoXForCausalLM",
    classifier: "GPTNeoXForSequenceClassification",
    embedding: "gpt_neox.embed_in.weight",
    head: "embed_out.weight",
    parse: |keys| Ok(Architecture::GptNeox(GptNeoxConfig::read(keys)?)),
};

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
    /// Number of rotated entries at the start of a head; even.
    pub rotary_dim: usize,
    /// Base of the rotary frequencies.
    pub rope_theta: f64,
    /// Scaling of the frequencies, if any.
    pub rope_scaling: Option<RopeScaling>,
    /// Whether attention and MLP are parallel: both read the same state.
    pub use_parallel_residual: bool,
    /// Whether the attention's layers have biases.
    pub attention_bias: bool,
    /// Activation of the MLP.
    pub hidden_act: Activation,
    /// Added to the variance inside LayerNorm.
    pub layer_norm_eps: f64,
    /// Whether the output head is the embedding.
    pub tie_word_embeddings: bool,
    /// Longest row in tokens.
    pub max_position_embeddings: usize,
    /// Standard deviation of initial weights.
    pub initializer_range: f64,
}

impl GptNeoxConfig {
    fn read(keys: &Keys<'_>) -> Result<Self> {
        let hidden_size = keys.count("hidden_size")?;
        let heads = keys.count("num_attention_heads")?;
        let head_dim = keys.divide("hidden_size", hidden_size, "num_attention_heads", heads)?;
        keys.even("hidden_size / num_attention_heads", head_dim)?;
        let rope = RopeKeys {
            theta: "rotary_emb_base",
            rotated: Rotated::Part {
                key: "rotary_pct",
                default: 0.25,
            },
            ..RopeKeys::WHOLE
        };
        let rope = rope.read(keys, head_dim)?;
        Ok(Self {
            vocab_size: keys.count("vocab_size")?,
            hidden_size,
            intermediate_size: keys.count("intermediate_size")?,
            num_hidden_layers: keys.count("num_hidden_layers")?,
            num_attention_heads: heads,
            rotary_dim: rope.rotary_dim,
            rope_theta: rope.theta,
            rope_scaling: rope.scaling,
            use_parallel_residual: keys.boolean("use_parallel_residual", true)?,
            attention_bias: keys.boolean("attention_bias", true)?,
            hidden_act: keys.activation("hidden_act", "gelu")?,
            layer_norm_eps: keys.positive("layer_norm_eps", 1e-5)?,
            tie_word_embeddings: keys.boolean("tie_word_embeddings", false)?,
            max_position_embeddings: keys.count("max_position_embeddings")?,
            initializer_range: keys.positive("initializer_range", 0.02)?,
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

    /// The file's column, within all keys, of each key column.
    pub(super) fn key_order(&self) -> Vec<usize> {
        let layout = self.layout();
        let (width, head_dim) = (layout.kv_width(), layout.head_dim);
        let order = column_order(layout, self.rotary_dim);
        (order[width..2 * width].iter())
            .map(|column| column / (3 * head_dim) * head_dim + column % head_dim)
            .collect()
    }

    pub(super) fn sizes(&self) -> Sizes {
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
            fresh_norm: 1.0,
            tied: self.tie_word_embeddings,
        }
    }
}

/// One decoder layer.
#[derive(Module, Debug)]
pub struct GptNeoxLayer<B: Backend> {
    /// Norm before attention.
    pub input_layernorm: LayerNorm<B>,
    /// Queries, keys and values; one matrix in files too, see [`column_order`].
    pub query_key_value: Projection<B>,
    /// Attention output.
    pub dense: Projection<B>,
    /// Norm before the MLP.
    pub post_attention_layernorm: LayerNorm<B>,
    /// `dense_h_to_4h` and `dense_4h_to_h`.
    pub mlp: Mlp<B>,
}

/// A GPT-NeoX model.
#[derive(Module, Debug)]
pub struct GptNeox<B: Backend> {
    /// `[vocab, hidden]`.
    pub embed_in: Table<B>,
    /// Decoder layers.
    pub layers: Vec<GptNeoxLayer<B>>,
    /// Final norm.
    pub final_layer_norm: LayerNorm<B>,
    /// `[vocab, hidden]`; absent when the embedding is the head.
    pub embed_out: Option<Table<B>>,
    #[module(skip)]
    config: GptNeoxConfig,
    #[module(skip)]
    rotary: Rotary,
}

impl<B: Backend> GptNeox<B> {
    /// An unfilled model; `with_head`: whether it has an output head.
    pub fn new(config: &GptNeoxConfig, with_head: bool, device: &B::Device) -> Self {
        let (hidden, inner) = (config.hidden_size, config.intermediate_size);
        let norm = |path: String| LayerNorm::new(path, hidden, config.layer_norm_eps, device);
        let order = Arc::new(column_order(config.layout(), config.rotary_dim));
        let layers = (0..config.num_hidden_layers).map(|i| {
            let path = |name: &str| format!("gpt_neox.layers.{i}.{name}");
            let linear = |name: &str, [inputs, outputs]: [usize; 2], with_bias: bool| {
                Projection::new(inputs, &[(path(name), outputs)], with_bias, true, device)
            };
            let bias = config.attention_bias;
            GptNeoxLayer {
                input_layernorm: norm(path("input_layernorm")),
                query_key_value: linear("attention.query_key_value", [hidden, 3 * hidden], bias)
                    .with_order(order.clone()),
                dense: linear("attention.dense", [hidden, hidden], bias),
                post_attention_layernorm: norm(path("post_attention_layernorm")),
                mlp: Mlp::new(
                    linear("mlp.dense_h_to_4h", [hidden, inner], true),
                    config.hidden_act,
                    linear("mlp.dense_4h_to_h", [inner, hidden], true),
                ),
            }
        });
        let table = |name| Table::new(name, [config.vocab_size, hidden], device);
        Self {
            embed_in: table(FAMILY.embedding),
            layers: layers.collect(),
            final_layer_norm: norm("gpt_neox.final_layer_norm".into()),
            embed_out: (with_head && !config.tie_word_embeddings).then(|| table(FAMILY.head)),
            config: config.clone(),
            rotary: Rotary::new(
                config.layout().head_dim,
                config.rotary_dim,
                config.rope_theta,
                config.rope_scaling.as_ref(),
            ),
        }
    }
}

/// The file's column for each column of the joint matrix.
///
/// Files hold query, key and value of the first head, then of the second; attention here reads all queries, then all keys, then
/// all values. Within query and key heads the order is that of [`head_order`].
pub(super) fn column_order(layout: HeadLayout, rotary_dim: usize) -> Vec<usize> {
    let HeadLayout {
        heads, head_dim, ..
    } = layout;
    let reordered = head_order(head_dim, rotary_dim);
    let plain: Vec<usize> = (0..head_dim).collect();
    [&reordered, &reordered, &plain]
        .into_iter()
        .enumerate()
        .flat_map(|(part, within)| {
            (0..heads).flat_map(move |head| {
                within
                    .iter()
                    .map(move |entry| (3 * head + part) * head_dim + entry)
            })
        })
        .collect()
}

impl<B: ModelBackend> Layers<B> for GptNeox<B> {
    fn look_up(&self, ids: &Tensor<B, 1, Int>) -> Tensor<B, 2> {
        self.embed_in.look_up(ids)
    }

    fn layer(&self, index: usize, x: Tensor<B, 2>, pass: &mut Pass<'_, B>) -> Tensor<B, 2> {
        let (layer, layout) = (&self.layers[index], self.config.layout());
        let dropout = pass.layer_dropout(index);
        let qkv = layer
            .query_key_value
            .forward(layer.input_layernorm.forward(x.clone()), dropout);
        let qkv = pass.rotate(qkv, 2 * layout.heads, 0);
        let attend = Attend::causal(layout, &pass.segments);
        let attended = pass.attend(index, qkv, &attend);
        let x = pass.keep(index, x);
        let attended = layer.dense.forward(attended, dropout);
        let after = layer
            .dense
            .add_to(x.clone(), pass.drop_residual(index, "attention", attended));
        // In parallel form the MLP reads the input of attention.
        let read = if self.config.use_parallel_residual {
            x
        } else {
            after.clone()
        };
        let read = layer.post_attention_layernorm.forward(read);
        let mlp = layer.mlp.forward(read, dropout);
        layer
            .mlp
            .down
            .add_to(after, pass.drop_residual(index, "mlp", mlp))
    }

    fn finish(&self, x: Tensor<B, 2>, _: &Pass<'_, B>) -> Tensor<B, 2> {
        self.final_layer_norm.forward(x)
    }

    fn rotaries(&self) -> &[Rotary] {
        std::slice::from_ref(&self.rotary)
    }

    fn head(&self) -> Head<B> {
        self.embed_out.as_ref().unwrap_or(&self.embed_in).head()
    }

    fn head_layout(&self) -> HeadLayout {
        self.config.layout()
    }

    fn num_layers(&self) -> usize {
        self.layers.len()
    }
}

impl<B: Backend> Parts<B> for GptNeox<B> {
    fn for_each_part(&mut self, visit: &mut dyn FnMut(Part<'_, B>)) {
        visit(Part::Embedding(&mut self.embed_in));
        for layer in &mut self.layers {
            visit(Part::Other(&mut layer.input_layernorm));
            visit(Part::Linear(&mut layer.query_key_value));
            visit(Part::Linear(&mut layer.dense));
            visit(Part::Other(&mut layer.post_attention_layernorm));
            visit(Part::Linear(&mut layer.mlp.up));
            visit(Part::Linear(&mut layer.mlp.down));
        }
        visit(Part::Other(&mut self.final_layer_norm));
        if let Some(head) = &mut self.embed_out {
            visit(Part::Head(head));
        }
    }

    fn untie(&mut self) {
        let table = &mut self.embed_in;
        (self.embed_out).get_or_insert_with(|| table.part(FAMILY.head));
    }

    fn remove_head(&mut self) {
        self.embed_out = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_sorted_by_kind_and_rotated_pairs_lie_half_a_head_apart() {
        let layout = HeadLayout {
            heads: 2,
            kv_heads: 2,
            head_dim: 6,
        };
        // Entries 0 and 1 of each head form a rotated pair: they move to 0 and 3, half a head apart.
        let within = [0, 2, 3, 1, 4, 5];
        let order = column_order(layout, 2);
        assert_eq!(order[..6], within);
        assert_eq!(order[6..12], within.map(|entry| 18 + entry));
        assert_eq!(order[12..18], within.map(|entry| 6 + entry));
        assert_eq!(order[18..24], within.map(|entry| 24 + entry));
        assert_eq!(order[24..30], [12, 13, 14, 15, 16, 17]);
        assert_eq!(order[30..36], [30, 31, 32, 33, 34, 35]);
        // Fully rotated heads are unchanged.
        assert_eq!(column_order(layout, 6)[..6], [0, 1, 2, 3, 4, 5]);
    }
}
