//! Fused differentiable operations behind one extension trait.
//!
//! Every method of [`ModelBackend`] has a portable body in plain burn ops (`portable`), so a new backend works at once;
//! `cpu` overrides them for Flex with rayon and SIMD kernels, `cube` for CUDA, Vulkan and Metal with one set of kernels.
//! `autodiff` gives each operation one graph node with a hand-written backward pass, in terms of the inner backend's
//! `*_backward` methods.
//!
//! All matrices are packed: `[tokens, features]`, with row boundaries in [`Segments`](crate::tokens::Segments).

mod activation;
mod adamw;
mod adamw_8bit;
mod attend;
mod autodiff;
#[cfg(feature = "flex")]
mod cpu;
#[cfg(any(feature = "cuda", feature = "wgpu"))]
mod cube;
mod divergence;
mod frozen;
mod head;
mod input;
#[cfg(feature = "flex")]
mod kernels;
mod matmul;
mod portable;
mod reduced;
mod replaced;
mod rows;
mod tensor;

pub use activation::{Gate, Gelu};
pub use adamw::{AdamWParam, AdamWResult, AdamWStep};
pub use adamw_8bit::{AdamW8bitParam, AdamW8bitResult, BLOCK, ByteMoment};
pub use attend::{Attend, HeadLayout, Mask};
pub use divergence::{Divergence, HeadInput, divergence, row_divergences};
pub use frozen::FrozenWeight;
pub use head::{Head, head_logprob, logits};
pub use input::LinearInput;
pub use matmul::{MatmulPrecision, Numerics};
pub use reduced::{
    BlockFormat, Blocks, NestedAbsmax, Precision, ReducedMatrix, nf4_codes, nf4_nested,
};
pub use replaced::{ReplacedLogprob, ReplacedRows, replace_rows, replaced_order};
pub use rows::{Insertion, insert_rows, remove_rows};
pub use tensor::{
    attention, bf16_matmul, f32_matmul, full_linear, gated_unit, gelu, layer_norm, linear_input,
    lora_linear, lora_linear_of, lora_linear_shared, low_rank_linear, reduced_columns,
    reduced_linear, residual, rms_norm, rope, token_logprob,
};
pub(crate) use tensor::{unwrap, wrap};

use std::ops::Range;

use burn::tensor::backend::Backend;
use burn::tensor::ops::{FloatTensor, IntTensor};

/// One low-rank product added to a column range of a linear layer's output.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LowRankPart {
    /// Inner dimension.
    pub rank: usize,
    /// Factor on the product.
    pub scale: f32,
    /// First output column.
    pub column: usize,
    /// Number of output columns.
    pub width: usize,
}

/// Assigns rows and parts to models in [`ModelBackend::lora_linear_shared`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Owners<'a> {
    /// Number of equal shares of the rows, one per model.
    pub shares: usize,
    /// The share of each part.
    pub of_parts: &'a [usize],
}

impl Owners<'_> {
    /// Calls `clear` with every share of `rows` and every range of ranks that has no part in it.
    pub(crate) fn for_each_foreign(
        &self,
        rows: usize,
        parts: &[LowRankPart],
        mut clear: impl FnMut(Range<usize>, Range<usize>),
    ) {
        let len = rows / self.shares;
        let mut first = 0;
        for (part, &owner) in parts.iter().zip(self.of_parts) {
            for share in (0..self.shares).filter(|&share| share != owner) {
                clear(share * len..(share + 1) * len, first..first + part.rank);
            }
            first += part.rank;
        }
    }
}

/// Gradients of [`ModelBackend::layer_norm_of`]: of `x`, and of weight and bias if requested.
pub type LayerNormGradients<B> = (FloatTensor<B>, Option<[FloatTensor<B>; 2]>);

/// A write of packed tokens into a cache.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CacheWrite {
    /// Rows of the packed matrix.
    pub tokens: Range<usize>,
    /// Slot of the cache.
    pub slot: usize,
    /// Position of the first token in the slot.
    pub start: usize,
}

/// The results of `token_logprob`.
#[derive(Debug, Clone)]
pub struct LogprobOutput<B: Backend> {
    /// `[tokens]`, nats.
    pub logprobs: FloatTensor<B>,
    /// `[tokens]`, nats: the entropy of each position's distribution.
    pub entropy: FloatTensor<B>,
    /// `[tokens, hidden]`: the gradient of each log-probability with respect to its own hidden state, if requested.
    pub unit_gradient: Option<FloatTensor<B>>,
}

