//! GPT-2: LayerNorm, learned positions, full multi-head attention, GELU.

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
    model_type: "gpt2",
    causal: "GPT2LMHeadModel",
    classifier: "GPT2ForSequenceClassification",
    embedding: "transformer.wte.weight",
    head: "lm_head.weight",
    parse: |keys| Ok(Architecture::Gpt2(Gpt2Config::read(keys)?)),
};

/// Configuration of a GPT-2 model; its linear layers are stored as `[in, out]` (Hugging Face's `Conv1D`).
#[derive(Debug, Clone, PartialEq)]
pub struct Gpt2Config {
    /// Rows of the token embedding.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub n_embd: usize,
    /// Number of layers.
    pub n_layer: usize,
    /// Number of heads; divides `n_embd`.
    pub n_head: usize,
    /// Rows of the position embedding: the longest row in tokens.
    pub n_positions: usize,
    /// Width of the MLP.
    pub n_inner: usize,
    /// Activation of the MLP.
    pub activation_function: Activation,
    /// Added to the variance inside LayerNorm.
    pub layer_norm_epsilon: f64,
    /// Whether the output head is the token embedding.
    pub tie_word_embeddings: bool,
    /// Standard deviation of initial weights.
    pub initializer_range: f64,
}

impl Gpt2Config {
    fn read(keys: &Keys<'_>) -> Result<Self> {
        for key in [
            "scale_attn_by_inverse_layer_idx",
            "reorder_and_upcast_attn",
            "add_cross_attention",
        ] {
            keys.must_be(key, false)?;
        }
        keys.must_be("scale_attn_weights", true)?;
        let n_embd = keys.count("n_embd")?;
        let n_head = keys.count("n_head")?;
        keys.divide("n_embd", n_embd, "n_head", n_head)?;
        Ok(Self {
            vocab_size: keys.count("vocab_size")?,
            n_embd,
            n_layer: keys.count("n_layer")?,
            n_head,
            n_positions: keys.count("n_positions")?,
            n_inner: keys.optional_count("n_inner")?.unwrap_or(4 * n_embd),
            activation_function: keys.activation("activation_function", "gelu_new")?,
            layer_norm_epsilon: keys.positive("layer_norm_epsilon", 1e-5)?,
            tie_word_embeddings: keys.boolean("tie_word_embeddings", true)?,
            initializer_range: keys.positive("initializer_range", 0.02)?,
        })
    }

    /// Attention heads.
    pub fn layout(&self) -> HeadLayout {
        HeadLayout {
            heads: self.n_head,
            kv_heads: self.n_head,
            head_dim: self.n_embd / self.n_head,
        }
    }

    pub(super) fn sizes(&self) -> Sizes {
        Sizes {
            vocab: self.vocab_size,
            hidden: self.n_embd,
            output: self.n_embd,
            intermediate: self.n_inner,
            layers: self.n_layer,
            layout: self.layout(),
            max_positions: self.n_positions,
            learned_positions: true,
            initializer_range: self.initializer_range,
            fresh_norm: 1.0,
            tied: self.tie_word_embeddings,
        }
    }
}

