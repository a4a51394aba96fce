//! One graph node per fused operation, with its hand-written backward pass.

pub(super) mod divergence;
mod logprob;
mod matmul;
mod rows;

use burn::backend::Autodiff;
use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::tensor::backend::AutodiffBackend;
use burn::tensor::ops::{FloatTensor, IntTensor};

use super::{
    Attend, FrozenWeight, Gate, Gelu, Insertion, LinearInput, LogprobOutput, LowRankPart,
    MatmulPrecision, ModelBackend, ReducedMatrix, ReplacedLogprob, ReplacedRows,
};

/// A value without gradient.
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

    fn layer_norm_of(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        eps: f32,
    ) -> FloatTensor<Self> {
        #[derive(Debug)]
        struct LayerNorm;
        impl<B: ModelBackend> Backward<B, 3> for LayerNorm {
            type State = (FloatTensor<B>, FloatTensor<B>, f32);
            fn backward(
                self,
                ops: Ops<Self::State, 3>,
                grads: &mut Gradients,
                _: &mut Checkpointer,
            ) {
                let grad = grads.consume::<B>(&ops.node);
                let [x_node, weight_node, bias_node] = ops.parents;
                let (x, weight, eps) = ops.state;
                let with_weight = weight_node.is_some() || bias_node.is_some();
                let (dx, of_weights) = B::layer_norm_of_backward(x, weight, grad, eps, with_weight);
                if let Some(node) = x_node {
                    grads.register::<B>(node.id, dx);
                }
                for (node, grad) in [weight_node, bias_node]
                    .into_iter()
                    .zip(of_weights.into_iter().flatten())
                {
                    if let Some(node) = node {
                        grads.register::<B>(node.id, grad);
                    }
                }
            }
        }
        let nodes = [x.node, weight.node, bias.node];
        let (x, weight, bias) = (x.primitive, weight.primitive, bias.primitive);
        match LayerNorm.prepare::<C>(nodes).compute_bound().stateful() {
            OpsKind::Tracked(prep) => {
                let y = B::layer_norm_of(x.clone(), weight.clone(), bias, eps);
                prep.finish((x, weight, eps), y)
            }
            OpsKind::UnTracked(prep) => prep.finish(B::layer_norm_of(x, weight, bias, eps)),
        }
    }

    fn gelu_of(x: FloatTensor<Self>, form: Gelu) -> FloatTensor<Self> {
        #[derive(Debug)]
        struct GeluOf;
        impl<B: ModelBackend> Backward<B, 1> for GeluOf {
            type State = (FloatTensor<B>, Gelu);
            fn backward(
                self,
                ops: Ops<Self::State, 1>,
                grads: &mut Gradients,
                _: &mut Checkpointer,
            ) {
                let grad = grads.consume::<B>(&ops.node);
                let [node] = ops.parents;
                let (x, form) = ops.state;
                if let Some(node) = node {
                    grads.register::<B>(node.id, B::gelu_of_backward(x, grad, form));
                }
            }
        }
        match GeluOf.prepare::<C>([x.node]).compute_bound().stateful() {
            OpsKind::Tracked(prep) => {
                let y = B::gelu_of(x.primitive.clone(), form);
                prep.finish((x.primitive, form), y)
            }
            OpsKind::UnTracked(prep) => prep.finish(B::gelu_of(x.primitive, form)),
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

    fn residual(x: FloatTensor<Self>, y: FloatTensor<Self>) -> FloatTensor<Self> {
        #[derive(Debug)]
        struct Residual;
        impl<B: ModelBackend> Backward<B, 2> for Residual {
            type State = ();
            fn backward(
                self,
                ops: Ops<Self::State, 2>,
                grads: &mut Gradients,
                _: &mut Checkpointer,
            ) {
                let grad = grads.consume::<B>(&ops.node);
                for node in ops.parents.into_iter().flatten() {
                    grads.register::<B>(node.id, grad.clone());
                }
            }
        }
        let nodes = [x.node, y.node];
        let sum = B::residual(x.primitive, y.primitive);
        match Residual.prepare::<C>(nodes).compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish((), sum),
            OpsKind::UnTracked(prep) => prep.finish(sum),
        }
    }

    fn gated_unit(gate_up: FloatTensor<Self>, gate: Gate) -> FloatTensor<Self> {
        #[derive(Debug)]
        struct GatedUnit;
        impl<B: ModelBackend> Backward<B, 1> for GatedUnit {
            type State = (FloatTensor<B>, Gate);
            fn backward(
                self,
                ops: Ops<Self::State, 1>,
                grads: &mut Gradients,
                _: &mut Checkpointer,
            ) {
                let grad = grads.consume::<B>(&ops.node);
                let [node] = ops.parents;
                let (gate_up, gate) = ops.state;
                if let Some(node) = node {
                    grads.register::<B>(node.id, B::gated_unit_backward(gate_up, grad, gate));
                }
            }
        }
        match GatedUnit
            .prepare::<C>([gate_up.node])
            .compute_bound()
            .stateful()
        {
            OpsKind::Tracked(prep) => {
                let y = B::gated_unit(gate_up.primitive.clone(), gate);
                prep.finish((gate_up.primitive, gate), y)
            }
            OpsKind::UnTracked(prep) => prep.finish(B::gated_unit(gate_up.primitive, gate)),
        }
    }

    fn packed_attention(
        qkv: FloatTensor<Self>,
        attend: &Attend,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        #[derive(Debug)]
        struct Attention;
        impl<B: ModelBackend> Backward<B, 1> for Attention {
            type State = ([FloatTensor<B>; 3], Attend);
            fn backward(
                self,
                ops: Ops<Self::State, 1>,
                grads: &mut Gradients,
                _: &mut Checkpointer,
            ) {
                let grad = grads.consume::<B>(&ops.node);
                let [node] = ops.parents;
                let ([qkv, output, lse], attend) = ops.state;
                if let Some(node) = node {
                    let dqkv = B::packed_attention_backward(qkv, output, lse, grad, &attend);
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
                let (output, lse) = B::packed_attention(qkv.primitive.clone(), attend);
                let saved = [qkv.primitive, output.clone(), lse.clone()];
                let state = (saved, attend.clone());
                (prep.finish(state, output), constant::<B, C>(lse))
            }
            OpsKind::UnTracked(prep) => {
                let (output, lse) = B::packed_attention(qkv.primitive, attend);
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
        precision: MatmulPrecision,
    ) -> LogprobOutput<Self> {
        logprob::token_logprob(hidden, head, targets, inv_temperature, precision)
    }

    fn reduced_token_logprob(
        hidden: FloatTensor<Self>,
        head: &ReducedMatrix,
        targets: &[u32],
        inv_temperature: f32,
        _with_unit_gradient: bool,
    ) -> LogprobOutput<Self> {
        logprob::reduced_token_logprob(hidden, head, targets, inv_temperature)
    }

    fn replaced_token_logprob(
        hidden: FloatTensor<Self>,
        head: &FrozenWeight<Self>,
        others: FloatTensor<Self>,
        replaced: &ReplacedRows<Self>,
        targets: &[u32],
        inv_temperature: f32,
        _with_gradients: bool,
    ) -> ReplacedLogprob<Self> {
        let head = untracked::<B, C>(head);
        let replaced = replaced.without_gradients();
        logprob::replaced_token_logprob(hidden, head, others, replaced, targets, inv_temperature)
    }

    fn f32_matmul(a: FloatTensor<Self>, b: FloatTensor<Self>) -> FloatTensor<Self> {
        matmul::matmul::<B, C>(a, b, MatmulPrecision::F32)
    }

    fn bf16_matmul(a: FloatTensor<Self>, b: FloatTensor<Self>) -> FloatTensor<Self> {
        matmul::matmul::<B, C>(a, b, MatmulPrecision::Bf16)
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

    fn reduced_columns(weight: &ReducedMatrix, columns: IntTensor<Self>) -> FloatTensor<Self> {
        Self::from_inner(B::reduced_columns(weight, columns))
    }

    fn insert_rows(
        x: FloatTensor<Self>,
        new: FloatTensor<Self>,
        insertion: &Insertion<Self>,
    ) -> FloatTensor<Self> {
        rows::insert_rows::<B, C>(x, new, insertion)
    }

    fn remove_rows(x: FloatTensor<Self>, insertion: &Insertion<Self>) -> FloatTensor<Self> {
        rows::remove_rows::<B, C>(x, insertion)
    }

    fn low_rank_linear(
        x: FloatTensor<Self>,
        weight: &FrozenWeight<Self>,
        t: FloatTensor<Self>,
        b: FloatTensor<Self>,
        parts: &[LowRankPart],
    ) -> FloatTensor<Self> {
        matmul::low_rank_linear::<B, C>(x, untracked::<B, C>(weight), t, b, parts)
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
            LinearInput::Gated(gate) => LinearInput::Gated(gate),
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
        let weight = untracked::<B, C>(weight);
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

/// A frozen weight is a node's state, not a parent, so that no gradient of its size is computed.
fn untracked<B: ModelBackend, C: CheckpointStrategy>(
    weight: &FrozenWeight<Autodiff<B, C>>,
) -> FrozenWeight<B> {
    match weight {
        FrozenWeight::Full(weight, precision) => {
            FrozenWeight::Full(weight.primitive.clone(), *precision)
        }
        FrozenWeight::Reduced(weight) => FrozenWeight::Reduced(weight.clone()),
    }
}
