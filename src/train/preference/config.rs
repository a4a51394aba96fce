//! The recipe keys that stages on comparisons and labelled responses share.

use crate::train::TrainingSettings;
use crate::train::config::{Cadence, DataConfig, Init, OptimConfig, Peft};

/// The keys common to these stages.
#[derive(Debug, Clone, Copy)]
pub(in crate::train) struct PreferenceKeys<'a> {
    /// The stage's name.
    pub(in crate::train) name: &'a str,
    /// The initial model.
    pub(in crate::train) init: &'a Init,
    /// Comparisons, or labelled responses.
    pub(in crate::train) data: &'a DataConfig,
    /// Held-out rows of the same kind.
    pub(in crate::train) eval_data: Option<&'a DataConfig>,
    /// Which weights are trained.
    pub(in crate::train) peft: &'a Peft,
    /// The optimiser.
    pub(in crate::train) optim: &'a OptimConfig,
    /// Passes over the data.
    pub(in crate::train) epochs: usize,
    /// Optimiser steps in place of `epochs`.
    pub(in crate::train) max_steps: Option<usize>,
    /// Prompts, or labelled responses, per optimiser step.
    pub(in crate::train) batch_size: usize,
    /// Whether the rows are shuffled in each epoch.
    pub(in crate::train) shuffle: bool,
    /// Tokens per forward pass at most.
    pub(in crate::train) micro_batch_tokens: usize,
    /// Whether the backward pass recomputes layers.
    pub(in crate::train) gradient_checkpointing: bool,
    /// Longest row in tokens.
    pub(in crate::train) max_length: usize,
    /// Evaluation and checkpoints.
    pub(in crate::train) cadence: &'a Cadence,
}

impl<'a> PreferenceKeys<'a> {
    /// Their part of the stage's specification.
    pub(in crate::train) fn training(self) -> TrainingSettings<'a> {
        TrainingSettings {
            init: self.init,
            peft: self.peft,
            optim: self.optim,
            epochs: Some(self.epochs),
            max_steps: self.max_steps,
            batch_size: self.batch_size,
            micro_batch_tokens: self.micro_batch_tokens,
            max_length: Some(self.max_length),
            gradient_checkpointing: self.gradient_checkpointing,
            cadence: self.cadence,
        }
    }
}

/// Defines the configuration of a stage on comparisons or labelled responses: the keys common to all of them, then its own.
macro_rules! preference_config {
    (
        $(#[$about:meta])*
        pub struct $name:ident { $($(#[$own_about:meta])* pub $own:ident: $own_type:ty,)* }
    ) => {
        $(#[$about])*
        #[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
        #[serde(deny_unknown_fields)]
        pub struct $name {
            /// The stage's name, unique in the recipe.
            pub name: String,
            /// The initial model; where the loss has a reference, it is that, too.
            pub init: $crate::train::config::Init,
            /// Comparisons: preference rows, or `Stage("..")` for all pairs of a `Rank` stage. `Kto` reads responses with a `label`, or each
            /// comparison as two of them; a regression reads rated rows.
            pub data: $crate::train::config::DataConfig,
            /// Held-out rows of the same kind.
            #[serde(default)]
            pub eval_data: Option<$crate::train::config::DataConfig>,
            /// Which weights are trained; a score head always is.
            #[serde(default)]
            pub peft: $crate::train::config::Peft,
            /// Optimiser.
            #[serde(default)]
            pub optim: $crate::train::config::OptimConfig,
            /// Passes over the data.
            #[serde(default = "crate::train::config::one")]
            pub epochs: usize,
            /// Optimiser steps in place of `epochs`: fewer than an epoch has, or more.
            #[serde(default)]
            pub max_steps: Option<usize>,
            /// Prompts (with all their comparisons), or labelled responses, per optimiser step.
            pub batch_size: usize,
            /// Shuffle the rows anew in each epoch; otherwise they come in the order of the data.
            #[serde(default = "crate::train::config::yes")]
            pub shuffle: bool,
            /// Tokens per forward pass at most; a prompt's responses are never split.
            #[serde(default = "crate::train::config::default_micro_tokens")]
            pub micro_batch_tokens: usize,
            /// Recompute layers in the backward pass instead of storing their activations: less memory, more time.
            #[serde(default)]
            pub gradient_checkpointing: bool,
            /// Rows with more tokens are counted and dropped.
            #[serde(default = "crate::train::config::default_max_length")]
            pub max_length: usize,
            $($(#[$own_about])* pub $own: $own_type,)*
            /// Evaluation and checkpoints.
            #[serde(default)]
            pub cadence: $crate::train::config::Cadence,
        }

        impl $name {
            pub(in crate::train) fn preference_keys(&self) -> $crate::train::preference::PreferenceKeys<'_> {
                $crate::train::preference::PreferenceKeys {
                    name: &self.name,
                    init: &self.init,
                    data: &self.data,
                    eval_data: self.eval_data.as_ref(),
                    peft: &self.peft,
                    optim: &self.optim,
                    epochs: self.epochs,
                    max_steps: self.max_steps,
                    batch_size: self.batch_size,
                    shuffle: self.shuffle,
                    micro_batch_tokens: self.micro_batch_tokens,
                    gradient_checkpointing: self.gradient_checkpointing,
                    max_length: self.max_length,
                    cadence: &self.cadence,
                }
            }
        }
    };
}
pub(in crate::train) use preference_config;

/// A whole: the default of weights.
pub(in crate::train) fn whole() -> f64 {
    1.0
}
