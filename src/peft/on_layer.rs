//! What sits on a linear layer, whatever its method.

use std::sync::Arc;

use burn::tensor::Tensor;
use burn::tensor::backend::Backend;

use super::{Adapter, LayerAdapter, LayerSpec, Merged};
use crate::ops::ModelBackend;
use crate::params::{ParamMeta, ParamSlot};
use crate::rng::Seed;

impl<B: Backend> Adapter<B> {
    pub(super) fn input(&self, x: &Tensor<B, 2>) -> Option<Tensor<B, 2>> {
        by_method!(self, layer => layer.input(x))
    }

    pub(super) fn output(
        &self,
        x: &Tensor<B, 2>,
        y: Tensor<B, 2>,
        dropout: Option<Seed>,
    ) -> Tensor<B, 2>
    where
        B: ModelBackend,
    {
        by_method!(self, layer => layer.output(x, y, dropout))
    }

    pub(super) fn add(&self, stream: Tensor<B, 2>, y: Tensor<B, 2>) -> Tensor<B, 2>
    where
        B: ModelBackend,
    {
        by_method!(self, layer => layer.add(stream, y))
    }

    pub(super) fn merge(
        &self,
        weight: Tensor<B, 2>,
        bias: Option<Tensor<B, 1>>,
    ) -> Option<Merged<B>>
    where
        B: ModelBackend,
    {
        by_method!(self, layer => layer.merge(weight, bias))
    }

    /// As [`LayerAdapter::shared`].
    pub fn shared(&self) -> Vec<(&'static str, Tensor<B, 2>)> {
        by_method!(self, layer => layer.shared())
    }

    pub(super) fn walk(
        &mut self,
        layer: &LayerSpec,
        order: &Option<Arc<Vec<usize>>>,
        visit: &mut dyn FnMut(&ParamMeta, ParamSlot<'_, B>),
    ) {
        by_method!(self, adapter => adapter.walk(layer, order, visit));
    }
}
