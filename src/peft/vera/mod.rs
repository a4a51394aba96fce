//! VeRA: two random matrices that all layers share and nobody trains, with a trained vector after each.
//!
//! `y + ((dropout(x) . a) * d . b) * lambda` with `a`, `b` the leading parts of the shared matrices that fit the layer.
//!
//! # Source
//! Kopiczko, Blankevoort and Asano 2023, arXiv:2310.11454; files and the shared matrices: PEFT 0.21, `VeraConfig` and `VeraModel`.

pub(super) mod joint;
mod torch_random;

use burn::module::{Module, Param, ParamId};
use burn::tensor::backend::Backend;
use burn::tensor::{Int, Tensor, TensorData};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::bias::Bias;
use super::files::{AdapterConfig, Keys, count, list_or_null, probability, saved_modules};
use super::keys::tensor_key;
use super::method::{AdapterMethod, LayerAdapter, LayerMethod, Merged, Site, dropped};
use super::projection::{ColumnOrder, LayerSpec};
use super::targets::{LinearSpec, Targets, resolve_targets};
use crate::error::Result;
use crate::ops::{ModelBackend, f32_matmul};
use crate::params::{ParamKind, ParamMeta, ParamSlot};
use crate::rng::Seed;
use crate::settings::Settings;
use torch_random::Generator;

/// Names of the vectors below a layer's path.
const LAMBDA_B: &str = "vera_lambda_b";
const LAMBDA_D: &str = "vera_lambda_d";
/// Keys of the shared matrices, `[rank, largest in]` and `[largest out, rank]` in files.
const SHARED_A: &str = "base_model.vera_A";
const SHARED_B: &str = "base_model.vera_B";

/// Vectors on shared random matrices.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct VeraConfig {
    /// Inner dimension of the random matrices.
    pub rank: usize,
    /// What the inner vectors begin with; the outer ones begin with zeros.
    pub d_initial: f64,
    /// Seed of the random matrices, PyTorch's.
    pub projection_prng_key: u64,
    /// Store the random matrices too, and not their seed alone.
    pub save_projection: bool,
    /// Which biases of the base are trained beside it.
    pub bias: Bias,
    /// Probability with which an input of the adapter (not of the base) is dropped in training.
    pub dropout: f64,
    /// Which linear layers, as for LoRA.
    pub target_modules: Vec<String>,
    /// Which of them not, said in the same way.
    pub exclude_modules: Vec<String>,
    /// Only those in the blocks with these numbers, from 0.
    pub layers_to_transform: Option<Vec<usize>>,
    /// Embeddings, norms and the output head to train and store whole, as for LoRA.
    pub modules_to_save: Vec<String>,
    /// Where the embedding is the output head, too, train the two as one.
    pub ensure_weight_tying: bool,
}

impl Default for VeraConfig {
    fn default() -> Self {
        Self {
            rank: 256,
            d_initial: 0.1,
            projection_prng_key: 0,
            save_projection: true,
            bias: Bias::None,
            dropout: 0.0,
            target_modules: vec!["all-linear".into()],
            exclude_modules: Vec::new(),
            layers_to_transform: None,
            modules_to_save: Vec::new(),
            ensure_weight_tying: false,
        }
    }
}

impl AdapterMethod for VeraConfig {
    const PEFT_TYPE: &'static str = "VERA";

    const HAS_EXCLUDE_MODULES: bool = false;

    fn problems(&self, settings: &mut Settings) {
        settings.positive("rank", self.rank);
        settings.above_zero("d_initial", self.d_initial);
        settings.below_one("dropout", self.dropout);
        settings.targets(&self.target_modules);
        settings.modules_to_save(&self.modules_to_save);
    }

    fn targets(&self, linear: &[LinearSpec]) -> Result<Vec<usize>> {
        let (targets, excluded) = (&self.target_modules, &self.exclude_modules);
        let listed = Targets::listed(targets, excluded, self.layers_to_transform.as_deref());
        resolve_targets(&listed.selection(), linear)
    }

    fn tensors(&self, layer: &LinearSpec) -> Vec<(&'static str, Vec<usize>)> {
        vec![
            (LAMBDA_B, vec![layer.out_features]),
            (LAMBDA_D, vec![self.rank]),
        ]
    }

