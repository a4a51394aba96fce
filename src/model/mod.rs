//! Decoder language models: one file per family over shared blocks, scalar heads, the KV cache, weight files.

mod activation;
mod adapter;
mod block;
mod cache;
pub mod config;
mod gated_decoder;
mod gpt2;
mod gpt_neox;
mod load;
pub mod manifest;
mod offset;
mod opt;
mod recompute;
mod scalar;
pub mod source;
mod table;
mod together;
pub mod weights;

use std::sync::Arc;

use burn::module::Module;
use burn::tensor::backend::Backend;
use burn::tensor::{Int, Tensor};

pub use activation::Activation;
pub use adapter::{
    LoadedAdapter, Prepared, attach_adapters, load_adapter, prepare_adapters, save_adapter,
    trained_tensors,
};
pub use block::{GatedMlp, LayerNorm, Mlp, RmsNorm};
pub use cache::KvCache;
pub use config::{ModelConfig, TensorSpec};
pub use gated_decoder::GatedDecoder;
pub use gpt_neox::GptNeox;
pub use gpt2::Gpt2;
pub use load::{host_tensors, stored_tensors};
pub use manifest::{Manifest, ModelFiles};
pub use offset::{SCORE_OFFSET, SIDECAR, read_score_offset};
pub use opt::Opt;
pub use recompute::{Tape, Trained};
pub use scalar::ScalarModel;
pub(crate) use scalar::scalar_head;
pub use source::{ModelSource, ScoreHead};
pub use table::Table;
pub use together::Together;

use block::{Layers, Pass, Rotary};

use crate::ops::{self, Head, HeadLayout, ModelBackend, Numerics};
use crate::params::{ParamMeta, ParamSlot, Parameters};
use crate::peft::{Adaptable, Projection};
use crate::rng::Seed;
use crate::tokens::TokenBatch;

/// A decoder that predicts the next token.
pub trait CausalLm<B: ModelBackend>: Adaptable<B> + Parameters<B> {
    /// States that a head reads at the chosen `positions` of the packed batch, `[positions, hidden]`: those after the final
    /// norm, and after OPT's projection out. All positions if `None`.
    ///
    /// The last layer computes nothing but keys and values for the others: a few percent of a deep model, a quarter of one
    /// with four layers. With a cache, the batch's rows continue the slots that [`KvCache::select`] named. `dropout` gives the
    /// adapters' dropout masks; `None` drops nothing.
    fn states_at(
        &self,
        batch: &TokenBatch<B>,
        positions: Option<Tensor<B, 1, Int>>,
        cache: Option<&mut KvCache<B>>,
        dropout: Option<Seed>,
    ) -> Tensor<B, 2>;

    /// [`CausalLm::states_at`] all positions, `[tokens, hidden]`.
    fn hidden_states(
        &self,
        batch: &TokenBatch<B>,
        cache: Option<&mut KvCache<B>>,
        dropout: Option<Seed>,
    ) -> Tensor<B, 2> {
        self.states_at(batch, None, cache, dropout)
    }

    /// Output head.
    fn head(&self) -> Head<B>;

    /// Attention heads.
    fn head_layout(&self) -> HeadLayout;

    /// Number of layers.
    fn num_layers(&self) -> usize;

    /// Logits, `[positions, vocab]`; ask only for the positions that need them.
    fn logits(&self, hidden: Tensor<B, 2>) -> Tensor<B, 2> {
        ops::logits(hidden, &self.head())
    }

    /// Log-probability (differentiable) and entropy of `targets` given the states before them, both `[positions]`.
    fn logprobs(
        &self,
        hidden: Tensor<B, 2>,
        targets: &Arc<Vec<u32>>,
        temperature: f64,
    ) -> (Tensor<B, 1>, Tensor<B, 1>) {
        ops::head_logprob(hidden, self.head(), targets, temperature)
    }
}

/// A model of any supported family.
#[derive(Module, Debug)]
#[allow(clippy::large_enum_variant)]
pub enum LanguageModel<B: Backend> {
    /// llama, Qwen2, Qwen3.
    Gated(GatedDecoder<B>),
    /// GPT-2.
    Gpt2(Gpt2<B>),
    /// GPT-NeoX.
    GptNeox(GptNeox<B>),
    /// OPT.
    Opt(Opt<B>),
}

