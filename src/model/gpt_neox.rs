//! The GPT-NeoX family (Pythia): LayerNorm, partly rotated heads, attention and MLP side by side or one after the other.

use std::sync::Arc;

use burn::module::Module;
use burn::tensor::backend::Backend;
use burn::tensor::{Int, Tensor};

use super::Table;
use super::block::{LayerNorm, Layers, Mlp, Pass, Rotary};
use super::config::GptNeoxConfig;
use crate::ops::{self, Attend, Head, HeadLayout, ModelBackend};
use crate::params::{ParamKind, ParamMeta, ParamSlot, Parameters};
use crate::peft::{Adaptable, Projection};

/// One decoder layer.
#[derive(Module, Debug)]
pub struct GptNeoxLayer<B: Backend> {
    /// Norm before attention.
    pub input_layernorm: LayerNorm<B>,
    /// Queries, keys and values, joint in the files too; see [`column_order`].
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
    /// An unfilled model; without an output head of its own if it is to carry a score head.
    pub fn new(config: &GptNeoxConfig, with_head: bool, device: &B::Device) -> Self {
        let norm = || LayerNorm::new(config.layer_norm_eps, device);
        let order = Arc::new(column_order(config.layout(), config.rotary_dim));
        let layers = (0..config.num_hidden_layers).map(|i| {
            let layer = |name: &str, width: usize, with_bias: bool| {
                let layers = [(format!("gpt_neox.layers.{i}.{name}"), width)];
                Projection::new(&layers, with_bias, true, device)
            };
            let (hidden, bias) = (config.hidden_size, config.attention_bias);
            GptNeoxLayer {
                input_layernorm: norm(),
                query_key_value: layer("attention.query_key_value", 3 * hidden, bias)
                    .with_order(order.clone()),
                dense: layer("attention.dense", hidden, bias),
                post_attention_layernorm: norm(),
                mlp: Mlp::new(
                    layer("mlp.dense_h_to_4h", config.intermediate_size, true),
                    config.hidden_act,
                    layer("mlp.dense_4h_to_h", hidden, true),
                ),
            }
        });
        Self {
            embed_in: Table::new(device),
            layers: layers.collect(),
            final_layer_norm: norm(),
            embed_out: (with_head && !config.tie_word_embeddings).then(|| Table::new(device)),
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
/// Files hold query, key and value of the first head, then of the second; attention here reads all queries, all keys, all
/// values. Files rotate the first `rotary_dim` entries of a head, in pairs half of `rotary_dim` apart; the rotation here
/// takes pairs half a head apart. So within each query and key head the two halves of what is rotated lead the two halves
/// of the head, and what is not rotated follows them. Scores are the same: queries and keys are reordered alike.
fn column_order(layout: HeadLayout, rotary_dim: usize) -> Vec<usize> {
    let HeadLayout {
        heads, head_dim, ..
    } = layout;
    let (rotated, kept) = (rotary_dim / 2, (head_dim - rotary_dim) / 2);
    let turned: Vec<usize> = (0..rotated)
        .chain(rotary_dim..rotary_dim + kept)
        .chain(rotated..rotary_dim)
        .chain(rotary_dim + kept..head_dim)
        .collect();
    let plain: Vec<usize> = (0..head_dim).collect();
    [&turned, &turned, &plain]
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
    fn embed(&self, ids: &Tensor<B, 1, Int>, _: &Pass<'_, B>) -> Tensor<B, 2> {
        self.embed_in.look_up(ids)
    }

    fn layer(&self, index: usize, x: Tensor<B, 2>, pass: &mut Pass<'_, B>) -> Tensor<B, 2> {
        let (layer, layout) = (&self.layers[index], self.config.layout());
        let dropout = pass.layer_dropout(index);
        let qkv = layer
            .query_key_value
            .forward(layer.input_layernorm.forward(x.clone()), dropout);
        let qkv = pass.rotate(qkv, 2 * layout.heads);
        let attend = Attend::causal(layout, pass.segments);
        let attended = pass.attend(index, qkv, &attend);
        let x = pass.keep(index, x);
        let after = ops::residual(x.clone(), layer.dense.forward(attended, dropout));
        // Side by side, the MLP reads what attention has read.
        let read = if self.config.use_parallel_residual {
            x
        } else {
            after.clone()
        };
        let read = layer.post_attention_layernorm.forward(read);
        ops::residual(after, layer.mlp.forward(read, dropout))
    }

    fn finish(&self, x: Tensor<B, 2>, _: &Pass<'_, B>) -> Tensor<B, 2> {
        self.final_layer_norm.forward(x)
    }

    fn rotary(&self) -> Option<&Rotary> {
        Some(&self.rotary)
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

impl<B: Backend> Adaptable<B> for GptNeox<B> {
    fn for_each_projection(&mut self, visit: &mut dyn FnMut(&mut Projection<B>)) {
        for layer in &mut self.layers {
            visit(&mut layer.query_key_value);
            visit(&mut layer.dense);
            visit(&mut layer.mlp.up);
            visit(&mut layer.mlp.down);
        }
    }
}

impl<B: Backend> Parameters<B> for GptNeox<B> {
    fn for_each_parameter(&mut self, visit: &mut dyn FnMut(&ParamMeta, ParamSlot<'_, B>)) {
        let hidden = self.config.hidden_size;
        let table = |name: &str| ParamMeta::single(ParamKind::Embedding, name, hidden, false);
        self.embed_in
            .walk(&table("gpt_neox.embed_in.weight"), visit);
        for (i, layer) in self.layers.iter_mut().enumerate() {
            let path = |name: &str| format!("gpt_neox.layers.{i}.{name}");
            layer
                .input_layernorm
                .walk(&path("input_layernorm"), hidden, visit);
            layer.query_key_value.for_each_parameter(visit);
            layer.dense.for_each_parameter(visit);
            layer
                .post_attention_layernorm
                .walk(&path("post_attention_layernorm"), hidden, visit);
            layer.mlp.up.for_each_parameter(visit);
            layer.mlp.down.for_each_parameter(visit);
        }
        self.final_layer_norm
            .walk("gpt_neox.final_layer_norm", hidden, visit);
        if let Some(head) = &mut self.embed_out {
            head.walk(&table("embed_out.weight"), visit);
        }
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
        // Of each head entries 0 and 1 turn as one pair: they come to 0 and 3, half a head apart.
        let within = [0, 2, 3, 1, 4, 5];
        let order = column_order(layout, 2);
        assert_eq!(order[..6], within);
        assert_eq!(order[6..12], within.map(|entry| 18 + entry));
        assert_eq!(order[12..18], within.map(|entry| 6 + entry));
        assert_eq!(order[18..24], within.map(|entry| 24 + entry));
        assert_eq!(order[24..30], [12, 13, 14, 15, 16, 17]);
        assert_eq!(order[30..36], [30, 31, 32, 33, 34, 35]);
        // Fully rotated heads stay as they are.
        assert_eq!(column_order(layout, 6)[..6], [0, 1, 2, 3, 4, 5]);
    }
}
