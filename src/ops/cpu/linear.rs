//! Linear layers: products with a weight, and with the low-rank matrices of adapters.

use burn::backend::Flex;
use burn_flex::FlexTensor;

use super::buffers::{buffer, give_back};
use super::{contiguous, dims2, matmul, slice, tensor};
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
        Panels::Bf16(_) => {
            let (matrix, sizes) = (Matrix::Reduced(weight), [inputs, outputs]);
            let factor = Factor::new(matrix, Right::Plain, sizes, weight.matmul());
            kernels::gemm(y, x, &factor);
        }
    }
}

/// [`product`] with a frozen weight; in fewer bits only its numbers are.
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

/// `x . weight` and the low-rank products, `xa` being the inputs after their first halves.
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
    // Zeros where a part is another model's: the product then takes all models' parts at once.
    let mut xa = contiguous(matmul(x.clone(), a));
    let [rows, ranks] = dims2(&xa);
    let numbers = xa.storage_mut::<f32>();
    owners.for_each_foreign(rows, parts, |rows, columns| {
        for row in numbers[rows.start * ranks..rows.end * ranks].chunks_exact_mut(ranks) {
            row[columns.clone()].fill(0.0);
        }
    });
    with_adapters(x, weight, &xa, b, parts)
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
    let [tokens, _] = dims2(&grad);
    let ranks = dims2(&xa)[1];
    let b = contiguous(b);
    let mut dxa = vec![0f32; tokens * ranks];
    let mut db = Vec::with_capacity(slice(&b).len());
    let (mut first, mut offset) = (0, 0);
    for part in parts {
        let len = part.rank * part.width;
        let g = grad.narrow(1, part.column, part.width);
        let matrix = tensor(
            slice(&b)[offset..offset + len].to_vec(),
            [part.rank, part.width],
        );
        let block = contiguous(matmul(g.clone(), matrix.transpose(0, 1)));
        for (row, values) in dxa
            .chunks_exact_mut(ranks)
            .zip(slice(&block).chunks_exact(part.rank))
        {
            for (out, value) in row[first..first + part.rank].iter_mut().zip(values) {
                *out = value * part.scale;
            }
        }
        let block = contiguous(matmul(xa.narrow(1, first, part.rank).transpose(0, 1), g));
        db.extend(slice(&block).iter().map(|value| value * part.scale));
        first += part.rank;
        offset += len;
    }
    let dxa = tensor(dxa, [tokens, ranks]);
    let da = matmul(x.transpose(0, 1), dxa.clone());
    give_back([x]);
    let dx = with_x.then(|| {
        let a = contiguous(a.transpose(0, 1));
        let whole = [LowRankPart {
            rank: ranks,
            scale: 1.0,
            column: 0,
            width: dims2(&a)[1],
        }];
        let low = LowRank {
            t: slice(&dxa),
            ranks,
            b: slice(&a),
            parts: &whole,
        };
        with_low_rank(grad, weight, Right::Transposed, low)
    });
    let len = db.len();
    (dx, da, tensor(db, [len]))
}
