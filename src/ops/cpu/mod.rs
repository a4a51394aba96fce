//! The operations for the Flex backend, on raw slices.

mod attention;
mod buffers;
mod linear;
mod logprob;

use burn::backend::Flex;
use burn::tensor::ops::{FloatTensor, FloatTensorOps};
use burn::tensor::{Shape, TensorData, TensorMetadata};
use burn_flex::FlexTensor;

use self::buffers::{buffer, give_back};
use self::linear::{product, with_adapters, write_reduced_product};
use super::kernels::{self, Matrix, Right};
use super::{
    AdamW8bitParam, AdamW8bitResult, AdamWParam, AdamWResult, AdamWStep, Attend, ByteMoment,
    CacheWrite, FrozenWeight, Gate, Gelu, LayerNormGradients, LogprobOutput, LowRankPart,
    MatmulPrecision, ModelBackend, Owners, ReducedMatrix, ReplacedLogprob, ReplacedRows,
};

/// Makes a tensor contiguous. Takes it by value: with a second handle, later in-place writes would copy.
fn contiguous(tensor: FlexTensor) -> FlexTensor {
    if tensor.as_slice::<f32>().is_some() {
        tensor
    } else {
        tensor.to_contiguous()
    }
}

/// Makes a tensor writable in place: `storage_mut` returns the whole buffer, so views are copied first.
fn writable(tensor: FlexTensor) -> FlexTensor {
    // Shares the buffer if nothing is copied; dropping the argument makes it the sole owner again.
    tensor.to_contiguous()
}

/// The values of a tensor returned by [`contiguous`].
fn slice(tensor: &FlexTensor) -> &[f32] {
    tensor.as_slice::<f32>().expect("contiguous f32")
}

fn tensor(values: Vec<f32>, shape: impl Into<Shape>) -> FlexTensor {
    FlexTensor::from_data(TensorData::new(values, shape.into()))
}

fn dims2(tensor: &FlexTensor) -> [usize; 2] {
    let shape = tensor.shape();
    [shape[0], shape[1]]
}

fn matmul(a: FlexTensor, b: FlexTensor) -> FlexTensor {
    Flex::float_matmul(a, b)
}

/// Below and above these numbers of rows, products with an f32 weight use our kernels; between them packing the weight costs what
/// it saves.
const FEW_ROWS: usize = 32;
const MANY_ROWS: usize = 256;

impl ModelBackend for Flex {
    fn rms_norm(x: FloatTensor<Self>, weight: FloatTensor<Self>, eps: f32) -> FloatTensor<Self> {
        let (x, weight) = (contiguous(x), contiguous(weight));
        let mut y = buffer(slice(&x).len());
        kernels::rms_norm(slice(&x), slice(&weight), eps, &mut y);
        let shape = x.shape();
        give_back([x]);
        tensor(y, shape)
    }

    fn rms_norm_backward(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        eps: f32,
        with_weight: bool,
    ) -> (FloatTensor<Self>, Option<FloatTensor<Self>>) {
        let (x, weight, grad) = (contiguous(x), contiguous(weight), contiguous(grad));
        let mut dx = buffer(slice(&x).len());
        let dweight = kernels::rms_norm_backward(
            slice(&x),
            slice(&weight),
            slice(&grad),
            eps,
            &mut dx,
            with_weight,
        );
        let shape = x.shape();
        give_back([x, grad]);
        (
            tensor(dx, shape),
            dweight.map(|dweight| tensor(dweight, weight.shape())),
        )
    }

    fn layer_norm_of(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        eps: f32,
    ) -> FloatTensor<Self> {
        let (x, weight, bias) = (contiguous(x), contiguous(weight), contiguous(bias));
        let mut y = buffer(slice(&x).len());
        kernels::layer_norm(slice(&x), slice(&weight), slice(&bias), eps, &mut y);
        let shape = x.shape();
        give_back([x]);
        tensor(y, shape)
    }

