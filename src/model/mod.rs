//! Decoder language models: one file a family over shared blocks, scalar heads, the KV cache, weight files.
//!
//! Each family has a file with its configuration, its model with all tensor names, and its `Family`; this file has the lists of
//! families and architectures.

mod activation;
mod adapter;
mod adapter_weights;
mod alibi;
mod beside;
mod bloom;
mod cache;
mod causal_lm;
mod combine;
pub mod config;
mod encoder;
mod family;
mod files;
mod find;
mod gated_decoder;
mod gemma;
mod gemma2;
mod gemma3;
mod gemma_decoder;
mod gpt2;
mod gpt_neox;
mod init;
mod layers;
mod llama;
mod load;
mod low_rank;
pub mod manifest;
mod mistral;
mod mlp;
mod norm;
mod offset;
mod olmo2;
mod opt;
mod parts;
mod pass;
mod phi3;
mod precision;
mod presence;
mod prompt;
mod qwen2;
mod qwen3;
mod recompute;
mod reference;
mod repository;
mod resize;
mod rope_scaling;
mod rotary;
mod row_logprobs;
mod scalar;
mod sidecar;
mod smollm3;
pub mod source;
mod stored_adapter;
mod stored_tables;
mod table;
mod together;
mod token_rows;
mod trained;
pub mod weights;

use burn::module::Module;
use burn::tensor::Tensor;
use burn::tensor::backend::Backend;

pub use activation::Activation;
pub use adapter::{
    LoadedAdapter, PreparedAdapters, adapted_precision, attach_adapters, load_adapter,
    prepare_adapters, save_adapter,
};
pub use bloom::{Bloom, BloomConfig};
pub use cache::KvCache;
pub use causal_lm::CausalLm;
pub use combine::combine_adapters;
pub use config::{ModelConfig, TensorSpec};
pub use encoder::{
    ClassifierSource, EncoderClassifier, EncoderConfig, Label, LabelOutput, Labels, ProblemType,
};
pub use files::{AbsentWeights, Fetch, Finder, ModelFiles};
pub use find::portable_base;
pub use gated_decoder::{GatedDecoder, GatedDecoderConfig, QkNorm};
pub use gemma_decoder::{GemmaConfig, GemmaDecoder, LocalRope};
pub use gpt_neox::{GptNeox, GptNeoxConfig};
pub use gpt2::{Gpt2, Gpt2Config};
pub use init::Init;
pub use layers::{ModelLayer, encoder_layers, layers, trained_summary};
pub use load::{host_tensors, stored_tensors};
pub use low_rank::low_rank_layers;
pub use manifest::Manifest;
pub use mlp::{GatedMlp, Mlp};
pub use norm::{LayerNorm, RmsNorm};
pub use offset::{SCORE_OFFSET, SIDECAR, read_base_precision, read_score_offset, write_sidecar};
pub use opt::{Opt, OptConfig};
pub use recompute::{Tape, TrainableModel};
pub use reference::{HubModel, Reference};
pub use resize::WithTokens;
pub use row_logprobs::row_logprobs;
pub use scalar::ScalarModel;
pub(crate) use scalar::scalar_head;
pub use source::{ModelSource, ScoreHead};
pub use table::{PositionTable, Table};
pub use together::SharedBaseModels;
pub use token_rows::with_token_ids;
pub use trained::{TrainedTensor, trained_tensors};

use config::Sizes;
use family::Family;
use parts::{Part, Parts};
use pass::Layers;

use crate::host::indices;
use crate::ops::{ModelBackend, Numerics};
use crate::params::{ParamMeta, ParamSlot, Parameters};
use crate::peft::{Adaptable, LayerKind, Projection, TableAdapter, TrainedRows, VirtualTokens};

/// All supported families.
const FAMILIES: [&Family; 14] = [
    &llama::FAMILY,
    &qwen2::FAMILY,
    &qwen3::FAMILY,
    &mistral::FAMILY,
    &phi3::FAMILY,
    &olmo2::FAMILY,
    &smollm3::FAMILY,
    &gemma::FAMILY,
    &gemma2::FAMILY,
    &gemma3::FAMILY,
    &gpt2::FAMILY,
    &gpt_neox::FAMILY,
    &opt::FAMILY,
    &bloom::FAMILY,
];

