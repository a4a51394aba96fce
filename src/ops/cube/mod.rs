//! The operations for all CubeCL runtimes (CUDA, Vulkan, Metal): one set of kernels, in f32.
//!
//! Rules for all kernels: no subgroup operations (software Vulkan has none), no atomics (the order of sums is fixed), at most 24 KiB
//! of shared memory (Metal and Mesa have 32), and strided loops over rows or tiles (an axis has at most 65,535 cubes).

mod adamw;
mod attention;
mod attention_backward;
mod bf16;
mod cache;
mod gates;
mod logprob;
mod low_rank;
mod norm;
mod packed;
mod product;
mod reduce;
mod reduced;
mod rope;
mod squares;
mod tables;
mod words;

use std::cell::RefCell;

use burn::tensor::ops::{FloatTensor, IntTensor};
use burn::tensor::{DType, Shape};
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::ops::numeric::empty_device_contiguous_dtype;
use burn_cubecl::tensor::CubeTensor;
use burn_cubecl::{BoolElement, CubeBackend, CubeRuntime, FloatElement, IntElement};
use cubecl::prelude::{CubeCount, CubeDim};

use super::{
    AdamWParam, AdamWResult, AdamWStep, Attend, CacheWrite, FrozenWeight, Gate, Gelu,
    LayerNormGradients, LogprobOutput, LowRankPart, MatmulPrecision, ModelBackend, Owners,
    ReducedMatrix, ReplacedLogprob, ReplacedRows,
};

/// Units of one cube in reductions and elementwise kernels.
const UNITS: usize = 256;

/// Most cubes along an axis; wgpu allows 65,535.
const MAX_CUBES: usize = 32_768;

/// A new tensor with contiguous rows; CUDA would pad them otherwise.
fn empty<R: CubeRuntime>(like: &CubeTensor<R>, shape: impl Into<Shape>) -> CubeTensor<R> {
    let (client, device) = (like.client.clone(), like.device.clone());
    empty_device_contiguous_dtype(client, device, shape.into(), DType::F32)
}

/// A contiguous tensor to write in place: the argument itself if it has no other owner.
fn writable<R: CubeRuntime>(tensor: CubeTensor<R>) -> CubeTensor<R> {
    let tensor = into_contiguous(tensor);
    if tensor.can_mut() {
        tensor
    } else {
        tensor.copy()
    }
}

fn dims2<R: CubeRuntime>(tensor: &CubeTensor<R>) -> [usize; 2] {
    tensor.meta.shape().dims()
}

/// Launch size for `len` independent entries, in strided loops.
fn entrywise(len: usize) -> (CubeCount, CubeDim) {
    let cubes = len.div_ceil(UNITS).min(MAX_CUBES);
    (
        CubeCount::Static(cubes as u32, 1, 1),
        CubeDim::new_1d(UNITS as u32),
    )
}

/// Launch size of one cube per row, as wide as the row needs.
fn by_row(rows: usize, columns: usize) -> (CubeCount, CubeDim, usize) {
    let units = columns.next_power_of_two().clamp(32, UNITS);
    (
        CubeCount::Static(rows.min(MAX_CUBES) as u32, 1, 1),
        CubeDim::new_1d(units as u32),
        units,
    )
}

/// The inputs times the adapters' down projections `a`.
fn ranks_of<B, R>(x: CubeTensor<R>, a: CubeTensor<R>) -> CubeTensor<R>
where
    R: CubeRuntime,
    B: ModelBackend<FloatTensorPrimitive = CubeTensor<R>>,
{
    // For few rows, as in decoding, a single cube would read all inputs.
    match dims2(&x)[0] <= reduced::FEW_ROWS {
        true => B::f32_matmul(x, a),
        false => low_rank::ranks_of(x, a),
    }
}

