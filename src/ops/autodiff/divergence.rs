//! The divergence of a student from a frozen teacher as a graph node.

use burn::backend::Autodiff;
use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::tensor::Tensor;
use burn::tensor::ops::FloatTensor;

use super::{constant, untracked};
use crate::ops::divergence::{Divergence, HeadInput, gradients, rows};
use crate::ops::tensor::{unwrap, wrap};
use crate::ops::{Head, ModelBackend};

/// The same head without gradients.
fn frozen<B: ModelBackend, C: CheckpointStrategy>(head: &Head<Autodiff<B, C>>) -> Head<B> {
    match head {
        Head::Full(head, precision) => Head::Full(head.clone().inner(), *precision),
        Head::Reduced(head) => Head::Reduced(head.clone()),
        Head::Replaced(head, others, replaced) => Head::Replaced(
            untracked(head),
            others.clone().inner(),
            replaced.without_gradients(),
        ),
        Head::Capped(head, cap) => Head::Capped(Box::new(frozen(head)), *cap),
    }
}

/// The divergence of the student's distribution from the teacher's at each row, `[tokens]` in nats; differentiable with respect to the
/// student's states and its head's parameter. No logits are kept for the backward pass.
///
/// # Panics
/// If the numbers of rows or the vocabularies differ.
pub fn divergence<B: ModelBackend, C: CheckpointStrategy>(
    student: HeadInput<Autodiff<B, C>>,
    teacher: HeadInput<B>,
    of: Divergence,
) -> Tensor<Autodiff<B, C>, 1> {
    #[derive(Debug, Clone)]
    struct State<B: ModelBackend> {
        student: HeadInput<B>,
        teacher: HeadInput<B>,
        of: Divergence,
        /// For a frozen head: the backward pass is then a product per row.
        unit_gradient: Option<Tensor<B, 2>>,
    }
    #[derive(Debug)]
    struct HeadDivergence;
    impl<B: ModelBackend> Backward<B, 2> for HeadDivergence {
        type State = State<B>;
        fn backward(self, ops: Ops<Self::State, 2>, grads: &mut Gradients, _: &mut Checkpointer) {
            let grad = wrap::<B, 1>(grads.consume::<B>(&ops.node));
            let [states_node, head_node] = ops.parents;
            let s = ops.state;
            let (of_states, of_head) = match s.unit_gradient {
                Some(unit) => {
                    let rows = grad.dims()[0];
                    (unit * grad.reshape([rows, 1]), None)
                }
                None => gradients(&s.student, &s.teacher, s.of, grad),
            };
            if let Some(node) = states_node {
                grads.register::<B>(node.id, unwrap(of_states));
            }
            if let (Some(node), Some(of_head)) = (head_node, of_head) {
                grads.register::<B>(node.id, unwrap(of_head));
            }
        }
    }
    let parameter: FloatTensor<Autodiff<B, C>> = match student.head.parameter() {
        Some(parameter) => unwrap(parameter.clone()),
        // In the place of a parent: it takes no gradient.
        None => constant::<B, C>(unwrap(student.states.clone().inner())),
    };
    let head_is_frozen = parameter.node.requirement.is_none();
    let inner = HeadInput {
        states: student.states.clone().inner(),
        head: frozen(&student.head),
    };
    let states = unwrap(student.states);
    let nodes = [states.node, parameter.node];
    match HeadDivergence
        .prepare::<C>(nodes)
        .compute_bound()
        .stateful()
    {
        OpsKind::Tracked(prep) => {
            let (rows, unit_gradient) = rows(&inner, &teacher, of, head_is_frozen);
            let state = State {
                student: inner,
                teacher,
                of,
                unit_gradient,
            };
            wrap(prep.finish(state, unwrap(rows)))
        }
        OpsKind::UnTracked(prep) => {
            let (rows, _) = rows(&inner, &teacher, of, false);
            wrap(prep.finish(unwrap(rows)))
        }
    }
}
