//! LoRA: a low-rank product beside the weight of a linear layer.
//!
//! # Source
//! Hu et al. 2021, arXiv:2106.09685; rsLoRA: Kalajdzievski 2023, arXiv:2312.03732; DoRA: Liu et al. 2024, arXiv:2402.09353;
//! LoRA+: Hayou et al. 2024, arXiv:2402.12354; files: PEFT 0.21, `LoraConfig`.

mod combine;
mod combine_files;
mod config;
mod dora;
mod file;
pub(super) mod low_rank;
mod start;
mod svd;
mod table;

use burn::module::{Module, Param, ParamId};
use burn::tensor::Tensor;
use burn::tensor::backend::Backend;

pub use combine::{
    AdapterFiles, Combination, CombineSettings, LargestSingular, MajoritySign, Rule, combine,
};
pub use config::LoraConfig;
pub use dora::Magnitude;
pub(super) use dora::column_factors;
pub(super) use low_rank::added_bias;
pub use start::{InitLoraWeights, Start};
pub use svd::largest_singular;
pub use table::TableAdapter;

use table::{EMBEDDING_A, EMBEDDING_B};

use super::AdapterSpec;
use super::keys::tensor_key;
use super::method::{LayerAdapter, Merged, Site, dropped};
use super::projection::{ColumnOrder, LayerSpec};
use crate::ops::{ModelBackend, f32_matmul};
use crate::params::{ParamKind, ParamMeta, ParamSlot};
use crate::rng::Seed;

/// Name of the down projection below a layer's path.
const A: &str = "lora_A.weight";
/// Name of the up projection below a layer's path.
const B_NAME: &str = "lora_B.weight";
/// Name of the up projection's bias below a layer's path.
const B_BIAS: &str = "lora_B.bias";
/// Name of DoRA's magnitudes below a layer's path.
const MAGNITUDE: &str = "lora_magnitude_vector";

/// `scale * ((dropout(x) . a) . b + bias)`, added to the layer's output; with DoRA the sum without the layer's bias is then scaled by
/// column.
///
/// # Shapes
/// - `a`: `[in, rank]`, `b`: `[rank, out]` (PEFT's files hold the transposes), `bias`: `[out]`
///
/// # Source
/// Hu et al. 2021, arXiv:2106.09685.
#[derive(Module, Debug)]
pub struct Lora<B: Backend> {
    /// Down projection.
    pub a: Param<Tensor<B, 2>>,
    /// Up projection; zero at the start, so that an adapter begins as the identity, but for PiSSA and OLoRA.
    pub b: Param<Tensor<B, 2>>,
    /// Of the up projection (`lora_bias`).
    pub bias: Option<Param<Tensor<B, 1>>>,
    /// `alpha / rank`, or `alpha / sqrt(rank)` for rsLoRA.
    pub scale: f64,
    /// Probability with which an input of the adapter is dropped.
    pub dropout: f64,
    /// DoRA's norms of the outputs' weights.
    pub magnitude: Option<Magnitude<B>>,
    /// What is subtracted beside it; see [`Start`].
    start: Option<Start<B>>,
    /// Factor on the learning rate of all but `a` (LoRA+).
    lr_ratio: f64,
}

impl AdapterSpec {
    /// LoRA's settings, for formats that have nothing else.
    pub fn lora(&self) -> Option<&LoraConfig> {
        match self {
            Self::Lora(config) => Some(config),
            _ => None,
        }
    }
}

