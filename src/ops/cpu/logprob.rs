//! Log-probabilities of target tokens and their gradients, without storing a matrix of logits.

use burn::backend::Flex;
use burn::tensor::ops::FloatTensorOps;
use burn_flex::FlexTensor;
use rayon::prelude::*;

use super::{contiguous, dims2, slice, tensor, write_reduced_product};
use crate::ops::kernels::{Factor, Matrix, Right};
use crate::ops::{LogprobOutput, MatmulPrecision, ReducedMatrix, kernels, logit_chunk_rows};

/// `ModelBackend::token_logprob`.
pub(super) fn token_logprob(
    hidden: FlexTensor,
    head: FlexTensor,
    targets: &[u32],
    inv_temperature: f32,
    with_unit_gradient: bool,
    precision: MatmulPrecision,
) -> LogprobOutput<Flex> {
    let head = contiguous(head);
    let [vocab, width] = dims2(&head);
    let matrix = Matrix::Full(slice(&head));
    let to_logits = Factor::new(matrix, Right::Transposed, [width, vocab], precision);
    let to_states = Factor::new(matrix, Right::Plain, [vocab, width], precision);
    let of_states = |states: &[f32], logits: &mut [f32]| kernels::gemm(logits, states, &to_logits);
    let of_gradients = with_unit_gradient.then_some(|p: &[f32], targets: &[u32]| {
        let row = |&target: &u32| &slice(&head)[target as usize * width..][..width];
        let chosen: Vec<f32> = targets.iter().flat_map(row).copied().collect();
        let mut expected = vec![0f32; chosen.len()];
        kernels::gemm(&mut expected, p, &to_states);
        (chosen, expected)
    });
    chunked(
        hidden,
        targets,
        inv_temperature,
        vocab,
        of_states,
        of_gradients,
    )
}

/// `ModelBackend::reduced_token_logprob`.
pub(super) fn reduced_token_logprob(
    hidden: FlexTensor,
    head: &ReducedMatrix,
    targets: &[u32],
    inv_temperature: f32,
    with_unit_gradient: bool,
) -> LogprobOutput<Flex> {
    let of_states =
        |states: &[f32], logits: &mut [f32]| write_reduced_product(logits, states, head);
    let (matrix, sizes) = (Matrix::Reduced(head), [head.outputs(), head.inputs()]);
    let to_states = Factor::new(matrix, Right::Transposed, sizes, head.matmul());
    let of_gradients = with_unit_gradient.then_some(|p: &[f32], targets: &[u32]| {
        let chosen = head.columns(targets);
        let mut expected = vec![0f32; chosen.len()];
        kernels::gemm(&mut expected, p, &to_states);
        (chosen, expected)
    });
    chunked(
        hidden,
        targets,
        inv_temperature,
        head.outputs(),
        of_states,
        of_gradients,
    )
}

/// Processes chunks of logits, computed by `of_states` in the same memory. `of_gradients` returns the head's rows of the targets and
/// their expectation under given probabilities.
fn chunked(
    hidden: FlexTensor,
    targets: &[u32],
    inv_temperature: f32,
    vocab: usize,
    of_states: impl Fn(&[f32], &mut [f32]),
    of_gradients: Option<impl Fn(&[f32], &[u32]) -> (Vec<f32>, Vec<f32>)>,
) -> LogprobOutput<Flex> {
    let hidden = contiguous(hidden);
    let [tokens, width] = dims2(&hidden);
    let (mut logprobs, mut entropy) = (Vec::with_capacity(tokens), Vec::with_capacity(tokens));
    let mut unit = Vec::with_capacity(if of_gradients.is_some() {
        tokens * width
    } else {
        0
    });
    let chunk = logit_chunk_rows(vocab);
    let mut logits = vec![0f32; chunk.min(tokens) * vocab];
    let states = slice(&hidden).chunks(chunk * width);
    for (states, part) in states.zip(targets.chunks(chunk)) {
        let logits = &mut logits[..part.len() * vocab];
        of_states(states, logits);
        let rows =
            kernels::logprob_rows(logits, vocab, part, inv_temperature, of_gradients.is_some());
        logprobs.extend(rows.iter().map(|row| row.0));
        entropy.extend(rows.iter().map(|row| row.1));
        if let Some(of_gradients) = &of_gradients {
            let (chosen, expected) = of_gradients(logits, part);
            let pairs = chosen.into_iter().zip(expected);
            unit.extend(pairs.map(|(chosen, expected)| (chosen - expected) * inv_temperature));
        }
    }
    LogprobOutput {
        logprobs: tensor(logprobs, [tokens]),
        entropy: tensor(entropy, [tokens]),
        unit_gradient: of_gradients.map(|_| tensor(unit, [tokens, width])),
    }
}

/// `ModelBackend::token_logprob_backward`, in chunks of logits.
pub(super) fn token_logprob_backward(
    hidden: FlexTensor,
    head: FlexTensor,
    targets: &[u32],
    inv_temperature: f32,
    grad: FlexTensor,
    precision: MatmulPrecision,
) -> (FlexTensor, FlexTensor) {
    let matmul = |a, b| precision.matmul::<Flex>(a, b);
    let (hidden, head, grad) = (contiguous(hidden), contiguous(head), contiguous(grad));
    let [tokens, width] = dims2(&hidden);
    let vocab = dims2(&head)[0];
    let mut dhidden = Vec::with_capacity(tokens * width);
    let mut dhead: Option<FlexTensor> = None;
    let chunk = logit_chunk_rows(vocab);
    for (i, part) in targets.chunks(chunk).enumerate() {
        let h = hidden.narrow(0, i * chunk, part.len());
        let mut logits = contiguous(matmul(h.clone(), head.transpose(0, 1)));
        kernels::logprob_rows(logits.storage_mut(), vocab, part, inv_temperature, true);
        // d logit = (onehot - p) * grad / temperature
        let weights = &slice(&grad)[i * chunk..i * chunk + part.len()];
        logits
            .storage_mut::<f32>()
            .par_chunks_mut(vocab)
            .zip(part)
            .zip(weights)
            .for_each(|((row, &target), &g)| {
                let g = g * inv_temperature;
                for x in row.iter_mut() {
                    *x *= -g;
                }
                row[target as usize] += g;
            });
        dhidden.extend_from_slice(slice(&contiguous(matmul(logits.clone(), head.clone()))));
        let part = matmul(logits.transpose(0, 1), h);
        dhead = Some(match dhead {
            Some(sum) => Flex::float_add(sum, part),
            None => part,
        });
    }
    let dhead = dhead.unwrap_or_else(|| tensor(vec![0.0; vocab * width], [vocab, width]));
    (tensor(dhidden, [tokens, width]), dhead)
}
