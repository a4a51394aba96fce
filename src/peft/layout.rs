//! What a method's adapters may sit on, whether they can be merged, how their files are laid out, and what they cost and change in training.

use super::{AdapterMethod, AdapterSpec, LinearSpec, Peft, Targets, adaptable, virtual_tokens};
use crate::error::Result;

impl AdapterSpec {
    /// Refuses a method that no weight can stand for.
    ///
    /// # Errors
    /// `Error::Usage`.
    pub fn check_mergeable(&self) -> Result<()> {
        fn of<M: AdapterMethod>(_: &M) -> bool {
            M::MERGES
        }
        match by_settings!(self, layer config => of(config), rows _config => true) {
            true if self.on_layers() => Ok(()),
            true => Err(virtual_tokens::not_mergeable(self.num_virtual_tokens())),
            false => Err(adaptable::not_mergeable(self.peft_type())),
        }
    }

    /// As [`AdapterMethod::ADAPTS_TABLES`].
    pub fn adapts_tables(&self) -> bool {
        fn of<M: AdapterMethod>(_: &M) -> bool {
            M::ADAPTS_TABLES
        }
        by_settings!(self, layer config => of(config), rows _config => false)
    }

    /// As [`AdapterMethod::HAS_MODULES_TO_SAVE`].
    pub(super) fn has_modules_to_save(&self) -> bool {
        fn of<M: AdapterMethod>(_: &M) -> bool {
            M::HAS_MODULES_TO_SAVE
        }
        by_settings!(self, layer config => of(config), rows _config => true)
    }

    /// As [`AdapterMethod::check_layer`].
    ///
    /// # Errors
    /// With the layer and the setting.
    pub fn check_layer(&self, layer: &LinearSpec) -> Result<(), String> {
        by_settings!(self, layer config => config.check_layer(layer), rows _config => Ok(()))
    }

    /// As [`AdapterMethod::OWN_FILES`].
    pub fn has_own_files(&self) -> bool {
        fn of<M: AdapterMethod>(_: &M) -> bool {
            M::OWN_FILES
        }
        by_settings!(self, layer config => of(config), rows _config => false)
    }

    /// As [`AdapterMethod::file_key`].
    pub fn file_key(&self, key: &str) -> String {
        fn of<M: AdapterMethod>(_: &M, key: &str) -> String {
            M::file_key(key)
        }
        by_settings!(self, layer config => of(config, key), rows _config => key.to_owned())
    }

    /// As [`AdapterMethod::kept_floats`].
    pub fn kept_floats(&self, layer: &LinearSpec) -> usize {
        by_settings!(self, layer config => config.kept_floats(layer), rows _config => 0)
    }

    /// As [`AdapterMethod::vector_lr_factor`].
    fn vector_lr_factor(&self) -> f64 {
        by_settings!(self, layer config => config.vector_lr_factor(), rows _config => 1.0)
    }

    pub(super) fn own_targets(&self) -> Option<Targets> {
        by_settings!(self, layer config => config.own_targets(), rows _config => None)
    }
}

impl Peft {
    /// Factor on the learning rate of the base's biases and norms, as far as they are trained.
    ///
    /// # Source
    /// PEFT 0.21, `create_loraplus_optimizer`: what has one dimension learns as fast as the up projections.
    pub fn vector_lr_factor(&self) -> f64 {
        (self.adapter()).map_or(1.0, |spec| spec.vector_lr_factor())
    }
}
