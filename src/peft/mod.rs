//! Parameter-efficient fine-tuning: the linear layer that carries adapters, and the adapters.

mod config;
pub mod files;
mod keys;
mod lora;
mod patterns;
mod projection;
pub mod targets;

use crate::ops::ModelBackend;
pub use config::LoraConfig;
pub use files::{AdapterConfig, TaskType};
pub use keys::{AdapterKey, LoraMatrix, lora_key, parse_key, saved_key};
pub use lora::Lora;
pub use patterns::Patterns;
pub use projection::{Base, LayerSpec, Projection};
pub use targets::{LinearSpec, Selection, TargetModules, resolve_targets};

use burn::tensor::backend::Backend;

use crate::rng::Seed;

/// A model whose linear layers can carry adapters.
pub trait Adaptable<B: Backend> {
    /// Calls `visit` for every projection of the backbone, in order; the output head is not one.
    fn for_each_projection(&mut self, visit: &mut dyn FnMut(&mut Projection<B>));

    /// Gives a fresh LoRA adapter to every layer whose path `targeted` accepts; returns how many.
    fn attach_lora(
        &mut self,
        config: &LoraConfig,
        seed: Seed,
        targeted: &dyn Fn(&str) -> bool,
    ) -> usize {
        let mut count = 0;
        self.for_each_projection(&mut |projection| {
            for index in 0..projection.layers().len() {
                if targeted(&projection.layers()[index].path) {
                    projection.attach(index, config, seed);
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
    fn merge_adapters(&mut self)
    where
        B: ModelBackend,
    {
        self.for_each_projection(&mut |projection| projection.merge());
    }
}
