//! The output head: from states to logits and log-probabilities.

use std::sync::Arc;

use burn::tensor::Tensor;
use burn::tensor::backend::Backend;

use super::tensor::{token_logprob, unwrap, wrap};
use super::{MatmulPrecision, ModelBackend, ReducedMatrix};

/// An output head.
#[derive(Debug, Clone)]
pub enum Head<B: Backend> {
    /// `[vocab, hidden]`, and how it is multiplied; may be trained.
    Full(Tensor<B, 2>, MatmulPrecision),
    /// `[hidden, vocab]`, frozen.
    Reduced(ReducedMatrix),
}

impl<B: Backend> Head<B> {
    /// Entries of a state.
    pub fn width(&self) -> usize {
        match self {
            Self::Full(head, _) => head.dims()[1],
            Self::Reduced(head) => head.inputs(),
        }
    }
}

/// Logits of states `[tokens, hidden]`, `[tokens, vocab]`.
pub fn logits<B: ModelBackend>(hidden: Tensor<B, 2>, head: &Head<B>) -> Tensor<B, 2> {
    wrap(match head {
        Head::Full(head, precision) => {
            B::head_logits(unwrap(hidden), unwrap(head.clone()), *precision)
        }
        Head::Reduced(head) => B::reduced_linear(unwrap(hidden), head),
    })
}

/// Log-probabilities (differentiable) and entropies (not differentiable) of `targets`, both `[tokens]` in nats. See
/// [`ModelBackend::token_logprob`] and [`ModelBackend::reduced_token_logprob`].
pub fn head_logprob<B: ModelBackend>(
    hidden: Tensor<B, 2>,
    head: Head<B>,
    targets: &Arc<Vec<u32>>,
    temperature: f64,
) -> (Tensor<B, 1>, Tensor<B, 1>) {
    let head = match head {
        Head::Full(head, precision) => {
            return token_logprob(hidden, head, targets, temperature, precision);
        }
        Head::Reduced(head) => head,
    };
    assert_eq!(
        hidden.dims()[0],
        targets.len(),
        "one target per hidden state"
    );
    let inverse = (1.0 / temperature) as f32;
    let out = B::reduced_token_logprob(unwrap(hidden), &head, targets, inverse, false);
    (wrap(out.logprobs), wrap(out.entropy))
}
