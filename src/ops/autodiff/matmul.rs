//! Products of matrices as graph nodes: of two, its gradients in the same precision, and with a frozen weight and low-rank products beside it.

use burn::backend::Autodiff;
use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::tensor::ops::FloatTensor;

use crate::ops::{FrozenWeight, LowRankPart, MatmulPrecision, ModelBackend};

/// `a . b`.
pub(super) fn matmul<B: ModelBackend, C: CheckpointStrategy>(
    a: FloatTensor<Autodiff<B, C>>,
    b: FloatTensor<Autodiff<B, C>>,
    precision: MatmulPrecision,
) -> FloatTensor<Autodiff<B, C>> {
    #[derive(Debug, Clone)]
    struct State<B: ModelBackend> {
        /// Each side, if the gradient of the other one needs it.
        sides: [Option<FloatTensor<B>>; 2],
        precision: MatmulPrecision,
    }
    #[derive(Debug)]
    struct Matmul;
    impl<B: ModelBackend> Backward<B, 2> for Matmul {
        type State = State<B>;
        fn backward(self, ops: Ops<Self::State, 2>, grads: &mut Gradients, _: &mut Checkpointer) {
            let grad = grads.consume::<B>(&ops.node);
            let State { sides, precision } = ops.state;
            let ([a_node, b_node], [a, b]) = (ops.parents, sides);
            if let (Some(node), Some(b)) = (a_node, b) {
                let da = precision.matmul::<B>(grad.clone(), B::float_transpose(b));
                grads.register::<B>(node.id, da);
            }
            if let (Some(node), Some(a)) = (b_node, a) {
                let db = precision.matmul::<B>(B::float_transpose(a), grad);
                grads.register::<B>(node.id, db);
            }
        }
    }
    let tracked = [&a, &b].map(|side| !side.node.requirement.is_none());
    let nodes = [a.node, b.node];
    let (a, b) = (a.primitive, b.primitive);
    match Matmul.prepare::<C>(nodes).compute_bound().stateful() {
        OpsKind::Tracked(prep) => {
            let y = precision.matmul::<B>(a.clone(), b.clone());
            let sides = [tracked[1].then_some(a), tracked[0].then_some(b)];
            prep.finish(State { sides, precision }, y)
        }
        OpsKind::UnTracked(prep) => prep.finish(precision.matmul::<B>(a, b)),
    }
}

/// `x . weight`, plus `scale * t_part . b_part` for each part. `x` is not stored.
pub(super) fn low_rank_linear<B: ModelBackend, C: CheckpointStrategy>(
    x: FloatTensor<Autodiff<B, C>>,
    weight: FrozenWeight<B>,
    t: FloatTensor<Autodiff<B, C>>,
    b: FloatTensor<Autodiff<B, C>>,
    parts: &[LowRankPart],
) -> FloatTensor<Autodiff<B, C>> {
    #[derive(Debug)]
    struct LowRankLinear;
    impl<B: ModelBackend> Backward<B, 3> for LowRankLinear {
        type State = (FrozenWeight<B>, [FloatTensor<B>; 2], Vec<LowRankPart>);
        fn backward(self, ops: Ops<Self::State, 3>, grads: &mut Gradients, _: &mut Checkpointer) {
            let grad = grads.consume::<B>(&ops.node);
            let [x_node, t_node, b_node] = ops.parents;
            let (weight, [t, b], parts) = ops.state;
            if t_node.is_some() || b_node.is_some() {
                let (dt, db) = B::low_rank_gradients(grad.clone(), t, b, &parts);
                for (node, gradient) in [(t_node, dt), (b_node, db)] {
                    if let Some(node) = node {
                        grads.register::<B>(node.id, gradient);
                    }
                }
            }
            if let Some(node) = x_node {
                grads.register::<B>(node.id, weight.backward(grad));
            }
        }
    }
    let nodes = [x.node, t.node, b.node];
    let (x, t, b) = (x.primitive, t.primitive, b.primitive);
    match LowRankLinear.prepare::<C>(nodes).compute_bound().stateful() {
        OpsKind::Tracked(prep) => {
            let y = B::low_rank_linear(x, &weight, t.clone(), b.clone(), parts);
            prep.finish((weight, [t, b], parts.to_vec()), y)
        }
        OpsKind::UnTracked(prep) => prep.finish(B::low_rank_linear(x, &weight, t, b, parts)),
    }
}
