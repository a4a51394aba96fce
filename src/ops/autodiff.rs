//! One graph node per fused operation, with its hand-written backward pass.

use burn::backend::Autodiff;
use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::tensor::TensorMetadata;
use burn::tensor::backend::AutodiffBackend;
use burn::tensor::ops::FloatTensor;

use super::{
    FrozenWeight, HeadLayout, LinearInput, LogprobOutput, LowRankPart, ModelBackend, ReducedMatrix,
};
use crate::tokens::Segments;

/// A value that takes part in no gradient.
fn constant<B: ModelBackend, C: CheckpointStrategy>(
    value: FloatTensor<B>,
) -> FloatTensor<Autodiff<B, C>> {
    <Autodiff<B, C> as AutodiffBackend>::from_inner(value)
}

impl<B: ModelBackend, C: CheckpointStrategy> ModelBackend for Autodiff<B, C> {
    fn rms_norm(x: FloatTensor<Self>, weight: FloatTensor<Self>, eps: f32) -> FloatTensor<Self> {
        #[derive(Debug)]
        struct RmsNorm;
        impl<B: ModelBackend> Backward<B, 2> for RmsNorm {
            type State = (FloatTensor<B>, FloatTensor<B>, f32);
            fn backward(
                self,
                ops: Ops<Self::State, 2>,
                grads: &mut Gradients,
                _: &mut Checkpointer,
            ) {
                let grad = grads.consume::<B>(&ops.node);
                let [x_node, weight_node] = ops.parents;
                let (x, weight, eps) = ops.state;
                let (dx, dweight) =
                    B::rms_norm_backward(x, weight, grad, eps, weight_node.is_some());
                if let Some(node) = x_node {
                    grads.register::<B>(node.id, dx);
                }
                if let (Some(node), Some(dweight)) = (weight_node, dweight) {
                    grads.register::<B>(node.id, dweight);
                }
            }
        }
        match RmsNorm
            .prepare::<C>([x.node, weight.node])
            .compute_bound()
            .stateful()
        {
            OpsKind::Tracked(prep) => {
                let y = B::rms_norm(x.primitive.clone(), weight.primitive.clone(), eps);
                prep.finish((x.primitive, weight.primitive, eps), y)
            }
            OpsKind::UnTracked(prep) => {
                prep.finish(B::rms_norm(x.primitive, weight.primitive, eps))
            }
        }
    }

    fn rope(
        x: FloatTensor<Self>,
        cos: FloatTensor<Self>,
        sin: FloatTensor<Self>,
        num_heads: usize,
        inverse: bool,
    ) -> FloatTensor<Self> {
        #[derive(Debug)]
        struct Rope;
        impl<B: ModelBackend> Backward<B, 1> for Rope {
            type State = (FloatTensor<B>, FloatTensor<B>, usize, bool);
            fn backward(
                self,
                ops: Ops<Self::State, 1>,
                grads: &mut Gradients,
                _: &mut Checkpointer,
            ) {
                let grad = grads.consume::<B>(&ops.node);
                let [node] = ops.parents;
                let (cos, sin, num_heads, inverse) = ops.state;
                if let Some(node) = node {
                    grads.register::<B>(node.id, B::rope(grad, cos, sin, num_heads, !inverse));
                }
            }
        }
        let (cos, sin) = (cos.primitive, sin.primitive);
        match Rope.prepare::<C>([x.node]).compute_bound().stateful() {
            OpsKind::Tracked(prep) => {
                let y = B::rope(x.primitive, cos.clone(), sin.clone(), num_heads, inverse);
                prep.finish((cos, sin, num_heads, inverse), y)
            }
            OpsKind::UnTracked(prep) => {
                prep.finish(B::rope(x.primitive, cos, sin, num_heads, inverse))
            }
        }
    }

