//! One optimiser step, common to all loops: gradients summed over micro-batches, clipped by global norm, the update rule.

use burn::backend::Autodiff;
use burn::tensor::Tensor;

use crate::collective;
use crate::host::DeferredReads;
use crate::model::{Tape, TrainableModel};
use crate::ops::ModelBackend;
use crate::optim::{GradientSum, Optimiser};
use crate::params::Parameters;

/// The name of a loss or norm that is not finite. The weights are those before the failed optimiser step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NonFinite(pub &'static str);

/// Returns `value` if it is finite.
///
/// # Errors
/// [`NonFinite`] with the name `what`.
pub(crate) fn finite(what: &'static str, value: f64) -> Result<f64, NonFinite> {
    match value.is_finite() {
        true => Ok(value),
        false => Err(NonFinite(what)),
    }
}

/// Accumulates over the backward passes of one optimiser step: the sum of gradients, and reported numbers, which stay on the
/// device until all work of the step is queued.
#[derive(Debug, Default)]
pub(crate) struct Accumulator<B: ModelBackend> {
    /// Summed over micro-batches.
    pub(crate) gradients: GradientSum<B>,
    /// In the order of the micro-batches.
    pub(crate) numbers: DeferredReads<B>,
}

impl<B: ModelBackend> Accumulator<B> {
    /// Adds `numbers` to the step's report.
    pub(crate) fn report(&mut self, numbers: Tensor<Autodiff<B>, 1>) {
        self.numbers.push(numbers.inner());
    }

    /// Reads the reported numbers of all ranks' micro-batches, in the order of [`Parts::all`](crate::collective::Parts::all).
    pub(crate) fn read_numbers(&mut self) -> impl Iterator<Item = Vec<f32>> + use<B> {
        collective::numbers(std::mem::take(&mut self.numbers).read())
    }

    /// Adds the gradients of a micro-batch's summed `loss`, whose forward pass left `tape`.
    pub(crate) fn backward<M: TrainableModel<B>>(
        &mut self,
        loss: &Tensor<Autodiff<B>, 1>,
        tape: Tape<B>,
        model: &mut M,
    ) {
        tape.backward(loss, model, &mut self.gradients);
    }
}

/// One step of the optimiser with the mean gradient `gradients / count`, clipped to the optimiser's `max_grad_norm`. Returns the
/// norm before clipping.
///
/// `gradients` is the sum over this rank's micro-batches, and `count` the number of tokens, prompts or pairs in the whole batch of all
/// ranks, so that neither the split into micro-batches nor that into ranks changes anything. Every rank does the same step.
///
/// # Errors
/// [`NonFinite`] if the norm is not finite; nothing is updated then.
pub(crate) fn optimise<B: ModelBackend>(
    model: &mut dyn Parameters<Autodiff<B>>,
    optim: &mut Optimiser<B>,
    gradients: GradientSum<B>,
    count: f64,
    lr: f64,
) -> Result<f64, NonFinite> {
    let gradients = match collective::ranks().is_alone() {
        true => gradients,
        false => gradients.over_ranks(&device_of(model)),
    };
    let norm = optim.update(model, gradients, count, lr);
    finite("gradient norm", norm)
}

/// The device of a model's trained parameters.
fn device_of<B: ModelBackend>(model: &mut dyn Parameters<Autodiff<B>>) -> B::Device {
    let mut device = None;
    model.for_each_parameter(&mut |_, slot| {
        if device.is_none() && slot.is_trained() {
            device = Some(slot.device());
        }
    });
    device.unwrap_or_default()
}