impl<R, F, I, BT> ModelBackend for CubeBackend<R, F, I, BT>
where
    R: CubeRuntime,
    F: FloatElement,
    I: IntElement,
    BT: BoolElement,
{
    fn rms_norm(x: FloatTensor<Self>, weight: FloatTensor<Self>, eps: f32) -> FloatTensor<Self> {
        norm::forward(x, weight, None, eps)
    }

    fn rms_norm_backward(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        eps: f32,
        with_weight: bool,
    ) -> (FloatTensor<Self>, Option<FloatTensor<Self>>) {
        let (dx, of_weight) = norm::backward::<Self, R>(x, weight, grad, eps, false, with_weight);
        (dx, of_weight.map(|[dweight, _]| dweight))
    }

    fn layer_norm_of(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        eps: f32,
    ) -> FloatTensor<Self> {
        norm::forward(x, weight, Some(bias), eps)
    }

    fn layer_norm_of_backward(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        eps: f32,
        with_weight: bool,
    ) -> LayerNormGradients<Self> {
        norm::backward::<Self, R>(x, weight, grad, eps, true, with_weight)
    }

    fn gelu_of(x: FloatTensor<Self>, form: Gelu) -> FloatTensor<Self> {
        gates::gelu(x, form)
    }

    fn gelu_of_backward(
        x: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        form: Gelu,
    ) -> FloatTensor<Self> {
        gates::gelu_backward(x, grad, form)
    }

    fn rope(
        x: FloatTensor<Self>,
        cos: FloatTensor<Self>,
        sin: FloatTensor<Self>,
        num_heads: usize,
        inverse: bool,
    ) -> FloatTensor<Self> {
        rope::rope(x, cos, sin, num_heads, inverse)
    }

    fn gated_unit(gate_up: FloatTensor<Self>, gate: Gate) -> FloatTensor<Self> {
        gates::gated_unit(gate_up, gate)
    }

    fn gated_unit_backward(
        gate_up: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        gate: Gate,
    ) -> FloatTensor<Self> {
        gates::gated_unit_backward(gate_up, grad, gate)
    }

    fn packed_attention(
        qkv: FloatTensor<Self>,
        attend: &Attend,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        attention::forward(qkv, attend)
    }

    fn packed_attention_backward(
        qkv: FloatTensor<Self>,
        output: FloatTensor<Self>,
        lse: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        attend: &Attend,
    ) -> FloatTensor<Self> {
        attention_backward::backward(qkv, output, lse, grad, attend)
    }

    fn cache_write(
        cache: FloatTensor<Self>,
        packed: FloatTensor<Self>,
        writes: &[CacheWrite],
    ) -> FloatTensor<Self> {
        cache::write(cache, packed, writes)
    }

    fn decode_attention(
        q: FloatTensor<Self>,
        keys: FloatTensor<Self>,
        values: FloatTensor<Self>,
        slots: &[usize],
        held: &[usize],
        attend: &Attend,
    ) -> FloatTensor<Self> {
        cache::attention(q, keys, values, slots, held, attend)
    }

    fn f32_matmul(a: FloatTensor<Self>, b: FloatTensor<Self>) -> FloatTensor<Self> {
        match reduced::few_rows_of_f32::<R, Self>(&a, &b) {
            Some(product) => product,
            None => product::f32s(a, b),
        }
    }

    fn bf16_matmul(a: FloatTensor<Self>, b: FloatTensor<Self>) -> FloatTensor<Self> {
        bf16::matmul::<R, Self>(a, b)
    }

    fn token_logprob(
        hidden: FloatTensor<Self>,
        head: FloatTensor<Self>,
        targets: &[u32],
        inv_temperature: f32,
        with_unit_gradient: bool,
        precision: MatmulPrecision,
    ) -> LogprobOutput<Self> {
        let head = logprob::transposed::<Self>(head, precision);
        logprob::forward(hidden, &head, targets, inv_temperature, with_unit_gradient)
    }

    fn token_logprob_backward(
        hidden: FloatTensor<Self>,
        head: FloatTensor<Self>,
        targets: &[u32],
        inv_temperature: f32,
        grad: FloatTensor<Self>,
        precision: MatmulPrecision,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        logprob::backward::<Self, R>(hidden, head, targets, inv_temperature, grad, precision)
    }

    fn reduced_token_logprob(
        hidden: FloatTensor<Self>,
        head: &ReducedMatrix,
        targets: &[u32],
        inv_temperature: f32,
        with_unit_gradient: bool,
    ) -> LogprobOutput<Self> {
        let head = FrozenWeight::Reduced(head.clone());
        logprob::forward(hidden, &head, targets, inv_temperature, with_unit_gradient)
    }

    fn replaced_token_logprob(
        hidden: FloatTensor<Self>,
        head: &FrozenWeight<Self>,
        others: FloatTensor<Self>,
        replaced: &ReplacedRows<Self>,
        targets: &[u32],
        inv_temperature: f32,
        with_gradients: bool,
    ) -> ReplacedLogprob<Self> {
        let head = logprob::WithOthers {
            head,
            others,
            replaced,
            of_others: RefCell::default(),
        };
        let scale = inv_temperature;
        let out = logprob::forward(hidden, &head, targets, scale, with_gradients);
        (out, head.of_others())
    }

    fn reduced_linear(x: FloatTensor<Self>, weight: &ReducedMatrix) -> FloatTensor<Self> {
        reduced::linear::<R, Self>(x, weight)
    }

    fn reduced_linear_backward(
        grad: FloatTensor<Self>,
        weight: &ReducedMatrix,
    ) -> FloatTensor<Self> {
        reduced::linear_backward::<R, Self>(grad, weight)
    }

    fn reduced_columns(weight: &ReducedMatrix, columns: IntTensor<Self>) -> FloatTensor<Self> {
        reduced::columns(weight, columns)
    }

    fn sum_of_squares(tensors: Vec<FloatTensor<Self>>) -> f64 {
        squares::sum_of_squares::<R, Self>(tensors)
    }

    fn lora_linear(
        x: FloatTensor<Self>,
        weight: &FrozenWeight<Self>,
        a: FloatTensor<Self>,
        b: FloatTensor<Self>,
        parts: &[LowRankPart],
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        let y = weight.product(x.clone());
        let xa = ranks_of::<Self, R>(x, a);
        (low_rank::add(y, xa.clone(), b, parts), xa)
    }

    fn low_rank_linear(
        x: FloatTensor<Self>,
        weight: &FrozenWeight<Self>,
        t: FloatTensor<Self>,
        b: FloatTensor<Self>,
        parts: &[LowRankPart],
    ) -> FloatTensor<Self> {
        low_rank::add(weight.product(x), t, b, parts)
    }

    fn low_rank_gradients(
        grad: FloatTensor<Self>,
        t: FloatTensor<Self>,
        b: FloatTensor<Self>,
        parts: &[LowRankPart],
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        low_rank::gradients::<R, Self>(grad, t, b, parts)
    }

    fn lora_linear_shared(
        x: FloatTensor<Self>,
        weight: &FrozenWeight<Self>,
        a: FloatTensor<Self>,
        b: FloatTensor<Self>,
        parts: &[LowRankPart],
        owners: Owners<'_>,
    ) -> FloatTensor<Self> {
        let y = weight.product(x.clone());
        let xa = ranks_of::<Self, R>(x, a);
        low_rank::add_shared(y, xa, b, parts, owners)
    }

    fn lora_linear_backward(
        x: FloatTensor<Self>,
        weight: &FrozenWeight<Self>,
        a: FloatTensor<Self>,
        b: FloatTensor<Self>,
        xa: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        parts: &[LowRankPart],
        with_x: bool,
    ) -> (
        Option<FloatTensor<Self>>,
        FloatTensor<Self>,
        FloatTensor<Self>,
    ) {
        let (dxa, db) = low_rank::gradients::<R, Self>(grad.clone(), xa, b, parts);
        let da = low_rank::gradient_of_a::<R, Self>(x, dxa.clone());
        let dx = with_x.then(|| low_rank::add_through(weight.backward(grad), dxa, a));
        (dx, da, db)
    }

    fn adamw(params: Vec<AdamWParam<Self>>, step: AdamWStep) -> Vec<AdamWResult<Self>> {
        let params = params.into_iter().map(|param| adamw::Param {
            value: param.value,
            grad: param.grad,
            moments: param.moments,
            decays: param.decays,
        });
        adamw::update(params.collect(), step)
    }
}