/// The fused operations of language models, in f32.
pub trait ModelBackend: Backend {
    /// `x * rsqrt(mean(x^2) + eps) * weight` by row. `x`: `[tokens, hidden]`, `weight`: `[hidden]`.
    fn rms_norm(x: FloatTensor<Self>, weight: FloatTensor<Self>, eps: f32) -> FloatTensor<Self> {
        portable::rms_norm::<Self>(x, weight, eps)
    }

    /// Gradients of [`ModelBackend::rms_norm`]: of `x`, and of `weight` if requested.
    fn rms_norm_backward(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        eps: f32,
        with_weight: bool,
    ) -> (FloatTensor<Self>, Option<FloatTensor<Self>>) {
        portable::rms_norm_backward::<Self>(x, weight, grad, eps, with_weight)
    }

    /// `(x - mean) / sqrt(variance + eps) * weight + bias` by row, the variance being the biased one. `x`: `[tokens, hidden]`,
    /// `weight`, `bias`: `[hidden]`.
    fn layer_norm_of(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        eps: f32,
    ) -> FloatTensor<Self> {
        portable::layer_norm::<Self>(x, weight, bias, eps)
    }

    /// Gradients of [`ModelBackend::layer_norm_of`].
    fn layer_norm_of_backward(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        eps: f32,
        with_weight: bool,
    ) -> LayerNormGradients<Self> {
        portable::layer_norm_backward::<Self>(x, weight, grad, eps, with_weight)
    }

    /// [`Gelu`] of each entry of `[tokens, width]`.
    fn gelu_of(x: FloatTensor<Self>, form: Gelu) -> FloatTensor<Self> {
        portable::gelu::<Self>(x, form)
    }

    /// Gradient of [`ModelBackend::gelu_of`].
    fn gelu_of_backward(
        x: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        form: Gelu,
    ) -> FloatTensor<Self> {
        portable::gelu_backward::<Self>(x, grad, form)
    }

    /// Rotates the first `num_heads` heads of each row by its position's angles (Hugging Face's rotate-half order).
    /// `x`: `[tokens, width]`; `cos`, `sin`: `[tokens, head_dim / 2]`. `inverse` rotates back, which is the gradient.
    fn rope(
        x: FloatTensor<Self>,
        cos: FloatTensor<Self>,
        sin: FloatTensor<Self>,
        num_heads: usize,
        inverse: bool,
    ) -> FloatTensor<Self> {
        portable::rope::<Self>(x, cos, sin, num_heads, inverse)
    }

    /// `x + y`: adds a layer's output to the residual stream.
    fn residual(x: FloatTensor<Self>, y: FloatTensor<Self>) -> FloatTensor<Self> {
        Self::float_add(x, y)
    }

    /// `activation(gate) * up` of a joint `[tokens, 2 * intermediate]` matrix, gate first.
    fn gated_unit(gate_up: FloatTensor<Self>, gate: Gate) -> FloatTensor<Self> {
        portable::gated_unit::<Self>(gate_up, gate)
    }

    /// Gradient of [`ModelBackend::gated_unit`] with respect to the joint matrix.
    fn gated_unit_backward(
        gate_up: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        gate: Gate,
    ) -> FloatTensor<Self> {
        portable::gated_unit_backward::<Self>(gate_up, grad, gate)
    }

    /// [`Attend`] of a joint matrix, within each row and its parent. Returns the output `[tokens, heads * head_dim]` and the log-sum-exp
    /// of the scores, `[heads, tokens]`.
    fn packed_attention(
        qkv: FloatTensor<Self>,
        attend: &Attend,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        portable::attention::<Self>(qkv, attend)
    }

    /// Gradient of [`ModelBackend::packed_attention`] with respect to the joint matrix; probabilities are recomputed.
    fn packed_attention_backward(
        qkv: FloatTensor<Self>,
        output: FloatTensor<Self>,
        lse: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        attend: &Attend,
    ) -> FloatTensor<Self> {
        portable::attention_backward::<Self>(qkv, output, lse, grad, attend)
    }

    /// Copies rows of a packed matrix (`[tokens, width]`) into `cache` (`[slots, capacity, width]`). Takes the cache by
    /// value so that a sole owner is written in place.
    fn cache_write(
        cache: FloatTensor<Self>,
        packed: FloatTensor<Self>,
        writes: &[CacheWrite],
    ) -> FloatTensor<Self> {
        portable::cache_write::<Self>(cache, packed, writes)
    }

    /// [`Attend`] of queries (`[tokens, heads * head_dim]`) over a cache into which their keys and values have been written. Row `row`
    /// continues slot `slots[row]`, which had `held[row]` tokens before.
    fn decode_attention(
        q: FloatTensor<Self>,
        keys: FloatTensor<Self>,
        values: FloatTensor<Self>,
        slots: &[usize],
        held: &[usize],
        attend: &Attend,
    ) -> FloatTensor<Self> {
        portable::decode_attention::<Self>(q, keys, values, slots, held, attend)
    }

