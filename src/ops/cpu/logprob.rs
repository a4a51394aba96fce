//! Log-probabilities of target tokens and their gradients, without storing a matrix of logits.

use burn::backend::Flex;
use burn::tensor::ops::FloatTensorOps;
use burn_flex::FlexTensor;
use rayon::prelude::*;

use super::{contiguous, dims2, slice, tensor, write_reduced_product};
use crate::ops::kernels::{Factor, Matrix, Right};
use crate::ops::{
    FrozenWeight, LogprobOutput, MatmulPrecision, ReducedMatrix, ReplacedLogprob, ReplacedRows,
    kernels, logit_chunk_rows,
};

/// A head as the kernels read it.
enum HeadRows<'a> {
    /// `[vocab, width]`, contiguous, with the precision of products.
    Full(FlexTensor, MatmulPrecision),
    /// `[width, vocab]`.
    Reduced(&'a ReducedMatrix),
}

impl HeadRows<'_> {
    fn vocab(&self) -> usize {
        match self {
            Self::Full(head, _) => dims2(head)[0],
            Self::Reduced(head) => head.outputs(),
        }
    }

    /// The logits of states.
    fn write_logits(&self, states: &[f32], logits: &mut [f32]) {
        match self {
            Self::Full(head, precision) => {
                let ([vocab, width], matrix) = (dims2(head), Matrix::Full(slice(head)));
                let factor = Factor::new(matrix, Right::Transposed, [width, vocab], *precision);
                kernels::gemm(logits, states, &factor);
            }
            Self::Reduced(head) => write_reduced_product(logits, states, head),
        }
    }

    /// Sums of rows, weighted by the entries of `p`.
    fn expected(&self, p: &[f32]) -> Vec<f32> {
        let (factor, width) = match self {
            Self::Full(head, precision) => {
                let ([vocab, width], matrix) = (dims2(head), Matrix::Full(slice(head)));
                let factor = Factor::new(matrix, Right::Plain, [vocab, width], *precision);
                (factor, width)
            }
            Self::Reduced(head) => {
                let (matrix, sizes) = (Matrix::Reduced(head), [head.outputs(), head.inputs()]);
                let factor = Factor::new(matrix, Right::Transposed, sizes, head.matmul());
                (factor, head.inputs())
            }
        };
        let mut sums = vec![0f32; p.len() / self.vocab() * width];
        kernels::gemm(&mut sums, p, &factor);
        sums
    }

    /// The rows of tokens.
    fn rows(&self, tokens: &[u32]) -> Vec<f32> {
        match self {
            Self::Full(head, _) => {
                let [_, width] = dims2(head);
                let row = |&token: &u32| &slice(head)[token as usize * width..][..width];
                tokens.iter().flat_map(row).copied().collect()
            }
            Self::Reduced(head) => head.columns(tokens),
        }
    }

    /// Log-probabilities under the head as it is.
    fn logprob(
        &self,
        hidden: FlexTensor,
        targets: &[u32],
        inv_temperature: f32,
        with_unit_gradient: bool,
    ) -> LogprobOutput<Flex> {
        let of_states = |states: &[f32], logits: &mut [f32]| self.write_logits(states, logits);
        let of_gradients = with_unit_gradient
            .then_some(|p: &mut [f32], targets: &[u32]| (self.rows(targets), self.expected(p)));
        chunked(
            hidden,
            targets,
            inv_temperature,
            self.vocab(),
            of_states,
            of_gradients,
        )
    }
}

/// `ModelBackend::token_logprob`.
pub(super) fn token_logprob(
    hidden: FlexTensor,
    head: FlexTensor,
    targets: &[u32],
    inv_temperature: f32,
    with_unit_gradient: bool,
    precision: MatmulPrecision,
) -> LogprobOutput<Flex> {
    let head = HeadRows::Full(contiguous(head), precision);
    head.logprob(hidden, targets, inv_temperature, with_unit_gradient)
}

/// `ModelBackend::reduced_token_logprob`.
pub(super) fn reduced_token_logprob(
    hidden: FlexTensor,
    head: &ReducedMatrix,
    targets: &[u32],
    inv_temperature: f32,
    with_unit_gradient: bool,
) -> LogprobOutput<Flex> {
    let head = HeadRows::Reduced(head);
    head.logprob(hidden, targets, inv_temperature, with_unit_gradient)
}

/// `ModelBackend::replaced_token_logprob`: in each chunk the other rows' logits are written over those of the rows that they stand for,
/// and their probabilities are taken out before the expectation.
pub(super) fn replaced_token_logprob(
    hidden: FlexTensor,
    head: &FrozenWeight<Flex>,
    others: FlexTensor,
    replaced: &ReplacedRows<Flex>,
    targets: &[u32],
    inv_temperature: f32,
    with_gradients: bool,
) -> ReplacedLogprob<Flex> {
    let (at, precision) = (replaced.at.as_slice(), head.precision());
    let head = match head {
        FrozenWeight::Full(head, _) => HeadRows::Full(contiguous(head.transpose(0, 1)), precision),
        FrozenWeight::Reduced(head) => HeadRows::Reduced(head),
    };
    let (others, vocab) = (HeadRows::Full(contiguous(others), precision), head.vocab());
    let count = at.len();
    let of_states = |states: &[f32], logits: &mut [f32]| {
        head.write_logits(states, logits);
        let mut columns = vec![0f32; logits.len() / vocab * count];
        others.write_logits(states, &mut columns);
        let rows = logits.chunks_exact_mut(vocab);
        for (row, columns) in rows.zip(columns.chunks_exact(count)) {
            for (&column, &x) in at.iter().zip(columns) {
                row[column as usize] = x;
            }
        }
    };
    let mut of_others = Vec::new();
    let of_gradients = with_gradients.then_some(|p: &mut [f32], targets: &[u32]| {
        let taken = |row: &mut [f32]| -> Vec<f32> {
            let column = |&column: &u32| std::mem::take(&mut row[column as usize]);
            at.iter().map(column).collect()
        };
        let mut columns: Vec<f32> = p.chunks_exact_mut(vocab).flat_map(taken).collect();
        let mut expected = head.expected(p);
        let mut chosen = Vec::with_capacity(expected.len());
        for (sum, x) in expected.iter_mut().zip(others.expected(&columns)) {
            *sum += x;
        }
        for (&target, columns) in targets.iter().zip(columns.chunks_exact_mut(count)) {
            columns.iter_mut().for_each(|p| *p *= -inv_temperature);
            match at.iter().position(|&row| row == target) {
                Some(other) => {
                    columns[other] += inv_temperature;
                    chosen.extend(others.rows(&[other as u32]));
                }
                None => chosen.extend(head.rows(&[target])),
            }
        }
        of_others.extend(columns);
        (chosen, expected)
    });
    let out = chunked(
        hidden,
        targets,
        inv_temperature,
        vocab,
        of_states,
        of_gradients,
    );
    let of_others = (!of_others.is_empty()).then(|| tensor(of_others, [targets.len(), count]));
    (out, of_others)
}

/// Processes chunks of logits, computed by `of_states` in the same memory. `of_gradients` returns the head's rows of the targets and
/// their expectation under given probabilities.
fn chunked(
    hidden: FlexTensor,
    targets: &[u32],
    inv_temperature: f32,
    vocab: usize,
    of_states: impl Fn(&[f32], &mut [f32]),
    mut of_gradients: Option<impl FnMut(&mut [f32], &[u32]) -> (Vec<f32>, Vec<f32>)>,
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
        if let Some(of_gradients) = &mut of_gradients {
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
