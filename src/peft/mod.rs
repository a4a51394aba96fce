//! Parameter-efficient fine-tuning: which weights are trained, the linear layer that carries adapters, and the adapters.
#![allow(
    clippy::large_enum_variant,
    reason = "a model has one set of virtual tokens; the derive's record is an enum, too"
)]

mod adaptable;
pub(crate) mod base;
mod bias;
mod bottleneck;
pub(crate) mod bottleneck_files;
mod dense;
pub mod files;
mod ia3;
pub(crate) mod keys;
mod lora;
mod memo;
mod method;
pub mod only;
mod p_tuning;
mod patterns;
mod prefix_tuning;
mod projection;
mod prompt_tuning;
pub mod targets;
mod trainable_tokens;
mod trained;
mod vera;
mod virtual_tokens;

use burn::module::Module;
use burn::tensor::Tensor;
use burn::tensor::backend::Backend;
use serde::{Deserialize, Serialize};
use serde_json::Value;

pub use adaptable::Adaptable;
pub use beside::{Beside, beside_key, names as names_module};
pub use bias::Bias;
pub use bottleneck::{Bottleneck, BottleneckConfig, NonLinearity, Placement};
pub use files::{AdapterConfig, TaskType};
pub use ia3::{Ia3, Ia3Config};
pub use keys::{prompt_saved_key, saved_key, tensor_key};
pub use lora::{
    AdapterFiles, Combination, CombineSettings, InitLoraWeights, LargestSingular, Lora, LoraConfig,
    Magnitude, MajoritySign, Rule, Start, TableAdapter, combine, largest_singular,
};
pub(crate) use method::dropped;
pub use method::{AdapterMethod, LayerAdapter, LayerMethod, Merged, Shared, Site};
pub use p_tuning::{EncodedPrompt, PTuningConfig, PromptEncoderKind};
pub use patterns::Patterns;
pub use prefix_tuning::{Prefix, PrefixTuningConfig};
pub use projection::{Base, ColumnOrder, LayerSpec, Projection};
pub use prompt_tuning::{PromptEmbeddings, PromptInit, PromptTuningConfig};
pub use targets::{LayerKind, LinearSpec, Selection, TargetModules, Targets, resolve_targets};
pub use token_rows::{TOKEN_ROWS, TokenIndices, TokenName, TokenRows, TrainedRows};
pub use trainable_tokens::TrainableTokensConfig;
pub use vera::{Vera, VeraConfig};
pub use virtual_tokens::{
    DecoderShape, Encode, PROMPT_EMBEDDINGS, PromptMethod, PromptStart, PromptTokens, no_text,
};

use crate::error::{Problem, Result};
use crate::ops::ModelBackend;
use crate::rng::Seed;
use crate::settings::Settings;
use files::Keys;

