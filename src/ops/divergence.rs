//! The divergence between two models' distributions of the next token, in chunks of rows.

use burn::tensor::backend::Backend;
use burn::tensor::{Tensor, activation};

use super::head::{logits, trained_logits};
use super::{Head, ModelBackend, logit_chunk_rows};

pub use super::autodiff::divergence::divergence;

/// States, and the head that makes logits of them.
#[derive(Debug, Clone)]
pub struct HeadInput<B: Backend> {
    /// `[tokens, hidden]`.
    pub states: Tensor<B, 2>,
    /// The head.
    pub head: Head<B>,
}

/// Generalised Jensen-Shannon divergence of a student's distribution `P` from a teacher's `Q`, nats per token:
/// `beta KL(Q || M) + (1 - beta) KL(P || M)` with `M = (1 - beta) P + beta Q`.
///
/// `beta` 0 stands for the forward `KL(Q || P)`, and 1 for the reverse `KL(P || Q)`: the limits of the formula divided by `beta` and by
/// `1 - beta`.
///
/// # Source
/// Agarwal et al. 2024, arXiv:2306.13649, section 2 and appendix A.1; ends, temperature and mixture as in TRL 1.16's `GKDTrainer`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Divergence {
    /// The weight of the teacher in the mixture, 0 to 1.
    pub beta: f64,
    /// Both models' logits are divided by this.
    pub temperature: f64,
}

impl Divergence {
    /// The divergence of each row, `[tokens]`, and its derivative with respect to the student's logits.
    ///
    /// # Shapes
    /// `student`, `teacher`, and the derivative: `[tokens, vocab]`.
    pub fn of_logits<B: Backend>(
        self,
        student: Tensor<B, 2>,
        teacher: Tensor<B, 2>,
    ) -> (Tensor<B, 1>, Tensor<B, 2>) {
        let Self { beta, temperature } = self;
        let log_p = activation::log_softmax(student.div_scalar(temperature), 1);
        let log_q = activation::log_softmax(teacher.div_scalar(temperature), 1);
        let (p, q) = (log_p.clone().exp(), log_q.clone().exp());
        if beta == 0.0 {
            let rows = (q.clone() * (log_q - log_p)).sum_dim(1).squeeze_dim(1);
            return (rows, (p - q).div_scalar(temperature));
        }
        let (log_ratio, weight, of_teacher) = if beta == 1.0 {
            (log_p - log_q, 1.0, None)
        } else {
            let log_m = log_sum_exp(
                log_p.clone().add_scalar((1.0 - beta).ln()),
                log_q.clone().add_scalar(beta.ln()),
            );
            let of_teacher = (q * (log_q - log_m.clone())).sum_dim(1).mul_scalar(beta);
            (log_p - log_m, 1.0 - beta, Some(of_teacher))
        };
        // KL(P || M) has the derivative log (P / M) by P, up to a constant: what M changes in both terms sums to zero.
        let of_student = (p.clone() * log_ratio.clone()).sum_dim(1);
        let derivative = p * (log_ratio - of_student.clone());
        let rows = of_student.mul_scalar(weight);
        let rows = match of_teacher {
            Some(of_teacher) => rows + of_teacher,
            None => rows,
        };
        let derivative = derivative.mul_scalar(weight / temperature);
        (rows.squeeze_dim(1), derivative)
    }
}

/// `ln(e^a + e^b)`, entry by entry.
fn log_sum_exp<B: Backend>(a: Tensor<B, 2>, b: Tensor<B, 2>) -> Tensor<B, 2> {
    let largest = a.clone().max_pair(b.clone());
    let sum = (a - largest.clone()).exp() + (b - largest.clone()).exp();
    sum.log() + largest
}

/// The divergence of each row without gradients, `[tokens]` in nats.
///
/// # Panics
/// If the numbers of rows or the vocabularies differ.
pub fn row_divergences<B: ModelBackend>(
    student: &HeadInput<B>,
    teacher: &HeadInput<B>,
    of: Divergence,
) -> Tensor<B, 1> {
    rows(student, teacher, of, false).0
}

/// The divergence of each row, `[tokens]`, and its gradient by the student's states, `[tokens, hidden]`, if requested. Logits exist for
/// one chunk of rows at a time.
///
/// # Panics
/// If the numbers of rows or the vocabularies differ.
pub(super) fn rows<B: ModelBackend>(
    student: &HeadInput<B>,
    teacher: &HeadInput<B>,
    of: Divergence,
    with_gradient: bool,
) -> (Tensor<B, 1>, Option<Tensor<B, 2>>) {
    let (mut rows, mut gradients) = (Vec::new(), Vec::new());
    each_chunk(student, teacher, of, |chunk, divergences, derivative| {
        rows.push(divergences);
        if with_gradient {
            let (states, logits) = (chunk.states, chunk.logits);
            gradients.push(student.head.backward(states, logits, derivative, false).0);
        }
    });
    let none = || Tensor::zeros([0], &student.states.device());
    let gradients = with_gradient.then(|| match gradients.is_empty() {
        true => student.states.clone(),
        false => Tensor::cat(gradients, 0),
    });
    match rows.is_empty() {
        true => (none(), gradients),
        false => (Tensor::cat(rows, 0), gradients),
    }
}

