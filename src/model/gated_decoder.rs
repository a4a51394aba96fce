//! Llama, Qwen2 and Qwen3: RMSNorm, rotary grouped-query attention, SwiGLU. Qwen2 has biases on queries, keys and values,
//! Qwen3 RMSNorm on each query and key head before the rotation.

use burn::module::Module;
use burn::tensor::backend::Backend;
use burn::tensor::{Int, Tensor};

use super::Table;
use super::block::{GatedMlp, Layers, Pass, RmsNorm, Rotary};
use super::config::GatedDecoderConfig;
use crate::ops::{self, Attend, Head, HeadLayout, ModelBackend};
use crate::params::{ParamKind, ParamMeta, ParamSlot, Parameters};
use crate::peft::{Adaptable, Projection};

/// One decoder layer.
#[derive(Module, Debug)]
pub struct GatedDecoderLayer<B: Backend> {
    /// Norm before attention.
    pub input_layernorm: RmsNorm<B>,
    /// Queries, keys and values.
    pub qkv_proj: Projection<B>,
    /// Norm of each query head, `[head_dim]`; Qwen3 only.
    pub q_norm: Option<RmsNorm<B>>,
    /// Norm of each key head, `[head_dim]`; Qwen3 only.
    pub k_norm: Option<RmsNorm<B>>,
    /// Attention output.
    pub o_proj: Projection<B>,
    /// Norm before the MLP.
    pub post_attention_layernorm: RmsNorm<B>,
    /// Gated MLP.
    pub mlp: GatedMlp<B>,
}

/// A llama, Qwen2 or Qwen3 model.
#[derive(Module, Debug)]
pub struct GatedDecoder<B: Backend> {
    /// `[vocab, hidden]`.
    pub embed_tokens: Table<B>,
    /// Decoder layers.
    pub layers: Vec<GatedDecoderLayer<B>>,
    /// Final norm.
    pub norm: RmsNorm<B>,
    /// `[vocab, hidden]`; absent when the embedding is the head.
    pub lm_head: Option<Table<B>>,
    #[module(skip)]
    config: GatedDecoderConfig,
    #[module(skip)]
    rotary: Rotary,
}

impl<B: Backend> GatedDecoder<B> {
    /// An unfilled model; without an output head of its own if it is to carry a score head.
    pub fn new(config: &GatedDecoderConfig, with_head: bool, device: &B::Device) -> Self {
        let layout = config.layout();
        let norm = || RmsNorm::new(config.rms_norm_eps, device);
        let layers = (0..config.num_hidden_layers).map(|i| {
            let attention = |name: &str| format!("model.layers.{i}.self_attn.{name}");
            let qkv = [
                (attention("q_proj"), layout.q_width()),
                (attention("k_proj"), layout.kv_width()),
                (attention("v_proj"), layout.kv_width()),
            ];
            let o = [(attention("o_proj"), config.hidden_size)];
            GatedDecoderLayer {
                input_layernorm: norm(),
                qkv_proj: Projection::new(&qkv, config.qkv_bias, true, device),
                q_norm: config.qk_norm.then(norm),
                k_norm: config.qk_norm.then(norm),
                o_proj: Projection::new(&o, config.o_bias, true, device),
                post_attention_layernorm: norm(),
                mlp: GatedMlp::new(
                    &format!("model.layers.{i}.mlp"),
                    config.hidden_size,
                    config.intermediate_size,
                    config.mlp_bias,
                    device,
                ),
            }
        });
        Self {
            embed_tokens: Table::new(device),
            layers: layers.collect(),
            norm: norm(),
            lm_head: (with_head && !config.tie_word_embeddings).then(|| Table::new(device)),
            config: config.clone(),
            rotary: Rotary::new(
                config.head_dim,
                config.head_dim,
                config.rope_theta,
                config.rope_scaling.as_ref(),
            ),
        }
    }
}

impl<B: ModelBackend> Layers<B> for GatedDecoder<B> {
    fn embed(&self, ids: &Tensor<B, 1, Int>, _: &Pass<'_, B>) -> Tensor<B, 2> {
        self.embed_tokens.look_up(ids)
    }

