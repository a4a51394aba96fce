//! Parameter-efficient fine-tuning: which weights are trained, the linear layer that carries adapters, and the adapters.

#![allow(
    clippy::large_enum_variant,
    reason = "a model has few adapters, and `derive(Module)` repeats the enum for records"
)]

mod bias;
pub mod files;
mod ia3;
pub(crate) mod keys;
mod lora;
mod memo;
mod method;
pub mod only;
mod patterns;
mod projection;
pub mod targets;
mod vera;

use std::collections::BTreeSet;
use std::sync::Arc;

use burn::module::Module;
use burn::tensor::Tensor;
use burn::tensor::backend::Backend;
use serde::{Deserialize, Serialize};
use serde_json::Value;

pub use bias::{Bias, bias_key};
pub use files::{AdapterConfig, TaskType};
pub use ia3::{Ia3, Ia3Config};
pub use keys::{saved_key, tensor_key};
pub use lora::{
    AdapterFiles, Combination, CombineSettings, InitLoraWeights, LargestSingular, Lora, LoraConfig,
    Magnitude, MajoritySign, Rule, Start, combine, largest_singular,
};
pub use method::{AdapterMethod, LayerAdapter, Merged, Settings, Shared, Site};
pub use patterns::Patterns;
pub use projection::{Base, ColumnOrder, LayerSpec, Projection};
pub use targets::{LinearSpec, Selection, TargetModules, Targets, resolve_targets};
pub use vera::{Vera, VeraConfig};

use crate::error::{Error, Problem, Result};
use crate::ops::ModelBackend;
use crate::params::{ParamKind, ParamMeta, ParamSlot, Parameters};
use crate::rng::Seed;
use files::Keys;
use only::TensorName;

