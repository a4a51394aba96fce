//! Token embeddings, output heads, and learned position embeddings.

use burn::module::{Module, Param, ParamId};
use burn::tensor::backend::Backend;
use burn::tensor::{Int, Tensor, TensorData};

use crate::ops::{
    FrozenWeight, Head, MatmulPrecision, ModelBackend, Numerics, reduced_columns, replace_rows,
};
use crate::params::{ParamKind, ParamMeta, ParamSlot, Parameters, Reduced, placeholder};
use crate::peft::{Base, TableAdapter, TrainedRows};

/// A matrix with one row per token id: the embedding, the output head, or both.
#[derive(Module, Debug)]
pub struct Table<B: Backend> {
    /// `[vocab, width]`; a placeholder if the table is stored in reduced precision.
    pub weight: Param<Tensor<B, 2>>,
    /// LoRA beside the look-up.
    pub(super) on_embedding: Option<TableAdapter<B>>,
    /// LoRA beside the product.
    pub(super) on_head: Option<TableAdapter<B>>,
    /// Rows in place of some of its own, in each of its roles. A table with them has no LoRA.
    pub(super) token_rows: Option<TrainedRows<B>>,
    #[module(skip)]
    reduced: Option<Reduced>,
    #[module(skip)]
    matmul: MatmulPrecision,
    #[module(skip)]
    name: String,
    #[module(skip)]
    width: usize,
}

impl<B: Backend> Table<B> {
    /// An unfilled table, `[rows, width]`, stored as `name`.
    pub(super) fn new(name: &str, [rows, width]: [usize; 2], device: &B::Device) -> Self {
        Self {
            weight: placeholder([rows, width], device),
            on_embedding: None,
            on_head: None,
            token_rows: None,
            reduced: None,
            matmul: MatmulPrecision::default(),
            name: name.to_owned(),
            width,
        }
    }

    /// Sets the storage and product precision, before the table is loaded. Anything but f32 freezes it.
    pub(super) fn store_as(&mut self, numerics: Numerics) {
        self.reduced = Reduced::by_column(numerics);
        self.matmul = numerics.matmul;
    }

    /// The identity of the table's values.
    pub(super) fn identity(&self) -> Base {
        match self.reduced.as_ref().and_then(Reduced::matrix) {
            Some(matrix) => Base::Reduced(matrix.address()),
            None => Base::Full(self.weight.id),
        }
    }

    /// Parts a table that is embedding and output head: the head, with the adapter on it, as a table stored as `name`.
    pub(super) fn part(&mut self, name: &str) -> Self {
        let on_head = self.on_head.take();
        Self {
            // Another parameter from now on.
            weight: match self.reduced {
                Some(_) => self.weight.clone(),
                None => Param::initialized(ParamId::new(), self.weight.val()),
            },
            on_embedding: None,
            on_head,
            name: name.to_owned(),
            ..self.clone()
        }
    }
}

impl<B: Backend> Parameters<B> for Table<B> {
    fn for_each_parameter(&mut self, visit: &mut dyn FnMut(&ParamMeta, ParamSlot<'_, B>)) {
        let meta = ParamMeta::single(ParamKind::Embedding, &*self.name, self.width, false);
        visit(&meta, ParamSlot::of(&mut self.weight, &mut self.reduced));
        if let Some(adapter) = &mut self.on_embedding {
            adapter.walk(visit);
        }
        if let Some(rows) = &mut self.token_rows {
            rows.walk(visit);
        }
    }
}

impl<B: ModelBackend> Table<B> {
    /// The table as an output head.
    pub(super) fn head(&self) -> Head<B> {
        let full = || self.full();
        let matrix = self.reduced.as_ref().and_then(Reduced::matrix);
        match (&self.on_head, &self.token_rows, matrix) {
            (Some(adapter), ..) => Head::Full(adapter.head(&full), self.matmul),
            (None, Some(rows), matrix) => {
                let table = match matrix {
                    Some(matrix) => FrozenWeight::Reduced(matrix.clone()),
                    None => FrozenWeight::full(self.weight.val().transpose(), self.matmul),
                };
                Head::Replaced(table, rows.rows.val(), rows.replaced())
            }
            (None, None, Some(matrix)) => Head::Reduced(matrix.clone()),
            (None, None, None) => Head::Full(self.weight.val(), self.matmul),
        }
    }