/// A configuration by architecture.
#[derive(Debug, Clone, PartialEq)]
pub enum Architecture {
    /// Llama, Qwen2, Qwen3, Mistral, Phi-3, OLMo 2, SmolLM3.
    Gated(GatedDecoderConfig),
    /// Gemma, Gemma 2, Gemma 3.
    Gemma(GemmaConfig),
    /// GPT-2.
    Gpt2(Gpt2Config),
    /// GPT-NeoX.
    GptNeox(GptNeoxConfig),
    /// OPT.
    Opt(OptConfig),
    /// BLOOM.
    Bloom(BloomConfig),
}

impl Architecture {
    /// Order of a layer's key columns where it is another than in files.
    fn key_order(&self) -> Option<Vec<usize>> {
        match self {
            Self::Gated(config) => config.key_order(),
            Self::GptNeox(config) => Some(config.key_order()),
            _ => None,
        }
    }

    fn sizes(&self) -> Sizes {
        match self {
            Self::Gated(config) => config.sizes(),
            Self::Gemma(config) => config.sizes(),
            Self::Gpt2(config) => config.sizes(),
            Self::GptNeox(config) => config.sizes(),
            Self::Opt(config) => config.sizes(),
            Self::Bloom(config) => config.sizes(),
        }
    }
}

/// The decoder of any architecture.
#[derive(Module, Debug)]
#[allow(clippy::large_enum_variant)]
pub enum Decoder<B: Backend> {
    /// Llama, Qwen2, Qwen3, Mistral, Phi-3, OLMo 2, SmolLM3.
    Gated(GatedDecoder<B>),
    /// Gemma, Gemma 2, Gemma 3.
    Gemma(GemmaDecoder<B>),
    /// GPT-2.
    Gpt2(Gpt2<B>),
    /// GPT-NeoX.
    GptNeox(GptNeox<B>),
    /// OPT.
    Opt(Opt<B>),
    /// BLOOM.
    Bloom(Bloom<B>),
}

/// A model of any architecture, and what a method puts before every row of it.
#[derive(Module, Debug)]
pub struct LanguageModel<B: Backend> {
    decoder: Decoder<B>,
    /// Trained virtual tokens, if there are any.
    pub virtual_tokens: Option<VirtualTokens<B>>,
    /// Probability with which, in passes with a dropout seed, an entry of what a sublayer adds to the residual stream is dropped;
    /// the others are multiplied by `1 / (1 - p)`. GPT-2's `resid_pdrop`, for every family.
    #[module(skip)]
    pub residual_dropout: f64,
}

impl<B: Backend> Decoder<B> {
    fn new(config: &ModelConfig, with_head: bool, device: &B::Device) -> Self {
        match config.architecture() {
            Architecture::Gated(c) => Self::Gated(GatedDecoder::new(c, with_head, device)),
            Architecture::Gemma(c) => Self::Gemma(GemmaDecoder::new(c, with_head, device)),
            Architecture::Gpt2(c) => Self::Gpt2(Gpt2::new(c, with_head, device)),
            Architecture::GptNeox(c) => Self::GptNeox(GptNeox::new(c, with_head, device)),
            Architecture::Opt(c) => Self::Opt(Opt::new(c, with_head, device)),
            Architecture::Bloom(c) => Self::Bloom(Bloom::new(c, with_head, device)),
        }
    }

    fn parts(&mut self) -> &mut dyn Parts<B> {
        match self {
            Self::Gated(model) => model,
            Self::Gemma(model) => model,
            Self::Gpt2(model) => model,
            Self::GptNeox(model) => model,
            Self::Opt(model) => model,
            Self::Bloom(model) => model,
        }
    }
}

impl<B: ModelBackend> Decoder<B> {
    fn layers(&self) -> &dyn Layers<B> {
        match self {
            Self::Gated(model) => model,
            Self::Gemma(model) => model,
            Self::Gpt2(model) => model,
            Self::GptNeox(model) => model,
            Self::Opt(model) => model,
            Self::Bloom(model) => model,
        }
    }
}

impl<B: ModelBackend> LanguageModel<B> {
    fn layers(&self) -> &dyn Layers<B> {
        self.decoder.layers()
    }
}

impl<B: Backend> LanguageModel<B> {
    /// An unfilled model; `with_head`: whether it has an output head.
    pub fn new(config: &ModelConfig, with_head: bool, device: &B::Device) -> Self {
        Self {
            decoder: Decoder::new(config, with_head, device),
            virtual_tokens: None,
            residual_dropout: 0.0,
        }
    }

