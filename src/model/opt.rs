//! The OPT family: LayerNorm before or after each block, learned positions, ReLU.

use burn::module::{Module, Param};
use burn::tensor::backend::Backend;
use burn::tensor::{Int, Tensor};

use super::Table;
use super::block::{LayerNorm, Layers, Mlp, Pass, embed_positions};
use super::config::{OptConfig, POSITION_OFFSET};
use crate::ops::{self, Attend, Head, HeadLayout, ModelBackend};
use crate::params::{ParamKind, ParamMeta, ParamSlot, Parameters, placeholder};
use crate::peft::{Adaptable, Projection};

/// Added to the variance inside LayerNorm; OPT's files have no key for it.
const LAYER_NORM_EPS: f64 = 1e-5;

/// One decoder layer.
#[derive(Module, Debug)]
pub struct OptLayer<B: Backend> {
    /// Queries, keys and values.
    pub qkv_proj: Projection<B>,
    /// Attention output.
    pub out_proj: Projection<B>,
    /// Norm of the attention.
    pub self_attn_layer_norm: LayerNorm<B>,
    /// `fc1` and `fc2`.
    pub mlp: Mlp<B>,
    /// Norm of the MLP.
    pub final_layer_norm: LayerNorm<B>,
}

/// An OPT model.
#[derive(Module, Debug)]
pub struct Opt<B: Backend> {
    /// Tokens, `[vocab, word_embed_proj_dim]`.
    pub embed_tokens: Table<B>,
    /// Positions, `[max_position_embeddings + 2, hidden]`.
    pub embed_positions: Param<Tensor<B, 2>>,
    /// From the token embedding into the residual stream, where their widths differ.
    pub project_in: Option<Projection<B>>,
    /// Decoder layers.
    pub layers: Vec<OptLayer<B>>,
    /// Final norm, if any.
    pub final_layer_norm: Option<LayerNorm<B>>,
    /// From the residual stream to the width of the token embedding.
    pub project_out: Option<Projection<B>>,
    /// `[vocab, word_embed_proj_dim]`; absent when the embedding is the head.
    pub lm_head: Option<Table<B>>,
    #[module(skip)]
    config: OptConfig,
}

impl<B: Backend> Opt<B> {
    /// An unfilled model; without an output head of its own if it is to carry a score head.
    pub fn new(config: &OptConfig, with_head: bool, device: &B::Device) -> Self {
        let (hidden, bias) = (config.hidden_size, config.enable_bias);
        let norm = || LayerNorm::new(LAYER_NORM_EPS, device);
        let projection = |names: &[&str], width: usize, with_bias: bool| {
            let layers: Vec<_> = (names.iter())
                .map(|name| (format!("model.decoder.{name}"), width))
                .collect();
            Projection::new(&layers, with_bias, true, device)
        };
        let layers = (0..config.num_hidden_layers).map(|i| {
            let path = |name: &str| format!("layers.{i}.{name}");
            let qkv = ["q_proj", "k_proj", "v_proj"].map(|name| path(&format!("self_attn.{name}")));
            OptLayer {
                qkv_proj: projection(&[&qkv[0], &qkv[1], &qkv[2]], hidden, bias),
                out_proj: projection(&[&path("self_attn.out_proj")], hidden, bias),
                self_attn_layer_norm: norm(),
                mlp: Mlp::new(
                    projection(&[&path("fc1")], config.ffn_dim, bias),
                    config.activation_function,
                    projection(&[&path("fc2")], hidden, bias),
                ),
                final_layer_norm: norm(),
            }
        });
        let between = |name: &str, width: usize| {
            config
                .has_projections()
                .then(|| projection(&[name], width, false))
        };
        Self {
            embed_tokens: Table::new(device),
            embed_positions: placeholder(device),
            project_in: between("project_in", hidden),
            layers: layers.collect(),
            final_layer_norm: config.final_layer_norm.then(norm),
            project_out: between("project_out", config.word_embed_proj_dim),
            lm_head: (with_head && !config.tie_word_embeddings).then(|| Table::new(device)),
            config: config.clone(),
        }
    }
}

impl<B: ModelBackend> Layers<B> for Opt<B> {
    fn embed(&self, ids: &Tensor<B, 1, Int>, pass: &Pass<'_, B>) -> Tensor<B, 2> {
        let mut x = self.embed_tokens.look_up(ids);
        if let Some(project_in) = &self.project_in {
            x = project_in.forward(x, pass.dropout);
        }
        x + embed_positions(&self.embed_positions, &pass.positions, POSITION_OFFSET)
    }