    /// Puts the trained rows into the table and removes them.
    pub(super) fn merge_token_rows(&mut self) {
        let Some(rows) = self.token_rows.take() else {
            return;
        };
        let merged = rows.merged(self.full()).detach();
        self.reduced = None;
        // Another table than that of models which share the old one.
        self.weight = Param::initialized(ParamId::new(), merged);
    }

    /// The table in f32; a copy if it is reduced.
    fn full(&self) -> Tensor<B, 2> {
        let weight = self.weight.val();
        let Some(matrix) = self.reduced.as_ref().and_then(Reduced::matrix) else {
            return weight;
        };
        let shape = [matrix.inputs(), matrix.outputs()];
        Tensor::from_data(TensorData::new(matrix.values(), shape), &weight.device()).transpose()
    }

    /// Adds the adapter to the table, which is embedding or head and not both, and removes it.
    pub(super) fn merge(&mut self) {
        let Some(adapter) = self.on_embedding.take().or(self.on_head.take()) else {
            return;
        };
        let merged = (self.full() + adapter.change()).detach();
        self.reduced = None;
        // Another table than that of models which share the old one.
        self.weight = Param::initialized(ParamId::new(), merged);
    }

    /// Rows of the table, `[tokens, width]`.
    pub(super) fn look_up(&self, ids: &Tensor<B, 1, Int>) -> Tensor<B, 2> {
        let rows = match self.reduced.as_ref().and_then(Reduced::matrix) {
            Some(matrix) => reduced_columns(matrix, ids.clone()),
            None => self.weight.val().select(0, ids.clone()),
        };
        match (&self.on_embedding, &self.token_rows) {
            (Some(adapter), _) => adapter.look_up(rows, ids),
            (None, Some(others)) => replace_rows(rows, ids, others.rows.val(), &others.replaced()),
            (None, None) => rows,
        }
    }
}

/// Learned position embeddings.
#[derive(Module, Debug)]
pub struct PositionTable<B: Backend> {
    /// `[positions + offset, hidden]`.
    pub weight: Param<Tensor<B, 2>>,
    #[module(skip)]
    name: String,
    /// Row of position 0.
    #[module(skip)]
    offset: usize,
}

impl<B: Backend> PositionTable<B> {
    /// An unfilled table for `positions` positions, the first in row `offset`, stored as `name`.
    pub(super) fn new(
        name: &str,
        [positions, width]: [usize; 2],
        offset: usize,
        device: &B::Device,
    ) -> Self {
        Self {
            weight: placeholder([positions + offset, width], device),
            name: name.to_owned(),
            offset,
        }
    }

    /// Rows of the table, `[tokens, hidden]`.
    ///
    /// # Panics
    /// If a position has no row: an out-of-range look-up is undefined on devices. Data is checked against `max_positions` before a
    /// model is loaded.
    pub(super) fn look_up(&self, positions: &[usize]) -> Tensor<B, 2> {
        let table = self.weight.val();
        let most = table.dims()[0] - self.offset;
        let longest = positions.iter().max().map_or(0, |last| last + 1);
        assert!(
            longest <= most,
            "a row of {longest} tokens; the model's table of positions takes at most {most}"
        );
        let rows = positions.iter().map(|&p| (p + self.offset) as i32);
        let rows: Vec<i32> = rows.collect();
        let shape = [rows.len()];
        let rows = Tensor::<B, 1, Int>::from_data(TensorData::new(rows, shape), &table.device());
        table.select(0, rows)
    }
}

impl<B: Backend> Parameters<B> for PositionTable<B> {
    fn for_each_parameter(&mut self, visit: &mut dyn FnMut(&ParamMeta, ParamSlot<'_, B>)) {
        let [_, width] = self.weight.lazy_shape().dims();
        let meta = ParamMeta::single(ParamKind::Embedding, &*self.name, width, false);
        visit(&meta, ParamSlot::Matrix(&mut self.weight));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::backend::NdArray;

    #[test]
    #[should_panic(expected = "a row of 4 tokens; the model's table of positions takes at most 3")]
    fn a_position_without_a_row_is_not_looked_up() {
        let device = Default::default();
        let mut table = PositionTable::<NdArray>::new("positions", [3, 2], 2, &device);
        table.weight = Param::from_tensor(Tensor::zeros([5, 2], &device));
        table.look_up(&[0, 1, 2, 0]);
        table.look_up(&[0, 1, 2, 3]);
    }
}
