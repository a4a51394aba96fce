//! Log-probabilities of target tokens as graph nodes.

use burn::backend::Autodiff;
use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::tensor::ops::FloatTensor;
use burn::tensor::{Shape, TensorMetadata};

use super::constant;
use crate::ops::{
    FrozenWeight, LogprobOutput, MatmulPrecision, ModelBackend, ReducedMatrix, ReplacedLogprob,
    ReplacedRows,
};

/// Each row of `x` times its entry of `factors`.
fn rows_times<B: ModelBackend>(x: FloatTensor<B>, factors: FloatTensor<B>) -> FloatTensor<B> {
    let rows = factors.shape()[0];
    B::float_mul(x, B::float_reshape(factors, Shape::new([rows, 1])))
}

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
                Some(unit) => (rows_times::<B>(unit, grad), None),
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
                grads.register::<B>(node.id, rows_times::<B>(unit, grad));
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

/// `ModelBackend::replaced_token_logprob`: gradients of the states, and of the rows in place of others.
pub(super) fn replaced_token_logprob<B: ModelBackend, C: CheckpointStrategy>(
    hidden: FloatTensor<Autodiff<B, C>>,
    head: FrozenWeight<B>,
    others: FloatTensor<Autodiff<B, C>>,
    replaced: ReplacedRows<B>,
    targets: &[u32],
    inv_temperature: f32,
) -> ReplacedLogprob<Autodiff<B, C>> {
    #[derive(Debug, Clone)]
    struct State<B: ModelBackend> {
        hidden: FloatTensor<B>,
        others: FloatTensor<B>,
        unit_gradient: Option<FloatTensor<B>>,
        of_others: Option<FloatTensor<B>>,
    }
    #[derive(Debug)]
    struct ReplacedTokenLogprob;
    impl<B: ModelBackend> Backward<B, 2> for ReplacedTokenLogprob {
        type State = State<B>;
        fn backward(self, ops: Ops<Self::State, 2>, grads: &mut Gradients, _: &mut Checkpointer) {
            let grad = grads.consume::<B>(&ops.node);
            let [hidden_node, others_node] = ops.parents;
            let s = ops.state;
            if let (Some(node), Some(unit)) = (hidden_node, s.unit_gradient) {
                grads.register::<B>(node.id, rows_times::<B>(unit, grad.clone()));
            }
            if let Some(node) = others_node {
                let dothers = match s.of_others {
                    Some(of_others) => {
                        let of_logits = rows_times::<B>(of_others, grad);
                        B::f32_matmul(B::float_transpose(of_logits), s.hidden)
                    }
                    // No targets.
                    None => B::float_mul_scalar(s.others, 0.0f32.into()),
                };
                grads.register::<B>(node.id, dothers);
            }
        }
    }
    let nodes = [hidden.node, others.node];
    let (hidden, others) = (hidden.primitive, others.primitive);
    let forward = |with_gradients| {
        let (hidden, others) = (hidden.clone(), others.clone());
        let scale = inv_temperature;
        B::replaced_token_logprob(
            hidden,
            &head,
            others,
            &replaced,
            targets,
            scale,
            with_gradients,
        )
    };
    let prepared = ReplacedTokenLogprob.prepare::<C>(nodes);
    let (logprobs, entropy) = match prepared.compute_bound().stateful() {
        OpsKind::Tracked(prep) => {
            let (out, of_others) = forward(true);
            let state = State {
                hidden,
                others,
                unit_gradient: out.unit_gradient,
                of_others,
            };
            (prep.finish(state, out.logprobs), out.entropy)
        }
        OpsKind::UnTracked(prep) => {
            let (out, _) = forward(false);
            (prep.finish(out.logprobs), out.entropy)
        }
    };
    let out = LogprobOutput {
        logprobs,
        entropy: constant::<B, C>(entropy),
        unit_gradient: None,
    };
    (out, None)
}
