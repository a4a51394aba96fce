//! The operations as functions on tensors.

use std::sync::Arc;

use burn::tensor::backend::Backend;
use burn::tensor::ops::FloatTensor;
use burn::tensor::{Int, Tensor, TensorPrimitive};

use super::{
    Attend, FrozenWeight, Gate, Gelu, LinearInput, LowRankPart, MatmulPrecision, ModelBackend,
    Owners, ReducedMatrix,
};

/// The primitive of a float tensor.
pub(crate) fn unwrap<B: Backend, const D: usize>(tensor: Tensor<B, D>) -> FloatTensor<B> {
    tensor.into_primitive().tensor()
}

/// A float tensor of a primitive.
pub(crate) fn wrap<B: Backend, const D: usize>(primitive: FloatTensor<B>) -> Tensor<B, D> {
    Tensor::from_primitive(TensorPrimitive::Float(primitive))
}

/// See [`ModelBackend::rms_norm`].
pub fn rms_norm<B: ModelBackend>(x: Tensor<B, 2>, weight: Tensor<B, 1>, eps: f64) -> Tensor<B, 2> {
    wrap(B::rms_norm(unwrap(x), unwrap(weight), eps as f32))
}

/// See [`ModelBackend::layer_norm_of`].
pub fn layer_norm<B: ModelBackend>(
    x: Tensor<B, 2>,
    weight: Tensor<B, 1>,
    bias: Tensor<B, 1>,
    eps: f64,
) -> Tensor<B, 2> {
    wrap(B::layer_norm_of(
        unwrap(x),
        unwrap(weight),
        unwrap(bias),
        eps as f32,
    ))
}

/// See [`ModelBackend::gelu_of`].
pub fn gelu<B: ModelBackend>(x: Tensor<B, 2>, form: Gelu) -> Tensor<B, 2> {
    wrap(B::gelu_of(unwrap(x), form))
}

/// See [`ModelBackend::rope`].
pub fn rope<B: ModelBackend>(
    x: Tensor<B, 2>,
    cos: Tensor<B, 2>,
    sin: Tensor<B, 2>,
    num_heads: usize,
) -> Tensor<B, 2> {
    wrap(B::rope(
        unwrap(x),
        unwrap(cos),
        unwrap(sin),
        num_heads,
        false,
    ))
}

/// See [`ModelBackend::residual`].
pub fn residual<B: ModelBackend>(x: Tensor<B, 2>, y: Tensor<B, 2>) -> Tensor<B, 2> {
    wrap(B::residual(unwrap(x), unwrap(y)))
}

/// See [`ModelBackend::gated_unit`].
pub fn gated_unit<B: ModelBackend>(gate_up: Tensor<B, 2>, gate: Gate) -> Tensor<B, 2> {
    wrap(B::gated_unit(unwrap(gate_up), gate))
}

/// See [`ModelBackend::packed_attention`].
pub fn attention<B: ModelBackend>(qkv: Tensor<B, 2>, attend: &Attend) -> Tensor<B, 2> {
    wrap(B::packed_attention(unwrap(qkv), attend).0)
}

/// Log-probabilities (differentiable) and entropies (not differentiable) of `targets`, both `[tokens]` in nats.
/// See [`ModelBackend::token_logprob`].
pub fn token_logprob<B: ModelBackend>(
    hidden: Tensor<B, 2>,
    head: Tensor<B, 2>,
    targets: &Arc<Vec<u32>>,
    temperature: f64,
    precision: MatmulPrecision,
) -> (Tensor<B, 1>, Tensor<B, 1>) {
    assert_eq!(
        hidden.dims()[0],
        targets.len(),
        "one target per hidden state"
    );
    let out = B::token_logprob(
        unwrap(hidden),
        unwrap(head),
        targets,
        (1.0 / temperature) as f32,
        false,
        precision,
    );
    (wrap(out.logprobs), wrap(out.entropy))
}

