//! The Qwen3 family: llama with RMSNorm on each query and key head before the rotation, and a head width of its own.

use burn::module::{Module, Param};
use burn::tensor::Tensor;
use burn::tensor::backend::Backend;

use super::block::{GatedMlp, Pass, RmsNorm, Rotary, embed};
use super::config::Qwen3Config;
use super::{CausalLm, KvCache};
use crate::ops::{self, HeadLayout, ModelBackend};
use crate::params::{ParamKind, ParamMeta, ParamSlot, Parameters, placeholder};
use crate::peft::{Adaptable, Projection};
use crate::rng::Seed;
use crate::tokens::TokenBatch;

/// One decoder layer.
#[derive(Module, Debug)]
pub struct Qwen3Layer<B: Backend> {
    /// Norm before attention.
    pub input_layernorm: RmsNorm<B>,
    /// Queries, keys and values.
    pub qkv_proj: Projection<B>,
    /// Norm of each query head, `[head_dim]`.
    pub q_norm: RmsNorm<B>,
    /// Norm of each key head, `[head_dim]`.
    pub k_norm: RmsNorm<B>,
    /// Attention output.
    pub o_proj: Projection<B>,
    /// Norm before the MLP.
    pub post_attention_layernorm: RmsNorm<B>,
    /// Gated MLP.
    pub mlp: GatedMlp<B>,
}

/// A Qwen3 model.
#[derive(Module, Debug)]
pub struct Qwen3<B: Backend> {
    /// `[vocab, hidden]`.
    pub embed_tokens: Param<Tensor<B, 2>>,
    /// Decoder layers.
    pub layers: Vec<Qwen3Layer<B>>,
    /// Final norm.
    pub norm: RmsNorm<B>,
    /// `[vocab, hidden]`; absent when the embedding is the head.
    pub lm_head: Option<Param<Tensor<B, 2>>>,
    #[module(skip)]
    config: Qwen3Config,
    #[module(skip)]
    rotary: Rotary,
}

impl<B: Backend> Qwen3<B> {
    /// An unfilled model; without an output head of its own if it is to carry a score head.
    pub fn new(config: &Qwen3Config, with_head: bool, device: &B::Device) -> Self {
        let layers = (0..config.num_hidden_layers).map(|i| {
            let attention = |name: &str| format!("model.layers.{i}.self_attn.{name}");
            let q_width = config.num_attention_heads * config.head_dim;
            let kv_width = config.num_key_value_heads * config.head_dim;
            let qkv = [
                (attention("q_proj"), q_width),
                (attention("k_proj"), kv_width),
                (attention("v_proj"), kv_width),
            ];
            Qwen3Layer {
                input_layernorm: RmsNorm::new(config.rms_norm_eps, device),
                qkv_proj: Projection::new(&qkv, false, true, device),
                q_norm: RmsNorm::new(config.rms_norm_eps, device),
                k_norm: RmsNorm::new(config.rms_norm_eps, device),
                o_proj: Projection::new(
                    &[(attention("o_proj"), config.hidden_size)],
                    false,
                    true,
                    device,
                ),
                post_attention_layernorm: RmsNorm::new(config.rms_norm_eps, device),
                mlp: GatedMlp::new(
                    &format!("model.layers.{i}.mlp"),
                    config.hidden_size,
                    config.intermediate_size,
                    device,
                ),
            }
        });
        Self {
            embed_tokens: placeholder(device),
            layers: layers.collect(),
            norm: RmsNorm::new(config.rms_norm_eps, device),
            lm_head: (with_head && !config.tie_word_embeddings).then(|| placeholder(device)),
            config: config.clone(),
            rotary: Rotary::new(
                config.head_dim,
                config.rope_theta,
                config.rope_scaling.as_ref(),
            ),
        }
    }

    fn layout(&self) -> HeadLayout {
        HeadLayout {
            heads: self.config.num_attention_heads,
            kv_heads: self.config.num_key_value_heads,
            head_dim: self.config.head_dim,
        }
    }
}

impl<B: ModelBackend> CausalLm<B> for Qwen3<B> {
    fn hidden_states(
        &self,
        batch: &TokenBatch<B>,
        cache: Option<&mut KvCache<B>>,
        dropout: Option<Seed>,
    ) -> Tensor<B, 2> {
        let mut pass = Pass::new(batch, cache, dropout);
        let layout = self.layout();
        let [cos, sin] = self
            .rotary
            .tables(&pass.positions, &batch.input_ids.device());
        let mut x = embed(&self.embed_tokens, &batch.input_ids);
        for (i, layer) in self.layers.iter().enumerate() {
            let dropout = pass.layer_dropout(i);
            let qkv = layer
                .qkv_proj
                .forward(layer.input_layernorm.forward(x.clone()), dropout);
            let qkv = norm_heads(qkv, &layer.q_norm, &layer.k_norm, layout);
            let qkv = ops::rope(
                qkv,
                cos.clone(),
                sin.clone(),
                layout.heads + layout.kv_heads,
            );
            x = x + layer.o_proj.forward(pass.attend(i, qkv, layout), dropout);
            x = x.clone()
                + layer
                    .mlp
                    .forward(layer.post_attention_layernorm.forward(x), dropout);
        }
        pass.finish();
        self.norm.forward(x)
    }

    fn head(&self) -> Tensor<B, 2> {
        self.lm_head.as_ref().unwrap_or(&self.embed_tokens).val()
    }

    fn head_layout(&self) -> HeadLayout {
        self.layout()
    }

    fn num_layers(&self) -> usize {
        self.layers.len()
    }
}

impl<B: Backend> Adaptable<B> for Qwen3<B> {
    fn for_each_projection(&mut self, visit: &mut dyn FnMut(&mut Projection<B>)) {
        for layer in &mut self.layers {
            visit(&mut layer.qkv_proj);
            visit(&mut layer.o_proj);
            visit(&mut layer.mlp.gate_up);
            visit(&mut layer.mlp.down);
        }
    }
}

impl<B: Backend> Parameters<B> for Qwen3<B> {
    fn for_each_parameter(&mut self, visit: &mut dyn FnMut(&ParamMeta, ParamSlot<'_, B>)) {
        let hidden = self.config.hidden_size;
        let table = |name: &str| ParamMeta::single(ParamKind::Embedding, name, hidden, false);
        visit(
            &table("model.embed_tokens.weight"),
            ParamSlot::Matrix(&mut self.embed_tokens),
        );
        for (i, layer) in self.layers.iter_mut().enumerate() {
            layer
                .input_layernorm
                .walk(&format!("model.layers.{i}.input_layernorm"), hidden, visit);
            layer.qkv_proj.for_each_parameter(visit);
            let head_dim = self.config.head_dim;
            layer.q_norm.walk(
                &format!("model.layers.{i}.self_attn.q_norm"),
                head_dim,
                visit,
            );
            layer.k_norm.walk(
                &format!("model.layers.{i}.self_attn.k_norm"),
                head_dim,
                visit,
            );
            layer.o_proj.for_each_parameter(visit);
            let path = format!("model.layers.{i}.post_attention_layernorm");
            layer.post_attention_layernorm.walk(&path, hidden, visit);
            layer.mlp.gate_up.for_each_parameter(visit);
            layer.mlp.down.for_each_parameter(visit);
        }
        self.norm.walk("model.norm", hidden, visit);
        if let Some(head) = &mut self.lm_head {
            visit(&table("lm_head.weight"), ParamSlot::Matrix(head));
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
