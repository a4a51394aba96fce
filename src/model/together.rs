//! Several models over one frozen base in one pass.

use burn::tensor::Tensor;

use super::{CausalLm, LanguageModel};
use crate::host::indices;
use crate::ops::ModelBackend;
use crate::peft::{Adaptable, Base};
use crate::tokens::TokenBatch;

/// Models that differ in their adapters only, as one: the same rows stand in a batch once for each model, every product with a weight
/// is one for all of them, and each share of the rows gets its own model's adapters. On a GPU that saves launches and reading
/// weights again, on a CPU packing them again; arithmetic it does not save.
#[derive(Debug)]
pub struct Together<B: ModelBackend> {
    model: LanguageModel<B>,
    count: usize,
}

impl<B: ModelBackend> Together<B> {
    /// `None` if the linear layers of two of `models` are not the same, or carry other adapters than LoRA's.
    ///
    /// # Panics
    /// If there are no models.
    pub fn new(models: &[&LanguageModel<B>]) -> Option<Self> {
        let mut models: Vec<LanguageModel<B>> = models.iter().copied().cloned().collect();
        let mut bases = Vec::new();
        let mut adapters = Vec::new();
        for model in &mut models {
            let (mut base, mut of_model) = (Vec::<Base>::new(), Vec::new());
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

    /// What [`CausalLm::states_at`] of each model gives at `positions` of the packed `rows`, in the models' order.
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