    fn layer_norm_of_backward(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        eps: f32,
        with_weight: bool,
    ) -> LayerNormGradients<Self> {
        let (x, weight, grad) = (contiguous(x), contiguous(weight), contiguous(grad));
        let mut dx = buffer(slice(&x).len());
        let (x_values, weights) = (slice(&x), slice(&weight));
        let of_weights = kernels::layer_norm_backward(
            x_values,
            weights,
            slice(&grad),
            eps,
            &mut dx,
            with_weight,
        );
        let shape = x.shape();
        give_back([x, grad]);
        (
            tensor(dx, shape),
            of_weights.map(|both| both.map(|values| tensor(values, weight.shape()))),
        )
    }

    fn gelu_of(x: FloatTensor<Self>, form: Gelu) -> FloatTensor<Self> {
        let x = contiguous(x);
        let mut y = buffer(slice(&x).len());
        kernels::gelu(slice(&x), form, &mut y);
        let shape = x.shape();
        give_back([x]);
        tensor(y, shape)
    }

    fn gelu_of_backward(
        x: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        form: Gelu,
    ) -> FloatTensor<Self> {
        let (x, grad) = (contiguous(x), contiguous(grad));
        let mut dx = buffer(slice(&x).len());
        kernels::gelu_backward(slice(&x), slice(&grad), form, &mut dx);
        let shape = x.shape();
        give_back([x, grad]);
        tensor(dx, shape)
    }

    fn rope(
        x: FloatTensor<Self>,
        cos: FloatTensor<Self>,
        sin: FloatTensor<Self>,
        num_heads: usize,
        inverse: bool,
    ) -> FloatTensor<Self> {
        let (mut x, cos, sin) = (writable(x), contiguous(cos), contiguous(sin));
        let (width, half) = (dims2(&x)[1], dims2(&cos)[1]);
        let sign = if inverse { -1.0 } else { 1.0 };
        let (cos, sin) = (slice(&cos), slice(&sin));
        kernels::rope(
            x.storage_mut::<f32>(),
            width,
            num_heads,
            half,
            cos,
            sin,
            sign,
        );
        x
    }

    fn residual(x: FloatTensor<Self>, y: FloatTensor<Self>) -> FloatTensor<Self> {
        // If `y` has no other owner the sum reuses its memory.
        let (x, mut y) = (contiguous(x), writable(y));
        kernels::add(y.storage_mut(), slice(&x));
        give_back([x]);
        y
    }

    fn gated_unit(gate_up: FloatTensor<Self>, gate: Gate) -> FloatTensor<Self> {
        let gate_up = contiguous(gate_up);
        let [tokens, width] = dims2(&gate_up);
        let mut y = buffer(tokens * width / 2);
        kernels::gated_unit(slice(&gate_up), width / 2, gate, &mut y);
        give_back([gate_up]);
        tensor(y, [tokens, width / 2])
    }

    fn gated_unit_backward(
        gate_up: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        gate: Gate,
    ) -> FloatTensor<Self> {
        let (gate_up, grad) = (contiguous(gate_up), contiguous(grad));
        let [tokens, width] = dims2(&gate_up);
        let mut out = buffer(tokens * width);
        kernels::gated_unit_backward(slice(&gate_up), slice(&grad), width / 2, gate, &mut out);
        give_back([gate_up, grad]);
        tensor(out, [tokens, width])
    }

    fn packed_attention(
        qkv: FloatTensor<Self>,
        attend: &Attend,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        attention::packed_attention(qkv, attend)
    }

    fn packed_attention_backward(
        qkv: FloatTensor<Self>,
        output: FloatTensor<Self>,
        lse: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        attend: &Attend,
    ) -> FloatTensor<Self> {
        attention::packed_attention_backward(qkv, output, lse, grad, attend)
    }

    fn cache_write(
        cache: FloatTensor<Self>,
        packed: FloatTensor<Self>,
        writes: &[CacheWrite],
    ) -> FloatTensor<Self> {
        let (mut cache, packed) = (writable(cache), contiguous(packed));
        let [_, capacity, width] = [cache.shape()[0], cache.shape()[1], cache.shape()[2]];
        let source = slice(&packed);
        let target = cache.storage_mut::<f32>();
        for write in writes {
            assert!(
                write.start + write.tokens.len() <= capacity,
                "a cache slot holds {capacity} positions"
            );
            let from = (write.slot * capacity + write.start) * width;
            let values = &source[write.tokens.start * width..write.tokens.end * width];
            target[from..from + values.len()].copy_from_slice(values);
        }
        cache
    }

