//! Log-probabilities of target tokens, in chunks of rows.

use burn::tensor::backend::Backend;
use burn::tensor::ops::FloatTensor;
use burn::tensor::{Int, Tensor, TensorData, activation};

use crate::ops::tensor::{unwrap, wrap};
use crate::ops::{LogprobOutput, ModelBackend, ReducedMatrix, logit_chunk_rows};

fn targets_of<B: Backend>(targets: &[u32], device: &B::Device) -> Tensor<B, 1, Int> {
    let targets: Vec<i32> = targets.iter().map(|&t| t as i32).collect();
    let len = targets.len();
    Tensor::from_data(TensorData::new(targets, [len]), device)
}

pub(in crate::ops) fn token_logprob<B: Backend>(
    hidden: FloatTensor<B>,
    head: FloatTensor<B>,
    targets: &[u32],
    inv_temperature: f32,
    with_unit_gradient: bool,
) -> LogprobOutput<B> {
    let head = wrap::<B, 2>(head);
    let vocab = head.dims()[0];
    let transposed = head.clone().transpose();
    let of_states = |h: Tensor<B, 2>| h.matmul(transposed.clone());
    let of_gradients = with_unit_gradient.then_some(|p: Tensor<B, 2>, targets: &[u32]| {
        let ids = targets_of::<B>(targets, &p.device());
        head.clone().select(0, ids) - p.matmul(head.clone())
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

/// By chunks of rows: logits by `of_states`, and by `of_gradients` the head's rows of the targets less what is expected of
/// them.
fn chunked<B: Backend>(
    hidden: FloatTensor<B>,
    targets: &[u32],
    inv_temperature: f32,
    vocab: usize,
    of_states: impl Fn(Tensor<B, 2>) -> Tensor<B, 2>,
    of_gradients: Option<impl Fn(Tensor<B, 2>, &[u32]) -> Tensor<B, 2>>,
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
        if let Some(of_gradients) = &of_gradients {
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

pub(in crate::ops) fn token_logprob_backward<B: Backend>(
    hidden: FloatTensor<B>,
    head: FloatTensor<B>,
    targets: &[u32],
    inv_temperature: f32,
    grad: FloatTensor<B>,
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
        let p = activation::softmax(
            h.clone()
                .matmul(head.clone().transpose())
                .mul_scalar(inv_temperature),
            1,
        );
        dhidden.push(
            (head.clone().select(0, ids.clone()) - p.clone().matmul(head.clone())) * g.clone(),
        );
        let weighted = h * g;
        dhead = dhead - p.transpose().matmul(weighted.clone());
        dhead = dhead.select_assign(0, ids, weighted, burn::tensor::IndexingUpdateOp::Add);
    }
    let dhidden = if dhidden.is_empty() {
        hidden
    } else {
        Tensor::cat(dhidden, 0)
    };
    (unwrap(dhidden), unwrap(dhead))
}
