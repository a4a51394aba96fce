//! The description of a model family.

use super::Architecture;
use super::config::keys::Keys;
use crate::error::Result;

/// A model family: transformers' names, and its parser of `config.json`.
#[derive(Debug)]
pub(crate) struct Family {
    /// Value of `model_type`.
    pub(super) model_type: &'static str,
    /// Class of the causal model.
    pub(super) causal: &'static str,
    /// Class of the sequence classifier.
    pub(super) classifier: &'static str,
    /// The embedding's tensor.
    pub(super) embedding: &'static str,
    /// The output head's tensor.
    pub(super) head: &'static str,
    /// Reads a configuration; refuses unsupported values.
    pub(super) parse: fn(&Keys<'_>) -> Result<Architecture>,
}

/// By identity: there is one static value per family.
impl PartialEq for Family {
    fn eq(&self, other: &Self) -> bool {
        self.model_type == other.model_type
    }
}