    fn decode_attention(
        q: FloatTensor<Self>,
        keys: FloatTensor<Self>,
        values: FloatTensor<Self>,
        slots: &[usize],
        held: &[usize],
        attend: &Attend,
    ) -> FloatTensor<Self> {
        attention::decode_attention(q, keys, values, slots, held, attend)
    }

    fn token_logprob(
        hidden: FloatTensor<Self>,
        head: FloatTensor<Self>,
        targets: &[u32],
        inv_temperature: f32,
        with_unit_gradient: bool,
        precision: MatmulPrecision,
    ) -> LogprobOutput<Self> {
        logprob::token_logprob(
            hidden,
            head,
            targets,
            inv_temperature,
            with_unit_gradient,
            precision,
        )
    }

    fn reduced_token_logprob(
        hidden: FloatTensor<Self>,
        head: &ReducedMatrix,
        targets: &[u32],
        inv_temperature: f32,
        with_unit_gradient: bool,
    ) -> LogprobOutput<Self> {
        logprob::reduced_token_logprob(hidden, head, targets, inv_temperature, with_unit_gradient)
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
        let scale = inv_temperature;
        logprob::replaced_token_logprob(
            hidden,
            head,
            others,
            replaced,
            targets,
            scale,
            with_gradients,
        )
    }

    fn token_logprob_backward(
        hidden: FloatTensor<Self>,
        head: FloatTensor<Self>,
        targets: &[u32],
        inv_temperature: f32,
        grad: FloatTensor<Self>,
        precision: MatmulPrecision,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        logprob::token_logprob_backward(hidden, head, targets, inv_temperature, grad, precision)
    }

    fn bf16_matmul(a: FloatTensor<Self>, b: FloatTensor<Self>) -> FloatTensor<Self> {
        let ([rows, depth], [_, columns]) = (dims2(&a), dims2(&b));
        if rows * depth * columns == 0 {
            return tensor(vec![0.0; rows * columns], [rows, columns]);
        }
        let transposed = b.transpose(0, 1);
        let (b, shape, right) = match (b.as_slice::<f32>(), transposed.as_slice::<f32>()) {
            (None, Some(_)) => (transposed, [columns, depth], Right::Transposed),
            _ => (contiguous(b), [depth, columns], Right::Plain),
        };
        let b = (Matrix::Full(slice(&b)), MatmulPrecision::Bf16);
        product(a, b, shape, right, None)
    }

    fn head_logits(
        hidden: FloatTensor<Self>,
        head: FloatTensor<Self>,
        precision: MatmulPrecision,
    ) -> FloatTensor<Self> {
        if precision == MatmulPrecision::Bf16 {
            return Self::bf16_matmul(hidden, head.transpose(0, 1));
        }
        let ([rows, depth], [vocab, _]) = (dims2(&hidden), dims2(&head));
        if rows > FEW_ROWS || rows * vocab == 0 || head.as_slice::<f32>().is_none() {
            return matmul(hidden, head.transpose(0, 1));
        }
        let hidden = contiguous(hidden);
        let mut logits = vec![0f32; rows * vocab];
        kernels::dots(&mut logits, slice(&hidden), slice(&head), depth, vocab);
        tensor(logits, [rows, vocab])
    }

    fn full_linear(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        precision: MatmulPrecision,
    ) -> FloatTensor<Self> {
        let rows = dims2(&x)[0];
        let ours = (rows <= FEW_ROWS || rows >= MANY_ROWS) && weight.as_slice::<f32>().is_some();
        if precision == MatmulPrecision::Bf16 || !ours {
            return precision.matmul::<Self>(x, weight);
        }
        let matrix = (Matrix::Full(slice(&weight)), precision);
        product(x, matrix, dims2(&weight), Right::Plain, None)
    }

    fn reduced_linear(x: FloatTensor<Self>, weight: &ReducedMatrix) -> FloatTensor<Self> {
        let x = contiguous(x);
        let shape = [dims2(&x)[0], weight.outputs()];
        let mut y = buffer(shape[0] * shape[1]);
        write_reduced_product(&mut y, slice(&x), weight);
        give_back([x]);
        tensor(y, shape)
    }