    fn shared_tensors(&self, [inputs, outputs]: [usize; 2]) -> Vec<(&'static str, [usize; 2])> {
        let both = vec![
            (SHARED_A, [self.rank, inputs]),
            (SHARED_B, [outputs, self.rank]),
        ];
        both.into_iter().filter(|_| self.save_projection).collect()
    }

    /// Before and after the inner vector.
    fn kept_floats(&self, _: &LinearSpec) -> usize {
        2 * self.rank
    }

    fn dropout(&self) -> f64 {
        self.dropout
    }

    fn bias(&self) -> Bias {
        self.bias
    }

    fn modules_to_save(&self) -> &[String] {
        &self.modules_to_save
    }

    fn ensure_weight_tying(&self) -> bool {
        self.ensure_weight_tying
    }

    fn read(keys: &Keys<'_>, targets: &Targets) -> Result<Self, String> {
        Ok(Self {
            rank: keys.read("r", 256, count)?,
            d_initial: keys.read("d_initial", 0.1, Value::as_f64)?,
            projection_prng_key: keys.read("projection_prng_key", 0, Value::as_u64)?,
            save_projection: keys.read("save_projection", true, Value::as_bool)?,
            bias: keys.read("bias", Bias::None, Bias::read)?,
            dropout: keys.read("vera_dropout", 0.0, probability)?,
            target_modules: targets.target_modules.entries().to_vec(),
            exclude_modules: targets.excluded(),
            layers_to_transform: targets.layers_to_transform.clone(),
            modules_to_save: saved_modules(keys)?,
            ensure_weight_tying: false,
        })
    }

    fn accepts(key: &str, value: &Value) -> Option<bool> {
        match key {
            "bias" => Some(value.is_null() || Bias::read(value).is_some()),
            key => READ.contains(&key).then_some(true),
        }
    }

    fn write(&self, config: &AdapterConfig) -> Value {
        json!({
            "bias": self.bias,
            "d_initial": self.d_initial,
            "fan_in_fan_out": config.fan_in_fan_out,
            "init_weights": true,
            "layers_pattern": list_or_null(&config.targets.layers_pattern),
            "layers_to_transform": config.targets.layers_to_transform,
            "projection_prng_key": self.projection_prng_key,
            "r": self.rank,
            "save_projection": self.save_projection,
            "vera_dropout": self.dropout,
        })
    }
}

impl LayerMethod for VeraConfig {
    type Layer<B: Backend> = Vera<B>;

    fn fresh<B: ModelBackend>(&self, site: &Site<'_, B>) -> Vera<B> {
        let LinearSpec {
            in_features,
            out_features,
            ..
        } = *site.layer;
        let [inputs, outputs] = site.shared.largest;
        // Both are drawn one after the other from one generator.
        let drawn = || {
            let mut generator = Generator::new(self.projection_prng_key);
            // PyTorch's kaiming_uniform: sqrt(6 / fan_in), of a the inputs and of b the rank.
            let bound = |fan: usize| 3f64.sqrt() * (2f64.sqrt() / (fan as f64).sqrt());
            let a = generator.uniform(self.rank * inputs, bound(inputs));
            let b = generator.uniform(outputs * self.rank, bound(self.rank));
            (a, b)
        };
        let tensor = |values, shape: [usize; 2]| {
            Tensor::<B, 2>::from_data(TensorData::new(values, shape), site.device)
        };
        let shared_a = (site.shared).get_or(SHARED_A, || tensor(drawn().0, [self.rank, inputs]));
        let shared_b = (site.shared).get_or(SHARED_B, || tensor(drawn().1, [outputs, self.rank]));
        // Layers of one shape have the same tensors.
        let a = (site.shared).get_or(&format!("{SHARED_A} of {in_features}"), || {
            let part = shared_a.clone().slice([0..self.rank, 0..in_features]);
            contiguous(part.transpose())
        });
        let rows = || shared_b.clone().slice([0..out_features, 0..self.rank]);
        let b = match site.order {
            None => (site.shared).get_or(&format!("{SHARED_B} of {out_features}"), || {
                contiguous(rows().transpose())
            }),
            Some(order) => {
                let order: Vec<i32> = order.iter().map(|&column| column as i32).collect();
                let order = TensorData::new(order, [out_features]);
                let order = Tensor::<B, 1, Int>::from_data(order, site.device);
                contiguous(rows().select(0, order).transpose())
            }
        };
        let filled = |len: usize, value: f64| {
            Param::initialized(ParamId::new(), Tensor::full([len], value, site.device))
        };
        Vera {
            lambda_b: filled(out_features, 0.0),
            lambda_d: filled(self.rank, self.d_initial),
            a,
            b,
            shared: [shared_a, shared_b].to_vec(),
            dropout: self.dropout,
            stores_shared: self.save_projection,
        }
    }