    fn parts(&mut self) -> &mut dyn Parts<B> {
        self.decoder.parts()
    }

    /// Whether the output head is another table than the embedding.
    pub(crate) fn has_own_head(&mut self) -> bool {
        let mut found = false;
        self.parts()
            .for_each_part(&mut |part| found |= matches!(part, Part::Head(_)));
        found
    }

    /// Sets the storage and product precision of linear layers, embedding and output head, before they are loaded. Anything but f32
    /// freezes them. Position tables stay in f32.
    pub fn store_as(&mut self, numerics: Numerics) {
        self.parts()
            .for_each_part(&mut |part| part.store_as(numerics));
    }
}

impl<B: Backend> Adaptable<B> for LanguageModel<B> {
    fn for_each_projection(&mut self, visit: &mut dyn FnMut(&mut Projection<B>)) {
        self.parts().for_each_part(&mut |part| {
            if let Part::Linear(projection) = part {
                visit(projection);
            }
        });
    }

    fn for_each_table(&mut self, visit: &mut dyn FnMut(LayerKind, &mut Option<TableAdapter<B>>)) {
        let own_head = self.has_own_head();
        self.parts().for_each_part(&mut |part| match part {
            Part::Embedding(table) => {
                visit(LayerKind::Embedding, &mut table.on_embedding);
                if !own_head {
                    visit(LayerKind::Head, &mut table.on_head);
                }
            }
            Part::Head(table) => visit(LayerKind::Head, &mut table.on_head),
            Part::Linear(_) | Part::Other(_) => {}
        });
    }

    fn for_each_token_rows(
        &mut self,
        visit: &mut dyn FnMut(LayerKind, &mut Option<TrainedRows<B>>),
    ) {
        self.parts().for_each_part(&mut |part| match part {
            Part::Embedding(table) => visit(LayerKind::Embedding, &mut table.token_rows),
            Part::Head(table) => visit(LayerKind::Head, &mut table.token_rows),
            Part::Linear(_) | Part::Other(_) => {}
        });
    }

    fn table_rows(
        &mut self,
        kind: LayerKind,
        ids: &[u32],
        device: &B::Device,
    ) -> Option<Tensor<B, 2>>
    where
        B: ModelBackend,
    {
        let ids: Vec<usize> = ids.iter().map(|&id| id as usize).collect();
        let (ids, mut rows) = (indices(&ids, device), None);
        self.parts().for_each_part(&mut |part| match (part, kind) {
            (Part::Embedding(table), LayerKind::Embedding)
            | (Part::Head(table), LayerKind::Head) => rows = Some(table.look_up(&ids)),
            _ => {}
        });
        rows
    }

    fn merge_tables(&mut self)
    where
        B: ModelBackend,
    {
        // Rows are those of a table in each of its roles.
        self.parts().for_each_part(&mut |part| {
            if let Part::Embedding(table) | Part::Head(table) = part {
                table.merge_token_rows();
            }
        });
        let mut on_tables = false;
        self.for_each_table_adapter(&mut |_, _| on_tables = true);
        if on_tables {
            self.parts().untie();
        }
        self.parts().for_each_part(&mut |part| {
            if let Part::Embedding(table) | Part::Head(table) = part {
                table.merge();
            }
        });
    }

    fn virtual_tokens(&mut self) -> &mut Option<VirtualTokens<B>> {
        &mut self.virtual_tokens
    }

    fn embeddings(&self, ids: &[u32], device: &B::Device) -> Tensor<B, 2>
    where
        B: ModelBackend,
    {
        let ids: Vec<usize> = ids.iter().map(|&id| id as usize).collect();
        self.layers().look_up(&indices(&ids, device))
    }
}

impl<B: Backend> Parameters<B> for LanguageModel<B> {
    fn for_each_parameter(&mut self, visit: &mut dyn FnMut(&ParamMeta, ParamSlot<'_, B>)) {
        // First, as they stand before the layers: a gradient reaches them through all of these.
        if let Some(tokens) = &mut self.virtual_tokens {
            tokens.walk(visit);
        }
        self.parts()
            .for_each_part(&mut |part| part.for_each_parameter(visit));
        // Last, as gradients reach it before any layer, also where the table is the embedding.
        self.for_each_table_adapter(&mut |kind, adapter| {
            if kind == LayerKind::Head {
                adapter.walk(visit);
            }
        });
    }
}
