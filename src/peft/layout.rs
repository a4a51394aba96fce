//! Whether a method's adapters can be merged, and how its files are laid out.

use super::{AdapterMethod, AdapterSpec, Targets, adaptable, virtual_tokens};
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

    pub(super) fn own_targets(&self) -> Option<Targets> {
        by_settings!(self, layer config => config.own_targets(), rows _config => None)
    }
}
