//! CPU kernels on plain f32 slices: rayon over rows, SIMD by run-time dispatch, no unsafe code.

mod adamw;
mod adamw_8bit;
mod attention;
mod dots;
mod gated_unit;
mod gelu;
mod gemm;
mod int8;
mod layer_norm;
mod low_rank;
mod residual;

use std::sync::LazyLock;

use rayon::prelude::*;

pub(super) use adamw::{AdamWPart, adamw, sum_of_squares};
pub(super) use adamw_8bit::{AdamW8bitPart, ByteMomentPart, adamw_8bit};
pub(super) use attention::{
    Visible, add_alibi, decode_head, masked_exp, masked_softmax, multiply, row_dots, score_stride,
    soft_cap, soft_cap_slopes, softmax_backward,
};
pub(super) use dots::dots;
pub(super) use gated_unit::{gated_unit, gated_unit_backward};
pub(super) use gelu::{gelu, gelu_backward};
pub(super) use gemm::{Factor, Left, LowRank, Matrix, PackedRight, Right, gemm, transposed};
pub(super) use int8::int8_product;
pub(super) use layer_norm::{layer_norm, layer_norm_backward};
pub(super) use low_rank::add_low_rank;
pub(super) use residual::add;

static ARCH: LazyLock<pulp::Arch> = LazyLock::new(pulp::Arch::new);

/// Declares a function whose body is compiled for the best instruction set of the running CPU.
///
/// A closure passed to `Arch::dispatch` is not reliably inlined, and is then compiled for the baseline with `mul_add` as
/// a library call; a body inside an `#[inline(always)]` method is.
macro_rules! simd_fn {
    ($(#[$doc:meta])* fn $name:ident($($arg:ident: $ty:ty),* $(,)?) -> $ret:ty $body:block) => {
        $(#[$doc])*
        #[allow(clippy::too_many_arguments)]
        pub(in crate::ops) fn $name<'a>($($arg: $ty),*) -> $ret {
            struct Kernel<'a> { $($arg: $ty,)* lifetime: std::marker::PhantomData<&'a ()> }
            impl<'a> pulp::WithSimd for Kernel<'a> {
                type Output = $ret;
                #[inline(always)]
                fn with_simd<S: pulp::Simd>(self, _: S) -> $ret {
                    let Kernel { $($arg,)* lifetime: _ } = self;
                    $body
                }
            }
            $crate::ops::kernels::ARCH.dispatch(Kernel { $($arg,)* lifetime: std::marker::PhantomData })
        }
    };
}
use simd_fn;

/// Independent partial sums: enough for one AVX-512 vector, and a fixed order of addition on every CPU.
const LANES: usize = 16;

#[inline(always)]
fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut acc = [0f32; LANES];
    let n = a.len().min(b.len());
    let (a, b) = (&a[..n], &b[..n]);
    for (x, y) in a.chunks_exact(LANES).zip(b.chunks_exact(LANES)) {
        for i in 0..LANES {
            acc[i] = x[i].mul_add(y[i], acc[i]);
        }
    }
    let mut sum: f32 = acc.iter().sum();
    for i in n / LANES * LANES..n {
        sum += a[i] * b[i];
    }
    sum
}

#[inline(always)]
fn sum(a: &[f32]) -> f32 {
    let mut acc = [0f32; LANES];
    for x in a.chunks_exact(LANES) {
        for i in 0..LANES {
            acc[i] += x[i];
        }
    }
    acc.iter().sum::<f32>() + a.chunks_exact(LANES).remainder().iter().sum::<f32>()
}

#[inline(always)]
fn max(a: &[f32]) -> f32 {
    let mut acc = [f32::NEG_INFINITY; LANES];
    for x in a.chunks_exact(LANES) {
        for i in 0..LANES {
            acc[i] = if x[i] > acc[i] { x[i] } else { acc[i] };
        }
    }
    let mut best = f32::NEG_INFINITY;
    for x in acc.iter().chain(a.chunks_exact(LANES).remainder()) {
        best = if *x > best { *x } else { best };
    }
    best
}