    /// `a . b` of matrices in true f32; burn's own product uses TF32 on NVIDIA's tensor cores. Either may be a transposed view.
    fn f32_matmul(a: FloatTensor<Self>, b: FloatTensor<Self>) -> FloatTensor<Self> {
        Self::float_matmul(a, b)
    }

    /// `a . b` of matrices, both rounded to bfloat16 (ties to even), products and sums in f32; gradients likewise. Either may be
    /// a transposed view.
    fn bf16_matmul(a: FloatTensor<Self>, b: FloatTensor<Self>) -> FloatTensor<Self> {
        portable::bf16_matmul::<Self>(a, b)
    }

    /// Log-probability of each row's target under `softmax(hidden . head^T * inv_temperature)`, in chunks of rows, so that there is
    /// no `[tokens, vocab]` matrix. `hidden`: `[tokens, hidden]`, `head`: `[vocab, hidden]`.
    fn token_logprob(
        hidden: FloatTensor<Self>,
        head: FloatTensor<Self>,
        targets: &[u32],
        inv_temperature: f32,
        with_unit_gradient: bool,
        precision: MatmulPrecision,
    ) -> LogprobOutput<Self> {
        portable::token_logprob::<Self>(
            hidden,
            head,
            targets,
            inv_temperature,
            with_unit_gradient,
            precision,
        )
    }

    /// Gradients of the log-probabilities with respect to `hidden` and `head`, probabilities recomputed by chunk.
    fn token_logprob_backward(
        hidden: FloatTensor<Self>,
        head: FloatTensor<Self>,
        targets: &[u32],
        inv_temperature: f32,
        grad: FloatTensor<Self>,
        precision: MatmulPrecision,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        let scale = inv_temperature;
        portable::token_logprob_backward::<Self>(hidden, head, targets, scale, grad, precision)
    }

    /// [`ModelBackend::token_logprob`] with a reduced head, `[hidden, vocab]`; logits are those of
    /// [`ModelBackend::reduced_linear`].
    fn reduced_token_logprob(
        hidden: FloatTensor<Self>,
        head: &ReducedMatrix,
        targets: &[u32],
        inv_temperature: f32,
        with_unit_gradient: bool,
    ) -> LogprobOutput<Self> {
        portable::reduced_token_logprob::<Self>(
            hidden,
            head,
            targets,
            inv_temperature,
            with_unit_gradient,
        )
    }