/// The one list of adapter methods: name in recipes, settings, and what sits on a layer.
macro_rules! adapter_methods {
    ($($(#[$doc:meta])* $method:ident($config:ident, $layer:ident);)+) => {
        /// Which weights are trained.
        #[derive(Debug, Clone, PartialEq, Serialize, Deserialize, Default)]
        #[serde(deny_unknown_fields)]
        pub enum Peft {
            /// Every parameter of the model.
            #[default]
            Full,
            /// The parameters of the model with these names; see [`only`].
            Only(Vec<String>),
            $($(#[$doc])* $method($config),)+
        }

        /// The settings of adapters, whatever their method.
        #[derive(Debug, Clone, PartialEq)]
        pub enum AdapterSpec {
            $($(#[$doc])* $method($config),)+
        }

        /// What sits on one linear layer, whatever the method.
        #[derive(Module, Debug)]
        pub enum Adapter<B: Backend> {
            $($(#[$doc])* $method($layer<B>),)+
        }

        $(
            impl From<&$config> for AdapterSpec {
                fn from(config: &$config) -> Self {
                    Self::$method(config.clone())
                }
            }
        )+

        impl From<AdapterSpec> for Peft {
            fn from(spec: AdapterSpec) -> Self {
                match spec {
                    $(AdapterSpec::$method(config) => Self::$method(config),)+
                }
            }
        }

        impl From<&AdapterSpec> for AdapterSpec {
            fn from(spec: &AdapterSpec) -> Self {
                spec.clone()
            }
        }

        impl Peft {
            /// The adapters that are trained; `None` where weights of the model itself are.
            pub fn adapter(&self) -> Option<AdapterSpec> {
                match self {
                    Self::Full | Self::Only(_) => None,
                    $(Self::$method(config) => Some(config.into()),)+
                }
            }
        }

        impl AdapterSpec {
            /// The layer's adapter as training begins.
            pub fn fresh<B: ModelBackend>(&self, site: &Site<'_, B>) -> Adapter<B> {
                match self {
                    $(Self::$method(config) => Adapter::$method(config.fresh(site)),)+
                }
            }

            /// Whether `layer`, trained as `present` says, can be trained on as this says.
            pub fn continues<B: Backend>(&self, present: &Self, layer: &Adapter<B>, path: &str) -> bool {
                match (self, present, layer) {
                    $((Self::$method(wanted), Self::$method(present), Adapter::$method(layer)) => {
                        wanted.continues(present, layer, path)
                    })+
                    _ => false,
                }
            }

            /// From the keys of `adapter_config.json`.
            ///
            /// # Errors
            /// For a method that is not known, and as [`AdapterMethod::read`].
            fn read(peft_type: &str, keys: &Keys<'_>, targets: &Targets) -> Result<Self, String> {
                match peft_type {
                    $($config::PEFT_TYPE => $config::read(keys, targets).map(Self::$method),)+
                    _ => Err(unknown_method(peft_type)),
                }
            }

            /// As [`AdapterMethod::accepts`].
            fn accepts(peft_type: &str, key: &str, value: &Value) -> Option<bool> {
                match peft_type {
                    $($config::PEFT_TYPE => $config::accepts(key, value),)+
                    _ => None,
                }
            }

            /// As [`AdapterMethod::stored`].
            pub fn stored(&self) -> Self {
                match self {
                    $(Self::$method(config) => Self::$method(config.stored()),)+
                }
            }

            /// The values of `peft_type` that are known.
            const PEFT_TYPES: &'static [&'static str] = &[$($config::PEFT_TYPE),+];
        }

        impl<B: Backend> Adapter<B> {
            /// As [`LayerAdapter::stored`].
            pub fn stored(&self) -> Option<Self> {
                match self {
                    $(Self::$method(layer) => layer.stored().map(Self::$method),)+
                }
            }

            /// Takes over those settings of a later stage that a trained adapter may change.
            pub fn continue_as(&mut self, wanted: &AdapterSpec) {
                match (self, wanted) {
                    $((Self::$method(layer), AdapterSpec::$method(wanted)) => layer.continue_as(wanted),)+
                    _ => {}
                }
            }
        }

        /// The settings, or the layer's part, of whichever method it is.
        macro_rules! by_method {
            ($value:expr, $of:ident, $inner:ident => $body:expr) => {
                match $value {
                    $($of::$method($inner) => $body,)+
                }
            };
        }
    };
}

adapter_methods! {
    /// Low-rank adapters on a frozen base.
    Lora(LoraConfig, Lora);
    /// A factor for each feature of linear layers on a frozen base.
    Ia3(Ia3Config, Ia3);
    /// Vectors on random matrices that all layers share, on a frozen base.
    Vera(VeraConfig, Vera);
}

fn unknown_method(peft_type: &str) -> String {
    let known: Vec<String> = (AdapterSpec::PEFT_TYPES.iter())
        .map(|name| format!("\"{name}\""))
        .collect();
    format!(
        "peft_type \"{peft_type}\" is not supported; supported: {}",
        known.join(", ")
    )
}

impl Peft {
    /// Whether weights of the model itself are trained: a result is then a whole model.
    pub fn trains_base(&self) -> bool {
        self.adapter().is_none()
    }

    /// Settings that cannot be, as far as they show without a model; `place` is the key.
    pub fn problems(&self) -> Vec<Problem> {
        match (self, self.adapter()) {
            (Self::Only(entries), _) if entries.iter().all(String::is_empty) => {
                let problem = Problem::new("", "names no parameter, so nothing would be trained");
                vec![problem.with_help("e.g. `Only([\"layers.-1\", \"norm\", \"lm_head\"])`")]
            }
            (_, Some(adapter)) => adapter.problems(),
            (_, None) => Vec::new(),
        }
    }

    /// Probability with which training drops inputs of adapters.
    pub fn dropout(&self) -> f64 {
        self.adapter().map_or(0.0, |spec| spec.dropout())
    }

    /// Names of the model's own tensors that are trained; none where adapters are.
    ///
    /// # Errors
    /// As [`only::resolve`].
    pub fn trained(&self, tensors: &[TensorName<'_>]) -> Result<BTreeSet<String>> {
        let own = tensors.iter().filter(|tensor| tensor.tied_to.is_none());
        match self {
            Self::Only(entries) => only::resolve(entries, tensors),
            _ if self.trains_base() => Ok(own.map(|tensor| tensor.name.to_owned()).collect()),
            _ => Ok(BTreeSet::new()),
        }
    }

    /// Trains what this says, and a score head in any case; freezes the rest.
    pub fn mark_trained<B: Backend, M: Parameters<B> + Adaptable<B>>(&self, model: &mut M) {
        let Self::Only(entries) = self else {
            let whole = self.trains_base();
            let part = |kind| matches!(kind, ParamKind::Adapter | ParamKind::Score);
            model.for_each_projection(&mut |projection| projection.train_only_columns(&|_| true));
            model.train_only(&|kind| whole || part(kind));
            return self.mark_biases(model);
        };
        let mut names = Vec::new();
        model.for_each_parameter(&mut |meta, _| {
            names.extend(meta.pieces.iter().map(|(name, _)| name.clone()));
        });
        let chosen = only::chosen(entries, names.iter().map(String::as_str));
        model.for_each_parameter(&mut |meta, mut slot| {
            let named = meta.pieces.iter().any(|(name, _)| chosen.contains(name));
            slot.set_trained(named || meta.kind == ParamKind::Score);
        });
        model.for_each_projection(&mut |projection| {
            projection.train_only_columns(&|name| chosen.contains(name));
        });
    }

    /// Trains the biases of the base that are trained beside adapters.
    fn mark_biases<B: Backend, M: Parameters<B> + Adaptable<B>>(&self, model: &mut M) {
        let bias = self.adapter().map_or(Bias::None, |spec| spec.bias());
        if bias == Bias::None {
            return;
        }
        let mut adapted = BTreeSet::new();
        model.for_each_projection(&mut |projection| {
            projection.own_bias();
            let layers = projection.layers().iter().zip(&projection.adapters);
            let with_adapter = layers.filter(|(_, adapter)| adapter.is_some());
            adapted.extend(with_adapter.map(|(layer, _)| layer.path.clone()));
        });
        let chosen = |name: &str| bias.trains(name, |path| adapted.contains(path));
        model.for_each_parameter(&mut |meta, mut slot| {
            if meta.kind == ParamKind::Vector && meta.pieces.iter().any(|(name, _)| chosen(name)) {
                slot.set_trained(true);
            }
        });
        model.for_each_projection(&mut |projection| projection.train_only_columns(&chosen));
    }
}

impl AdapterSpec {
    /// As [`AdapterMethod::bias`].
    pub fn bias(&self) -> Bias {
        by_method!(self, Self, config => config.bias())
    }

    /// As [`AdapterMethod::HAS_EXCLUDE_MODULES`].
    fn has_exclude_modules(&self) -> bool {
        fn of<M: AdapterMethod>(_: &M) -> bool {
            M::HAS_EXCLUDE_MODULES
        }
        by_method!(self, Self, config => of(config))
    }

    /// PEFT's `peft_type`.
    pub fn peft_type(&self) -> &'static str {
        fn of<M: AdapterMethod>(_: &M) -> &'static str {
            M::PEFT_TYPE
        }
        by_method!(self, Self, config => of(config))
    }

    /// As [`AdapterMethod::problems`]; `place` is the key.
    pub fn problems(&self) -> Vec<Problem> {
        let mut settings = Settings::default();
        by_method!(self, Self, config => config.problems(&mut settings));
        settings.into_problems()
    }

    /// As [`AdapterMethod::targets`].
    ///
    /// # Errors
    /// `Error::Usage` for what matches no layer.
    pub fn targets(&self, linear: &[LinearSpec]) -> Result<Vec<usize>> {
        by_method!(self, Self, config => config.targets(linear))
    }

    /// Names and shapes in files of the tensors of one layer's adapter.
    pub fn tensors(&self, layer: &LinearSpec) -> Vec<(&'static str, Vec<usize>)> {
        by_method!(self, Self, config => config.tensors(layer))
    }

    /// As [`AdapterMethod::shared_tensors`].
    pub fn shared_tensors(&self, largest: [usize; 2]) -> Vec<(&'static str, [usize; 2])> {
        by_method!(self, Self, config => config.shared_tensors(largest))
    }

    /// Parameters of one layer's adapter.
    pub fn num_params(&self, layer: &LinearSpec) -> usize {
        let tensors = self.tensors(layer);
        (tensors.iter())
            .map(|(_, shape)| shape.iter().product::<usize>())
            .sum()
    }

    /// As [`AdapterMethod::dropout`].
    pub fn dropout(&self) -> f64 {
        by_method!(self, Self, config => config.dropout())
    }

    /// As [`AdapterMethod::rank`].
    pub fn rank(&self) -> Option<usize> {
        by_method!(self, Self, config => config.rank())
    }

    fn unused(&self, paths: &[&str]) -> Vec<String> {
        by_method!(self, Self, config => config.unused(paths))
    }

    fn write(&self, config: &AdapterConfig) -> Value {
        by_method!(self, Self, method => method.write(config))
    }
}

impl<B: Backend> Adapter<B> {
    fn input(&self, x: &Tensor<B, 2>) -> Option<Tensor<B, 2>> {
        by_method!(self, Self, layer => layer.input(x))
    }

    fn output(&self, x: &Tensor<B, 2>, y: Tensor<B, 2>, dropout: Option<Seed>) -> Tensor<B, 2>
    where
        B: ModelBackend,
    {
        by_method!(self, Self, layer => layer.output(x, y, dropout))
    }

    fn merge(&self, weight: Tensor<B, 2>, bias: Option<Tensor<B, 1>>) -> Option<Merged<B>>
    where
        B: ModelBackend,
    {
        by_method!(self, Self, layer => layer.merge(weight, bias))
    }

    /// As [`LayerAdapter::shared`].
    pub fn shared(&self) -> Vec<(&'static str, Tensor<B, 2>)> {
        by_method!(self, Self, layer => layer.shared())
    }

    fn walk(
        &mut self,
        layer: &LayerSpec,
        order: &Option<Arc<Vec<usize>>>,
        visit: &mut dyn FnMut(&ParamMeta, ParamSlot<'_, B>),
    ) {
        by_method!(self, Self, adapter => adapter.walk(layer, order, visit));
    }
}

/// A model whose linear layers can carry adapters.
pub trait Adaptable<B: Backend> {
    /// Calls `visit` for every projection of the backbone, in order; the output head is not one.
    fn for_each_projection(&mut self, visit: &mut dyn FnMut(&mut Projection<B>));

    /// Gives a fresh adapter to every layer whose path `targeted` accepts; returns how many. `shared`: tensors that they are to
    /// have in common, where files brought them.
    fn attach(
        &mut self,
        spec: &AdapterSpec,
        seed: Seed,
        shared: Vec<(&'static str, Tensor<B, 2>)>,
        targeted: &dyn Fn(&str) -> bool,
    ) -> usize
    where
        B: ModelBackend,
    {
        let mut largest = [0, 0];
        self.for_each_projection(&mut |projection| {
            let inputs = projection.inputs();
            let layers = projection.layers().iter();
            for layer in layers.filter(|layer| targeted(&layer.path)) {
                largest = [largest[0].max(inputs), largest[1].max(layer.width)];
            }
        });
        let shared = Shared::new(largest, shared);
        let mut count = 0;
        self.for_each_projection(&mut |projection| {
            for index in 0..projection.layers().len() {
                if targeted(&projection.layers()[index].path) {
                    projection.attach(index, spec, seed, &shared);
                    count += 1;
                }
            }
        });
        count
    }

    /// Removes all adapters: the model is its base again.
    fn detach_adapters(&mut self) {
        self.for_each_projection(&mut |projection| projection.detach());
    }

    /// Adds all adapters to their weights and removes them.
    ///
    /// # Errors
    /// `Error::Usage` for a method that no weight can stand for; the model is as it was.
    fn merge_adapters(&mut self) -> Result<()>
    where
        B: ModelBackend,
    {
        let mut refused = None;
        self.for_each_projection(&mut |projection| {
            if refused.is_none() && projection.merge().is_none() {
                refused = Some(projection.layers()[0].path.clone());
            }
        });
        refused.map_or(Ok(()), |path| {
            Err(Error::Usage(format!(
                "{path}: its adapter computes what no weight can, so it cannot be merged into the model; \
                 use the model with the adapter beside it"
            )))
        })
    }
}