impl<B: Backend> Lora<B> {
    /// A fresh adapter; the layer computes what it computed without.
    pub fn new(config: &LoraConfig, site: &Site<'_, B>) -> Self
    where
        B: ModelBackend,
    {
        let (path, outputs) = (&site.layer.name, site.layer.out_features);
        let scale = config.scale_of(path);
        let init = config.init_lora_weights;
        let start = start::matrices(init, config.rank_of(path), scale, site);
        let bias = || Param::initialized(ParamId::new(), Tensor::zeros([outputs], site.device));
        Self {
            a: Param::initialized(ParamId::new(), start.a.clone()),
            b: Param::initialized(ParamId::new(), start.b.clone()),
            bias: config.lora_bias.then(bias),
            scale,
            dropout: config.dropout,
            magnitude: (config.use_dora).then(|| Magnitude::of((site.weight)())),
            start: init.takes_of_weight().then(|| start.subtracted()),
            lr_ratio: config.lr_ratio(),
        }
    }

    /// Inner dimension.
    pub fn rank(&self) -> usize {
        self.a.val().dims()[1]
    }

    /// Whether it does no more than add low-rank products to the layer's output.
    pub(super) fn is_plain(&self) -> bool {
        self.magnitude.is_none() && self.bias.is_none()
    }

    /// The low-rank matrices, what is subtracted beside the trained ones: `[in, ranks]` and `[ranks, out]`. One product computes both, since parts of
    /// the fused operation may not share output columns.
    fn matrices(&self) -> (Tensor<B, 2>, Tensor<B, 2>) {
        match &self.start {
            Some(start) => (
                Tensor::cat(vec![self.a.val(), start.a.clone()], 1),
                Tensor::cat(vec![self.b.val(), start.b.clone()], 0),
            ),
            None => (self.a.val(), self.b.val()),
        }
    }

    /// `scale * (x . a) . b` of the trained matrices, `[tokens, out]`.
    pub(super) fn product(&self, x: Tensor<B, 2>) -> Tensor<B, 2>
    where
        B: ModelBackend,
    {
        let ranks = f32_matmul(x, self.a.val());
        f32_matmul(ranks, self.b.val()).mul_scalar(self.scale)
    }

    /// What the start adds to the weight's product; see [`Start`].
    pub(super) fn start_product(&self, x: Tensor<B, 2>) -> Option<Tensor<B, 2>>
    where
        B: ModelBackend,
    {
        let start = self.start.as_ref()?;
        let ranks = f32_matmul(x, start.a.clone());
        Some(f32_matmul(ranks, start.b.clone()).mul_scalar(self.scale))
    }

    /// The up projection's bias as it is added, `[1, out]`.
    pub(super) fn added_bias(&self) -> Option<Tensor<B, 2>> {
        let bias = self.bias.as_ref()?;
        Some(bias.val().unsqueeze::<2>().mul_scalar(self.scale))
    }

    /// `x` with inputs dropped; each adapter sees its own mask, as in PEFT.
    pub(super) fn dropped(&self, x: &Tensor<B, 2>, seed: Seed) -> Tensor<B, 2> {
        dropped(x, self.dropout, Some(seed))
    }

    /// `scale * a . b`, `[in, out]`: what a merge adds to the weight, what the adapter began with subtracted.
    pub fn delta(&self) -> Tensor<B, 2>
    where
        B: ModelBackend,
    {
        let (a, b) = self.matrices();
        f32_matmul(a, b).mul_scalar(self.scale)
    }
}

impl<B: Backend> LayerAdapter<B> for Lora<B> {
    type Config = LoraConfig;

    fn continue_as(&mut self, wanted: &LoraConfig) {
        self.dropout = wanted.dropout;
        self.lr_ratio = wanted.lr_ratio();
    }

    /// # Panics
    /// Always: the adapters of a model are of one method, and LoRA's of one projection are computed together (`low_rank.rs`).
    fn output(&self, _: &Tensor<B, 2>, _: Tensor<B, 2>, _: Option<Seed>) -> Tensor<B, 2>
    where
        B: ModelBackend,
    {
        unreachable!("LoRA's adapters of a projection are computed together")
    }

    fn merge(&self, weight: Tensor<B, 2>, bias: Option<Tensor<B, 1>>) -> Option<Merged<B>>
    where
        B: ModelBackend,
    {
        let weight = weight + self.delta().detach();
        let bias = match self.added_bias() {
            // A layer without a bias has nowhere to put one.
            Some(added) => Some(bias? + added.detach().squeeze_dim::<1>(0)),
            None => None,
        };
        Some(Merged {
            weight: match &self.magnitude {
                Some(magnitude) => magnitude.scaled(weight),
                None => weight,
            },
            bias,
        })
    }

    fn restore(&mut self, spec: &LoraConfig) {
        let (a, b) = (self.a.val(), self.b.val());
        let ([inputs, ranks], [_, outputs]) = (a.dims(), b.dims());
        let rank = ranks / 2;
        let part = |ranks: std::ops::Range<usize>| Start {
            a: a.clone().slice([0..inputs, ranks.clone()]),
            b: b.clone().slice([ranks, 0..outputs]),
        };
        let trained = part(0..rank);
        self.a = Param::initialized(ParamId::new(), trained.a);
        self.b = Param::initialized(ParamId::new(), trained.b);
        self.start = Some(part(rank..ranks));
        self.lr_ratio = spec.lr_ratio();
    }

    fn stored(&self) -> Option<Self> {
        self.start.as_ref()?;
        let (a, b) = self.matrices();
        let param = |tensor| Param::initialized(ParamId::new(), tensor);
        Some(Self {
            a: param(a),
            b: param(b),
            start: None,
            ..self.clone()
        })
    }

    fn walk(
        &mut self,
        layer: &LayerSpec,
        order: &ColumnOrder,
        visit: &mut dyn FnMut(&ParamMeta, ParamSlot<'_, B>),
    ) {
        let rank = self.rank();
        let meta = |name, columns| {
            let key = tensor_key(&layer.path, name);
            ParamMeta::single(ParamKind::Adapter, key, columns, true)
        };
        let of_outputs = |name| {
            let meta = meta(name, layer.width).ordered(order.clone());
            meta.with_lr_factor(self.lr_ratio)
        };
        visit(&meta(A, rank), ParamSlot::Matrix(&mut self.a));
        visit(&of_outputs(B_NAME), ParamSlot::Matrix(&mut self.b));
        if let Some(bias) = &mut self.bias {
            visit(&of_outputs(B_BIAS), ParamSlot::Vector(bias));
        }
        if let Some(magnitude) = &mut self.magnitude {
            let values = &mut magnitude.values;
            visit(&of_outputs(MAGNITUDE), ParamSlot::Vector(values));
        }
    }
}
