//! Log-probabilities and entropies from chunks of logits, each read once; the gradient with respect to the logits takes
//! their place.

use std::cell::RefCell;

use burn::tensor::backend::Backend;
use burn::tensor::ops::FloatTensor;
use burn::tensor::{FloatDType, Tensor, TensorMetadata};
use burn_cubecl::CubeRuntime;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use super::reduce::{cube_max, cube_sum};
use super::{by_row, dims2, empty, entrywise, tables, writable};
use crate::ops::tensor::{unwrap, wrap};
use crate::ops::{
    FrozenWeight, LogprobOutput, MatmulPrecision, ModelBackend, ReplacedRows, logit_chunk_rows,
};

/// One cube per row: log-probability of its target, entropy, and, of `x = logits * inv_temperature`, the largest value and the inverse
/// of the sum of `exp(x - largest)`. Their joint logarithm would lose digits of probabilities where logits are large.
#[cube(launch)]
fn statistics(
    logits: &Array<f32>,
    targets: &Array<u32>,
    logprobs: &mut Array<f32>,
    entropy: &mut Array<f32>,
    softmax: &mut Array<f32>,
    first: u32,
    rows: u32,
    vocab: u32,
    inv_temperature: f32,
    #[comptime] units: usize,
) {
    let (rows, vocab, first) = (rows as usize, vocab as usize, first as usize);
    let mut shared = SharedMemory::<f32>::new(units);
    let mut row = CUBE_POS_X as usize;
    while row < rows {
        // Over this unit's entries: the largest, and the sums of exp(x - largest) and (x - largest) exp(x - largest).
        let mut largest = f32::new(-1e30);
        let mut sum = 0.0f32;
        let mut weighted = 0.0f32;
        let mut i = UNIT_POS_X as usize;
        while i < vocab {
            let x = logits[row * vocab + i] * inv_temperature;
            if x > largest {
                let shift = largest - x;
                let shrink = f32::exp(shift);
                // Not from the first time's -1e30: 0 * -1e30 is harmless, its square would not be.
                weighted = (weighted + shift * sum) * shrink;
                sum *= shrink;
                largest = x;
            }
            let p = f32::exp(x - largest);
            sum += p;
            weighted += p * (x - largest);
            i += units;
        }
        let top = cube_max(largest, &mut shared);
        let shift = largest - top;
        let shrink = f32::exp(shift);
        let weighted = cube_sum((weighted + shift * sum) * shrink, &mut shared);
        let sum = cube_sum(sum * shrink, &mut shared);
        if UNIT_POS_X == 0 {
            let log_sum = f32::ln(sum);
            let target = targets[first + row] as usize;
            softmax[2 * row] = top;
            softmax[2 * row + 1] = 1.0f32 / sum;
            logprobs[first + row] = logits[row * vocab + target] * inv_temperature - top - log_sum;
            entropy[first + row] = log_sum - weighted / sum;
        }
        row += CUBE_COUNT_X as usize;
    }
}

/// Replaces logits by `factor * (onehot - p) * inv_temperature`, `factor` being `grad` of the row if `weighted`.
#[cube(launch)]
fn logit_gradient(
    logits: &mut Array<f32>,
    targets: &Array<u32>,
    softmax: &Array<f32>,
    grad: &Array<f32>,
    first: u32,
    vocab: u32,
    len: u32,
    inv_temperature: f32,
    #[comptime] weighted: bool,
) {
    let (vocab, first) = (vocab as usize, first as usize);
    let mut i = ABSOLUTE_POS;
    while i < len as usize {
        let (row, token) = (i / vocab, i % vocab);
        let mut value =
            -f32::exp(logits[i] * inv_temperature - softmax[2 * row]) * softmax[2 * row + 1];
        if token == targets[first + row] as usize {
            value += 1.0f32;
        }
        if weighted {
            value *= grad[first + row];
        }
        logits[i] = value * inv_temperature;
        i += CUBE_COUNT_X as usize * CUBE_DIM_X as usize;
    }
}

/// A chunk's place and targets.
struct Chunk<'a, R: CubeRuntime> {
    first: usize,
    rows: usize,
    targets: &'a CubeTensor<R>,
    inv_temperature: f32,
}

