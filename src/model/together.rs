//! Several models on one frozen base in one forward pass.

use burn::tensor::Tensor;

use super::{CausalLm, LanguageModel, Part};
use crate::host::indices;
use crate::ops::ModelBackend;
use crate::peft::{Adaptable, Base};
use crate::tokens::TokenBatch;

/// Models that differ in their adapters only, combined. A batch holds the rows once per model; products with base weights are
/// shared, and each model's part of the rows gets its adapters. This saves launches and reading weights on GPUs, and packing
/// weights on CPUs; the arithmetic is the same.
#[derive(Debug)]
pub struct SharedBaseModels<B: ModelBackend> {
    model: LanguageModel<B>,
    count: usize,
}

impl<B: ModelBackend> SharedBaseModels<B> {
    /// `None` if the base weights of `models` differ, adapters are not LoRA on linear layers, or a model has virtual tokens.
    ///
    /// # Panics
    /// If there are no models.
    pub fn new(models: &[&LanguageModel<B>]) -> Option<Self> {
        let mut models: Vec<LanguageModel<B>> = models.iter().copied().cloned().collect();
        let mut bases = Vec::new();
        let mut adapters = Vec::new();
        for model in &mut models {
            // Rows of one model would be longer than those of the other.
            if model.virtual_tokens.is_some() {
                return None;
            }
            // Tables are looked up once for all.
            let mut on_tables = false;
            model.for_each_table_adapter(&mut |_, _| on_tables = true);
            model.for_each_token_rows(&mut |_, rows| on_tables |= rows.is_some());
            if on_tables {
                return None;
            }
            let (mut base, mut of_model) = (Vec::<Base>::new(), Vec::new());
            model.parts().for_each_part(&mut |part| {
                if let Part::Embedding(table) = part {
                    base.push(table.identity());
                }
            });
            model.for_each_projection(&mut |projection| {
                base.push(projection.identity());
                of_model.push(projection.low_rank_adapters());
            });
            bases.push(base);
            let of_model: Option<Vec<_>> = of_model.into_iter().collect();
            adapters.push(of_model?.into_iter());
        }
        if bases.iter().any(|base| *base != bases[0]) {
            return None;
        }
        let count = models.len();
        let mut model = models.swap_remove(0);
        model.for_each_projection(&mut |projection| {
            let shares = adapters.iter_mut().map(|of_model| of_model.next());
            projection.share(shares.map(|share| share.expect("as many")).collect());
        });
        Some(Self { model, count })
    }

    /// Number of models.
    pub fn count(&self) -> usize {
        self.count
    }

    /// [`CausalLm::states_at`] of each model at `positions` of the packed `rows`, in the order of the models.
    pub fn states_at(
        &self,
        rows: &[&[u32]],
        positions: &[usize],
        device: &B::Device,
    ) -> Vec<Tensor<B, 2>> {
        let tokens: usize = rows.iter().map(|row| row.len()).sum();
        let batch = TokenBatch::from_rows(&rows.repeat(self.count), device);
        let at: Vec<usize> = (0..self.count)
            .flat_map(|share| positions.iter().map(move |place| share * tokens + place))
            .collect();
        let states = (self.model).states_at(&batch, Some(indices(&at, device)), None, None);
        states.chunk(self.count, 0)
    }
}
