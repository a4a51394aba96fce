//! Models that can carry what parameter-efficient methods train.

use burn::tensor::Tensor;
use burn::tensor::backend::Backend;

use super::{
    AdapterSpec, LayerKind, Projection, Shared, TableAdapter, TrainedRows, VirtualTokens,
    virtual_tokens,
};
use crate::error::{Error, Result};
use crate::ops::ModelBackend;
use crate::rng::Seed;

/// A model that can carry adapters on its linear layers, or virtual tokens before its rows.
pub trait Adaptable<B: Backend> {
    /// Calls `visit` for every projection of the backbone, in order; the output head is not one.
    fn for_each_projection(&mut self, visit: &mut dyn FnMut(&mut Projection<B>));

    /// Calls `visit` for the adapter of each table the model has: that of the embedding, and that of the output head.
    fn for_each_table(&mut self, visit: &mut dyn FnMut(LayerKind, &mut Option<TableAdapter<B>>));

    /// Calls `visit` for every adapter on a table.
    fn for_each_table_adapter(&mut self, visit: &mut dyn FnMut(LayerKind, &mut TableAdapter<B>)) {
        self.for_each_table(&mut |kind, adapter| {
            if let Some(adapter) = adapter {
                visit(kind, adapter);
            }
        });
    }

    /// Calls `visit` for the trained rows of each table the model has: of the embedding, also where it is the output head, and of a head
    /// of its own.
    fn for_each_token_rows(
        &mut self,
        visit: &mut dyn FnMut(LayerKind, &mut Option<TrainedRows<B>>),
    );

    /// Rows of a table as the model reads it, `[ids, width]`; `None` for a head that it does not have, or that is the embedding.
    fn table_rows(
        &mut self,
        kind: LayerKind,
        ids: &[u32],
        device: &B::Device,
    ) -> Option<Tensor<B, 2>>
    where
        B: ModelBackend;

    /// What stands before every row of the model, if anything does.
    fn virtual_tokens(&mut self) -> &mut Option<VirtualTokens<B>>;

    /// Embeddings of tokens, `[ids, embedding]`.
    fn embeddings(&self, ids: &[u32], device: &B::Device) -> Tensor<B, 2>
    where
        B: ModelBackend;

    /// Gives a fresh adapter to every layer whose path `targeted` accepts; returns how many. `shared`: tensors that they are to
    /// have in common, where files brought them.
    fn attach(
        &mut self,
        spec: &AdapterSpec,
        seed: Seed,
        shared: Vec<(&'static str, Tensor<B, 2>)>,
        targeted: &dyn Fn(&str) -> bool,
    ) -> usize
    where
        B: ModelBackend,
    {
        let mut largest = [0, 0];
        self.for_each_projection(&mut |projection| {
            let inputs = projection.inputs();
            let layers = projection.layers().iter();
            for layer in layers.filter(|layer| targeted(&layer.path)) {
                largest = [largest[0].max(inputs), largest[1].max(layer.width)];
            }
        });
        let shared = Shared::new(largest, shared);
        let mut count = 0;
        self.for_each_projection(&mut |projection| {
            for index in 0..projection.layers().len() {
                if targeted(&projection.layers()[index].path) {
                    projection.attach(index, spec, seed, &shared);
                    count += 1;
                }
            }
        });
        count
    }

    /// Removes all adapters and virtual tokens: the model is its base again.
    fn detach_adapters(&mut self) {
        *self.virtual_tokens() = None;
        self.for_each_projection(&mut |projection| projection.detach());
        self.for_each_table(&mut |_, adapter| *adapter = None);
        self.for_each_token_rows(&mut |_, rows| *rows = None);
    }

    /// Adds the adapters of embedding and head to their tables, puts trained rows in their place, and removes both. A table that is both becomes two: an adapter changes
    /// one side of it.
    fn merge_tables(&mut self)
    where
        B: ModelBackend;

    /// Adds all adapters to their weights and removes them.
    ///
    /// # Errors
    /// `Error::Usage` for a method that no weight can stand for; the model is as it was.
    fn merge_adapters(&mut self) -> Result<()>
    where
        B: ModelBackend,
    {
        if let Some(tokens) = self.virtual_tokens() {
            return Err(virtual_tokens::not_mergeable(tokens.count()));
        }
        self.merge_tables();
        let mut refused = None;
        self.for_each_projection(&mut |projection| {
            if refused.is_none() && projection.merge().is_none() {
                refused = Some(projection.layers()[0].path.clone());
            }
        });
        refused.map_or(Ok(()), |path| Err(not_mergeable(&path)))
    }
}

/// Why the adapter of `what` stays beside its model.
pub(super) fn not_mergeable(what: &str) -> Error {
    Error::Usage(format!(
        "{what}: its adapter computes what no weight can, so it cannot be merged into the model; use the model with the adapter beside it"
    ))
}
