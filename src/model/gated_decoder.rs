//! The decoder of Llama, Mistral, Qwen2, Qwen3, Phi-3, OLMo 2 and SmolLM3: RMSNorm, rotary grouped-query attention, SwiGLU.

use std::sync::Arc;

use burn::module::Module;
use burn::tensor::backend::Backend;
use burn::tensor::{Int, Tensor};

use super::Table;
use super::config::keys::Keys;
use super::config::rope::RopeKeys;
use super::config::{RopeScaling, Sizes};
use super::mlp::GatedMlp;
use super::norm::{RmsNorm, norm_heads};
use super::parts::{Part, Parts};
use super::pass::{Layers, Pass};
use super::rotary::{Rotary, head_order};
use crate::error::Result;
use crate::ops::{Attend, Gate, Head, HeadLayout, LinearInput, Mask, ModelBackend};
use crate::peft::Projection;

/// The embedding's tensor.
pub(super) const EMBEDDING: &str = "model.embed_tokens.weight";

/// The output head's tensor.
pub(super) const HEAD: &str = "lm_head.weight";

/// Configuration of a decoder with RMSNorm, rotary grouped-query attention and a gated MLP; field names are Hugging
/// Face's where it has one.
#[derive(Debug, Clone, PartialEq)]
pub struct GatedDecoderConfig {
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
    /// Width of a head; even, and not always `hidden_size / num_attention_heads`.
    pub head_dim: usize,
    /// Whether queries, keys and values have biases: Qwen2 always, the others with `attention_bias`.
    pub qkv_bias: bool,
    /// Whether the attention output has a bias: never in Qwen2, in the others with `attention_bias`.
    pub o_bias: bool,
    /// Whether the MLP's layers have biases (llama only).
    pub mlp_bias: bool,
    /// Norms of queries and keys before the rotation, if there are any.
    pub qk_norm: Option<QkNorm>,
    /// Whether attention and MLP have their norms after them, before the residual sum, and none before them (OLMo 2 only).
    pub post_norms: bool,
    /// Whether files hold queries, keys and values as one tensor, and gate and up as another (Phi-3 only).
    pub joint_tensors: bool,
    /// Added to the mean square inside RMSNorm.
    pub rms_norm_eps: f64,
    /// Base of the rotary frequencies.
    pub rope_theta: f64,
    /// Scaling of the frequencies, if any.
    pub rope_scaling: Option<RopeScaling>,
    /// Number of rotated entries at the start of a head; even.
    pub rotary_dim: usize,
    /// Whether each layer rotates queries and keys: in SmolLM3 some do not.
    pub rotated_layers: Vec<bool>,
    /// Whether the output head is the embedding.
    pub tie_word_embeddings: bool,
    /// Longest row in tokens.
    pub max_position_embeddings: usize,
    /// Standard deviation of initial weights.
    pub initializer_range: f64,
    /// The attention mask of each layer.
    pub masks: Vec<Mask>,
}

/// What a norm of queries and keys is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QkNorm {
    /// Each head by itself, with the same weights for all (Qwen3).
    Head,
    /// All query heads together, and all key heads (OLMo 2).
    Joint,
}

/// What holds where a file does not say.
#[derive(Debug, Clone, Copy)]
pub(super) struct Defaults {
    /// `None`: the hidden size divided by the number of heads.
    pub(super) head_dim: Option<usize>,
    pub(super) rms_norm_eps: f64,
    pub(super) rope: RopeKeys,
    pub(super) tie_word_embeddings: bool,
}

impl Defaults {
    /// Llama's.
    pub(super) const LLAMA: Self = Self {
        head_dim: None,
        rms_norm_eps: 1e-6,
        rope: RopeKeys::WHOLE,
        tie_word_embeddings: false,
    };
}