    fn layer(&self, index: usize, x: Tensor<B, 2>, pass: &mut Pass<'_, B>) -> Tensor<B, 2> {
        let (layer, layout) = (&self.layers[index], self.config.layout());
        let dropout = pass.layer_dropout(index);
        let norm = layer.input_layernorm.input();
        let qkv = layer.qkv_proj.forward_of(x.clone(), norm, dropout);
        let qkv = match (&layer.q_norm, &layer.k_norm) {
            (Some(q_norm), Some(k_norm)) => norm_heads(qkv, q_norm, k_norm, layout),
            _ => qkv,
        };
        let qkv = pass.rotate(qkv, layout.heads + layout.kv_heads);
        let attend = Attend::causal(layout, pass.segments);
        let attended = pass.attend(index, qkv, &attend);
        let x = ops::residual(pass.keep(index, x), layer.o_proj.forward(attended, dropout));
        let norm = &layer.post_attention_layernorm;
        ops::residual(x.clone(), layer.mlp.forward(x, norm, dropout))
    }

    fn finish(&self, x: Tensor<B, 2>, _: &Pass<'_, B>) -> Tensor<B, 2> {
        self.norm.forward(x)
    }

    fn rotary(&self) -> Option<&Rotary> {
        Some(&self.rotary)
    }

    fn head(&self) -> Head<B> {
        self.lm_head.as_ref().unwrap_or(&self.embed_tokens).head()
    }

    fn head_layout(&self) -> HeadLayout {
        self.config.layout()
    }

    fn num_layers(&self) -> usize {
        self.layers.len()
    }
}

impl<B: Backend> Adaptable<B> for GatedDecoder<B> {
    fn for_each_projection(&mut self, visit: &mut dyn FnMut(&mut Projection<B>)) {
        for layer in &mut self.layers {
            visit(&mut layer.qkv_proj);
            visit(&mut layer.o_proj);
            visit(&mut layer.mlp.gate_up);
            visit(&mut layer.mlp.down);
        }
    }
}

impl<B: Backend> Parameters<B> for GatedDecoder<B> {
    fn for_each_parameter(&mut self, visit: &mut dyn FnMut(&ParamMeta, ParamSlot<'_, B>)) {
        let hidden = self.config.hidden_size;
        let table = |name: &str| ParamMeta::single(ParamKind::Embedding, name, hidden, false);
        self.embed_tokens
            .walk(&table("model.embed_tokens.weight"), visit);
        for (i, layer) in self.layers.iter_mut().enumerate() {
            layer
                .input_layernorm
                .walk(&format!("model.layers.{i}.input_layernorm"), hidden, visit);
            layer.qkv_proj.for_each_parameter(visit);
            for (norm, name) in [(&mut layer.q_norm, "q_norm"), (&mut layer.k_norm, "k_norm")] {
                if let Some(norm) = norm {
                    let path = format!("model.layers.{i}.self_attn.{name}");
                    norm.walk(&path, self.config.head_dim, visit);
                }
            }
            layer.o_proj.for_each_parameter(visit);
            let path = format!("model.layers.{i}.post_attention_layernorm");
            layer.post_attention_layernorm.walk(&path, hidden, visit);
            layer.mlp.gate_up.for_each_parameter(visit);
            layer.mlp.down.for_each_parameter(visit);
        }
        self.norm.walk("model.norm", hidden, visit);
        if let Some(head) = &mut self.lm_head {
            head.walk(&table("lm_head.weight"), visit);
        }
    }
}

/// RMSNorm over each query head and each key head of the joint matrix; values stay.
fn norm_heads<B: ModelBackend>(
    qkv: Tensor<B, 2>,
    q_norm: &RmsNorm<B>,
    k_norm: &RmsNorm<B>,
    layout: HeadLayout,
) -> Tensor<B, 2> {
    let [tokens, _] = qkv.dims();
    let (q_width, kv_width) = (layout.q_width(), layout.kv_width());
    let by_head = |x: Tensor<B, 2>, norm: &RmsNorm<B>| {
        let [_, width] = x.dims();
        norm.forward(x.reshape([tokens * width / layout.head_dim, layout.head_dim]))
            .reshape([tokens, width])
    };
    let q = by_head(qkv.clone().narrow(1, 0, q_width), q_norm);
    let k = by_head(qkv.clone().narrow(1, q_width, kv_width), k_norm);
    Tensor::cat(vec![q, k, qkv.narrow(1, q_width + kv_width, kv_width)], 1)
}
