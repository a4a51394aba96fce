//! OPT: LayerNorm before or after each block, learned positions, ReLU.

use burn::module::Module;
use burn::tensor::backend::Backend;
use burn::tensor::{Int, Tensor};

use super::activation::Activation;
use super::config::Sizes;
use super::config::keys::Keys;
use super::family::Family;
use super::mlp::Mlp;
use super::norm::LayerNorm;
use super::parts::{Part, Parts};
use super::pass::{Layers, Pass};
use super::table::PositionTable;
use super::{Architecture, Table};
use crate::error::Result;
use crate::ops::{Attend, Head, HeadLayout, ModelBackend};
use crate::peft::Projection;

pub(super) const FAMILY: Family = Family {
    model_type: "opt",
    causal: "OPTForCausalLM",
    classifier: "OPTForSequenceClassification",
    embedding: "model.decoder.embed_tokens.weight",
    head: "lm_head.weight",
    parse: |keys| Ok(Architecture::Opt(OptConfig::read(keys)?)),
};

/// Added to the variance inside LayerNorm; OPT's files have no key for it.
const LAYER_NORM_EPS: f64 = 1e-5;

/// Row of position 0 in the position table.
const POSITION_OFFSET: usize = 2;

/// Configuration of an OPT model; field names are Hugging Face's.
#[derive(Debug, Clone, PartialEq)]
pub struct OptConfig {
    /// Rows of the token embedding.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width of the token embedding and of the final states. If it is not `hidden_size` (350m), linear layers project in and out.
    pub word_embed_proj_dim: usize,
    /// Width of the MLP.
    pub ffn_dim: usize,
    /// Number of layers.
    pub num_hidden_layers: usize,
    /// Number of heads; divides `hidden_size`.
    pub num_attention_heads: usize,
    /// Longest row in tokens; the position table has two rows more.
    pub max_position_embeddings: usize,
    /// Whether norms come before attention and MLP, or after the residual sums (350m).
    pub do_layer_norm_before: bool,
    /// Whether a norm follows the last layer: with norms before the layers, unless `_remove_final_layer_norm` is set.
    pub final_layer_norm: bool,
    /// Whether the layers' linear modules have biases.
    pub enable_bias: bool,
    /// Activation of the MLP.
    pub activation_function: Activation,
    /// Whether the output head is the token embedding.
    pub tie_word_embeddings: bool,
    /// Standard deviation of initial weights.
    pub init_std: f64,
}

impl OptConfig {
    fn read(keys: &Keys<'_>) -> Result<Self> {
        keys.must_be("layer_norm_elementwise_affine", true)?;
        let hidden_size = keys.count("hidden_size")?;
        let heads = keys.count("num_attention_heads")?;
        keys.divide("hidden_size", hidden_size, "num_attention_heads", heads)?;
        let do_layer_norm_before = keys.boolean("do_layer_norm_before", true)?;
        let word_embed_proj_dim = keys.optional_count("word_embed_proj_dim")?;
        Ok(Self {
            vocab_size: keys.count("vocab_size")?,
            hidden_size,
            word_embed_proj_dim: word_embed_proj_dim.unwrap_or(hidden_size),
            ffn_dim: keys.count("ffn_dim")?,
            num_hidden_layers: keys.count("num_hidden_layers")?,
            num_attention_heads: heads,
            max_position_embeddings: keys.count("max_position_embeddings")?,
            do_layer_norm_before,
            final_layer_norm: do_layer_norm_before
                && !keys.boolean("_remove_final_layer_norm", false)?,
            enable_bias: keys.boolean("enable_bias", true)?,
            activation_function: keys.activation("activation_function", "relu")?,
            tie_word_embeddings: keys.boolean("tie_word_embeddings", true)?,
            init_std: keys.positive("init_std", 0.02)?,
        })
    }

