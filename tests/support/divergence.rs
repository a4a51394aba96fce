//! The divergence from a teacher: values and gradients of every kind of head, on every backend.

use std::sync::Arc;

use burn::backend::Autodiff;
use burn::tensor::{Tensor, TensorData, activation};

use super::reference::values;
use tempering::ops::{
    self, Divergence, FrozenWeight, Head, HeadInput, MatmulPrecision, ModelBackend, Precision,
    ReducedMatrix, ReplacedRows,
};
use tempering::rng::Seed;

const HIDDEN: usize = 8;
const VOCAB: usize = 37;
/// The bound of a capped head.
const CAP: f32 = 2.0;

fn normal<B: ModelBackend>(label: &str, dims: [usize; 2], device: &B::Device) -> Tensor<B, 2> {
    let seed = Seed::new(12).fork(label);
    let numbers: Vec<f32> = (0..(dims[0] * dims[1]) as u64)
        .map(|i| seed.normal(i) as f32)
        .collect();
    Tensor::from_data(TensorData::new(numbers, dims), device)
}

/// The kinds of heads of the student.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Kind {
    Trained,
    Frozen,
    Reduced,
    Replaced,
    Capped,
}

/// A head of `[VOCAB, HIDDEN]` numbers, of which three rows are others if it is `Replaced`.
fn head<B: ModelBackend>(kind: Kind, table: Tensor<B, 2>, others: Tensor<B, 2>) -> Head<B> {
    let precision = MatmulPrecision::F32;
    match kind {
        Kind::Trained | Kind::Frozen => Head::Full(table, precision),
        Kind::Capped => Head::Capped(Box::new(Head::Full(table, precision)), CAP),
        Kind::Reduced => {
            let numbers: Vec<f32> = values(table.transpose());
            let matrix = ReducedMatrix::new(&numbers, HIDDEN, VOCAB, Precision::Bf16);
            Head::Reduced(matrix.unwrap())
        }
        Kind::Replaced => {
            let at = Arc::new(vec![5, 0, 36]);
            let order = ops::replaced_order::<B>(&at, VOCAB, &table.device());
            let table = FrozenWeight::full(table.transpose(), precision);
            Head::Replaced(table, others, ReplacedRows::new(at, order))
        }
    }
}

/// The divergence of each row in plain operations, all logits at once.
fn plain<B: ModelBackend>(
    student: Tensor<B, 2>,
    teacher: Tensor<B, 2>,
    of: Divergence,
) -> Tensor<B, 1> {
    let log_p = activation::log_softmax(student.div_scalar(of.temperature), 1);
    let log_q = activation::log_softmax(teacher.div_scalar(of.temperature), 1);
    let kl = |p: &Tensor<B, 2>, q: Tensor<B, 2>| (p.clone().exp() * (p.clone() - q)).sum_dim(1);
    let rows = match of.beta {
        0.0 => kl(&log_q, log_p),
        1.0 => kl(&log_p, log_q),
        beta => {
            let m =
                log_p.clone().exp().mul_scalar(1.0 - beta) + log_q.clone().exp().mul_scalar(beta);
            kl(&log_q, m.clone().log()).mul_scalar(beta)
                + kl(&log_p, m.log()).mul_scalar(1.0 - beta)
        }
    };
    rows.squeeze_dim(1)
}

#[track_caller]
fn near(what: &str, got: &[f32], expected: &[f32], tolerance: f32) {
    assert_eq!(got.len(), expected.len(), "{what}");
    let largest = expected.iter().fold(0f32, |most, x| most.max(x.abs()));
    for (i, (got, expected)) in got.iter().zip(expected).enumerate() {
        assert!(
            (got - expected).abs() <= tolerance * largest,
            "{what}[{i}]: {got} instead of {expected} (of {largest})"
        );
    }
}

