//! Forward and backward passes of student and teacher over the same packed rows.

use burn::backend::Autodiff;
use burn::tensor::{Int, Tensor};

use super::responses::Sequence;
use crate::host::{indices, read};
use crate::model::{CausalLm, LanguageModel, Tape};
use crate::ops::{self, Divergence, HeadInput, ModelBackend};
use crate::rng::Seed;
use crate::tokens::TokenBatch;
use crate::train::shared::Accumulator;

/// Packed rows, and the positions of the states that predict their targets.
fn packed<B: ModelBackend>(
    rows: &[&Sequence],
    device: &B::Device,
) -> (TokenBatch<B>, Tensor<B, 1, Int>) {
    let ids: Vec<&[u32]> = rows.iter().map(|row| row.ids.as_slice()).collect();
    let batch = TokenBatch::from_rows(&ids, device);
    let positions: Vec<usize> = (rows.iter().zip(batch.segments.iter()))
        .flat_map(|(row, range)| row.targets.iter().map(move |&i| range.start + i - 1))
        .collect();
    (batch, indices(&positions, device))
}

fn head_input<B: ModelBackend>(
    model: &LanguageModel<B>,
    rows: &[&Sequence],
    device: &B::Device,
) -> HeadInput<B> {
    let (batch, at) = packed(rows, device);
    HeadInput {
        states: model.states_at(&batch, Some(at), None, None),
        head: model.head(),
    }
}

/// Adds the gradient of the divergence, summed over the targets of `rows`, to `sum`, and reports that sum.
pub(super) fn backward<B: ModelBackend>(
    student: &mut LanguageModel<Autodiff<B>>,
    teacher: &LanguageModel<B>,
    rows: &[&Sequence],
    settings: PassSettings,
    sum: &mut Accumulator<B>,
    device: &B::Device,
) {
    let of_teacher = head_input(teacher, rows, device);
    let (batch, at) = packed::<Autodiff<B>>(rows, device);
    let dropout = Some(settings.dropout);
    let checkpointing = settings.gradient_checkpointing;
    let (states, tape) = Tape::states_at(student, batch, Some(at), dropout, checkpointing);
    let of_student = HeadInput {
        states,
        head: student.head(),
    };
    let loss = ops::divergence(of_student, of_teacher, settings.divergence).sum();
    sum.report(loss.clone());
    sum.backward(&loss, tape, student);
}

/// Settings of [`backward`].
#[derive(Debug, Clone, Copy)]
pub(super) struct PassSettings {
    /// The loss.
    pub(super) divergence: Divergence,
    /// Randomness of the adapters' dropout.
    pub(super) dropout: Seed,
    /// Recompute layers in the backward pass instead of storing their activations.
    pub(super) gradient_checkpointing: bool,
}

/// The divergence without gradients, summed over the targets of `rows`.
pub(super) fn divergence<B: ModelBackend>(
    student: &LanguageModel<B>,
    teacher: &LanguageModel<B>,
    rows: &[&Sequence],
    of: Divergence,
    device: &B::Device,
) -> f64 {
    let of_student = head_input(student, rows, device);
    let of_teacher = head_input(teacher, rows, device);
    let rows = read(ops::row_divergences(&of_student, &of_teacher, of));
    rows.into_iter().map(f64::from).sum()
}