impl<R: CubeRuntime> Chunk<'_, R> {
    /// Writes the chunk's part of `logprobs` and `entropy`; returns the statistics for computing probabilities.
    fn statistics(
        &self,
        logits: &CubeTensor<R>,
        logprobs: &CubeTensor<R>,
        entropy: &CubeTensor<R>,
    ) -> CubeTensor<R> {
        let vocab = dims2(logits)[1];
        let softmax = empty(logits, [self.rows, 2]);
        let (count, dim, units) = by_row(self.rows, vocab);
        statistics::launch::<R>(
            &logits.client,
            count,
            dim,
            logits.clone().into_array_arg(),
            self.targets.clone().into_array_arg(),
            logprobs.clone().into_array_arg(),
            entropy.clone().into_array_arg(),
            softmax.clone().into_array_arg(),
            self.first as u32,
            self.rows as u32,
            vocab as u32,
            self.inv_temperature,
            units,
        );
        softmax
    }

    /// Replaces the logits by the gradient of the log-probabilities (times `grad`, if given) with respect to them.
    fn gradient(
        &self,
        logits: CubeTensor<R>,
        softmax: CubeTensor<R>,
        grad: Option<&CubeTensor<R>>,
    ) -> CubeTensor<R> {
        let logits = writable(logits);
        let vocab = dims2(&logits)[1];
        let len = self.rows * vocab;
        let (count, dim) = entrywise(len);
        logit_gradient::launch::<R>(
            &logits.client.clone(),
            count,
            dim,
            logits.clone().into_array_arg(),
            self.targets.clone().into_array_arg(),
            softmax.clone().into_array_arg(),
            grad.unwrap_or(&softmax).clone().into_array_arg(),
            self.first as u32,
            vocab as u32,
            len as u32,
            self.inv_temperature,
            grad.is_some(),
        );
        logits
    }
}

/// Splits `tokens` rows into chunks `(first, rows)`.
fn chunks(tokens: usize, vocab: usize) -> impl Iterator<Item = (usize, usize)> {
    let size = logit_chunk_rows(vocab);
    (0..tokens)
        .step_by(size)
        .map(move |first| (first, size.min(tokens - first)))
}

fn rows_of<B: Backend>(
    x: &B::FloatTensorPrimitive,
    first: usize,
    rows: usize,
) -> B::FloatTensorPrimitive {
    unwrap(wrap::<B, 2>(x.clone()).narrow(0, first, rows))
}

/// Concatenates rows; an empty tensor of `like`'s width for no parts.
fn join<R, B>(mut parts: Vec<CubeTensor<R>>, like: &CubeTensor<R>) -> CubeTensor<R>
where
    R: CubeRuntime,
    B: Backend<FloatTensorPrimitive = CubeTensor<R>>,
{
    match parts.len() {
        0 => like.clone(),
        1 => parts.remove(0),
        _ => B::float_cat(parts, 0),
    }
}

/// A head `[vocab, hidden]` as the weight of a linear layer.
pub(super) fn transposed<B: ModelBackend>(
    head: FloatTensor<B>,
    precision: MatmulPrecision,
) -> FrozenWeight<B> {
    FrozenWeight::Full(B::float_transpose(head), precision)
}

/// A head: what gives logits, and the gradient of states.
pub(super) trait LogitHead<B: Backend> {
    fn vocab(&self) -> usize;

    /// Logits of states.
    fn logits(&self, states: FloatTensor<B>) -> FloatTensor<B>;

    /// Gradient of states, given that of their logits.
    fn backward(&self, of_logits: FloatTensor<B>) -> FloatTensor<B>;
}

impl<B: ModelBackend> LogitHead<B> for FrozenWeight<B> {
    fn vocab(&self) -> usize {
        match self {
            Self::Full(head, _) => head.shape()[1],
            Self::Reduced(head) => head.outputs(),
        }
    }

    fn logits(&self, states: FloatTensor<B>) -> FloatTensor<B> {
        self.product(states)
    }

    fn backward(&self, of_logits: FloatTensor<B>) -> FloatTensor<B> {
        self.backward(of_logits)
    }
}

/// A head with other rows in place of some of its own.
pub(super) struct WithOthers<'a, B: Backend> {
    pub(super) head: &'a FrozenWeight<B>,
    /// `[others, width]`.
    pub(super) others: FloatTensor<B>,
    pub(super) replaced: &'a ReplacedRows<B>,
    /// Gradients of the others' logits, by chunk.
    pub(super) of_others: RefCell<Vec<Tensor<B, 2>>>,
}

impl<B: Backend> WithOthers<'_, B> {
    /// Gradients of the others' logits; `None` if none were computed.
    pub(super) fn of_others(self) -> Option<FloatTensor<B>> {
        let chunks = self.of_others.into_inner();
        (!chunks.is_empty()).then(|| unwrap(Tensor::cat(chunks, 0)))
    }
}

