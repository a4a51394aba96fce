//! Log-probabilities of target tokens as graph nodes.

use burn::backend::Autodiff;
use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::tensor::TensorMetadata;
use burn::tensor::ops::FloatTensor;

use super::constant;
use crate::ops::{LogprobOutput, MatmulPrecision, ModelBackend, ReducedMatrix};

/// `ModelBackend::token_logprob`.
pub(super) fn token_logprob<B: ModelBackend, C: CheckpointStrategy>(
    hidden: FloatTensor<Autodiff<B, C>>,
    head: FloatTensor<Autodiff<B, C>>,
    targets: &[u32],
    inv_temperature: f32,
    precision: MatmulPrecision,
) -> LogprobOutput<Autodiff<B, C>> {
    #[derive(Debug, Clone)]
    struct State<B: ModelBackend> {
        hidden: FloatTensor<B>,
        head: FloatTensor<B>,
        targets: Vec<u32>,
        inv_temperature: f32,
        precision: MatmulPrecision,
        /// For a frozen head: the backward pass is then a product per row.
        unit_gradient: Option<FloatTensor<B>>,
    }
    #[derive(Debug)]
    struct TokenLogprob;
    impl<B: ModelBackend> Backward<B, 2> for TokenLogprob {
        type State = State<B>;
        fn backward(self, ops: Ops<Self::State, 2>, grads: &mut Gradients, _: &mut Checkpointer) {
            let grad = grads.consume::<B>(&ops.node);
            let [hidden_node, head_node] = ops.parents;
            let s = ops.state;
            let (dhidden, dhead) = match s.unit_gradient {
                Some(unit) => {
                    let rows = s.targets.len();
                    let grad = B::float_reshape(grad, burn::tensor::Shape::new([rows, 1]));
                    (B::float_mul(unit, grad), None)
                }
                None => {
                    let (dhidden, dhead) = B::token_logprob_backward(
                        s.hidden,
                        s.head,
                        &s.targets,
                        s.inv_temperature,
                        grad,
                        s.precision,
                    );
                    (dhidden, Some(dhead))
                }
            };
            if let Some(node) = hidden_node {
                grads.register::<B>(node.id, dhidden);
            }
            if let (Some(node), Some(dhead)) = (head_node, dhead) {
                grads.register::<B>(node.id, dhead);
            }
        }
    }
    let head_is_frozen = head.node.requirement.is_none();
    let nodes = [hidden.node, head.node];
    let (hidden, head) = (hidden.primitive, head.primitive);
    match TokenLogprob.prepare::<C>(nodes).compute_bound().stateful() {
        OpsKind::Tracked(prep) => {
            let out = B::token_logprob(
                hidden.clone(),
                head.clone(),
                targets,
                inv_temperature,
                head_is_frozen,
                precision,
            );
            let state = State {
                hidden,
                head,
                targets: targets.to_vec(),
                inv_temperature,
                precision,
                unit_gradient: out.unit_gradient,
            };
            LogprobOutput {
                logprobs: prep.finish(state, out.logprobs),
                entropy: constant::<B, C>(out.entropy),
                unit_gradient: None,
            }
        }
        OpsKind::UnTracked(prep) => {
            let out = B::token_logprob(hidden, head, targets, inv_temperature, false, precision);
            LogprobOutput {
                logprobs: prep.finish(out.logprobs),
                entropy: constant::<B, C>(out.entropy),
                unit_gradient: None,
            }
        }
    }
}

/// `ModelBackend::reduced_token_logprob`.
pub(super) fn reduced_token_logprob<B: ModelBackend, C: CheckpointStrategy>(
    hidden: FloatTensor<Autodiff<B, C>>,
    head: &ReducedMatrix,
    targets: &[u32],
    inv_temperature: f32,
) -> LogprobOutput<Autodiff<B, C>> {
    #[derive(Debug)]
    struct ReducedTokenLogprob;
    impl<B: ModelBackend> Backward<B, 1> for ReducedTokenLogprob {
        type State = Option<FloatTensor<B>>;
        fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
            let grad = grads.consume::<B>(&ops.node);
            let [node] = ops.parents;
            if let (Some(node), Some(unit)) = (node, ops.state) {
                let rows = grad.shape()[0];
                let grad = B::float_reshape(grad, burn::tensor::Shape::new([rows, 1]));
                grads.register::<B>(node.id, B::float_mul(unit, grad));
            }
        }
    }
    let tracked = !hidden.node.requirement.is_none();
    let out = B::reduced_token_logprob(hidden.primitive, head, targets, inv_temperature, tracked);
    let logprobs = match ReducedTokenLogprob
        .prepare::<C>([hidden.node])
        .compute_bound()
        .stateful()
    {
        OpsKind::Tracked(prep) => prep.finish(out.unit_gradient, out.logprobs),
        OpsKind::UnTracked(prep) => prep.finish(out.logprobs),
    };
    LogprobOutput {
        logprobs,
        entropy: constant::<B, C>(out.entropy),
        unit_gradient: None,
    }
}