    /// [`ModelBackend::token_logprob`] with a frozen head, `[hidden, vocab]`, and `others` in place of some of its columns, `[replaced,
    /// hidden]`, which may be trained.
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
        portable::replaced_token_logprob::<Self>(
            hidden,
            head,
            others,
            replaced,
            targets,
            scale,
            with_gradients,
        )
    }

    /// `hidden . head^T`. `hidden`: `[tokens, hidden]`, `head`: `[vocab, hidden]`.
    fn head_logits(
        hidden: FloatTensor<Self>,
        head: FloatTensor<Self>,
        precision: MatmulPrecision,
    ) -> FloatTensor<Self> {
        precision.matmul::<Self>(hidden, Self::float_transpose(head))
    }

    /// `x . weight`. `x`: `[tokens, in]`, `weight`: `[in, out]`.
    fn full_linear(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        precision: MatmulPrecision,
    ) -> FloatTensor<Self> {
        precision.matmul::<Self>(x, weight)
    }

    /// `x . weight` with a reduced weight; with 8 bits `x` is rounded likewise. `x`: `[tokens, in]`.
    fn reduced_linear(x: FloatTensor<Self>, weight: &ReducedMatrix) -> FloatTensor<Self> {
        portable::reduced_linear::<Self>(x, weight)
    }

    /// Gradient of [`ModelBackend::reduced_linear`] with respect to `x`, treating the rounding of `x` as the identity:
    /// `grad . weight^T`.
    fn reduced_linear_backward(
        grad: FloatTensor<Self>,
        weight: &ReducedMatrix,
    ) -> FloatTensor<Self> {
        portable::reduced_linear_backward::<Self>(grad, weight)
    }

    /// `x . weight`, plus for each part `scale * (x . a_part) . b_part` in its columns. `x`: `[tokens, in]`, `weight`:
    /// `[in, out]`, `a`: `[in, sum of ranks]`, `b`: the parts' `[rank, width]` matrices, flattened one after another.
    /// Also returns `x . a`, which the backward pass needs. Use [`ModelBackend::lora_linear_of`] where gradients are tracked.
    fn lora_linear(
        x: FloatTensor<Self>,
        weight: &FrozenWeight<Self>,
        a: FloatTensor<Self>,
        b: FloatTensor<Self>,
        parts: &[LowRankPart],
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        let y = weight.product(x.clone());
        portable::add_low_rank::<Self>(y, x, a, b, parts)
    }

    /// [`ModelBackend::lora_linear`] of an input computed from `source`. With gradients, the source is stored instead of the input.
    fn lora_linear_of(
        source: FloatTensor<Self>,
        input: LinearInput<Self>,
        weight: &FrozenWeight<Self>,
        a: FloatTensor<Self>,
        b: FloatTensor<Self>,
        parts: &[LowRankPart],
    ) -> FloatTensor<Self> {
        Self::lora_linear(input.of(source), weight, a, b, parts).0
    }

    /// `x . weight`, plus for each part `scale * t_part . b_part` in its columns: [`ModelBackend::lora_linear`] with `t` in place of
    /// `x . a`. `t`: `[tokens, sum of ranks]`.
    fn low_rank_linear(
        x: FloatTensor<Self>,
        weight: &FrozenWeight<Self>,
        t: FloatTensor<Self>,
        b: FloatTensor<Self>,
        parts: &[LowRankPart],
    ) -> FloatTensor<Self> {
        portable::add_products::<Self>(weight.product(x), t, b, parts)
    }

    /// Gradients of [`ModelBackend::low_rank_linear`] with respect to `t` and `b`.
    fn low_rank_gradients(
        grad: FloatTensor<Self>,
        t: FloatTensor<Self>,
        b: FloatTensor<Self>,
        parts: &[LowRankPart],
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        portable::low_rank_gradients::<Self>(grad, t, b, parts)
    }

    /// [`ModelBackend::lora_linear`] for several models on one base: the rows consist of one equal share per model, and `owners` assigns
    /// each part to a share. Forward only.
    fn lora_linear_shared(
        x: FloatTensor<Self>,
        weight: &FrozenWeight<Self>,
        a: FloatTensor<Self>,
        b: FloatTensor<Self>,
        parts: &[LowRankPart],
        owners: Owners<'_>,
    ) -> FloatTensor<Self> {
        let y = weight.product(x.clone());
        portable::add_shared_low_rank::<Self>(y, x, a, b, parts, owners)
    }

    /// Gradients of [`ModelBackend::lora_linear`] with respect to `x` (if requested), `a` and `b`; the weight is frozen.
    #[allow(clippy::too_many_arguments)]
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
        let dx = with_x.then(|| weight.backward(grad.clone()));
        portable::low_rank_backward::<Self>(dx, x, a, b, xa, grad, parts)
    }

    /// Columns of a reduced matrix in f32, `[columns, inputs]`: rows of an embedding.
    fn reduced_columns(weight: &ReducedMatrix, columns: IntTensor<Self>) -> FloatTensor<Self> {
        portable::reduced_columns::<Self>(weight, columns)
    }

    /// See [`insert_rows`].
    fn insert_rows(
        x: FloatTensor<Self>,
        new: FloatTensor<Self>,
        insertion: &Insertion<Self>,
    ) -> FloatTensor<Self> {
        rows::insert::<Self>(x, new, insertion)
    }

    /// See [`remove_rows`].
    fn remove_rows(x: FloatTensor<Self>, insertion: &Insertion<Self>) -> FloatTensor<Self> {
        rows::remove::<Self>(x, insertion)
    }

    /// The sum of squares over all entries of all `tensors`. Reads the device.
    fn sum_of_squares(tensors: Vec<FloatTensor<Self>>) -> f64 {
        portable::sum_of_squares::<Self>(tensors)
    }

    /// One AdamW update of all `params`, of any shapes; results are in the same order.
    fn adamw(params: Vec<AdamWParam<Self>>, step: AdamWStep) -> Vec<AdamWResult<Self>> {
        let update = |param| adamw::portable::<Self>(param, step);
        params.into_iter().map(update).collect()
    }

    /// As [`ModelBackend::adamw`], with both moments in 8 bits.
    fn adamw_8bit(
        params: Vec<AdamW8bitParam<Self>>,
        step: AdamWStep,
    ) -> Vec<AdamW8bitResult<Self>> {
        let update = |param| adamw_8bit::portable::<Self>(param, step);
        params.into_iter().map(update).collect()
    }
}

#[cfg(feature = "ndarray")]
impl ModelBackend for burn::backend::NdArray {}

/// Rows of logits per chunk: at most 64 MiB, which every device can allocate.
pub(crate) fn logit_chunk_rows(vocab: usize) -> usize {
    (16 * 1024 * 1024 / vocab.max(1)).clamp(1, 256)
}