/// One decoder layer.
#[derive(Module, Debug)]
pub struct Gpt2Layer<B: Backend> {
    /// Norm before attention.
    pub ln_1: LayerNorm<B>,
    /// Queries, keys and values; one matrix in files too.
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
    pub wpe: PositionTable<B>,
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
    /// An unfilled model; `with_head`: whether it has an output head.
    pub fn new(config: &Gpt2Config, with_head: bool, device: &B::Device) -> Self {
        let (hidden, inner) = (config.n_embd, config.n_inner);
        let norm = |path: String| LayerNorm::new(path, hidden, config.layer_norm_epsilon, device);
        let layers = (0..config.n_layer).map(|i| {
            let path = |name: &str| format!("transformer.h.{i}.{name}");
            // Conv1D stores [in, out].
            let conv = |name: &str, [inputs, outputs]: [usize; 2]| {
                Projection::new(inputs, &[(path(name), outputs)], true, false, device)
            };
            Gpt2Layer {
                ln_1: norm(path("ln_1")),
                c_attn: conv("attn.c_attn", [hidden, 3 * hidden]),
                c_proj: conv("attn.c_proj", [hidden, hidden]),
                ln_2: norm(path("ln_2")),
                mlp: Mlp::new(
                    conv("mlp.c_fc", [hidden, inner]),
                    config.activation_function,
                    conv("mlp.c_proj", [inner, hidden]),
                ),
            }
        });
        let table = |name| Table::new(name, [config.vocab_size, hidden], device);
        let positions = [config.n_positions, hidden];
        Self {
            wte: table(FAMILY.embedding),
            wpe: PositionTable::new("transformer.wpe.weight", positions, 0, device),
            h: layers.collect(),
            ln_f: norm("transformer.ln_f".into()),
            lm_head: (with_head && !config.tie_word_embeddings).then(|| table(FAMILY.head)),
            config: config.clone(),
        }
    }
}

impl<B: ModelBackend> Layers<B> for Gpt2<B> {
    fn look_up(&self, ids: &Tensor<B, 1, Int>) -> Tensor<B, 2> {
        self.wte.look_up(ids)
    }

    fn embed(&self, embeddings: Tensor<B, 2>, pass: &Pass<'_, B>) -> Tensor<B, 2> {
        embeddings + self.wpe.look_up(&pass.positions)
    }

    fn layer(&self, index: usize, x: Tensor<B, 2>, pass: &mut Pass<'_, B>) -> Tensor<B, 2> {
        let (layer, dropout) = (&self.h[index], pass.layer_dropout(index));
        let qkv = layer.c_attn.forward(layer.ln_1.forward(x.clone()), dropout);
        let attend = Attend::causal(self.config.layout(), &pass.segments);
        let attended = pass.attend(index, qkv, &attend);
        let attended = layer.c_proj.forward(attended, dropout);
        let x = layer.c_proj.add_to(
            pass.keep(index, x),
            pass.drop_residual(index, "attention", attended),
        );
        let mlp = layer.mlp.forward(layer.ln_2.forward(x.clone()), dropout);
        layer
            .mlp
            .down
            .add_to(x, pass.drop_residual(index, "mlp", mlp))
    }

    fn finish(&self, x: Tensor<B, 2>, _: &Pass<'_, B>) -> Tensor<B, 2> {
        self.ln_f.forward(x)
    }

    fn head(&self) -> Head<B> {
        self.lm_head.as_ref().unwrap_or(&self.wte).head()
    }

    fn head_layout(&self) -> HeadLayout {
        self.config.layout()
    }

    fn num_layers(&self) -> usize {
        self.h.len()
    }
}

impl<B: Backend> Parts<B> for Gpt2<B> {
    fn for_each_part(&mut self, visit: &mut dyn FnMut(Part<'_, B>)) {
        visit(Part::Embedding(&mut self.wte));
        visit(Part::Other(&mut self.wpe));
        for layer in &mut self.h {
            visit(Part::Other(&mut layer.ln_1));
            visit(Part::Linear(&mut layer.c_attn));
            visit(Part::Linear(&mut layer.c_proj));
            visit(Part::Other(&mut layer.ln_2));
            visit(Part::Linear(&mut layer.mlp.up));
            visit(Part::Linear(&mut layer.mlp.down));
        }
        visit(Part::Other(&mut self.ln_f));
        if let Some(head) = &mut self.lm_head {
            visit(Part::Head(head));
        }
    }

    fn untie(&mut self) {
        let table = &mut self.wte;
        (self.lm_head).get_or_insert_with(|| table.part(FAMILY.head));
    }

    fn remove_head(&mut self) {
        self.lm_head = None;
    }
}
