//! A model as a list of parts: one traversal serves loading, saving, training, adapters and the list of tensors.

use burn::tensor::backend::Backend;

use super::Table;
use crate::ops::Numerics;
use crate::params::{ParamMeta, ParamSlot, Parameters};
use crate::peft::Projection;

/// A part of a model with parameters.
pub(super) enum Part<'a, B: Backend> {
    /// The token embedding; also the output head, if there is no [`Part::Head`].
    Embedding(&'a mut Table<B>),
    /// The output head.
    Head(&'a mut Table<B>),
    /// Linear layers of the backbone.
    Linear(&'a mut Projection<B>),
    /// A norm or a position table.
    Other(&'a mut dyn Parameters<B>),
}

impl<B: Backend> Part<'_, B> {
    /// Visits the part's parameters.
    pub(super) fn for_each_parameter(self, visit: &mut dyn FnMut(&ParamMeta, ParamSlot<'_, B>)) {
        match self {
            Self::Embedding(table) | Self::Head(table) => table.for_each_parameter(visit),
            Self::Linear(projection) => projection.for_each_parameter(visit),
            Self::Other(part) => part.for_each_parameter(visit),
        }
    }

    /// Sets the storage and product precision of linear layers, embedding and head, before they are loaded. Other parts stay in f32.
    pub(super) fn store_as(self, numerics: Numerics) {
        match self {
            Self::Embedding(table) | Self::Head(table) => table.store_as(numerics),
            Self::Linear(projection) => projection.store_as(numerics),
            Self::Other(_) => {}
        }
    }
}

/// A model that lists its parts.
pub(super) trait Parts<B: Backend> {
    /// Calls `visit` for every part, in the order of the model: the embedding first, the head last.
    fn for_each_part(&mut self, visit: &mut dyn FnMut(Part<'_, B>));

    /// Gives the model, if its embedding is the output head, a head of its own with the same numbers.
    fn untie(&mut self);

    /// Removes the output head, unless it is the embedding.
    fn remove_head(&mut self);
}