/// Gradients of `sum(grad * divergences)` by the student's states and by the trained parameter of its head; logits are recomputed by chunk.
pub(super) fn gradients<B: ModelBackend>(
    student: &HeadInput<B>,
    teacher: &HeadInput<B>,
    of: Divergence,
    grad: Tensor<B, 1>,
) -> (Tensor<B, 2>, Option<Tensor<B, 2>>) {
    let (mut of_states, mut of_head) = (Vec::new(), None::<Tensor<B, 2>>);
    each_chunk(student, teacher, of, |chunk, _, derivative| {
        let len = chunk.states.dims()[0];
        let grad = grad.clone().narrow(0, chunk.first, len).reshape([len, 1]);
        let (states, logits) = (chunk.states, chunk.logits);
        let (dstates, dhead) = student
            .head
            .backward(states, logits, derivative * grad, true);
        of_states.push(dstates);
        of_head = match (of_head.take(), dhead) {
            (Some(sum), Some(part)) => Some(sum + part),
            (sum, part) => sum.or(part),
        };
    });
    match of_states.is_empty() {
        true => {
            let of_head = student.head.parameter().map(Tensor::zeros_like);
            (student.states.clone(), of_head)
        }
        false => (Tensor::cat(of_states, 0), of_head),
    }
}

/// Rows of the student whose logits are formed at once.
struct Chunk<B: Backend> {
    /// Index of the first one.
    first: usize,
    states: Tensor<B, 2>,
    logits: Tensor<B, 2>,
}

/// Calls `each` with every chunk, its rows' divergences, and their derivatives by the student's logits.
fn each_chunk<B: ModelBackend>(
    student: &HeadInput<B>,
    teacher: &HeadInput<B>,
    of: Divergence,
    mut each: impl FnMut(Chunk<B>, Tensor<B, 1>, Tensor<B, 2>),
) {
    let [tokens, _] = student.states.dims();
    assert_eq!(
        tokens,
        teacher.states.dims()[0],
        "one state of the teacher for each of the student"
    );
    let vocab = student.head.num_tokens();
    assert_eq!(vocab, teacher.head.num_tokens(), "one vocabulary");
    let chunk_rows = logit_chunk_rows(vocab);
    for first in (0..tokens).step_by(chunk_rows) {
        let len = chunk_rows.min(tokens - first);
        let part = |input: &HeadInput<B>| input.states.clone().narrow(0, first, len);
        let states = part(student);
        let of_student = trained_logits(states.clone(), &student.head);
        let of_teacher = logits(part(teacher), &teacher.head);
        let (rows, derivative) = of.of_logits(of_student.clone(), of_teacher);
        let chunk = Chunk {
            first,
            states,
            logits: of_student,
        };
        each(chunk, rows, derivative);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::read;
    use burn_ndarray::NdArray;

    fn of(beta: f64, temperature: f64) -> (Vec<f32>, Vec<f32>) {
        let device = Default::default();
        let student = Tensor::<NdArray, 2>::from_data([[1.0, 0.0, -1.0]], &device);
        let teacher = Tensor::from_data([[0.0, 2.0, -1.0]], &device);
        let (rows, derivative) = Divergence { beta, temperature }.of_logits(student, teacher);
        (read(rows), read(derivative))
    }

    #[track_caller]
    fn near(got: &[f32], expected: &[f64]) {
        assert_eq!(got.len(), expected.len());
        for (got, expected) in got.iter().zip(expected) {
            assert!(
                (f64::from(*got) - expected).abs() < 2e-6,
                "{got} and not {expected}"
            );
        }
    }

    const REVERSE: f64 = 0.938_024_069;
    const REVERSE_DERIVATIVE: [f64; 3] = [0.548_302_231, -0.532_476_295, -0.015_825_936];

    /// P = (0.665241, 0.244728, 0.090031), Q = (0.114195, 0.843795, 0.042010).
    #[test]
    fn the_ends_are_the_two_kullback_leibler_divergences() {
        let (forward, derivative) = of(0.0, 1.0);
        near(&forward, &[0.811_154_214]);
        // P - Q.
        near(&derivative, &[0.551_045_756, -0.599_066_263, 0.048_020_507]);
        let (reverse, derivative) = of(1.0, 1.0);
        near(&reverse, &[REVERSE]);
        near(&derivative, &REVERSE_DERIVATIVE);
        // At twice the temperature of doubled logits the divergence is the same, and its derivative half as large.
        let device = Default::default();
        let student = Tensor::<NdArray, 2>::from_data([[2.0, 0.0, -2.0]], &device);
        let teacher = Tensor::from_data([[0.0, 4.0, -2.0]], &device);
        let same = Divergence {
            beta: 1.0,
            temperature: 2.0,
        };
        let (rows, halved) = same.of_logits(student, teacher);
        near(&read(rows), &[REVERSE]);
        near(&read(halved), &REVERSE_DERIVATIVE.map(|x| x / 2.0));
    }

    #[test]
    fn between_them_both_are_compared_with_a_mixture() {
        let (rows, derivative) = of(0.25, 1.0);
        near(&rows, &[0.147_996_565]);
        near(&derivative, &[0.090_625_759, -0.096_886_147, 0.006_260_388]);
        // Equal weights: the Jensen-Shannon divergence, at most ln 2.
        near(&of(0.5, 1.0).0, &[0.199_430_216]);
    }
}