    fn layer(&self, index: usize, x: Tensor<B, 2>, pass: &mut Pass<'_, B>) -> Tensor<B, 2> {
        let (layer, dropout) = (&self.layers[index], pass.layer_dropout(index));
        let before = self.config.do_layer_norm_before;
        let norm_if = |wanted: bool, norm: &LayerNorm<B>, x: Tensor<B, 2>| {
            if wanted { norm.forward(x) } else { x }
        };
        let norm = &layer.self_attn_layer_norm;
        let qkv = layer
            .qkv_proj
            .forward(norm_if(before, norm, x.clone()), dropout);
        let attend = Attend::causal(self.head_layout(), pass.segments);
        let attended = pass.attend(index, qkv, &attend);
        let x = ops::residual(
            pass.keep(index, x),
            layer.out_proj.forward(attended, dropout),
        );
        let x = norm_if(!before, norm, x);
        let norm = &layer.final_layer_norm;
        let x = ops::residual(
            x.clone(),
            layer.mlp.forward(norm_if(before, norm, x), dropout),
        );
        norm_if(!before, norm, x)
    }

    fn finish(&self, mut x: Tensor<B, 2>, pass: &Pass<'_, B>) -> Tensor<B, 2> {
        if let Some(norm) = &self.final_layer_norm {
            x = norm.forward(x);
        }
        match &self.project_out {
            Some(project_out) => project_out.forward(x, pass.dropout),
            None => x,
        }
    }

    fn head(&self) -> Head<B> {
        self.lm_head.as_ref().unwrap_or(&self.embed_tokens).head()
    }

    fn head_layout(&self) -> HeadLayout {
        let heads = self.config.num_attention_heads;
        HeadLayout {
            heads,
            kv_heads: heads,
            head_dim: self.config.hidden_size / heads,
        }
    }

    fn num_layers(&self) -> usize {
        self.layers.len()
    }
}

impl<B: Backend> Adaptable<B> for Opt<B> {
    fn for_each_projection(&mut self, visit: &mut dyn FnMut(&mut Projection<B>)) {
        self.project_in.iter_mut().for_each(&mut *visit);
        for layer in &mut self.layers {
            visit(&mut layer.qkv_proj);
            visit(&mut layer.out_proj);
            visit(&mut layer.mlp.up);
            visit(&mut layer.mlp.down);
        }
        self.project_out.iter_mut().for_each(&mut *visit);
    }
}

impl<B: Backend> Parameters<B> for Opt<B> {
    fn for_each_parameter(&mut self, visit: &mut dyn FnMut(&ParamMeta, ParamSlot<'_, B>)) {
        let (hidden, outer) = (self.config.hidden_size, self.config.word_embed_proj_dim);
        let table = |name: &str, columns: usize| {
            ParamMeta::single(ParamKind::Embedding, name, columns, false)
        };
        self.embed_tokens
            .walk(&table("model.decoder.embed_tokens.weight", outer), visit);
        visit(
            &table("model.decoder.embed_positions.weight", hidden),
            ParamSlot::Matrix(&mut self.embed_positions),
        );
        if let Some(project_in) = &mut self.project_in {
            project_in.for_each_parameter(visit);
        }
        for (i, layer) in self.layers.iter_mut().enumerate() {
            let path = |name: &str| format!("model.decoder.layers.{i}.{name}");
            layer.qkv_proj.for_each_parameter(visit);
            layer.out_proj.for_each_parameter(visit);
            layer
                .self_attn_layer_norm
                .walk(&path("self_attn_layer_norm"), hidden, visit);
            layer.mlp.up.for_each_parameter(visit);
            layer.mlp.down.for_each_parameter(visit);
            layer
                .final_layer_norm
                .walk(&path("final_layer_norm"), hidden, visit);
        }
        if let Some(norm) = &mut self.final_layer_norm {
            norm.walk("model.decoder.final_layer_norm", hidden, visit);
        }
        if let Some(project_out) = &mut self.project_out {
            project_out.for_each_parameter(visit);
        }
        if let Some(head) = &mut self.lm_head {
            head.walk(&table("lm_head.weight", outer), visit);
        }
    }
}
