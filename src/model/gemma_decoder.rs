//! The decoder of Gemma, Gemma 2 and Gemma 3: RMSNorm with zero-centred weights, GEGLU, and embeddings scaled by the square root of
//! their width. Gemma 2 adds norms after attention and MLP, capped scores and logits, and windows in some layers; Gemma 3 norms queries
//! and keys in place of the caps, and has other rotary frequencies in layers with a window.

use burn::module::Module;
use burn::tensor::backend::Backend;
use burn::tensor::{Int, Tensor};

use super::Table;
use super::config::keys::Keys;
use super::config::rope::Rope;
use super::config::{RopeScaling, Sizes};
use super::gated_decoder::{EMBEDDING, HEAD};
use super::mlp::GatedMlp;
use super::norm::{RmsNorm, norm_heads};
use super::parts::{Part, Parts};
use super::pass::{Layers, Pass};
use super::rotary::Rotary;
use crate::error::Result;
use crate::ops::{Attend, Gate, Head, HeadLayout, Mask, ModelBackend};
use crate::peft::Projection;

/// Configuration of a Gemma model; field names are Hugging Face's where it has one.
#[derive(Debug, Clone, PartialEq)]
pub struct GemmaConfig {
    /// Rows of the embedding.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width of the gated MLP.
    pub intermediate_size: usize,
    /// Number of layers.
    pub num_hidden_layers: usize,
    /// Query heads.
    pub num_attention_heads: usize,
    /// Key and value heads; divides `num_attention_heads`.
    pub num_key_value_heads: usize,
    /// Width of a head; even.
    pub head_dim: usize,
    /// Attention scores are divided by its square root; `head_dim` in Gemma.
    pub query_pre_attn_scalar: f64,
    /// The gate's activation.
    pub hidden_activation: Gate,
    /// Whether the attention's layers have biases.
    pub attention_bias: bool,
    /// Whether the outputs of attention and MLP are normed too: from Gemma 2 on.
    pub post_norms: bool,
    /// Whether each query and key head is normed before the rotation (Gemma 3 only).
    pub qk_norm: bool,
    /// Added to the mean square inside RMSNorm.
    pub rms_norm_eps: f64,
    /// Base of the rotary frequencies.
    pub rope_theta: f64,
    /// Scaling of the frequencies, if any.
    pub rope_scaling: Option<RopeScaling>,
    /// Rotary frequencies of layers with a window, if they are others (Gemma 3 only).
    pub local_rope: Option<LocalRope>,
    /// The attention mask of each layer.
    pub masks: Vec<Mask>,
    /// Soft cap of attention scores.
    pub attn_logit_softcapping: Option<f64>,
    /// Soft cap of logits.
    pub final_logit_softcapping: Option<f64>,
    /// Whether the output head is the embedding.
    pub tie_word_embeddings: bool,
    /// Longest row in tokens.
    pub max_position_embeddings: usize,
    /// Standard deviation of initial weights.
    pub initializer_range: f64,
}

/// Rotary frequencies of layers with a window.
#[derive(Debug, Clone, PartialEq)]
pub struct LocalRope {
    /// Base of the frequencies.
    pub theta: f64,
    /// Their scaling, if any.
    pub scaling: Option<RopeScaling>,
}

impl GemmaConfig {
    /// Width of a head.
    pub(super) fn head_dim(keys: &Keys<'_>) -> Result<usize> {
        let head_dim = keys.optional_count("head_dim")?.unwrap_or(256);
        keys.even("head_dim", head_dim)
    }

    /// The settings common to these families, as Gemma has them: causal attention at the usual scale, one norm before attention and one
    /// before the MLP, no caps. `gate`: of the MLP.
    pub(super) fn plain(keys: &Keys<'_>, gate: Gate, rope: Rope) -> Result<Self> {
        keys.must_be("use_bidirectional_attention", false)?;
        let heads = keys.count("num_attention_heads")?;
        let num_hidden_layers = keys.count("num_hidden_layers")?;
        let head_dim = Self::head_dim(keys)?;
        Ok(Self {
            vocab_size: keys.count("vocab_size")?,
            hidden_size: keys.count("hidden_size")?,
            intermediate_size: keys.count("intermediate_size")?,
            num_hidden_layers,
            num_attention_heads: heads,
            num_key_value_heads: keys.kv_heads(heads)?,
            head_dim,
            query_pre_attn_scalar: head_dim as f64,
            hidden_activation: gate,
            attention_bias: keys.boolean("attention_bias", false)?,
            post_norms: false,
            qk_norm: false,
            rms_norm_eps: keys.positive("rms_norm_eps", 1e-6)?,
            rope_theta: rope.theta,
            rope_scaling: rope.scaling,
            local_rope: None,
            masks: vec![Mask::Causal; num_hidden_layers],
            attn_logit_softcapping: None,
            final_logit_softcapping: None,
            tie_word_embeddings: keys.boolean("tie_word_embeddings", true)?,
            max_position_embeddings: keys.count("max_position_embeddings")?,
            initializer_range: keys.positive("initializer_range", 0.02)?,
        })
    }