impl<B: Backend> LanguageModel<B> {
    /// An unfilled model; without an output head of its own if it is to carry a score head.
    pub fn new(config: &ModelConfig, with_head: bool, device: &B::Device) -> Self {
        match config {
            ModelConfig::Llama(c) | ModelConfig::Qwen2(c) | ModelConfig::Qwen3(c) => {
                Self::Gated(GatedDecoder::new(c, with_head, device))
            }
            ModelConfig::Gpt2(c) => Self::Gpt2(Gpt2::new(c, with_head, device)),
            ModelConfig::GptNeox(c) => Self::GptNeox(GptNeox::new(c, with_head, device)),
            ModelConfig::Opt(c) => Self::Opt(Opt::new(c, with_head, device)),
        }
    }
}

impl<B: Backend> LanguageModel<B> {
    /// Has linear layers, embedding and output head, which are to be filled after this, kept and multiplied as `numerics` says:
    /// frozen if not kept in f32. Tables of positions stay in f32.
    pub fn store_as(&mut self, numerics: Numerics) {
        self.for_each_projection(&mut |projection| projection.store_as(numerics));
        let (embedding, head) = match self {
            Self::Gated(model) => (&mut model.embed_tokens, &mut model.lm_head),
            Self::Gpt2(model) => (&mut model.wte, &mut model.lm_head),
            Self::GptNeox(model) => (&mut model.embed_in, &mut model.embed_out),
            Self::Opt(model) => (&mut model.embed_tokens, &mut model.lm_head),
        };
        for table in std::iter::once(embedding).chain(head) {
            table.store_as(numerics);
        }
    }
}

macro_rules! by_family {
    ($self:expr, $model:ident => $body:expr) => {
        match $self {
            LanguageModel::Gated($model) => $body,
            LanguageModel::Gpt2($model) => $body,
            LanguageModel::GptNeox($model) => $body,
            LanguageModel::Opt($model) => $body,
        }
    };
}

impl<B: Backend> Adaptable<B> for LanguageModel<B> {
    fn for_each_projection(&mut self, visit: &mut dyn FnMut(&mut Projection<B>)) {
        by_family!(self, model => model.for_each_projection(visit));
    }
}

impl<B: Backend> Parameters<B> for LanguageModel<B> {
    fn for_each_parameter(&mut self, visit: &mut dyn FnMut(&ParamMeta, ParamSlot<'_, B>)) {
        by_family!(self, model => model.for_each_parameter(visit));
    }
}

impl<B: ModelBackend> Layers<B> for LanguageModel<B> {
    fn embed(&self, ids: &Tensor<B, 1, Int>, pass: &Pass<'_, B>) -> Tensor<B, 2> {
        by_family!(self, model => model.embed(ids, pass))
    }

    fn layer(&self, index: usize, x: Tensor<B, 2>, pass: &mut Pass<'_, B>) -> Tensor<B, 2> {
        by_family!(self, model => model.layer(index, x, pass))
    }

    fn finish(&self, x: Tensor<B, 2>, pass: &Pass<'_, B>) -> Tensor<B, 2> {
        by_family!(self, model => model.finish(x, pass))
    }

    fn rotary(&self) -> Option<&Rotary> {
        by_family!(self, model => Layers::<B>::rotary(model))
    }

    fn head(&self) -> Head<B> {
        by_family!(self, model => model.head())
    }

    fn head_layout(&self) -> HeadLayout {
        by_family!(self, model => Layers::<B>::head_layout(model))
    }

    fn num_layers(&self) -> usize {
        by_family!(self, model => Layers::<B>::num_layers(model))
    }
}

impl<B: ModelBackend> CausalLm<B> for LanguageModel<B> {
    fn states_at(
        &self,
        batch: &TokenBatch<B>,
        positions: Option<Tensor<B, 1, Int>>,
        cache: Option<&mut KvCache<B>>,
        dropout: Option<Seed>,
    ) -> Tensor<B, 2> {
        match positions {
            // A layer over no rows at all is a case that kernels need not know.
            Some(none) if none.dims()[0] == 0 => {
                let states = self.states_at(batch, None, cache, dropout);
                states.select(0, none)
            }
            positions => {
                let mut pass = Pass::new(self, batch, positions, cache, dropout);
                let mut x = self.embed(&batch.input_ids, &pass);
                for index in 0..Layers::num_layers(self) {
                    x = self.layer(index, x, &mut pass);
                }
                let x = self.finish(x, &pass);
                pass.end();
                x
            }
        }
    }

    fn head(&self) -> Head<B> {
        Layers::head(self)
    }

    fn head_layout(&self) -> HeadLayout {
        Layers::head_layout(self)
    }

    fn num_layers(&self) -> usize {
        Layers::num_layers(self)
    }
}