impl GatedDecoderConfig {
    /// The settings common to these families, without biases, norms of queries and keys, and windows.
    pub(super) fn plain(keys: &Keys<'_>, defaults: Defaults) -> Result<Self> {
        keys.one_of("hidden_act", "silu", &["silu"])?;
        let heads = keys.count("num_attention_heads")?;
        let hidden_size = keys.count("hidden_size")?;
        let head_dim = match keys.optional_count("head_dim")?.or(defaults.head_dim) {
            Some(head_dim) => head_dim,
            None => keys.divide("hidden_size", hidden_size, "num_attention_heads", heads)?,
        };
        let head_dim = keys.even("head_dim", head_dim)?;
        let rope = defaults.rope.read(keys, head_dim)?;
        let num_hidden_layers = keys.count("num_hidden_layers")?;
        Ok(Self {
            vocab_size: keys.count("vocab_size")?,
            hidden_size,
            intermediate_size: keys.count("intermediate_size")?,
            num_hidden_layers,
            num_attention_heads: heads,
            num_key_value_heads: keys.kv_heads(heads)?,
            head_dim,
            qkv_bias: false,
            o_bias: false,
            mlp_bias: false,
            qk_norm: None,
            post_norms: false,
            joint_tensors: false,
            rms_norm_eps: keys.positive("rms_norm_eps", defaults.rms_norm_eps)?,
            rope_theta: rope.theta,
            rope_scaling: rope.scaling,
            rotary_dim: rope.rotary_dim,
            rotated_layers: vec![true; num_hidden_layers],
            tie_word_embeddings: keys
                .boolean("tie_word_embeddings", defaults.tie_word_embeddings)?,
            max_position_embeddings: keys.count("max_position_embeddings")?,
            initializer_range: keys.positive("initializer_range", 0.02)?,
            masks: vec![Mask::Causal; num_hidden_layers],
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

    /// The file's column, within all keys, of each key column, where they differ.
    pub(super) fn key_order(&self) -> Option<Vec<usize>> {
        let width = self.head_dim;
        let order = self.column_order(self.num_key_value_heads);
        (self.rotary_dim < width).then_some(order)
    }

    /// The file's column for each column of `heads` heads: rotated pairs lie half a head apart here.
    fn column_order(&self, heads: usize) -> Vec<usize> {
        let within = head_order(self.head_dim, self.rotary_dim);
        let head = |head: usize| within.iter().map(move |entry| head * self.head_dim + entry);
        (0..heads).flat_map(head).collect()
    }

    /// The order of the columns of the joint tensor of queries, keys and values, where it is another than the file's.
    fn qkv_order(&self) -> Option<Arc<Vec<usize>>> {
        let layout = self.layout();
        let mut order = self.column_order(layout.heads + layout.kv_heads);
        order
            .extend(layout.q_width() + layout.kv_width()..layout.q_width() + 2 * layout.kv_width());
        (self.rotary_dim < self.head_dim).then(|| Arc::new(order))
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
pub struct GatedDecoderLayer<B: Backend> {
    /// Norm before attention; none in OLMo 2.
    pub input_layernorm: Option<RmsNorm<B>>,
    /// Queries, keys and values.
    pub qkv_proj: Projection<B>,
    /// Norm of each query head, `[head_dim]`, or of all together.
    pub q_norm: Option<RmsNorm<B>>,
    /// Norm of each key head, `[head_dim]`, or of all together.
    pub k_norm: Option<RmsNorm<B>>,
    /// Attention output.
    pub o_proj: Projection<B>,
    /// Norm before the MLP; in OLMo 2 of the attention output.
    pub post_attention_layernorm: RmsNorm<B>,
    /// Gated MLP.
    pub mlp: GatedMlp<B>,
    /// Norm of the MLP output; OLMo 2 only.
    pub post_feedforward_layernorm: Option<RmsNorm<B>>,
}

/// A model of Llama, Mistral, Qwen2, Qwen3, Phi-3, OLMo 2 or SmolLM3.
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
    /// An unfilled model; `with_head`: whether it has an output head.
    pub fn new(config: &GatedDecoderConfig, with_head: bool, device: &B::Device) -> Self {
        let (layout, hidden) = (config.layout(), config.hidden_size);
        let norm = |path: String, width| RmsNorm::new(path, width, config.rms_norm_eps, device);
        let layers = (0..config.num_hidden_layers).map(|i| {
            let path = |name: &str| format!("model.layers.{i}.{name}");
            let (q_width, kv_width) = (layout.q_width(), layout.kv_width());
            let qkv = match config.joint_tensors {
                true => vec![(path("self_attn.qkv_proj"), q_width + 2 * kv_width)],
                false => vec![
                    (path("self_attn.q_proj"), q_width),
                    (path("self_attn.k_proj"), kv_width),
                    (path("self_attn.v_proj"), kv_width),
                ],
            };
            let qkv_proj = Projection::new(hidden, &qkv, config.qkv_bias, true, device);
            let o = [(path("self_attn.o_proj"), hidden)];
            let qk_norm = |name, width| {
                let norm = |of| match of {
                    QkNorm::Head => norm(path(name), config.head_dim),
                    QkNorm::Joint => norm(path(name), width),
                };
                config.qk_norm.map(norm)
            };
            let sizes = [hidden, config.intermediate_size];
            let hidden_norm = |name| norm(path(name), hidden);
            GatedDecoderLayer {
                input_layernorm: (!config.post_norms).then(|| hidden_norm("input_layernorm")),
                qkv_proj: match config.qkv_order() {
                    Some(order) => qkv_proj.with_order(order),
                    None => qkv_proj,
                },
                q_norm: qk_norm("self_attn.q_norm", q_width),
                k_norm: qk_norm("self_attn.k_norm", kv_width),
                o_proj: Projection::new(q_width, &o, config.o_bias, true, device),
                post_attention_layernorm: hidden_norm("post_attention_layernorm"),
                mlp: match config.joint_tensors {
                    true => GatedMlp::with_joint_tensor(&path("mlp"), sizes, Gate::Silu, device),
                    false => {
                        GatedMlp::new(&path("mlp"), sizes, Gate::Silu, config.mlp_bias, device)
                    }
                },
                post_feedforward_layernorm: (config.post_norms)
                    .then(|| hidden_norm("post_feedforward_layernorm")),
            }
        });
        let table = |name| Table::new(name, [config.vocab_size, hidden], device);
        Self {
            embed_tokens: table(EMBEDDING),
            layers: layers.collect(),
            norm: norm("model.norm".into(), hidden),
            lm_head: (with_head && !config.tie_word_embeddings).then(|| table(HEAD)),
            config: config.clone(),
            rotary: Rotary::new(
                config.head_dim,
                config.rotary_dim,
                config.rope_theta,
                config.rope_scaling.as_ref(),
            ),
        }
    }
}

impl<B: ModelBackend> Layers<B> for GatedDecoder<B> {
    fn look_up(&self, ids: &Tensor<B, 1, Int>) -> Tensor<B, 2> {
        self.embed_tokens.look_up(ids)
    }

    fn layer(&self, index: usize, x: Tensor<B, 2>, pass: &mut Pass<'_, B>) -> Tensor<B, 2> {
        let (layer, layout) = (&self.layers[index], self.config.layout());
        let dropout = pass.layer_dropout(index);
        let input = (layer.input_layernorm.as_ref()).map_or(LinearInput::Plain, RmsNorm::input);
        let qkv = layer.qkv_proj.forward_of(x.clone(), input, dropout);
        let qkv = match (&layer.q_norm, &layer.k_norm) {
            (Some(q_norm), Some(k_norm)) => norm_heads(qkv, q_norm, k_norm, layout),
            _ => qkv,
        };
        let qkv = match self.config.rotated_layers[index] {
            true => pass.rotate(qkv, layout.heads + layout.kv_heads, 0),
            false => qkv,
        };
        let attend = Attend {
            mask: self.config.masks[index],
            ..Attend::causal(layout, &pass.segments)
        };
        let attended = pass.attend(index, qkv, &attend);
        let attended = layer.o_proj.forward(attended, dropout);
        let norm = &layer.post_attention_layernorm;
        let Some(norm_after) = &layer.post_feedforward_layernorm else {
            let x = layer.o_proj.add_to(
                pass.keep(index, x),
                pass.drop_residual(index, "attention", attended),
            );
            let mlp = layer.mlp.forward(x.clone(), norm, dropout);
            return layer
                .mlp
                .down
                .add_to(x, pass.drop_residual(index, "mlp", mlp));
        };
        let attended = norm.forward(attended);
        let x = layer.o_proj.add_to(
            pass.keep(index, x),
            pass.drop_residual(index, "attention", attended),
        );
        let mlp = layer.mlp.forward_of(x.clone(), LinearInput::Plain, dropout);
        let mlp = norm_after.forward(mlp);
        layer
            .mlp
            .down
            .add_to(x, pass.drop_residual(index, "mlp", mlp))
    }

    fn finish(&self, x: Tensor<B, 2>, _: &Pass<'_, B>) -> Tensor<B, 2> {
        self.norm.forward(x)
    }

    fn rotaries(&self) -> &[Rotary] {
        std::slice::from_ref(&self.rotary)
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

impl<B: Backend> Parts<B> for GatedDecoder<B> {
    fn for_each_part(&mut self, visit: &mut dyn FnMut(Part<'_, B>)) {
        visit(Part::Embedding(&mut self.embed_tokens));
        for layer in &mut self.layers {
            if let Some(norm) = &mut layer.input_layernorm {
                visit(Part::Other(norm));
            }
            visit(Part::Linear(&mut layer.qkv_proj));
            for norm in [&mut layer.q_norm, &mut layer.k_norm].into_iter().flatten() {
                visit(Part::Other(norm));
            }
            visit(Part::Linear(&mut layer.o_proj));
            visit(Part::Other(&mut layer.post_attention_layernorm));
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