    /// Attention heads.
    pub fn layout(&self) -> HeadLayout {
        HeadLayout {
            heads: self.num_attention_heads,
            kv_heads: self.num_key_value_heads,
            head_dim: self.head_dim,
        }
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
            fresh_norm: 0.0,
            tied: self.tie_word_embeddings,
        }
    }
}

/// One decoder layer.
#[derive(Module, Debug)]
pub struct GemmaLayer<B: Backend> {
    /// Norm before attention.
    pub input_layernorm: RmsNorm<B>,
    /// Queries, keys and values.
    pub qkv_proj: Projection<B>,
    /// Norm of each query head, `[head_dim]`; Gemma 3 only.
    pub q_norm: Option<RmsNorm<B>>,
    /// Norm of each key head, `[head_dim]`; Gemma 3 only.
    pub k_norm: Option<RmsNorm<B>>,
    /// Attention output.
    pub o_proj: Projection<B>,
    /// Norm of the attention output; in Gemma, which has no [`GemmaConfig::post_norms`], the norm before the MLP.
    pub post_attention_layernorm: RmsNorm<B>,
    /// Norm before the MLP.
    pub pre_feedforward_layernorm: Option<RmsNorm<B>>,
    /// Gated MLP.
    pub mlp: GatedMlp<B>,
    /// Norm of the MLP output.
    pub post_feedforward_layernorm: Option<RmsNorm<B>>,
}

/// A Gemma, Gemma 2 or Gemma 3 model.
#[derive(Module, Debug)]
pub struct GemmaDecoder<B: Backend> {
    /// `[vocab, hidden]`.
    pub embed_tokens: Table<B>,
    /// Decoder layers.
    pub layers: Vec<GemmaLayer<B>>,
    /// Final norm.
    pub norm: RmsNorm<B>,
    /// `[vocab, hidden]`; absent when the embedding is the head.
    pub lm_head: Option<Table<B>>,
    #[module(skip)]
    config: GemmaConfig,
    /// Of layers without a window, and of those with one if they have their own.
    #[module(skip)]
    rotaries: Vec<Rotary>,
}

impl<B: Backend> GemmaDecoder<B> {
    /// An unfilled model; `with_head`: whether it has an output head.
    pub fn new(config: &GemmaConfig, with_head: bool, device: &B::Device) -> Self {
        let (layout, hidden) = (config.layout(), config.hidden_size);
        let norm_of = |path: String, width| {
            RmsNorm::new(path, width, config.rms_norm_eps, device).around_zero()
        };
        let norm = |path: String| norm_of(path, hidden);
        let layers = (0..config.num_hidden_layers).map(|i| {
            let path = |name: &str| format!("model.layers.{i}.{name}");
            let linear = |inputs: usize, layers: &[(String, usize)]| {
                Projection::new(inputs, layers, config.attention_bias, true, device)
            };
            let qkv = [
                (path("self_attn.q_proj"), layout.q_width()),
                (path("self_attn.k_proj"), layout.kv_width()),
                (path("self_attn.v_proj"), layout.kv_width()),
            ];
            let post_norm = |name| config.post_norms.then(|| norm(path(name)));
            let head_norm = |name| config.qk_norm.then(|| norm_of(path(name), config.head_dim));
            GemmaLayer {
                input_layernorm: norm(path("input_layernorm")),
                qkv_proj: linear(hidden, &qkv),
                q_norm: head_norm("self_attn.q_norm"),
                k_norm: head_norm("self_attn.k_norm"),
                o_proj: linear(layout.q_width(), &[(path("self_attn.o_proj"), hidden)]),
                post_attention_layernorm: norm(path("post_attention_layernorm")),
                pre_feedforward_layernorm: post_norm("pre_feedforward_layernorm"),
                mlp: GatedMlp::new(
                    &path("mlp"),
                    [hidden, config.intermediate_size],
                    config.hidden_activation,
                    false,
                    device,
                ),
                post_feedforward_layernorm: post_norm("post_feedforward_layernorm"),
            }
        });
        let table = |name| Table::new(name, [config.vocab_size, hidden], device);
        let rotary = |theta, scaling: Option<&RopeScaling>| {
            Rotary::new(config.head_dim, config.head_dim, theta, scaling)
        };
        let global = rotary(config.rope_theta, config.rope_scaling.as_ref());
        let local = config.local_rope.as_ref();
        let local = local.map(|local| rotary(local.theta, local.scaling.as_ref()));
        Self {
            embed_tokens: table(EMBEDDING),
            layers: layers.collect(),
            norm: norm("model.norm".into()),
            lm_head: (with_head && !config.tie_word_embeddings).then(|| table(HEAD)),
            config: config.clone(),
            rotaries: std::iter::once(global).chain(local).collect(),
        }
    }