impl<B: ModelBackend> LogitHead<B> for WithOthers<'_, B> {
    fn vocab(&self) -> usize {
        self.head.vocab()
    }

    fn logits(&self, states: FloatTensor<B>) -> FloatTensor<B> {
        let others = B::float_transpose(self.others.clone());
        let columns = self.head.precision().matmul::<B>(states.clone(), others);
        let logits = wrap(self.head.product(states));
        unwrap(self.replaced.put(logits, wrap(columns)))
    }

    fn backward(&self, of_logits: FloatTensor<B>) -> FloatTensor<B> {
        let of_logits = wrap::<B, 2>(of_logits);
        let columns = self.replaced.columns(of_logits.clone());
        let precision = self.head.precision();
        let of_others = precision.matmul::<B>(unwrap(columns.clone()), self.others.clone());
        self.of_others.borrow_mut().push(columns);
        let of_head = self.head.backward(unwrap(self.replaced.clear(of_logits)));
        B::float_add(of_head, of_others)
    }
}

pub(super) fn forward<R, B>(
    hidden: CubeTensor<R>,
    head: &impl LogitHead<B>,
    targets: &[u32],
    inv_temperature: f32,
    with_unit_gradient: bool,
) -> LogprobOutput<B>
where
    R: CubeRuntime,
    B: ModelBackend<FloatTensorPrimitive = CubeTensor<R>>,
{
    let hidden = into_contiguous(hidden);
    let [tokens, _] = dims2(&hidden);
    let vocab = head.vocab();
    let (logprobs, entropy) = (empty(&hidden, [tokens]), empty(&hidden, [tokens]));
    let mut gradients = Vec::new();
    if tokens > 0 {
        let targets = tables::table(&hidden, targets.to_vec());
        for (first, rows) in chunks(tokens, vocab) {
            let chunk = Chunk {
                first,
                rows,
                targets: &targets,
                inv_temperature,
            };
            let logits = into_contiguous(head.logits(rows_of::<B>(&hidden, first, rows)));
            let softmax = chunk.statistics(&logits, &logprobs, &entropy);
            if with_unit_gradient {
                gradients.push(head.backward(chunk.gradient(logits, softmax, None)));
            }
        }
    }
    LogprobOutput {
        logprobs,
        entropy,
        unit_gradient: with_unit_gradient.then(|| join::<R, B>(gradients, &hidden)),
    }
}

pub(super) fn backward<B, R>(
    hidden: CubeTensor<R>,
    head: CubeTensor<R>,
    targets: &[u32],
    inv_temperature: f32,
    grad: CubeTensor<R>,
    precision: MatmulPrecision,
) -> (CubeTensor<R>, CubeTensor<R>)
where
    R: CubeRuntime,
    B: ModelBackend<FloatTensorPrimitive = CubeTensor<R>>,
{
    let (hidden, grad) = (into_contiguous(hidden), into_contiguous(grad));
    let [tokens, width] = dims2(&hidden);
    let vocab = dims2(&head)[0];
    let (logprobs, entropy) = (empty(&hidden, [tokens]), empty(&hidden, [tokens]));
    let mut dhead: Option<CubeTensor<R>> = None;
    let mut gradients = Vec::new();
    if tokens > 0 {
        let targets = tables::table(&hidden, targets.to_vec());
        for (first, rows) in chunks(tokens, vocab) {
            let chunk = Chunk {
                first,
                rows,
                targets: &targets,
                inv_temperature,
            };
            let states = rows_of::<B>(&hidden, first, rows);
            let logits = into_contiguous(B::head_logits(states.clone(), head.clone(), precision));
            let softmax = chunk.statistics(&logits, &logprobs, &entropy);
            let dlogits = chunk.gradient(logits, softmax, Some(&grad));
            gradients.push(precision.matmul::<B>(dlogits.clone(), head.clone()));
            let part = precision.matmul::<B>(B::float_transpose(dlogits), states);
            dhead = Some(match dhead {
                Some(sum) => B::float_add(sum, part),
                None => part,
            });
        }
    }
    let dhead = dhead.unwrap_or_else(|| {
        B::float_zeros(
            [vocab, width].into(),
            &B::float_device(&hidden),
            FloatDType::F32,
        )
    });
    (join::<R, B>(gradients, &hidden), dhead)
}