    /// Whether linear layers project from the embedding to the residual stream and back.
    pub fn has_projections(&self) -> bool {
        self.word_embed_proj_dim != self.hidden_size
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

    pub(super) fn sizes(&self) -> Sizes {
        Sizes {
            vocab: self.vocab_size,
            hidden: self.hidden_size,
            output: self.word_embed_proj_dim,
            intermediate: self.ffn_dim,
            layers: self.num_hidden_layers,
            layout: self.layout(),
            max_positions: self.max_position_embeddings,
            learned_positions: true,
            initializer_range: self.init_std,
            fresh_norm: 1.0,
            tied: self.tie_word_embeddings,
        }
    }
}

/// One decoder layer.
#[derive(Module, Debug)]
pub struct OptLayer<B: Backend> {
    /// Queries, keys and values.
    pub qkv_proj: Projection<B>,
    /// Attention output.
    pub out_proj: Projection<B>,
    /// Norm of attention.
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
    pub embed_positions: PositionTable<B>,
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
    /// An unfilled model; `with_head`: whether it has an output head.
    pub fn new(config: &OptConfig, with_head: bool, device: &B::Device) -> Self {
        let (hidden, inner, bias) = (config.hidden_size, config.ffn_dim, config.enable_bias);
        let outer = config.word_embed_proj_dim;
        let path = |name: &str| format!("model.decoder.{name}");
        let norm = |path: String| LayerNorm::new(path, hidden, LAYER_NORM_EPS, device);
        let linear = |layers: &[(String, usize)], inputs: usize, with_bias: bool| {
            Projection::new(inputs, layers, with_bias, true, device)
        };
        let layers = (0..config.num_hidden_layers).map(|i| {
            let path = |name: &str| path(&format!("layers.{i}.{name}"));
            let qkv = ["q_proj", "k_proj", "v_proj"]
                .map(|name| (path(&format!("self_attn.{name}")), hidden));
            OptLayer {
                qkv_proj: linear(&qkv, hidden, bias),
                out_proj: linear(&[(path("self_attn.out_proj"), hidden)], hidden, bias),
                self_attn_layer_norm: norm(path("self_attn_layer_norm")),
                mlp: Mlp::new(
                    linear(&[(path("fc1"), inner)], hidden, bias),
                    config.activation_function,
                    linear(&[(path("fc2"), hidden)], inner, bias),
                ),
                final_layer_norm: norm(path("final_layer_norm")),
            }
        });
        let between = |name: &str, [inputs, outputs]: [usize; 2]| {
            let linear = || linear(&[(path(name), outputs)], inputs, false);
            config.has_projections().then(linear)
        };
        let table = |name: &str| Table::new(name, [config.vocab_size, outer], device);
        Self {
            embed_tokens: table(FAMILY.embedding),
            embed_positions: PositionTable::new(
                &path("embed_positions.weight"),
                [config.max_position_embeddings, hidden],
                POSITION_OFFSET,
                device,
            ),
            project_in: between("project_in", [outer, hidden]),
            layers: layers.collect(),
            final_layer_norm: (config.final_layer_norm).then(|| norm(path("final_layer_norm"))),
            project_out: between("project_out", [hidden, outer]),
            lm_head: (with_head && !config.tie_word_embeddings).then(|| table(FAMILY.head)),
            config: config.clone(),
        }
    }
}

impl<B: ModelBackend> Layers<B> for Opt<B> {
    fn look_up(&self, ids: &Tensor<B, 1, Int>) -> Tensor<B, 2> {
        self.embed_tokens.look_up(ids)
    }

    fn embed(&self, embeddings: Tensor<B, 2>, pass: &Pass<'_, B>) -> Tensor<B, 2> {
        let mut x = embeddings;
        if let Some(project_in) = &self.project_in {
            x = project_in.forward(x, pass.dropout);
        }
        x + self.embed_positions.look_up(&pass.positions)
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
        let attend = Attend::causal(self.config.layout(), &pass.segments);
        let attended = pass.attend(index, qkv, &attend);
        let attended = layer.out_proj.forward(attended, dropout);
        let x = layer.out_proj.add_to(
            pass.keep(index, x),
            pass.drop_residual(index, "attention", attended),
        );
        let x = norm_if(!before, norm, x);
        let norm = &layer.final_layer_norm;
        let read = norm_if(before, norm, x.clone());
        let mlp = layer.mlp.forward(read, dropout);
        let x = layer
            .mlp
            .down
            .add_to(x, pass.drop_residual(index, "mlp", mlp));
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
        self.config.layout()
    }

    fn num_layers(&self) -> usize {
        self.layers.len()
    }
}

impl<B: Backend> Parts<B> for Opt<B> {
    fn for_each_part(&mut self, visit: &mut dyn FnMut(Part<'_, B>)) {
        visit(Part::Embedding(&mut self.embed_tokens));
        visit(Part::Other(&mut self.embed_positions));
        if let Some(project_in) = &mut self.project_in {
            visit(Part::Linear(project_in));
        }
        for layer in &mut self.layers {
            visit(Part::Linear(&mut layer.qkv_proj));
            visit(Part::Linear(&mut layer.out_proj));
            visit(Part::Other(&mut layer.self_attn_layer_norm));
            visit(Part::Linear(&mut layer.mlp.up));
            visit(Part::Linear(&mut layer.mlp.down));
            visit(Part::Other(&mut layer.final_layer_norm));
        }
        if let Some(norm) = &mut self.final_layer_norm {
            visit(Part::Other(norm));
        }
        if let Some(project_out) = &mut self.project_out {
            visit(Part::Linear(project_out));
        }
        if let Some(head) = &mut self.lm_head {
            visit(Part::Head(head));
        }
    }

    fn untie(&mut self) {
        let table = &mut self.embed_tokens;
        (self.lm_head).get_or_insert_with(|| table.part(FAMILY.head));
    }

    fn remove_head(&mut self) {
        self.lm_head = None;
    }
}
