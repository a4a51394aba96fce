//! The output head: from states to logits and log-probabilities.

use std::sync::Arc;

use burn::tensor::backend::Backend;
use burn::tensor::{Int, Tensor, TensorData, activation};

use super::tensor::{token_logprob, unwrap, wrap};
use super::{FrozenWeight, MatmulPrecision, ModelBackend, ReducedMatrix, ReplacedRows};

/// An output head.
#[derive(Debug, Clone)]
pub enum Head<B: Backend> {
    /// f32, `[vocab, hidden]`, with the precision of products; may be trained.
    Full(Tensor<B, 2>, MatmulPrecision),
    /// Reduced and frozen, `[hidden, vocab]`.
    Reduced(ReducedMatrix),
    /// A frozen head, and other rows in place of some of its own, `[replaced, hidden]`, which may be trained.
    Replaced(FrozenWeight<B>, Tensor<B, 2>, ReplacedRows<B>),
    /// A head with soft-capped logits: `cap * tanh(z / cap)`.
    ///
    /// # Source
    /// Gemma 2, arXiv:2408.00118, section 2.
    Capped(Box<Head<B>>, f32),
}

impl<B: Backend> Head<B> {
    /// Width of a state.
    pub fn width(&self) -> usize {
        match self {
            Self::Full(head, _) => head.dims()[1],
            Self::Reduced(head) => head.inputs(),
            Self::Replaced(_, others, _) => others.dims()[1],
            Self::Capped(head, _) => head.width(),
        }
    }

    /// Number of logits of a state.
    pub fn num_tokens(&self) -> usize {
        match self {
            Self::Full(head, _) => head.dims()[0],
            Self::Reduced(head) => head.outputs(),
            Self::Replaced(_, _, replaced) => replaced.num_rows(),
            Self::Capped(head, _) => head.num_tokens(),
        }
    }
}

impl<B: ModelBackend> Head<B> {
    /// The parameter that may be trained, if there is one.
    pub(super) fn parameter(&self) -> Option<&Tensor<B, 2>> {
        match self {
            Self::Full(head, _) => Some(head),
            Self::Reduced(_) => None,
            Self::Replaced(_, others, _) => Some(others),
            Self::Capped(head, _) => head.parameter(),
        }
    }

    /// Gradients of `hidden`, and of [`Head::parameter`] if requested, from the gradient `grad` of the `logits`; both `[tokens, vocab]`.
    pub(super) fn backward(
        &self,
        hidden: Tensor<B, 2>,
        logits: Tensor<B, 2>,
        grad: Tensor<B, 2>,
        with_parameter: bool,
    ) -> (Tensor<B, 2>, Option<Tensor<B, 2>>) {
        let product = |precision: MatmulPrecision, a, b| {
            wrap::<B, 2>(precision.matmul::<B>(unwrap::<B, 2>(a), unwrap::<B, 2>(b)))
        };
        match self {
            Self::Full(head, precision) => {
                let of_head =
                    with_parameter.then(|| product(*precision, grad.clone().transpose(), hidden));
                (product(*precision, grad, head.clone()), of_head)
            }
            Self::Reduced(head) => (wrap(B::reduced_linear_backward(unwrap(grad), head)), None),
            Self::Replaced(head, others, replaced) => {
                let columns = replaced.columns(grad.clone());
                let of_others = with_parameter
                    .then(|| product(MatmulPrecision::F32, columns.clone().transpose(), hidden));
                let of_table = wrap::<B, 2>(head.backward(unwrap(replaced.clear(grad))));
                let of_columns = product(head.precision(), columns, others.clone());
                (of_table + of_columns, of_others)
            }
            Self::Capped(head, cap) => {
                // d tanh = 1 - tanh^2; the uncapped logits are not needed.
                let slope = logits
                    .clone()
                    .div_scalar(*cap)
                    .powi_scalar(2)
                    .neg()
                    .add_scalar(1.0);
                head.backward(hidden, logits, grad * slope, with_parameter)
            }
        }
    }
}

/// The logits of the rows in place of others, `[tokens, replaced]`.
fn other_logits<B: ModelBackend>(
    hidden: Tensor<B, 2>,
    head: &FrozenWeight<B>,
    others: &Tensor<B, 2>,
) -> Tensor<B, 2> {
    let others = B::float_transpose(unwrap(others.clone()));
    wrap(head.precision().matmul::<B>(unwrap(hidden), others))
}