/// exp to about 1 ulp, branch-free so that it vectorises. Not-a-number stays not-a-number: a poisoned loss must show.
#[inline(always)]
fn exp(x: f32) -> f32 {
    let clamped = if x < -87.0 { -87.0 } else { x };
    let clamped = if clamped > 88.0 { 88.0 } else { clamped };
    // Adding 1.5 * 2^23 rounds to an integer in the low mantissa bits.
    let shifted = clamped * std::f32::consts::LOG2_E + 12_582_912.0;
    let n = shifted - 12_582_912.0;
    // ln 2 in two parts, so that the reduction is exact.
    let r = clamped - n * 0.693_145_75 - n * 1.428_606_8e-6;
    let mut p = 1.0 / 720.0;
    for c in [1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
        p = p * r + c;
    }
    let exponent = shifted
        .to_bits()
        .wrapping_sub(0x4B40_0000)
        .wrapping_add(127)
        << 23;
    p * f32::from_bits(exponent)
}

/// The first `len` entries of a reused buffer, which grows as needed; their content is arbitrary.
pub(super) fn room<T: Clone + Default>(kept: &mut Vec<T>, len: usize) -> &mut [T] {
    if kept.len() < len {
        kept.resize(len, T::default());
    }
    &mut kept[..len]
}

/// Rows handed to one task: four tasks a thread balance uneven cores.
fn rows_per_task(rows: usize) -> usize {
    rows.div_ceil(rayon::current_num_threads() * 4).max(1)
}

/// `y` (`[rows, columns]`) of its columns in panels: `[panels][rows][width]`.
fn gather_panels(panels: &[f32], width: usize, columns: usize, y: &mut [f32]) {
    let rows = y.len() / columns;
    let gather = |(row, y): (usize, &mut [f32])| {
        for (panel, y) in y.chunks_mut(width).enumerate() {
            let from = (panel * rows + row) * width;
            y.copy_from_slice(&panels[from..from + y.len()]);
        }
    };
    if y.len() < SMALL {
        return y.chunks_exact_mut(columns).enumerate().for_each(gather);
    }
    y.par_chunks_exact_mut(columns).enumerate().for_each(gather);
}

/// Below this many floats a kernel runs on the calling thread: waking workers would cost more.
const SMALL: usize = 1 << 14;

/// Runs `body` over chunks of whole rows, in parallel when it pays.
fn for_rows<const N: usize>(
    out: &mut [f32],
    width: usize,
    inputs: [(&[f32], usize); N],
    body: impl Fn(&mut [f32], [&[f32]; N]) + Sync,
) {
    if width == 0 || out.is_empty() {
        return;
    }
    if out.len() < SMALL {
        return body(out, inputs.map(|(x, _)| x));
    }
    let rows = rows_per_task(out.len() / width);
    out.par_chunks_mut(rows * width)
        .enumerate()
        .for_each(|(task, out)| {
            let (first, count) = (task * rows, out.len() / width);
            body(out, inputs.map(|(x, w)| &x[first * w..(first + count) * w]));
        });
}

pub(super) fn rms_norm(x: &[f32], weight: &[f32], eps: f32, y: &mut [f32]) {
    let d = weight.len();
    for_rows(y, d, [(x, d)], |y, [x]| rms_norm_rows(x, weight, eps, y));
}

simd_fn! {
    fn rms_norm_rows(x: &'a [f32], weight: &'a [f32], eps: f32, y: &'a mut [f32]) -> () {
        let d = weight.len();
        for (y, x) in y.chunks_exact_mut(d).zip(x.chunks_exact(d)) {
            let r = 1.0 / (dot(x, x) / d as f32 + eps).sqrt();
            for i in 0..d {
                y[i] = x[i] * r * weight[i];
            }
        }
    }
}

/// `dx` in place; the weight's gradient if requested.
pub(super) fn rms_norm_backward(
    x: &[f32],
    weight: &[f32],
    grad: &[f32],
    eps: f32,
    dx: &mut [f32],
    with_weight: bool,
) -> Option<Vec<f32>> {
    let d = weight.len();
    let rows = rows_per_task(dx.len() / d) * d;
    let parts: Vec<Vec<f32>> = dx
        .par_chunks_mut(rows)
        .zip(x.par_chunks(rows))
        .zip(grad.par_chunks(rows))
        .map(|((dx, x), grad)| rms_norm_backward_rows(x, weight, grad, eps, dx, with_weight))
        .collect();
    // Summed in task order: the result does not depend on which task ended first.
    with_weight.then(|| {
        let mut total = vec![0f32; d];
        for part in parts {
            for (t, p) in total.iter_mut().zip(part) {
                *t += p;
            }
        }
        total
    })
}