    fn reduced_linear_backward(
        grad: FloatTensor<Self>,
        weight: &ReducedMatrix,
    ) -> FloatTensor<Self> {
        let shape = [weight.inputs(), weight.outputs()];
        let weight = (Matrix::Reduced(weight), weight.matmul());
        product(grad, weight, shape, Right::Transposed, None)
    }

    fn lora_linear(
        x: FloatTensor<Self>,
        weight: &FrozenWeight<Self>,
        a: FloatTensor<Self>,
        b: FloatTensor<Self>,
        parts: &[LowRankPart],
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        let xa = linear::ranks_of(&x, a);
        (with_adapters(x, weight, &xa, b, parts), xa)
    }

    fn low_rank_linear(
        x: FloatTensor<Self>,
        weight: &FrozenWeight<Self>,
        t: FloatTensor<Self>,
        b: FloatTensor<Self>,
        parts: &[LowRankPart],
    ) -> FloatTensor<Self> {
        with_adapters(x, weight, &contiguous(t), b, parts)
    }

    fn low_rank_gradients(
        grad: FloatTensor<Self>,
        t: FloatTensor<Self>,
        b: FloatTensor<Self>,
        parts: &[LowRankPart],
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        linear::low_rank_gradients(grad, t, b, parts)
    }

    fn lora_linear_shared(
        x: FloatTensor<Self>,
        weight: &FrozenWeight<Self>,
        a: FloatTensor<Self>,
        b: FloatTensor<Self>,
        parts: &[LowRankPart],
        owners: Owners<'_>,
    ) -> FloatTensor<Self> {
        linear::lora_linear_shared(x, weight, a, b, parts, owners)
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
        linear::lora_linear_backward(x, weight, a, b, xa, grad, parts, with_x)
    }

    fn sum_of_squares(tensors: Vec<FloatTensor<Self>>) -> f64 {
        let tensors: Vec<FlexTensor> = tensors.into_iter().map(contiguous).collect();
        kernels::sum_of_squares(&tensors.iter().map(slice).collect::<Vec<_>>())
    }

    fn adamw(params: Vec<AdamWParam<Self>>, step: AdamWStep) -> Vec<AdamWResult<Self>> {
        let mut params: Vec<_> = (params.into_iter())
            .map(|param| {
                let [m, v] = param.moments;
                let writable = [param.value, m, v].map(writable);
                (writable, contiguous(param.grad), step.keep(param.decays))
            })
            .collect();
        let parts = params
            .iter_mut()
            .map(|([value, m, v], grad, keep)| kernels::AdamWPart {
                value: value.storage_mut(),
                grad: slice(grad),
                moments: [m.storage_mut(), v.storage_mut()],
                keep: *keep,
            });
        kernels::adamw(parts.collect(), step);
        let results = params.into_iter();
        results.map(|([value, m, v], ..)| (value, [m, v])).collect()
    }

    fn adamw_8bit(
        params: Vec<AdamW8bitParam<Self>>,
        step: AdamWStep,
    ) -> Vec<AdamW8bitResult<Self>> {
        let mut params: Vec<_> = (params.into_iter())
            .map(|param| {
                let moments = param.moments.map(|moment| ByteMoment::<Self> {
                    words: writable(moment.words),
                    absmax: writable(moment.absmax),
                });
                let (value, grad) = (writable(param.value), contiguous(param.grad));
                (value, moments, grad, step.keep(param.decays))
            })
            .collect();
        let parts = params.iter_mut().map(|(value, moments, grad, keep)| {
            let moments = moments.each_mut().map(|moment| kernels::ByteMomentPart {
                words: moment.words.storage_mut(),
                absmax: moment.absmax.storage_mut(),
            });
            kernels::AdamW8bitPart {
                value: value.storage_mut(),
                grad: slice(grad),
                moments,
                keep: *keep,
            }
        });
        kernels::adamw_8bit(parts.collect(), step);
        let results = params.into_iter();
        results
            .map(|(value, moments, ..)| (value, moments))
            .collect()
    }
}
