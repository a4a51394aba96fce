//! Activation recomputation (`gradient_checkpointing`): the forward pass stores only the states between layers, and the backward
//! pass recomputes each layer.
//!
//! # Source
//! Chen, Xu, Zhang and Guestrin 2016, arXiv:1604.06174, section 3, with every layer a segment.

use burn::backend::Autodiff;
use burn::module::AutodiffModule;
use burn::tensor::{Int, Tensor};

use super::pass::Pass;
use super::{CausalLm, LanguageModel, ScalarModel};
use crate::ops::ModelBackend;
use crate::optim::GradientSum;
use crate::params::{Parameters, lowest_trained_layer};
use crate::rng::Seed;
use crate::tokens::TokenBatch;

/// A model that can be trained: a decoder, optionally with a head on it.
pub trait TrainableModel<B: ModelBackend>: Parameters<Autodiff<B>> {
    /// The decoder.
    fn decoder(&self) -> &LanguageModel<Autodiff<B>>;
}

impl<B: ModelBackend> TrainableModel<B> for LanguageModel<Autodiff<B>> {
    fn decoder(&self) -> &LanguageModel<Autodiff<B>> {
        self
    }
}

impl<B: ModelBackend> TrainableModel<B> for ScalarModel<Autodiff<B>> {
    fn decoder(&self) -> &LanguageModel<Autodiff<B>> {
        &self.backbone
    }
}

/// The lowest layer that a backward pass has to reach.
fn lowest_trained<B: ModelBackend>(decoder: &LanguageModel<Autodiff<B>>) -> usize {
    let mut parameters = Vec::new();
    // Visiting needs a mutable model; the copy shares its tensors.
    decoder.clone().for_each_parameter(&mut |meta, slot| {
        parameters.push((meta.key().to_owned(), slot.is_trained()));
    });
    let trained = parameters
        .iter()
        .map(|(name, trained)| (name.as_str(), *trained));
    lowest_trained_layer(trained, decoder.num_layers())
}

/// The stored states of a forward pass, for its backward pass.
#[derive(Debug)]
pub struct Tape<B: ModelBackend> {
    /// `None` if the autodiff graph covers the whole pass.
    kept: Option<SavedStates<B>>,
}

/// The inputs for recomputing layers.
#[derive(Debug)]
struct SavedStates<B: ModelBackend> {
    batch: TokenBatch<Autodiff<B>>,
    dropout: Option<Seed>,
    /// The lowest trained layer, or 0 if the embeddings are trained; at most the last layer. The backward pass ends there.
    lowest: usize,
    /// The states before each layer from `lowest` on, except the first layer (they are the embeddings) and the last.
    before: Vec<Tensor<B, 2>>,
    /// The states before the last layer, where the graph begins.
    begin: Tensor<Autodiff<B>, 2>,
}

impl<B: ModelBackend> Tape<B> {
    /// [`CausalLm::states_at`] of a model in training, and the tape for the backward pass. With `checkpointing` the graph holds the
    /// last layer only, and [`Tape::backward`] recomputes the others.
    pub fn states_at<M: TrainableModel<B>>(
        model: &M,
        batch: TokenBatch<Autodiff<B>>,
        positions: Option<Tensor<Autodiff<B>, 1, Int>>,
        dropout: Option<Seed>,
        checkpointing: bool,
    ) -> (Tensor<Autodiff<B>, 2>, Self) {
        let decoder = model.decoder();
        let last = decoder.num_layers() - 1;
        if !checkpointing || last == 0 {
            let states = decoder.states_at(&batch, positions, None, dropout);
            return (states, Self { kept: None });
        }
        let mut before = Vec::with_capacity(last);
        let lowest = lowest_trained(decoder).min(last);
        let begin = {
            let decoder = decoder.valid();
            let batch = TokenBatch::<B> {
                input_ids: batch.input_ids.clone().inner(),
                segments: batch.segments.clone(),
            };
            let mut pass = Pass::new(&decoder, &batch, None, None, dropout);
            let decoder = decoder.layers();
            let mut x = pass.embed(decoder, &batch.input_ids);
            for index in 0..last {
                if index > 0 && index >= lowest {
                    before.push(x.clone());
                }
                x = decoder.layer(index, x, &mut pass);
            }
            Tensor::from_inner(x).set_require_grad(lowest < last)
        };
        let mut pass = Pass::new(decoder, &batch, positions, None, dropout);
        let decoder = decoder.layers();
        let states = decoder.layer(last, begin.clone(), &mut pass);
        let states = decoder.finish(states, &pass);
        let kept = SavedStates {
            batch,
            dropout,
            lowest,
            before,
            begin,
        };
        (states, Self { kept: Some(kept) })
    }

    /// Adds the gradients of `loss`, which was computed from these states, to `sum`.
    pub fn backward<M: TrainableModel<B>>(
        self,
        loss: &Tensor<Autodiff<B>, 1>,
        model: &mut M,
        sum: &mut GradientSum<B>,
    ) {
        let mut gradients = loss.backward();
        let Some(mut kept) = self.kept else {
            return sum.add::<Autodiff<B>>(model, &mut gradients);
        };
        let mut grad = kept.begin.grad(&gradients);
        sum.add::<Autodiff<B>>(model, &mut gradients);
        let last = model.decoder().num_layers() - 1;
        for index in (kept.lowest..last).rev() {
            let Some(after) = grad.take() else { return };
            let (x, y) = {
                let mut pass = Pass::new(model.decoder(), &kept.batch, None, None, kept.dropout);
                let decoder = model.decoder().layers();
                let x = match kept.before.pop() {
                    Some(x) => Tensor::from_inner(x).set_require_grad(index > kept.lowest),
                    // Recomputed, since embeddings may be trained, and virtual tokens before them.
                    None => pass.embed(decoder, &kept.batch.input_ids),
                };
                let y = decoder.layer(index, x.clone(), &mut pass);
                (x, y)
            };
            // The gradient of this sum with respect to `y` is `after`. The zero makes it tracked even if nothing below is
            // trained.
            let zero = Tensor::zeros([1], &after.device()).require_grad();
            let through = (y * Tensor::from_inner(after)).sum() + zero;
            let mut gradients = through.backward();
            grad = x.grad(&gradients);
            sum.add::<Autodiff<B>>(model, &mut gradients);
        }
    }
}
