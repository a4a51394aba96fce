//! Linear layers: products with a weight, and with the low-rank matrices of adapters.

use burn::backend::Flex;
use burn_flex::FlexTensor;
use rayon::prelude::*;

use super::buffers::{buffer, give_back};
use super::{contiguous, dims2, slice, tensor};
use crate::ops::kernels::{self, Factor, LowRank, Matrix, Right};
use crate::ops::reduced::Panels;
use crate::ops::{
    FrozenWeight, LowRankPart, MatmulPrecision, ModelBackend, Owners, Precision, ReducedMatrix,
};

/// `x . weight`, or `x . weight^T`, plus a low-rank product.
pub(super) fn product(
    x: FlexTensor,
    weight: (Matrix<'_>, MatmulPrecision),
    [inputs, outputs]: [usize; 2],
    right: Right,
    low_rank: Option<LowRank<'_>>,
) -> FlexTensor {
    let x = contiguous(x);
    let [rows, depth] = dims2(&x);
    let columns = match right {
        Right::Plain => outputs,
        Right::Transposed => inputs,
    };
    let mut y = buffer(rows * columns);
    let factor = Factor {
        low_rank,
        ..Factor::new(weight.0, right, [depth, columns], weight.1)
    };
    kernels::gemm(&mut y, slice(&x), &factor);
    give_back([x]);
    tensor(y, [rows, columns])
}

/// `x . weight`.
pub(super) fn write_reduced_product(y: &mut [f32], x: &[f32], weight: &ReducedMatrix) {
    let (inputs, outputs) = (weight.inputs(), weight.outputs());
    match weight.panels() {
        Panels::Int8(panels) => kernels::int8_product(y, x, panels, inputs, outputs),
        Panels::Bf16(_) | Panels::Blocks(_) => {
            let (matrix, sizes) = (Matrix::Reduced(weight), [inputs, outputs]);
            let factor = Factor::new(matrix, Right::Plain, sizes, weight.matmul());
            kernels::gemm(y, x, &factor);
        }
    }
}

/// [`product`] with a frozen weight, full or reduced; low-rank products stay in f32.
fn with_low_rank(
    x: FlexTensor,
    weight: &FrozenWeight<Flex>,
    right: Right,
    low: LowRank<'_>,
) -> FlexTensor {
    match weight {
        FrozenWeight::Full(weight, precision) => {
            let weight = contiguous(weight.clone());
            let matrix = (Matrix::Full(slice(&weight)), *precision);
            product(x, matrix, dims2(&weight), right, Some(low))
        }
        FrozenWeight::Reduced(weight) => {
            let shape = [weight.inputs(), weight.outputs()];
            let matrix = (Matrix::Reduced(weight), weight.matmul());
            product(x, matrix, shape, right, Some(low))
        }
    }
}

/// The inputs times the adapters' down projections `a`.
pub(super) fn ranks_of(x: &FlexTensor, a: FlexTensor) -> FlexTensor {
    let (x, a) = (contiguous(x.clone()), contiguous(a));
    let ([rows, inputs], [_, ranks]) = (dims2(&x), dims2(&a));
    let mut xa = vec![0f32; rows * ranks];
    let factor = Factor::of_numbers(slice(&a), Right::Plain, [inputs, ranks]);
    kernels::gemm(&mut xa, slice(&x), &factor);
    tensor(xa, [rows, ranks])
}

/// `x . weight` plus the low-rank products, given `xa = x . a`.
pub(super) fn with_adapters(
    x: FlexTensor,
    weight: &FrozenWeight<Flex>,
    xa: &FlexTensor,
    b: FlexTensor,
    parts: &[LowRankPart],
) -> FlexTensor {
    let b = contiguous(b);
    let low = LowRank {
        t: slice(xa),
        ranks: dims2(xa)[1],
        b: slice(&b),
        parts,
    };
    match weight {
        FrozenWeight::Reduced(weight) if weight.precision() == Precision::Int8 => {
            let mut y = Flex::reduced_linear(x, weight);
            let LowRank { t, ranks, b, parts } = low;
            kernels::add_low_rank(y.storage_mut(), weight.outputs(), t, ranks, b, parts);
            y
        }
        weight => with_low_rank(x, weight, Right::Plain, low),
    }
}

/// `ModelBackend::lora_linear_shared`.
pub(super) fn lora_linear_shared(
    x: FlexTensor,
    weight: &FrozenWeight<Flex>,
    a: FlexTensor,
    b: FlexTensor,
    parts: &[LowRankPart],
    owners: Owners<'_>,
) -> FlexTensor {
    // Entries of other models' parts are zero, so that one product covers the parts of all models.
    let mut xa = ranks_of(&x, a);
    let [rows, ranks] = dims2(&xa);
    let numbers = xa.storage_mut::<f32>();
    owners.for_each_foreign(rows, parts, |rows, columns| {
        for row in numbers[rows.start * ranks..rows.end * ranks].chunks_exact_mut(ranks) {
            row[columns.clone()].fill(0.0);
        }
    });
    with_adapters(x, weight, &xa, b, parts)
}

/// `ModelBackend::low_rank_gradients`.
pub(super) fn low_rank_gradients(
    grad: FlexTensor,
    t: FlexTensor,
    b: FlexTensor,
    parts: &[LowRankPart],
) -> (FlexTensor, FlexTensor) {
    let (grad, t, b) = (contiguous(grad), contiguous(t), contiguous(b));
    let [dt, db] = gradients_of_parts(&grad, &t, &b, parts);
    let len = db.len();
    (tensor(dt, dims2(&t)), tensor(db, [len]))
}

/// The gradients of `t` and `b` in `scale * t_part . b_part`, of tensors that are contiguous.
fn gradients_of_parts(
    grad: &FlexTensor,
    t: &FlexTensor,
    b: &FlexTensor,
    parts: &[LowRankPart],
) -> [Vec<f32>; 2] {
    let ([tokens, outputs], [_, ranks]) = (dims2(grad), dims2(t));
    let (mut first, mut rest) = (0, slice(b));
    let parts: Vec<_> = (parts.iter())
        .map(|part| {
            let (b, after) = rest.split_at(part.rank * part.width);
            let place = first..first + part.rank;
            (first, rest) = (place.end, after);
            (part, place, b)
        })
        .collect();
    let scaled = |mut values: Vec<f32>, scale: f32| {
        values.iter_mut().for_each(|value| *value *= scale);
        values
    };
    // For each part the gradients of its columns of `t` and of its `b`.
    let gradients: Vec<[Vec<f32>; 2]> = (parts.par_iter())
        .map(|(part, place, b)| {
            let &&LowRankPart { rank, width, .. } = part;
            let g = &slice(grad)[part.column..];
            let mut dt = vec![0f32; tokens * rank];
            let factor = Factor {
                left_stride: outputs,
                ..Factor::of_numbers(b, Right::Transposed, [width, rank])
            };
            kernels::gemm(&mut dt, g, &factor);
            let mut db = vec![0f32; rank * width];
            let t = &slice(t)[place.start..];
            let factor = Factor {
                left_stride: ranks,
                left_transposed: true,
                right_stride: outputs,
                ..Factor::of_numbers(g, Right::Plain, [tokens, width])
            };
            kernels::gemm(&mut db, t, &factor);
            [scaled(dt, part.scale), scaled(db, part.scale)]
        })
        .collect();
    let mut dt = vec![0f32; tokens * ranks];
    for ((part, place, _), [block, _]) in parts.iter().zip(&gradients) {
        let rows = dt.chunks_exact_mut(ranks);
        for (row, values) in rows.zip(block.chunks_exact(part.rank)) {
            row[place.clone()].copy_from_slice(values);
        }
    }
    let db = gradients.into_iter().flat_map(|[_, db]| db).collect();
    [dt, db]
}

/// `ModelBackend::lora_linear_backward`.
#[allow(clippy::too_many_arguments)]
pub(super) fn lora_linear_backward(
    x: FlexTensor,
    weight: &FrozenWeight<Flex>,
    a: FlexTensor,
    b: FlexTensor,
    xa: FlexTensor,
    grad: FlexTensor,
    parts: &[LowRankPart],
    with_x: bool,
) -> (Option<FlexTensor>, FlexTensor, FlexTensor) {
    let (x, grad, xa, b) = (
        contiguous(x),
        contiguous(grad),
        contiguous(xa),
        contiguous(b),
    );
    let ([tokens, inputs], [_, ranks]) = (dims2(&x), dims2(&xa));
    let [dxa, db] = gradients_of_parts(&grad, &xa, &b, parts);
    // Few rows by many columns. The result is computed transposed, as it is smaller than the inputs.
    let mut da = vec![0f32; ranks * inputs];
    let factor = Factor {
        left_stride: ranks,
        left_transposed: true,
        ..Factor::of_numbers(slice(&x), Right::Plain, [tokens, inputs])
    };
    kernels::gemm(&mut da, &dxa, &factor);
    let da = tensor(kernels::transposed(&da, inputs), [inputs, ranks]);
    give_back([x]);
    let dx = with_x.then(|| {
        let a = kernels::transposed(slice(&contiguous(a)), ranks);
        let whole = [LowRankPart {
            rank: ranks,
            scale: 1.0,
            column: 0,
            width: inputs,
        }];
        let low = LowRank {
            t: &dxa,
            ranks,
            b: &a,
            parts: &whole,
        };
        with_low_rank(grad, weight, Right::Transposed, low)
    });
    let len = db.len();
    (dx, da, tensor(db, [len]))
}