    fn swiglu(gate_up: FloatTensor<Self>) -> FloatTensor<Self> {
        #[derive(Debug)]
        struct SwiGlu;
        impl<B: ModelBackend> Backward<B, 1> for SwiGlu {
            type State = FloatTensor<B>;
            fn backward(
                self,
                ops: Ops<Self::State, 1>,
                grads: &mut Gradients,
                _: &mut Checkpointer,
            ) {
                let grad = grads.consume::<B>(&ops.node);
                let [node] = ops.parents;
                if let Some(node) = node {
                    grads.register::<B>(node.id, B::swiglu_backward(ops.state, grad));
                }
            }
        }
        match SwiGlu
            .prepare::<C>([gate_up.node])
            .compute_bound()
            .stateful()
        {
            OpsKind::Tracked(prep) => {
                let y = B::swiglu(gate_up.primitive.clone());
                prep.finish(gate_up.primitive, y)
            }
            OpsKind::UnTracked(prep) => prep.finish(B::swiglu(gate_up.primitive)),
        }
    }

    fn packed_attention(
        qkv: FloatTensor<Self>,
        layout: HeadLayout,
        segments: &Segments,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        #[derive(Debug)]
        struct Attention;
        impl<B: ModelBackend> Backward<B, 1> for Attention {
            type State = (
                FloatTensor<B>,
                FloatTensor<B>,
                FloatTensor<B>,
                HeadLayout,
                Segments,
            );
            fn backward(
                self,
                ops: Ops<Self::State, 1>,
                grads: &mut Gradients,
                _: &mut Checkpointer,
            ) {
                let grad = grads.consume::<B>(&ops.node);
                let [node] = ops.parents;
                let (qkv, output, lse, layout, segments) = ops.state;
                if let Some(node) = node {
                    let dqkv =
                        B::packed_attention_backward(qkv, output, lse, grad, layout, &segments);
                    grads.register::<B>(node.id, dqkv);
                }
            }
        }
        match Attention
            .prepare::<C>([qkv.node])
            .compute_bound()
            .stateful()
        {
            OpsKind::Tracked(prep) => {
                let (output, lse) = B::packed_attention(qkv.primitive.clone(), layout, segments);
                let state = (
                    qkv.primitive,
                    output.clone(),
                    lse.clone(),
                    layout,
                    segments.clone(),
                );
                (prep.finish(state, output), constant::<B, C>(lse))
            }
            OpsKind::UnTracked(prep) => {
                let (output, lse) = B::packed_attention(qkv.primitive, layout, segments);
                (prep.finish(output), constant::<B, C>(lse))
            }
        }
    }

