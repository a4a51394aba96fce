//! Log-probabilities of target tokens, in chunks of rows.

use burn::tensor::backend::Backend;
use burn::tensor::ops::FloatTensor;
use burn::tensor::{IndexingUpdateOp, Int, Tensor, TensorData, activation};

use crate::ops::tensor::{unwrap, wrap};
use crate::ops::{
    FrozenWeight, LogprobOutput, MatmulPrecision, ModelBackend, ReducedMatrix, ReplacedLogprob,
    ReplacedRows, logit_chunk_rows,
};

fn targets_of<B: Backend>(targets: &[u32], device: &B::Device) -> Tensor<B, 1, Int> {
    let targets: Vec<i32> = targets.iter().map(|&t| t as i32).collect();
    let len = targets.len();
    Tensor::from_data(TensorData::new(targets, [len]), device)
}

/// A one in each row of zeros of the shape of `like`, in the column of its target.
fn one_hot<B: Backend>(like: &Tensor<B, 2>, targets: Tensor<B, 1, Int>) -> Tensor<B, 2> {
    let rows = targets.dims()[0];
    let ones = Tensor::ones([rows, 1], &like.device());
    let targets = targets.reshape([rows, 1]);
    (like.zeros_like()).scatter(1, targets, ones, IndexingUpdateOp::Add)
}

/// `a . b` in a precision.
fn product<B: ModelBackend>(
    precision: MatmulPrecision,
    a: Tensor<B, 2>,
    b: Tensor<B, 2>,
) -> Tensor<B, 2> {
    wrap(precision.matmul::<B>(unwrap(a), unwrap(b)))
}

