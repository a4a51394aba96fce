//! One optimiser step, the same for every loop: gradients summed over micro-batches, clipped by their global norm, AdamW.

use burn::backend::Autodiff;
use burn::tensor::Tensor;

use crate::host::Later;
use crate::model::{Tape, Trained};
use crate::ops::ModelBackend;
use crate::optim::{AdamW, GradientSum};
use crate::params::Parameters;

/// A loss or norm that is not finite, by name. Weights are as they were before the optimiser step it would have entered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NonFinite(pub &'static str);

/// `value`, if it is a number.
///
/// # Errors
/// [`NonFinite`] with the name `what`.
pub(crate) fn finite(what: &'static str, value: f64) -> Result<f64, NonFinite> {
    match value.is_finite() {
        true => Ok(value),
        false => Err(NonFinite(what)),
    }
}

/// What the backward passes of one optimiser step leave: the sum of their gradients, and the numbers that the step
/// reports, which stay on the device until all of its work is queued.
#[derive(Debug, Default)]
pub(crate) struct Accumulator<B: ModelBackend> {
    /// Summed over micro-batches.
    pub(crate) gradients: GradientSum<B>,
    /// In the order of the micro-batches.
    pub(crate) numbers: Later<B>,
}

impl<B: ModelBackend> Accumulator<B> {
    /// Keeps `numbers` for the step's report.
    pub(crate) fn report(&mut self, numbers: Tensor<Autodiff<B>, 1>) {
        self.numbers.push(numbers.inner());
    }

    /// Adds the gradients of a micro-batch's summed `loss`, whose forward pass left `tape`.
    pub(crate) fn backward<M: Trained<B>>(
        &mut self,
        loss: &Tensor<Autodiff<B>, 1>,
        tape: Tape<B>,
        model: &mut M,
    ) {
        tape.backward(loss, model, &mut self.gradients);
    }
}

/// One step of AdamW with the mean gradient `gradients / count`, clipped to the optimiser's `max_grad_norm`. Returns the
/// norm before clipping.
///
/// `count` is what the loss is a mean over (tokens, prompts, pairs) in the whole batch, so that the split into
/// micro-batches changes nothing.
///
/// # Errors
/// [`NonFinite`] if the norm is not finite; then nothing is updated.
pub(crate) fn optimise<B: ModelBackend>(
    model: &mut dyn Parameters<Autodiff<B>>,
    optim: &mut AdamW<B>,
    gradients: GradientSum<B>,
    count: f64,
    lr: f64,
) -> Result<f64, NonFinite> {
    // The place of a reduction over ranks: `gradients` and `count` are sums, and their norm is not yet taken.
    let norm = optim.update(model, gradients, count, lr);
    finite("gradient norm", norm)
}