simd_fn! {
    fn rms_norm_backward_rows(
        x: &'a [f32], weight: &'a [f32], grad: &'a [f32], eps: f32, dx: &'a mut [f32], with_weight: bool,
    ) -> Vec<f32> {
        let d = weight.len();
        let mut dweight = vec![0f32; if with_weight { d } else { 0 }];
        for ((dx, x), g) in dx.chunks_exact_mut(d).zip(x.chunks_exact(d)).zip(grad.chunks_exact(d)) {
            let r = 1.0 / (dot(x, x) / d as f32 + eps).sqrt();
            for i in 0..d {
                dx[i] = g[i] * weight[i];
            }
            let c = dot(dx, x) * r * r / d as f32;
            for i in 0..d {
                dx[i] = r * (dx[i] - x[i] * c);
            }
            for i in 0..dweight.len() {
                dweight[i] += g[i] * x[i] * r;
            }
        }
        dweight
    }
}

/// In place on the first `num_heads` heads of each row.
pub(super) fn rope(
    x: &mut [f32],
    width: usize,
    num_heads: usize,
    half: usize,
    cos: &[f32],
    sin: &[f32],
    sign: f32,
) {
    for_rows(x, width, [(cos, half), (sin, half)], |x, [cos, sin]| {
        rope_rows(x, width, num_heads, half, cos, sin, sign);
    });
}

simd_fn! {
    fn rope_rows(
        x: &'a mut [f32], width: usize, num_heads: usize, half: usize, cos: &'a [f32], sin: &'a [f32], sign: f32,
    ) -> () {
        for ((row, c), s) in x.chunks_exact_mut(width).zip(cos.chunks_exact(half)).zip(sin.chunks_exact(half)) {
            for head in row.chunks_exact_mut(2 * half).take(num_heads) {
                let (a, b) = head.split_at_mut(half);
                for i in 0..half {
                    let (p, q, s) = (a[i], b[i], s[i] * sign);
                    a[i] = p * c[i] - q * s;
                    b[i] = q * c[i] + p * s;
                }
            }
        }
    }
}

/// Rows of logits to (log-probability of the target, entropy); leaves probabilities in place when `keep` is set.
pub(super) fn logprob_rows(
    logits: &mut [f32],
    vocab: usize,
    targets: &[u32],
    scale: f32,
    keep: bool,
) -> Vec<(f32, f32)> {
    logits
        .par_chunks_mut(vocab)
        .zip(targets)
        .map(|(row, &target)| logprob_row(row, target as usize, scale, keep))
        .collect()
}

simd_fn! {
    fn logprob_row(row: &'a mut [f32], target: usize, scale: f32, keep: bool) -> (f32, f32) {
        let top = max(row) * scale;
        let chosen = row[target] * scale;
        // sum of exp(l - top), and of exp(l - top) * (l - top) for the entropy
        let (mut z, mut zl) = ([0f32; LANES], [0f32; LANES]);
        let vocab = row.len();
        for chunk in row.chunks_exact_mut(LANES) {
            for i in 0..LANES {
                let l = chunk[i] * scale - top;
                let e = exp(l);
                z[i] += e;
                zl[i] += e * l;
                if keep {
                    chunk[i] = e;
                }
            }
        }
        let (mut z, mut zl) = (z.iter().sum::<f32>(), zl.iter().sum::<f32>());
        for x in row[vocab / LANES * LANES..].iter_mut() {
            let l = *x * scale - top;
            let e = exp(l);
            z += e;
            zl += e * l;
            if keep {
                *x = e;
            }
        }
        if keep {
            let inv = 1.0 / z;
            for x in row.iter_mut() {
                *x *= inv;
            }
        }
        (chosen - top - z.ln(), z.ln() - zl / z)
    }
}