/// Values and gradients against plain operations under burn's autodiff, rows weighted differently, over more rows than one chunk.
pub(crate) fn gradients<B: ModelBackend>(device: B::Device) {
    let _lock = tempering::guard::lock_gradients();
    let teacher = HeadInput {
        states: normal::<B>("teacher", [300, 4], &device),
        head: Head::Full(
            normal("teacher's head", [VOCAB, 4], &device),
            MatmulPrecision::F32,
        ),
    };
    let of_teacher = ops::logits(teacher.states.clone(), &teacher.head);
    for kind in [
        Kind::Trained,
        Kind::Frozen,
        Kind::Reduced,
        Kind::Replaced,
        Kind::Capped,
    ] {
        for beta in [0.0, 0.3, 1.0] {
            let what = format!("{kind:?} head, beta {beta}");
            let of = Divergence {
                beta,
                temperature: 0.7,
            };
            // The numbers of a reduced head, as both sides have them.
            let bf16 = |x: Tensor<B, 2>| match kind {
                Kind::Reduced => x.mul_scalar(8.0).round().div_scalar(8.0),
                _ => x,
            };
            let states = || {
                Tensor::<Autodiff<B>, 2>::from_inner(normal("student", [300, HIDDEN], &device))
                    .require_grad()
            };
            let table = || {
                let table = bf16(normal("head", [VOCAB, HIDDEN], &device));
                let table = Tensor::<Autodiff<B>, 2>::from_inner(table);
                table.set_require_grad(matches!(kind, Kind::Trained | Kind::Capped))
            };
            let others = || {
                Tensor::<Autodiff<B>, 2>::from_inner(normal("others", [3, HIDDEN], &device))
                    .set_require_grad(kind == Kind::Replaced)
            };
            let weights =
                Tensor::<Autodiff<B>, 2>::from_inner(normal("weights", [300, 1], &device));
            let weights = weights.squeeze_dim::<1>(1);

            let (x, w, o) = (states(), table(), others());
            let rows = match kind {
                Kind::Replaced => {
                    let mut parts: Vec<_> = (0..VOCAB).map(|i| w.clone().narrow(0, i, 1)).collect();
                    for (j, at) in [5, 0, 36].into_iter().enumerate() {
                        parts[at] = o.clone().narrow(0, j, 1);
                    }
                    Tensor::cat(parts, 0)
                }
                _ => w.clone(),
            };
            let mut logits = x.clone().matmul(rows.transpose());
            if kind == Kind::Capped {
                logits = logits.div_scalar(CAP).tanh().mul_scalar(CAP);
            }
            let expected = plain(logits, Tensor::from_inner(of_teacher.clone()), of);
            let grads = (expected.clone() * weights.clone()).sum().backward();
            let of = |x: &Tensor<Autodiff<B>, 2>, grads| x.grad(grads).map(values);
            let expected_gradients = [of(&x, &grads), of(&w, &grads), of(&o, &grads)];

            let (x, w, o) = (states(), table(), others());
            let student = HeadInput {
                states: x.clone(),
                head: head(kind, w.clone(), o.clone()),
            };
            let settings = Divergence {
                beta,
                temperature: 0.7,
            };
            let got = ops::divergence(student, teacher.clone(), settings);
            near(&what, &values(got.clone()), &values(expected), 2e-5);
            let grads = (got.clone() * weights).sum().backward();
            let found = [of(&x, &grads), of(&w, &grads), of(&o, &grads)];
            for (i, (found, expected)) in found.iter().zip(&expected_gradients).enumerate() {
                assert_eq!(found.is_some(), expected.is_some(), "{what}, gradient {i}");
                if let (Some(found), Some(expected)) = (found, expected) {
                    near(&format!("{what}, gradient {i}"), found, expected, 1e-4);
                }
            }
            // Without gradients the same numbers, to the bit.
            let student = HeadInput {
                states: states().inner(),
                head: head(kind, table().inner(), others().inner()),
            };
            let frozen = ops::row_divergences(&student, &teacher, settings);
            assert_eq!(values(frozen), values(got), "{what}");
        }
    }
    // No targets: nothing to compare.
    let none = HeadInput {
        states: Tensor::<B, 2>::zeros([0, 4], &device),
        head: teacher.head.clone(),
    };
    assert_eq!(
        ops::row_divergences(
            &none,
            &none,
            Divergence {
                beta: 0.5,
                temperature: 1.0
            }
        )
        .dims(),
        [0]
    );
}
