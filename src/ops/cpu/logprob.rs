//! Log-probabilities of target tokens and their gradients, without keeping a matrix of logits.

use burn::backend::Flex;
use burn::tensor::ops::FloatTensorOps;
use burn_flex::FlexTensor;
use rayon::prelude::*;

use super::{contiguous, dims2, matmul, slice, tensor};
use crate::ops::{LogprobOutput, kernels, logit_chunk_rows};

/// `ModelBackend::token_logprob`, a chunk of logits at a time.
pub(super) fn token_logprob(
    hidden: FlexTensor,
    head: FlexTensor,
    targets: &[u32],
    inv_temperature: f32,
    with_unit_gradient: bool,
) -> LogprobOutput<Flex> {
    let (hidden, head) = (contiguous(hidden), contiguous(head));
    let [tokens, width] = dims2(&hidden);
    let vocab = dims2(&head)[0];
    let (mut logprobs, mut entropy) = (Vec::with_capacity(tokens), Vec::with_capacity(tokens));
    let mut unit = vec![
        0f32;
        if with_unit_gradient {
            tokens * width
        } else {
            0
        }
    ];
    let chunk = logit_chunk_rows(vocab);
    for (i, part) in targets.chunks(chunk).enumerate() {
        let h = hidden.narrow(0, i * chunk, part.len());
        let mut logits = contiguous(matmul(h, head.transpose(0, 1)));
        let rows = kernels::logprob_rows(
            logits.storage_mut(),
            vocab,
            part,
            inv_temperature,
            with_unit_gradient,
        );
        logprobs.extend(rows.iter().map(|row| row.0));
        entropy.extend(rows.iter().map(|row| row.1));
        if with_unit_gradient {
            let expected = contiguous(matmul(logits, head.clone()));
            let unit = unit[i * chunk * width..].chunks_exact_mut(width);
            for ((unit, expected), &target) in
                unit.zip(slice(&expected).chunks_exact(width)).zip(part)
            {
                let chosen = &slice(&head)[target as usize * width..(target as usize + 1) * width];
                for j in 0..width {
                    unit[j] = (chosen[j] - expected[j]) * inv_temperature;
                }
            }
        }
    }
    LogprobOutput {
        logprobs: tensor(logprobs, [tokens]),
        entropy: tensor(entropy, [tokens]),
        unit_gradient: with_unit_gradient.then(|| tensor(unit, [tokens, width])),
    }
}

/// `ModelBackend::token_logprob_backward`, a chunk of logits at a time.
pub(super) fn token_logprob_backward(
    hidden: FlexTensor,
    head: FlexTensor,
    targets: &[u32],
    inv_temperature: f32,
    grad: FlexTensor,
) -> (FlexTensor, FlexTensor) {
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
