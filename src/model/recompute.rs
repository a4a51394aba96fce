//! Activation recomputation (`gradient_checkpointing`): of a forward pass only the states between layers are kept, and the
//! backward pass computes each layer again.
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

/// A model that is trained: its decoder, and perhaps a head of its own.
pub trait Trained<B: ModelBackend>: Parameters<Autodiff<B>> {
    /// The decoder.
    fn decoder(&self) -> &LanguageModel<Autodiff<B>>;
}

impl<B: ModelBackend> Trained<B> for LanguageModel<Autodiff<B>> {
    fn decoder(&self) -> &LanguageModel<Autodiff<B>> {
        self
    }
}

impl<B: ModelBackend> Trained<B> for ScalarModel<Autodiff<B>> {
    fn decoder(&self) -> &LanguageModel<Autodiff<B>> {
        &self.backbone
    }
}

/// The lowest layer that a backward pass has to reach.
fn lowest_trained<B: ModelBackend>(decoder: &LanguageModel<Autodiff<B>>) -> usize {
    let mut parameters = Vec::new();
    // Walks take models mutably; tensors are shared with the copy.
    decoder.clone().for_each_parameter(&mut |meta, slot| {
        parameters.push((meta.key().to_owned(), slot.is_trained()));
    });
    let trained = parameters
        .iter()
        .map(|(name, trained)| (name.as_str(), *trained));
    lowest_trained_layer(trained, decoder.num_layers())
}

/// The way back through a forward pass.
#[derive(Debug)]
pub struct Tape<B: ModelBackend> {
    /// `None` if the graph goes all the way.
    kept: Option<Kept<B>>,
}

/// What layers need to be computed again.
#[derive(Debug)]
struct Kept<B: ModelBackend> {
    batch: TokenBatch<Autodiff<B>>,
    dropout: Option<Seed>,
    /// The lowest layer that is trained, or 0 if the embeddings are; at most the last one. The backward pass ends there.
    lowest: usize,
    /// The states before each layer from the lowest on but the first, whose are the embeddings, and the last.
    before: Vec<Tensor<B, 2>>,
    /// Those before the last one, where the graph begins.
    begin: Tensor<Autodiff<B>, 2>,
}

impl<B: ModelBackend> Tape<B> {
    /// [`CausalLm::states_at`] of a model that is trained, and the way back. With `checkpointing` the graph holds the last
    /// layer only, and [`Tape::backward`] computes the others again.
    pub fn states_at<M: Trained<B>>(
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
            let decoder = decoder.layers();
            let mut pass = Pass::new(decoder, &batch, None, None, dropout);
            let mut x = decoder.embed(&batch.input_ids, &pass);
            for index in 0..last {
                if index > 0 && index >= lowest {
                    before.push(x.clone());
                }
                x = decoder.layer(index, x, &mut pass);
            }
            Tensor::from_inner(x).set_require_grad(lowest < last)
        };
        let decoder = decoder.layers();
        let mut pass = Pass::new(decoder, &batch, positions, None, dropout);
        let states = decoder.layer(last, begin.clone(), &mut pass);
        let states = decoder.finish(states, &pass);
        let kept = Kept {
            batch,
            dropout,
            lowest,
            before,
            begin,
        };
        (states, Self { kept: Some(kept) })
    }

    /// Adds the gradients of `loss`, which was computed from these states, to `sum`.
    pub fn backward<M: Trained<B>>(
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
                let decoder = model.decoder().layers();
                let mut pass = Pass::new(decoder, &kept.batch, None, None, kept.dropout);
                let x = match kept.before.pop() {
                    Some(x) => Tensor::from_inner(x).set_require_grad(index > kept.lowest),
                    // Embeddings may be trained.
                    None => decoder.embed(&kept.batch.input_ids, &pass),
                };
                let y = decoder.layer(index, x.clone(), &mut pass);
                (x, y)
            };
            // The product's gradient with respect to `y` is what came from above. The zero makes a graph of it even if
            // nothing below is trained.
            let zero = Tensor::zeros([1], &after.device()).require_grad();
            let through = (y * Tensor::from_inner(after)).sum() + zero;
            let mut gradients = through.backward();
            grad = x.grad(&gradients);
            sum.add::<Autodiff<B>>(model, &mut gradients);
        }
    }
}