/// The one list of adapter methods: name in recipes, settings, and what sits on a layer or stands before every row.
macro_rules! adapter_methods {
    (
        layers { $($(#[$doc:meta])* $method:ident($config:ident, $layer:ident);)+ }
        tables { $($(#[$table_doc:meta])* $table:ident($table_config:ident);)+ }
        rows { $($(#[$prompt_doc:meta])* $prompt:ident($prompt_config:ident, $tokens:ident);)+ }
    ) => {
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
            $($(#[$table_doc])* $table($table_config),)+
            $($(#[$prompt_doc])* $prompt($prompt_config),)+
        }

        /// The settings of adapters, whatever their method.
        #[derive(Debug, Clone, PartialEq)]
        pub enum AdapterSpec {
            $($(#[$doc])* $method($config),)+
            $($(#[$table_doc])* $table($table_config),)+
            $($(#[$prompt_doc])* $prompt($prompt_config),)+
        }

        /// What sits on one linear layer, whatever the method.
        #[derive(Module, Debug)]
        pub enum Adapter<B: Backend> {
            $($(#[$doc])* $method($layer<B>),)+
        }

        /// What stands before every row, whatever the method.
        #[derive(Module, Debug)]
        pub enum VirtualTokens<B: Backend> {
            $($(#[$prompt_doc])* $prompt($tokens<B>),)+
        }

        $(
            impl From<&$config> for AdapterSpec {
                fn from(config: &$config) -> Self {
                    Self::$method(config.clone())
                }
            }
        )+

        $(
            impl From<&$table_config> for AdapterSpec {
                fn from(config: &$table_config) -> Self {
                    Self::$table(config.clone())
                }
            }
        )+

        $(
            impl From<&$prompt_config> for AdapterSpec {
                fn from(config: &$prompt_config) -> Self {
                    Self::$prompt(config.clone())
                }
            }
        )+

        impl From<AdapterSpec> for Peft {
            fn from(spec: AdapterSpec) -> Self {
                match spec {
                    $(AdapterSpec::$method(config) => Self::$method(config),)+
                    $(AdapterSpec::$table(config) => Self::$table(config),)+
                    $(AdapterSpec::$prompt(config) => Self::$prompt(config),)+
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
                    $(Self::$table(config) => Some(config.into()),)+
                    $(Self::$prompt(config) => Some(config.into()),)+
                }
            }
        }

        impl AdapterSpec {
            /// The layer's adapter as training begins; `None` for a method that sits on no layer.
            pub fn fresh<B: ModelBackend>(&self, site: &Site<'_, B>) -> Option<Adapter<B>> {
                match self {
                    $(Self::$method(config) => {
                        Some(Adapter::$method(config.fresh(site)))
                    })+
                    $(Self::$table(_) => None,)+
                    $(Self::$prompt(_) => None,)+
                }
            }

            /// The virtual tokens as training begins; `None` for a method without.
            ///
            /// # Errors
            /// Those of encoding a text.
            pub fn fresh_tokens<B: ModelBackend>(
                &self,
                start: &PromptStart<'_, B>,
                seed: Seed,
            ) -> Result<Option<VirtualTokens<B>>> {
                Ok(match self {
                    $(Self::$method(_) => None,)+
                    $(Self::$table(_) => None,)+
                    $(Self::$prompt(config) => {
                        Some(VirtualTokens::$prompt(config.fresh(start, seed)?))
                    })+
                })
            }

            /// The virtual tokens of a file; `None` for a method without.
            pub fn stored_tokens<B: Backend>(
                &self,
                shape: &DecoderShape,
                tensor: Tensor<B, 2>,
            ) -> Option<VirtualTokens<B>> {
                match self {
                    $(Self::$method(_) => None,)+
                    $(Self::$table(_) => None,)+
                    $(Self::$prompt(config) => Some(VirtualTokens::$prompt(config.stored(shape, tensor))),)+
                }
            }

            /// Virtual tokens before every row; 0 for a method without.
            pub fn num_virtual_tokens(&self) -> usize {
                match self {
                    $(Self::$method(_) => 0,)+
                    $(Self::$table(_) => 0,)+
                    $(Self::$prompt(config) => config.num_virtual_tokens(),)+
                }
            }

            /// Trained parameters of a method with virtual tokens; 0 for others.
            pub fn num_prompt_params(&self, shape: &DecoderShape) -> usize {
                match self {
                    $(Self::$method(_) => 0,)+
                    $(Self::$table(_) => 0,)+
                    $(Self::$prompt(config) => config.num_params(shape),)+
                }
            }

            /// Shape in files of what the virtual tokens are; `None` for a method without.
            pub fn stored_shape(&self, shape: &DecoderShape) -> Option<[usize; 2]> {
                match self {
                    $(Self::$method(_) => None,)+
                    $(Self::$table(_) => None,)+
                    $(Self::$prompt(config) => {
                        Some([config.num_virtual_tokens(), config.stored_width(shape)])
                    })+
                }
            }

            /// Whether virtual tokens that were trained as `present` says can be trained on as this says.
            pub fn continues_tokens(&self, present: &Self) -> bool {
                match (self, present) {
                    $((Self::$prompt(wanted), Self::$prompt(present)) => {
                        wanted.num_virtual_tokens() == present.num_virtual_tokens()
                    })+
                    _ => false,
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
            fn read(peft_type: &str, keys: &Keys<'_>, targets: Option<&Targets>) -> Result<Self, String> {
                match peft_type {
                    $($config::PEFT_TYPE => {
                        let targets = targets.ok_or("no \"target_modules\"")?;
                        $config::read(keys, targets).map(Self::$method)
                    })+
                    $($table_config::PEFT_TYPE => {
                        let targets = targets.ok_or("no \"target_modules\"")?;
                        $table_config::read(keys, targets).map(Self::$table)
                    })+
                    $($prompt_config::PEFT_TYPE => {
                        let count = virtual_tokens::read_count(keys)?;
                        $prompt_config::read(keys, count).map(Self::$prompt)
                    })+
                    _ => Err(unknown_method(peft_type)),
                }
            }

            /// As [`AdapterMethod::accepts`].
            fn accepts(peft_type: &str, key: &str, value: &Value) -> Option<bool> {
                match peft_type {
                    $($config::PEFT_TYPE => $config::accepts(key, value),)+
                    $($table_config::PEFT_TYPE => $table_config::accepts(key, value),)+
                    $($prompt_config::PEFT_TYPE => $prompt_config::accepts(key, value),)+
                    _ => None,
                }
            }

            /// As [`AdapterMethod::stored`].
            pub fn stored(&self) -> Self {
                match self {
                    $(Self::$method(config) => Self::$method(config.stored()),)+
                    _ => self.clone(),
                }
            }

            /// As [`AdapterMethod::restored`].
            pub fn restored(&self, start: &str) -> Option<Self> {
                match self {
                    $(Self::$method(config) => config.restored(start).map(Self::$method),)+
                    _ => None,
                }
            }

            /// As [`AdapterMethod::OWN_TARGETS`].
            fn has_own_targets(peft_type: &str) -> bool {
                match peft_type {
                    $($config::PEFT_TYPE => $config::OWN_TARGETS,)+
                    $($table_config::PEFT_TYPE => $table_config::OWN_TARGETS,)+
                    _ => false,
                }
            }

            /// The values of `peft_type` that are known.
            const PEFT_TYPES: &'static [&'static str] = &[
                $($config::PEFT_TYPE,)+ $($table_config::PEFT_TYPE,)+ $($prompt_config::PEFT_TYPE,)+
            ];
        }

        impl<B: Backend> Adapter<B> {
            /// As [`LayerAdapter::restore`].
            pub fn restore(&mut self, spec: &AdapterSpec) {
                match (self, spec) {
                    $((Self::$method(layer), AdapterSpec::$method(spec)) => layer.restore(spec),)+
                    _ => {}
                }
            }

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

        /// The layer's part, of whichever method it is.
        macro_rules! by_method {
            ($value:expr, $inner:ident => $body:expr) => {
                match $value {
                    $(Adapter::$method($inner) => $body,)+
                }
            };
        }

        /// What stands before every row, of whichever method it is.
        macro_rules! by_tokens {
            ($value:expr, $inner:ident => $body:expr) => {
                match $value {
                    $(VirtualTokens::$prompt($inner) => $body,)+
                }
            };
        }

        /// The settings, of whichever method it is.
        macro_rules! by_settings {
            ($value:expr, layer $settings:ident => $body:expr, rows $other:ident => $or:expr) => {
                match $value {
                    $(AdapterSpec::$method($settings) => $body,)+
                    $(AdapterSpec::$table($settings) => $body,)+
                    $(AdapterSpec::$prompt($other) => $or,)+
                }
            };
        }
    };
}

adapter_methods! {
    layers {
        /// Low-rank adapters on a frozen base.
        Lora(LoraConfig, Lora);
        /// A factor for each feature of linear layers on a frozen base.
        Ia3(Ia3Config, Ia3);
        /// Vectors on random matrices that all layers share, on a frozen base.
        Vera(VeraConfig, Vera);
        /// Narrow MLPs beside the sub-layers of a frozen base.
        Bottleneck(BottleneckConfig, Bottleneck);
    }
    tables {
        /// Rows of embedding and output head for a few tokens, on a frozen base.
        TrainableTokens(TrainableTokensConfig);
    }
    rows {
        /// Trained embeddings before every row.
        PromptTuning(PromptTuningConfig, PromptEmbeddings);
        /// Trained keys and values before every row in each layer.
        PrefixTuning(PrefixTuningConfig, Prefix);
        /// Embeddings before every row from a trained encoder.
        PTuning(PTuningConfig, EncodedPrompt);
    }
}

// After the list, whose macros they use.
mod beside;
mod layout;
mod on_layer;
mod token_rows;
mod tokens;

fn unknown_method(peft_type: &str) -> String {
    let known: Vec<String> = (AdapterSpec::PEFT_TYPES.iter())
        .map(|name| format!("\"{name}\""))
        .collect();
    format!(
        "peft_type \"{peft_type}\" is not supported; supported: {}",
        known.join(", ")
    )
}

impl AdapterSpec {
    /// As [`AdapterMethod::start`].
    pub fn start(&self) -> Option<String> {
        by_settings!(self, layer config => config.start(), rows _config => None)
    }

    /// As [`AdapterMethod::HAS_EXCLUDE_MODULES`].
    fn has_exclude_modules(&self) -> bool {
        fn of<M: AdapterMethod>(_: &M) -> bool {
            M::HAS_EXCLUDE_MODULES
        }
        by_settings!(self, layer config => of(config), rows _config => false)
    }

    /// PEFT's `peft_type`.
    pub fn peft_type(&self) -> &'static str {
        fn of_layer<M: AdapterMethod>(_: &M) -> &'static str {
            M::PEFT_TYPE
        }
        fn of_rows<M: PromptMethod>(_: &M) -> &'static str {
            M::PEFT_TYPE
        }
        by_settings!(self, layer config => of_layer(config), rows config => of_rows(config))
    }

    /// As [`AdapterMethod::problems`]; `place` is the key.
    pub fn problems(&self) -> Vec<Problem> {
        let mut settings = Settings::default();
        by_settings!(self, layer config => config.problems(&mut settings), rows config => config.problems(&mut settings));
        settings.into_problems()
    }

    /// Whether it sits on linear layers, and not before rows.
    pub fn on_layers(&self) -> bool {
        self.num_virtual_tokens() == 0
    }

    /// As [`AdapterMethod::targets`]; no layer for a method that sits on none.
    ///
    /// # Errors
    /// `Error::Usage` for what matches no layer.
    pub fn targets(&self, linear: &[LinearSpec]) -> Result<Vec<usize>> {
        by_settings!(self, layer config => config.targets(linear), rows _config => Ok(Vec::new()))
    }

    /// Names and shapes in files of the tensors of one layer's adapter.
    pub fn tensors(&self, layer: &LinearSpec) -> Vec<(&'static str, Vec<usize>)> {
        by_settings!(self, layer config => config.tensors(layer), rows _config => Vec::new())
    }

    /// As [`AdapterMethod::shared_tensors`].
    pub fn shared_tensors(&self, largest: [usize; 2]) -> Vec<(&'static str, [usize; 2])> {
        by_settings!(self, layer config => config.shared_tensors(largest), rows _config => Vec::new())
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
        by_settings!(self, layer config => config.dropout(), rows config => config.dropout())
    }

    /// As [`AdapterMethod::rank`].
    pub fn rank(&self) -> Option<usize> {
        by_settings!(self, layer config => config.rank(), rows _config => None)
    }

    fn unused(&self, paths: &[&str]) -> Vec<String> {
        by_settings!(self, layer config => config.unused(paths), rows _config => Vec::new())
    }

    fn write(&self, config: &AdapterConfig) -> Value {
        by_settings!(self, layer method => method.write(config), rows method => method.write(config))
    }
}