/// See [`ModelBackend::lora_linear`]; in f32.
pub fn lora_linear<B: ModelBackend>(
    x: Tensor<B, 2>,
    weight: Tensor<B, 2>,
    a: Tensor<B, 2>,
    b: Tensor<B, 1>,
    parts: &[LowRankPart],
) -> Tensor<B, 2> {
    let weight = FrozenWeight::full(weight, MatmulPrecision::F32);
    lora_linear_of(x, LinearInput::Plain, &weight, a, b, parts)
}

/// See [`ModelBackend::full_linear`].
pub fn full_linear<B: ModelBackend>(
    x: Tensor<B, 2>,
    weight: Tensor<B, 2>,
    precision: MatmulPrecision,
) -> Tensor<B, 2> {
    wrap(B::full_linear(unwrap(x), unwrap(weight), precision))
}

/// See [`ModelBackend::f32_matmul`].
pub fn f32_matmul<B: ModelBackend>(a: Tensor<B, 2>, b: Tensor<B, 2>) -> Tensor<B, 2> {
    wrap(B::f32_matmul(unwrap(a), unwrap(b)))
}

/// See [`ModelBackend::bf16_matmul`].
pub fn bf16_matmul<B: ModelBackend>(a: Tensor<B, 2>, b: Tensor<B, 2>) -> Tensor<B, 2> {
    wrap(B::bf16_matmul(unwrap(a), unwrap(b)))
}

/// See [`ModelBackend::reduced_linear`].
pub fn reduced_linear<B: ModelBackend>(x: Tensor<B, 2>, weight: &ReducedMatrix) -> Tensor<B, 2> {
    wrap(B::reduced_linear(unwrap(x), weight))
}

/// The input of a linear layer that comes from `source`.
pub fn linear_input<B: ModelBackend>(source: Tensor<B, 2>, input: &LinearInput<B>) -> Tensor<B, 2> {
    wrap(input.of(unwrap(source)))
}

/// See [`ModelBackend::lora_linear_of`].
pub fn lora_linear_of<B: ModelBackend>(
    source: Tensor<B, 2>,
    input: LinearInput<B>,
    weight: &FrozenWeight<B>,
    a: Tensor<B, 2>,
    b: Tensor<B, 1>,
    parts: &[LowRankPart],
) -> Tensor<B, 2> {
    wrap(B::lora_linear_of(
        unwrap(source),
        input,
        weight,
        unwrap(a),
        unwrap(b),
        parts,
    ))
}

/// See [`ModelBackend::low_rank_linear`].
pub fn low_rank_linear<B: ModelBackend>(
    x: Tensor<B, 2>,
    weight: &FrozenWeight<B>,
    t: Tensor<B, 2>,
    b: Tensor<B, 1>,
    parts: &[LowRankPart],
) -> Tensor<B, 2> {
    wrap(B::low_rank_linear(
        unwrap(x),
        weight,
        unwrap(t),
        unwrap(b),
        parts,
    ))
}

/// See [`ModelBackend::lora_linear_shared`].
pub fn lora_linear_shared<B: ModelBackend>(
    x: Tensor<B, 2>,
    weight: &FrozenWeight<B>,
    a: Tensor<B, 2>,
    b: Tensor<B, 1>,
    parts: &[LowRankPart],
    owners: Owners<'_>,
) -> Tensor<B, 2> {
    let [rows, _] = x.dims();
    assert_eq!(rows % owners.shares, 0, "rows in equal shares");
    wrap(B::lora_linear_shared(
        unwrap(x),
        weight,
        unwrap(a),
        unwrap(b),
        parts,
        owners,
    ))
}

/// See [`ModelBackend::reduced_columns`].
pub fn reduced_columns<B: ModelBackend>(
    weight: &ReducedMatrix,
    columns: Tensor<B, 1, Int>,
) -> Tensor<B, 2> {
    wrap(B::reduced_columns(weight, columns.into_primitive()))
}