    fn token_logprob(
        hidden: FloatTensor<Self>,
        head: FloatTensor<Self>,
        targets: &[u32],
        inv_temperature: f32,
        _with_unit_gradient: bool,
    ) -> LogprobOutput<Self> {
        #[derive(Debug, Clone)]
        struct State<B: ModelBackend> {
            hidden: FloatTensor<B>,
            head: FloatTensor<B>,
            targets: Vec<u32>,
            inv_temperature: f32,
            /// Saved when the head is frozen: the backward pass is then one product by row.
            unit_gradient: Option<FloatTensor<B>>,
        }
        #[derive(Debug)]
        struct TokenLogprob;
        impl<B: ModelBackend> Backward<B, 2> for TokenLogprob {
            type State = State<B>;
            fn backward(
                self,
                ops: Ops<Self::State, 2>,
                grads: &mut Gradients,
                _: &mut Checkpointer,
            ) {
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
                );
                let state = State {
                    hidden,
                    head,
                    targets: targets.to_vec(),
                    inv_temperature,
                    unit_gradient: out.unit_gradient,
                };
                LogprobOutput {
                    logprobs: prep.finish(state, out.logprobs),
                    entropy: constant::<B, C>(out.entropy),
                    unit_gradient: None,
                }
            }
            OpsKind::UnTracked(prep) => {
                let out = B::token_logprob(hidden, head, targets, inv_temperature, false);
                LogprobOutput {
                    logprobs: prep.finish(out.logprobs),
                    entropy: constant::<B, C>(out.entropy),
                    unit_gradient: None,
                }
            }
        }
    }

    fn reduced_token_logprob(
        hidden: FloatTensor<Self>,
        head: &ReducedMatrix,
        targets: &[u32],
        inv_temperature: f32,
        _with_unit_gradient: bool,
    ) -> LogprobOutput<Self> {
        #[derive(Debug)]
        struct ReducedTokenLogprob;
        impl<B: ModelBackend> Backward<B, 1> for ReducedTokenLogprob {
            type State = Option<FloatTensor<B>>;
            fn backward(
                self,
                ops: Ops<Self::State, 1>,
                grads: &mut Gradients,
                _: &mut Checkpointer,
            ) {
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
        let out =
            B::reduced_token_logprob(hidden.primitive, head, targets, inv_temperature, tracked);
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

    fn reduced_linear(x: FloatTensor<Self>, weight: &ReducedMatrix) -> FloatTensor<Self> {
        #[derive(Debug)]
        struct ReducedLinear;
        impl<B: ModelBackend> Backward<B, 1> for ReducedLinear {
            type State = ReducedMatrix;
            fn backward(
                self,
                ops: Ops<Self::State, 1>,
                grads: &mut Gradients,
                _: &mut Checkpointer,
            ) {
                let grad = grads.consume::<B>(&ops.node);
                let [node] = ops.parents;
                if let Some(node) = node {
                    grads.register::<B>(node.id, B::reduced_linear_backward(grad, &ops.state));
                }
            }
        }
        match ReducedLinear
            .prepare::<C>([x.node])
            .compute_bound()
            .stateful()
        {
            OpsKind::Tracked(prep) => {
                prep.finish(weight.clone(), B::reduced_linear(x.primitive, weight))
            }
            OpsKind::UnTracked(prep) => prep.finish(B::reduced_linear(x.primitive, weight)),
        }
    }

    fn lora_linear_of(
        source: FloatTensor<Self>,
        input: LinearInput<Self>,
        weight: &FrozenWeight<Self>,
        a: FloatTensor<Self>,
        b: FloatTensor<Self>,
        parts: &[LowRankPart],
    ) -> FloatTensor<Self> {
        #[derive(Debug)]
        struct LoraLinear;
        impl<B: ModelBackend> Backward<B, 3> for LoraLinear {
            type State = (
                LinearInput<B>,
                FrozenWeight<B>,
                [FloatTensor<B>; 4],
                Vec<LowRankPart>,
            );
            fn backward(
                self,
                ops: Ops<Self::State, 3>,
                grads: &mut Gradients,
                _: &mut Checkpointer,
            ) {
                let grad = grads.consume::<B>(&ops.node);
                let [source_node, a_node, b_node] = ops.parents;
                let (input, weight, [source, a, b, xa], parts) = ops.state;
                let x = input.of(source.clone());
                let with_x = source_node.is_some();
                let (dx, da, db) =
                    B::lora_linear_backward(x, &weight, a, b, xa, grad, &parts, with_x);
                if let (Some(node), Some(dx)) = (source_node, dx) {
                    grads.register::<B>(node.id, input.backward(source, dx));
                }
                if let Some(node) = a_node {
                    grads.register::<B>(node.id, da);
                }
                if let Some(node) = b_node {
                    grads.register::<B>(node.id, db);
                }
            }
        }
        let input = match input {
            LinearInput::Plain => LinearInput::<B>::Plain,
            LinearInput::SwiGlu => LinearInput::SwiGlu,
            LinearInput::RmsNorm { weight: norm, eps } if norm.node.requirement.is_none() => {
                LinearInput::RmsNorm {
                    weight: norm.primitive,
                    eps,
                }
            }
            // A trained norm has a gradient of its own, and a node of its own.
            trained => {
                let input = trained.of(source);
                return Self::lora_linear_of(input, LinearInput::Plain, weight, a, b, parts);
            }
        };
        // The weight is state, not a parent: it is frozen, so no gradient of its size is ever formed.
        let weight = match weight {
            FrozenWeight::Full(weight) => FrozenWeight::<B>::Full(weight.primitive.clone()),
            FrozenWeight::Reduced(weight) => FrozenWeight::Reduced(weight.clone()),
        };
        match LoraLinear
            .prepare::<C>([source.node, a.node, b.node])
            .compute_bound()
            .stateful()
        {
            OpsKind::Tracked(prep) => {
                let (source, a, b) = (source.primitive, a.primitive, b.primitive);
                let x = input.of(source.clone());
                let (y, xa) = B::lora_linear(x, &weight, a.clone(), b.clone(), parts);
                prep.finish((input, weight, [source, a, b, xa], parts.to_vec()), y)
            }
            OpsKind::UnTracked(prep) => prep.finish(B::lora_linear_of(
                source.primitive,
                input,
                &weight,
                a.primitive,
                b.primitive,
                parts,
            )),
        }
    }
}
