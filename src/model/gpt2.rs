//! The GPT-2 family: LayerNorm, learned positions, full multi-head attention, GELU.

use burn::module::{Module, Param};
use burn::tensor::backend::Backend;
use burn::tensor::{Int, Tensor};

use super::Table;
use super::block::{LayerNorm, Layers, Mlp, Pass, embed_positions};
use super::config::Gpt2Config;
use crate::ops::{self, Attend, Head, HeadLayout, ModelBackend};
use crate::params::{ParamKind, ParamMeta, ParamSlot, Parameters, placeholder};
use crate::peft::{Adaptable, Projection};

/// One decoder layer.
#[derive(Module, Debug)]
pub struct Gpt2Layer<B: Backend> {
    /// Norm before attention.
    pub ln_1: LayerNorm<B>,
    /// Queries, keys and values, joint in the files too.
    pub c_attn: Projection<B>,
    /// Attention output.
    pub c_proj: Projection<B>,
    /// Norm before the MLP.
    pub ln_2: LayerNorm<B>,
    /// `c_fc` and `c_proj`.
    pub mlp: Mlp<B>,
}

/// A GPT-2 model.
#[derive(Module, Debug)]
pub struct Gpt2<B: Backend> {
    /// Tokens, `[vocab, hidden]`.
    pub wte: Table<B>,
    /// Positions, `[n_positions, hidden]`.
    pub wpe: Param<Tensor<B, 2>>,
    /// Decoder layers.
    pub h: Vec<Gpt2Layer<B>>,
    /// Final norm.
    pub ln_f: LayerNorm<B>,
    /// `[vocab, hidden]`; absent when the embedding is the head.
    pub lm_head: Option<Table<B>>,
    #[module(skip)]
    config: Gpt2Config,
}

impl<B: Backend> Gpt2<B> {
    /// An unfilled model; without an output head of its own if it is to carry a score head.
    pub fn new(config: &Gpt2Config, with_head: bool, device: &B::Device) -> Self {
        let eps = config.layer_norm_epsilon;
        let layers = (0..config.n_layer).map(|i| {
            let layer = |name: &str, width: usize| {
                Projection::new(
                    &[(format!("transformer.h.{i}.{name}"), width)],
                    true,
                    false,
                    device,
                )
            };
            Gpt2Layer {
                ln_1: LayerNorm::new(eps, device),
                c_attn: layer("attn.c_attn", 3 * config.n_embd),
                c_proj: layer("attn.c_proj", config.n_embd),
                ln_2: LayerNorm::new(eps, device),
                mlp: Mlp::new(
                    layer("mlp.c_fc", config.n_inner),
                    config.activation_function,
                    layer("mlp.c_proj", config.n_embd),
                ),
            }
        });
        Self {
            wte: Table::new(device),
            wpe: placeholder(device),
            h: layers.collect(),
            ln_f: LayerNorm::new(eps, device),
            lm_head: (with_head && !config.tie_word_embeddings).then(|| Table::new(device)),
            config: config.clone(),
        }
    }
}

impl<B: ModelBackend> Layers<B> for Gpt2<B> {
    fn embed(&self, ids: &Tensor<B, 1, Int>, pass: &Pass<'_, B>) -> Tensor<B, 2> {
        self.wte.look_up(ids) + embed_positions(&self.wpe, &pass.positions, 0)
    }

    fn layer(&self, index: usize, x: Tensor<B, 2>, pass: &mut Pass<'_, B>) -> Tensor<B, 2> {
        let (layer, dropout) = (&self.h[index], pass.layer_dropout(index));
        let qkv = layer.c_attn.forward(layer.ln_1.forward(x.clone()), dropout);
        let attend = Attend::causal(self.head_layout(), pass.segments);
        let attended = pass.attend(index, qkv, &attend);
        let x = ops::residual(pass.keep(index, x), layer.c_proj.forward(attended, dropout));
        ops::residual(x.clone(), layer.mlp.forward(layer.ln_2.forward(x), dropout))
    }

    fn finish(&self, x: Tensor<B, 2>, _: &Pass<'_, B>) -> Tensor<B, 2> {
        self.ln_f.forward(x)
    }

    fn head(&self) -> Head<B> {
        self.lm_head.as_ref().unwrap_or(&self.wte).head()
    }

    fn head_layout(&self) -> HeadLayout {
        let heads = self.config.n_head;
        HeadLayout {
            heads,
            kv_heads: heads,
            head_dim: self.config.n_embd / heads,
        }
    }

    fn num_layers(&self) -> usize {
        self.h.len()
    }
}

impl<B: Backend> Adaptable<B> for Gpt2<B> {
    fn for_each_projection(&mut self, visit: &mut dyn FnMut(&mut Projection<B>)) {
        for layer in &mut self.h {
            visit(&mut layer.c_attn);
            visit(&mut layer.c_proj);
            visit(&mut layer.mlp.up);
            visit(&mut layer.mlp.down);
        }
    }
}

impl<B: Backend> Parameters<B> for Gpt2<B> {
    fn for_each_parameter(&mut self, visit: &mut dyn FnMut(&ParamMeta, ParamSlot<'_, B>)) {
        let hidden = self.config.n_embd;
        let table = |name: &str| ParamMeta::single(ParamKind::Embedding, name, hidden, false);
        self.wte.walk(&table("transformer.wte.weight"), visit);
        visit(
            &table("transformer.wpe.weight"),
            ParamSlot::Matrix(&mut self.wpe),
        );
        for (i, layer) in self.h.iter_mut().enumerate() {
            layer
                .ln_1
                .walk(&format!("transformer.h.{i}.ln_1"), hidden, visit);
            layer.c_attn.for_each_parameter(visit);
            layer.c_proj.for_each_parameter(visit);
            layer
                .ln_2
                .walk(&format!("transformer.h.{i}.ln_2"), hidden, visit);
            layer.mlp.up.for_each_parameter(visit);
            layer.mlp.down.for_each_parameter(visit);
        }
        self.ln_f.walk("transformer.ln_f", hidden, visit);
        if let Some(head) = &mut self.lm_head {
            head.walk(&table("lm_head.weight"), visit);
        }
    }
}