    fn continues<B: Backend>(&self, present: &Self, layer: &Vera<B>, _: &str) -> bool {
        self.projection_prng_key == present.projection_prng_key
            && self.bias == present.bias
            && layer.rank() == self.rank
    }
}

/// Keys that are read, and one that says how a saved adapter came about.
const READ: [&str; 9] = [
    "d_initial",
    "fan_in_fan_out",
    "init_weights",
    "layers_pattern",
    "layers_to_transform",
    "projection_prng_key",
    "r",
    "save_projection",
    "vera_dropout",
];

/// A tensor of its own, not a view of another.
fn contiguous<B: ModelBackend>(view: Tensor<B, 2>) -> Tensor<B, 2> {
    view.mul_scalar(1.0)
}

/// The vectors of one layer, and the parts of the shared matrices that it takes.
#[derive(Module, Debug)]
pub struct Vera<B: Backend> {
    /// `[out]`; zero at the start, so that an adapter begins as the identity.
    pub lambda_b: Param<Tensor<B, 1>>,
    /// `[rank]`.
    pub lambda_d: Param<Tensor<B, 1>>,
    /// `[in, rank]`, frozen.
    a: Tensor<B, 2>,
    /// `[rank, out]`, frozen.
    b: Tensor<B, 2>,
    /// The whole matrices, as files hold them.
    shared: Vec<Tensor<B, 2>>,
    /// Probability with which an input of the adapter is dropped.
    pub dropout: f64,
    /// Whether files hold the whole matrices.
    stores_shared: bool,
}

impl<B: Backend> Vera<B> {
    fn rank(&self) -> usize {
        self.a.dims()[1]
    }
}

impl<B: Backend> LayerAdapter<B> for Vera<B> {
    type Config = VeraConfig;

    fn continue_as(&mut self, wanted: &VeraConfig) {
        self.dropout = wanted.dropout;
        self.stores_shared = wanted.save_projection;
    }

    fn output(&self, x: &Tensor<B, 2>, y: Tensor<B, 2>, dropout: Option<Seed>) -> Tensor<B, 2>
    where
        B: ModelBackend,
    {
        let x = dropped(x, self.dropout, dropout);
        let inner = f32_matmul(x, self.a.clone()) * self.lambda_d.val().unsqueeze::<2>();
        y + f32_matmul(inner, self.b.clone()) * self.lambda_b.val().unsqueeze::<2>()
    }

    fn merge(&self, weight: Tensor<B, 2>, _: Option<Tensor<B, 1>>) -> Option<Merged<B>>
    where
        B: ModelBackend,
    {
        let a = self.a.clone() * self.lambda_d.val().detach().unsqueeze::<2>();
        let b = self.b.clone() * self.lambda_b.val().detach().unsqueeze::<2>();
        Some(Merged {
            weight: weight + f32_matmul(a, b),
            bias: None,
        })
    }

    fn shared(&self) -> Vec<(&'static str, Tensor<B, 2>)> {
        let named = [SHARED_A, SHARED_B].into_iter().zip(self.shared.clone());
        named.filter(|_| self.stores_shared).collect()
    }

    fn walk(
        &mut self,
        layer: &LayerSpec,
        order: &ColumnOrder,
        visit: &mut dyn FnMut(&ParamMeta, ParamSlot<'_, B>),
    ) {
        let rank = self.rank();
        let meta = |name, entries| {
            let key = tensor_key(&layer.path, name);
            ParamMeta::single(ParamKind::Adapter, key, entries, false)
        };
        visit(
            &meta(LAMBDA_B, layer.width).ordered(order.clone()),
            ParamSlot::Vector(&mut self.lambda_b),
        );
        visit(&meta(LAMBDA_D, rank), ParamSlot::Vector(&mut self.lambda_d));
    }
}