/// Logits of states `[tokens, hidden]`, `[tokens, vocab]`.
pub fn logits<B: ModelBackend>(hidden: Tensor<B, 2>, head: &Head<B>) -> Tensor<B, 2> {
    wrap(match head {
        Head::Full(head, precision) => {
            B::head_logits(unwrap(hidden), unwrap(head.clone()), *precision)
        }
        Head::Reduced(head) => B::reduced_linear(unwrap(hidden), head),
        Head::Replaced(head, others, replaced) => {
            let columns = other_logits(hidden.clone(), head, others);
            let hidden = unwrap(hidden);
            let logits = wrap(match head {
                FrozenWeight::Full(head, precision) => {
                    B::head_logits(hidden, B::float_transpose(head.clone()), *precision)
                }
                FrozenWeight::Reduced(head) => B::reduced_linear(hidden, head),
            });
            return replaced.put(logits, columns);
        }
        Head::Capped(head, cap) => return capped(logits(hidden, head), *cap),
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
    assert_eq!(
        hidden.dims()[0],
        targets.len(),
        "one target per hidden state"
    );
    let inverse = (1.0 / temperature) as f32;
    let out = match head {
        Head::Full(head, precision) => {
            return token_logprob(hidden, head, targets, temperature, precision);
        }
        Head::Capped(..) => return capped_logprob(hidden, &head, targets, temperature),
        Head::Reduced(head) => {
            B::reduced_token_logprob(unwrap(hidden), &head, targets, inverse, false)
        }
        Head::Replaced(head, others, replaced) => {
            let (hidden, others) = (unwrap(hidden), unwrap(others));
            B::replaced_token_logprob(hidden, &head, others, &replaced, targets, inverse, false).0
        }
    };
    (wrap(out.logprobs), wrap(out.entropy))
}

/// `cap * tanh(logits / cap)`.
fn capped<B: Backend>(logits: Tensor<B, 2>, cap: f32) -> Tensor<B, 2> {
    logits.div_scalar(cap).tanh().mul_scalar(cap)
}

/// [`logits`] by the differentiable product, so that passes with and without gradients give the same bits.
pub(super) fn trained_logits<B: ModelBackend>(
    hidden: Tensor<B, 2>,
    head: &Head<B>,
) -> Tensor<B, 2> {
    let hidden = unwrap(hidden);
    wrap(match head {
        Head::Full(head, precision) => {
            precision.matmul::<B>(hidden, B::float_transpose(unwrap(head.clone())))
        }
        Head::Reduced(head) => B::reduced_linear(hidden, head),
        Head::Replaced(head, others, replaced) => {
            let columns = other_logits(wrap(hidden.clone()), head, others);
            return replaced.put(wrap(head.product(hidden)), columns);
        }
        Head::Capped(head, cap) => return capped(trained_logits(wrap(hidden), head), *cap),
    })
}

/// [`head_logprob`] of a capped head, in plain operations: with gradients, the graph stores the logits of all states.
fn capped_logprob<B: ModelBackend>(
    hidden: Tensor<B, 2>,
    head: &Head<B>,
    targets: &Arc<Vec<u32>>,
    temperature: f64,
) -> (Tensor<B, 1>, Tensor<B, 1>) {
    let [rows, _] = hidden.dims();
    assert_eq!(rows, targets.len(), "one target per hidden state");
    if rows == 0 {
        let none = || Tensor::zeros([0], &hidden.device());
        return (none(), none());
    }
    let ids: Vec<i32> = targets.iter().map(|&id| id as i32).collect();
    let ids = Tensor::<B, 2, Int>::from_data(TensorData::new(ids, [rows, 1]), &hidden.device());
    let logits = trained_logits(hidden, head).div_scalar(temperature);
    let log_p = activation::log_softmax(logits, 1);
    let constant = log_p.clone().detach();
    let entropy = (constant.clone().exp() * constant).sum_dim(1).neg();
    (log_p.gather(1, ids).squeeze_dim(1), entropy.squeeze_dim(1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::read;
    use burn_ndarray::NdArray;

    /// Logits 2 and 0 under a bound of 1 are tanh(2) = 0.964028 and 0: `-ln(1 + exp(-0.964028))` and `-ln(1 + exp(0.964028))`, and
    /// at half the temperature `-ln(1 + exp(-1.928055))`.
    #[test]
    fn a_capped_head_bends_its_logits_before_the_temperature() {
        let device = Default::default();
        let hidden = Tensor::<NdArray, 2>::from_data([[1.0, 0.5], [1.0, 0.5]], &device);
        let weight = Tensor::from_data([[2.0, 0.0], [0.0, 0.0]], &device);
        let head = Head::Full(weight, MatmulPrecision::F32);
        let head = Head::Capped(Box::new(head), 1.0);
        assert_eq!(head.width(), 2);
        let near = |got: Vec<f32>, expected: [f32; 2]| {
            for (got, expected) in got.iter().zip(expected) {
                assert!((got - expected).abs() < 1e-6, "{got} and not {expected}");
            }
        };
        near(read(logits(hidden.clone(), &head)), [0.964_027_6, 0.0]);
        let targets = Arc::new(vec![0, 1]);
        let (logprobs, entropies) = head_logprob(hidden.clone(), head.clone(), &targets, 1.0);
        near(read(logprobs), [-0.323_064_06, -1.287_091_6]);
        near(read(entropies), [0.589_205_6, 0.589_205_6]);
        let (sharper, _) = head_logprob(hidden, head.clone(), &targets, 0.5);
        near(read(sharper.narrow(0, 0, 1)), [-0.135_780_78, 0.0]);
        // No targets: a row of one token has none.
        let nothing = Tensor::zeros([0, 2], &device);
        let (none, _) = head_logprob(nothing, head, &Arc::new(Vec::new()), 1.0);
        assert_eq!(none.dims(), [0]);
    }
}
