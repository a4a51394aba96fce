//! Embedding tables and output heads.

use burn::module::{Module, Param};
use burn::tensor::backend::Backend;
use burn::tensor::{Int, Tensor};

use crate::ops::{Head, MatmulPrecision, ModelBackend, Numerics, reduced_columns};
use crate::params::{ParamMeta, ParamSlot, Reduced, placeholder};

/// A vector for each token: what the model reads, what it predicts with, or both.
#[derive(Module, Debug)]
pub struct Table<B: Backend> {
    /// `[vocab, width]`; a placeholder if the table is kept in fewer bits.
    pub weight: Param<Tensor<B, 2>>,
    #[module(skip)]
    reduced: Option<Reduced>,
    #[module(skip)]
    matmul: MatmulPrecision,
}

impl<B: Backend> Table<B> {
    /// An unfilled table.
    pub(super) fn new(device: &B::Device) -> Self {
        Self {
            weight: placeholder(device),
            reduced: None,
            matmul: MatmulPrecision::default(),
        }
    }

    /// Has the table, which is to be filled after this, kept and multiplied as `numerics` says: frozen if not kept in f32.
    pub(super) fn store_as(&mut self, numerics: Numerics) {
        self.reduced = Reduced::by_column(numerics);
        self.matmul = numerics.matmul;
    }

    /// The parameter.
    pub(super) fn walk(
        &mut self,
        meta: &ParamMeta,
        visit: &mut dyn FnMut(&ParamMeta, ParamSlot<'_, B>),
    ) {
        visit(meta, ParamSlot::of(&mut self.weight, &mut self.reduced));
    }

    /// The table as an output head.
    pub(super) fn head(&self) -> Head<B> {
        match self.reduced.as_ref().and_then(Reduced::matrix) {
            Some(matrix) => Head::Reduced(matrix.clone()),
            None => Head::Full(self.weight.val(), self.matmul),
        }
    }
}

impl<B: ModelBackend> Table<B> {
    /// Rows of the table, `[tokens, width]`.
    pub(super) fn look_up(&self, ids: &Tensor<B, 1, Int>) -> Tensor<B, 2> {
        let Some(matrix) = self.reduced.as_ref().and_then(Reduced::matrix) else {
            return self.weight.val().select(0, ids.clone());
        };
        reduced_columns(matrix, ids.clone())
    }
}