pub(in crate::ops) fn token_logprob<B: ModelBackend>(
    hidden: FloatTensor<B>,
    head: FloatTensor<B>,
    targets: &[u32],
    inv_temperature: f32,
    with_unit_gradient: bool,
    precision: MatmulPrecision,
) -> LogprobOutput<B> {
    let head = wrap::<B, 2>(head);
    let vocab = head.dims()[0];
    let transposed = head.clone().transpose();
    let of_states = |h: Tensor<B, 2>| product(precision, h, transposed.clone());
    let of_gradients = with_unit_gradient.then_some(|p: Tensor<B, 2>, targets: &[u32]| {
        let ids = targets_of::<B>(targets, &p.device());
        head.clone().select(0, ids) - product(precision, p, head.clone())
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

pub(in crate::ops) fn reduced_token_logprob<B: ModelBackend>(
    hidden: FloatTensor<B>,
    head: &ReducedMatrix,
    targets: &[u32],
    inv_temperature: f32,
    with_unit_gradient: bool,
) -> LogprobOutput<B> {
    let of_states = |h: Tensor<B, 2>| wrap(B::reduced_linear(unwrap(h), head));
    let of_gradients = with_unit_gradient.then_some(|p: Tensor<B, 2>, targets: &[u32]| {
        let device = p.device();
        let expected = wrap::<B, 2>(B::reduced_linear_backward(unwrap(p), head));
        let chosen = TensorData::new(head.columns(targets), [targets.len(), head.inputs()]);
        Tensor::from_data(chosen, &device) - expected
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

/// See [`ModelBackend::replaced_token_logprob`].
pub(in crate::ops) fn replaced_token_logprob<B: ModelBackend>(
    hidden: FloatTensor<B>,
    head: &FrozenWeight<B>,
    others: FloatTensor<B>,
    replaced: &ReplacedRows<B>,
    targets: &[u32],
    inv_temperature: f32,
    with_gradients: bool,
) -> ReplacedLogprob<B> {
    let (others, precision) = (wrap::<B, 2>(others), head.precision());
    let of_states = |h: Tensor<B, 2>| {
        let columns = product(precision, h.clone(), others.clone().transpose());
        replaced.put(wrap(head.product(unwrap(h))), columns)
    };
    let mut of_others = Vec::new();
    let of_gradients = with_gradients.then_some(|p: Tensor<B, 2>, targets: &[u32]| {
        let ids = targets_of::<B>(targets, &p.device());
        let of_logits = one_hot(&p, ids) - p;
        let columns = replaced.columns(of_logits.clone());
        of_others.push(columns.clone().mul_scalar(inv_temperature));
        let of_head = head.backward(unwrap(replaced.clear(of_logits)));
        wrap::<B, 2>(of_head) + product(precision, columns, others.clone())
    });
    let vocab = replaced.num_rows();
    let out = chunked(
        hidden,
        targets,
        inv_temperature,
        vocab,
        of_states,
        of_gradients,
    );
    let of_others = (!of_others.is_empty()).then(|| unwrap(Tensor::<B, 2>::cat(of_others, 0)));
    (out, of_others)
}

/// In chunks of rows: `of_states` computes logits; `of_gradients` the head's rows of the targets minus their expectation.
fn chunked<B: Backend>(
    hidden: FloatTensor<B>,
    targets: &[u32],
    inv_temperature: f32,
    vocab: usize,
    of_states: impl Fn(Tensor<B, 2>) -> Tensor<B, 2>,
    mut of_gradients: Option<impl FnMut(Tensor<B, 2>, &[u32]) -> Tensor<B, 2>>,
) -> LogprobOutput<B> {
    let hidden = wrap::<B, 2>(hidden);
    let device = hidden.device();
    let (mut logprobs, mut entropies, mut gradients) = (Vec::new(), Vec::new(), Vec::new());
    let chunk = logit_chunk_rows(vocab);
    for (i, part) in targets.chunks(chunk).enumerate() {
        let h = hidden.clone().narrow(0, i * chunk, part.len());
        let ids = targets_of::<B>(part, &device);
        let log_p = activation::log_softmax(of_states(h).mul_scalar(inv_temperature), 1);
        let p = log_p.clone().exp();
        entropies.push(
            (p.clone() * log_p.clone())
                .sum_dim(1)
                .squeeze_dim::<1>(1)
                .neg(),
        );
        logprobs.push(
            log_p
                .gather(1, ids.reshape([part.len(), 1]))
                .squeeze_dim::<1>(1),
        );
        if let Some(of_gradients) = &mut of_gradients {
            gradients.push(of_gradients(p, part).mul_scalar(inv_temperature));
        }
    }
    let join = |parts: Vec<Tensor<B, 1>>| {
        if parts.is_empty() {
            Tensor::zeros([0], &device)
        } else {
            Tensor::cat(parts, 0)
        }
    };
    LogprobOutput {
        logprobs: unwrap(join(logprobs)),
        entropy: unwrap(join(entropies)),
        unit_gradient: of_gradients.map(|_| {
            unwrap(if gradients.is_empty() {
                hidden.clone()
            } else {
                Tensor::cat(gradients, 0)
            })
        }),
    }
}

pub(in crate::ops) fn token_logprob_backward<B: ModelBackend>(
    hidden: FloatTensor<B>,
    head: FloatTensor<B>,
    targets: &[u32],
    inv_temperature: f32,
    grad: FloatTensor<B>,
    precision: MatmulPrecision,
) -> (FloatTensor<B>, FloatTensor<B>) {
    let (hidden, head, grad) = (wrap::<B, 2>(hidden), wrap::<B, 2>(head), wrap::<B, 1>(grad));
    let device = hidden.device();
    let chunk = logit_chunk_rows(head.dims()[0]);
    let mut dhidden = Vec::new();
    let mut dhead = head.zeros_like();
    for (i, part) in targets.chunks(chunk).enumerate() {
        let len = part.len();
        let h = hidden.clone().narrow(0, i * chunk, len);
        let g = grad
            .clone()
            .narrow(0, i * chunk, len)
            .reshape([len, 1])
            .mul_scalar(inv_temperature);
        let ids = targets_of::<B>(part, &device);
        let logits = product(precision, h.clone(), head.clone().transpose());
        let p = activation::softmax(logits.mul_scalar(inv_temperature), 1);
        let dlogits = (one_hot(&p, ids) - p) * g;
        dhidden.push(product(precision, dlogits.clone(), head.clone()));
        dhead = dhead + product(precision, dlogits.transpose(), h);
    }
    let dhidden = if dhidden.is_empty() {
        hidden
    } else {
        Tensor::cat(dhidden, 0)
    };
    (unwrap(dhidden), unwrap(dhead))
}