    /// The rotary frequencies of a layer, among all.
    fn rotary(&self, layer: usize) -> usize {
        match self.config.masks[layer] {
            Mask::Window(_) => self.rotaries.len() - 1,
            Mask::Causal | Mask::Full => 0,
        }
    }
}

impl<B: ModelBackend> Layers<B> for GemmaDecoder<B> {
    fn look_up(&self, ids: &Tensor<B, 1, Int>) -> Tensor<B, 2> {
        let scale = (self.config.hidden_size as f64).sqrt();
        self.embed_tokens.look_up(ids).mul_scalar(scale as f32)
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
        let qkv = pass.rotate(qkv, layout.heads + layout.kv_heads, self.rotary(index));
        let attend = Attend {
            scale: self.config.query_pre_attn_scalar.powf(-0.5) as f32,
            mask: self.config.masks[index],
            softcap: self.config.attn_logit_softcapping.map(|cap| cap as f32),
            ..Attend::causal(layout, &pass.segments)
        };
        let attended = pass.attend(index, qkv, &attend);
        let attended = layer.o_proj.forward(attended, dropout);
        let (attended, norm) = match &layer.pre_feedforward_layernorm {
            Some(norm) => (layer.post_attention_layernorm.forward(attended), norm),
            None => (attended, &layer.post_attention_layernorm),
        };
        let x = layer.o_proj.add_to(
            pass.keep(index, x),
            pass.drop_residual(index, "attention", attended),
        );
        let mlp = layer.mlp.forward(x.clone(), norm, dropout);
        let mlp = match &layer.post_feedforward_layernorm {
            Some(norm) => norm.forward(mlp),
            None => mlp,
        };
        layer
            .mlp
            .down
            .add_to(x, pass.drop_residual(index, "mlp", mlp))
    }

    fn finish(&self, x: Tensor<B, 2>, _: &Pass<'_, B>) -> Tensor<B, 2> {
        self.norm.forward(x)
    }

    fn rotaries(&self) -> &[Rotary] {
        &self.rotaries
    }

    fn head(&self) -> Head<B> {
        let head = self.lm_head.as_ref().unwrap_or(&self.embed_tokens).head();
        match self.config.final_logit_softcapping {
            Some(cap) => Head::Capped(Box::new(head), cap as f32),
            None => head,
        }
    }

    fn head_layout(&self) -> HeadLayout {
        self.config.layout()
    }

    fn num_layers(&self) -> usize {
        self.layers.len()
    }
}

impl<B: Backend> Parts<B> for GemmaDecoder<B> {
    fn for_each_part(&mut self, visit: &mut dyn FnMut(Part<'_, B>)) {
        visit(Part::Embedding(&mut self.embed_tokens));
        for layer in &mut self.layers {
            visit(Part::Other(&mut layer.input_layernorm));
            visit(Part::Linear(&mut layer.qkv_proj));
            for norm in [&mut layer.q_norm, &mut layer.k_norm].into_iter().flatten() {
                visit(Part::Other(norm));
            }
            visit(Part::Linear(&mut layer.o_proj));
            visit(Part::Other(&mut layer.post_attention_layernorm));
            if let Some(norm) = &mut layer.pre_feedforward_layernorm {
                visit(Part::Other(norm));
            }
            visit(Part::Linear(&mut layer.mlp.gate_up));
            visit(Part::Linear(&mut layer.mlp.down));
            if let Some(norm) = &mut layer.post_feedforward_layernorm {
                visit(Part::Other(norm));
            }
        }
        visit(Part::Other(&mut self.norm));
        if let Some(head) = &mut self.lm_head {
            visit(Part::Head(head));
        }
    }

    fn untie(&mut self) {
        let table = &mut self.embed_tokens;
        (self.lm_head).get_or_insert_with(|| table.part(HEAD));
    }

    fn remove_head(&mut self) {
        self.lm_head = None;
    }
}
