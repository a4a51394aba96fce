//! LoRA on a table with one row per token: beside the look-up of the embedding, and beside the product of the output head.
//!
//! The head's rows with the adapter are formed as a whole, once until a parameter changes, so that fused log-probabilities, sampling and
//! decoding read them as they read any head.
//!
//! # Source
//! PEFT 0.21, `lora.layer.Embedding` and `lora.layer.Linear` on `lm_head`. With tied tables each adapter changes its own side.

use burn::module::{Module, Param, ParamId};
use burn::tensor::backend::Backend;
use burn::tensor::{Int, Tensor, TensorData};

use super::{Lora, LoraConfig, start};
use crate::ops::{ModelBackend, f32_matmul};
use crate::params::{ParamKind, ParamMeta, ParamSlot};
use crate::peft::keys::tensor_key;
use crate::peft::memo::Memo;
use crate::peft::method::LayerAdapter;
use crate::peft::projection::LayerSpec;
use crate::peft::targets::{LayerKind, LinearSpec};
use crate::peft::{AdapterSpec, LayerMethod};
use crate::rng::Seed;

/// Name of the rows' low-rank part below the embedding's path, `[rank, vocab]` in files.
pub(super) const EMBEDDING_A: &str = "lora_embedding_A";
/// Name of its up projection, `[width, rank]` in files.
pub(super) const EMBEDDING_B: &str = "lora_embedding_B";

/// LoRA on a table in one of its roles.
///
/// # Shapes
/// - embedding: `a` is `[vocab, rank]`, `b` `[rank, width]`: a linear layer that reads one-hot tokens
/// - output head: `a` is `[width, rank]`, `b` `[rank, vocab]`
#[derive(Module, Debug)]
pub struct TableAdapter<B: Backend> {
    lora: Lora<B>,
    #[module(skip)]
    layer: LayerSpec,
    #[module(skip)]
    kind: LayerKind,
    /// The head's rows with the adapter, kept while no parameter is walked.
    #[module(skip)]
    sum: Memo,
}

impl<B: ModelBackend> TableAdapter<B> {
    /// A fresh adapter; the table computes what it computed without. `None` for a method that is not for tables.
    pub fn fresh(
        spec: &AdapterSpec,
        layer: &LinearSpec,
        seed: Seed,
        device: &B::Device,
    ) -> Option<Self> {
        let AdapterSpec::Lora(config) = spec else {
            return None;
        };
        let (rank, seed) = (config.rank_of(&layer.name), seed.fork(&layer.name));
        let (inputs, outputs) = (layer.in_features, layer.out_features);
        let (a, b) = match layer.kind {
            LayerKind::Embedding => {
                let draws = (0..(rank * outputs) as u64).map(|i| seed.normal(i) as f32);
                let draws = TensorData::new(draws.collect::<Vec<f32>>(), [rank, outputs]);
                (
                    Tensor::zeros([inputs, rank], device),
                    Tensor::from_data(draws, device),
                )
            }
            LayerKind::Head | LayerKind::Linear => (
                start::drawn(config.init_lora_weights, [inputs, rank], seed, device),
                Tensor::zeros([rank, outputs], device),
            ),
        };
        let param = |tensor| Param::initialized(ParamId::new(), tensor);
        Some(Self {
            lora: Lora {
                a: param(a),
                b: param(b),
                bias: None,
                scale: config.scale_of(&layer.name),
                dropout: 0.0,
                magnitude: None,
                start: None,
                lr_ratio: config.lr_ratio(),
            },
            layer: LayerSpec {
                path: layer.name.clone(),
                width: outputs,
            },
            kind: layer.kind,
            sum: Memo::default(),
        })
    }

    /// Rows of the embedding, those of `ids`, with the adapter: `[tokens, width]`.
    pub fn look_up(&self, rows: Tensor<B, 2>, ids: &Tensor<B, 1, Int>) -> Tensor<B, 2> {
        let inner = self.lora.a.val().select(0, ids.clone());
        rows + f32_matmul(inner, self.lora.b.val()).mul_scalar(self.lora.scale)
    }

    /// The head with the adapter, `[vocab, width]`; `weight` gives it without.
    pub fn head(&self, weight: &dyn Fn() -> Tensor<B, 2>) -> Tensor<B, 2> {
        let sum = || weight() + self.change();
        // A sum in a backward pass's graph belongs to that pass.
        match self.lora.b.val().is_require_grad() || self.lora.a.val().is_require_grad() {
            true => sum(),
            false => self.sum.get_or(&sum),
        }
    }

    /// What the adapter adds to the table, `[vocab, width]`.
    pub fn change(&self) -> Tensor<B, 2> {
        let (a, b) = (self.lora.a.val(), self.lora.b.val());
        let product = match self.kind {
            LayerKind::Embedding => f32_matmul(a, b),
            LayerKind::Head | LayerKind::Linear => f32_matmul(b.transpose(), a.transpose()),
        };
        product.mul_scalar(self.lora.scale)
    }
}

impl<B: Backend> TableAdapter<B> {
    /// Path of the table in this role.
    pub fn path(&self) -> &str {
        &self.layer.path
    }

    /// Whether an adapter that was trained as `present` says can be trained on as `wanted` says.
    pub fn continues(&self, wanted: &AdapterSpec, present: &AdapterSpec) -> bool {
        match (wanted, present) {
            (AdapterSpec::Lora(wanted), AdapterSpec::Lora(present)) => {
                LoraConfig::continues(wanted, present, &self.lora, &self.layer.path)
            }
            _ => false,
        }
    }

    /// Takes over those settings of a later stage that a trained adapter may change.
    pub fn continue_as(&mut self, wanted: &AdapterSpec) {
        if let AdapterSpec::Lora(wanted) = wanted {
            self.lora.lr_ratio = wanted.lr_ratio();
        }
    }

    /// Walks the trained parameters.
    pub fn walk(&mut self, visit: &mut dyn FnMut(&ParamMeta, ParamSlot<'_, B>)) {
        self.sum.reset();
        if self.kind != LayerKind::Embedding {
            return self.lora.walk(&self.layer, &None, visit);
        }
        let rank = self.lora.rank();
        let meta = |name, columns| {
            let key = tensor_key(&self.layer.path, name);
            ParamMeta::single(ParamKind::Adapter, key, columns, true)
        };
        visit(
            &meta(EMBEDDING_A, rank),
            ParamSlot::Matrix(&mut self.lora.a),
        );
        visit(
            &meta(EMBEDDING_B, self.layer.width),
            ParamSlot::Matrix(&mut self.lora.b),
        );
    }
}
