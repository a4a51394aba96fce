//! Products with reduced weights. Packed weights are uploaded at their first use; a product of many rows unpacks the weight
//! temporarily, one of few rows reads it packed.

use burn_cubecl::CubeRuntime;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use super::packed::Packed;
use super::words::WORDS;
use super::{bf16, dims2, empty, entrywise};
use crate::ops::reduced::{GROUP, LARGEST};
use crate::ops::{MatmulPrecision, ModelBackend, Precision, ReducedMatrix};

/// Rounds each group of a row to 8 bits, one unit per group.
#[cube(launch)]
fn round_groups(x: &Array<f32>, y: &mut Array<f32>, inputs: u32, groups: u32, len: u32) {
    let (inputs, groups) = (inputs as usize, groups as usize);
    let mut i = ABSOLUTE_POS;
    while i < len as usize {
        let row = i / groups * inputs;
        let first = row + i % groups * GROUP;
        let mut end = first + GROUP;
        if end > row + inputs {
            end = row + inputs;
        }
        let mut largest = 0.0f32;
        let mut at = first;
        while at < end {
            let size = f32::abs(x[at]);
            if size > largest {
                largest = size;
            }
            at += 1;
        }
        let mut inverse = 0.0f32;
        if largest > 0.0f32 {
            inverse = LARGEST / largest;
        }
        let step = largest / LARGEST;
        let mut at = first;
        while at < end {
            y[at] = f32::round(x[at] * inverse) * step;
            at += 1;
        }
        i += CUBE_COUNT_X as usize * CUBE_DIM_X as usize;
    }
}

/// Most rows for which reading the packed weight dominates the cost of a product.
pub(super) const FEW_ROWS: usize = 16;

fn rounded<R: CubeRuntime>(x: CubeTensor<R>) -> CubeTensor<R> {
    let [rows, inputs] = dims2(&x);
    let groups = inputs.div_ceil(GROUP);
    let y = empty(&x, [rows, inputs]);
    if rows * groups > 0 {
        let (count, dim) = entrywise(rows * groups);
        round_groups::launch::<R>(
            &x.client.clone(),
            count,
            dim,
            x.into_array_arg(),
            y.clone().into_array_arg(),
            inputs as u32,
            groups as u32,
            (rows * groups) as u32,
        );
    }
    y
}

/// `x . weight`.
pub(super) fn linear<R, B>(x: CubeTensor<R>, weight: &ReducedMatrix) -> CubeTensor<R>
where
    R: CubeRuntime,
    B: ModelBackend<FloatTensorPrimitive = CubeTensor<R>>,
{
    let [rows, inputs] = dims2(&x);
    let many = rows > FEW_ROWS || rows * inputs * weight.outputs() == 0;
    let x = match (weight.precision(), weight.matmul()) {
        (Precision::Int8, _) => rounded(into_contiguous(x)),
        (_, MatmulPrecision::F32) => into_contiguous(x),
        // A weight in bfloat16 is rounded already.
        (Precision::Bf16, MatmulPrecision::Bf16) if !many => bf16::rounded(x),
        (_, MatmulPrecision::Bf16) => return bf16_product::<R, B>(x, weight, false),
    };
    let packed = Packed::of(weight, &x);
    match many {
        true => B::f32_matmul(x, packed.unpacked()),
        false => packed.few_rows::<B>(x),
    }
}

/// A product of few rows with a row-major f32 matrix, which is read once like a packed one.
pub(super) fn few_rows_of_f32<R, B>(
    x: &CubeTensor<R>,
    weight: &CubeTensor<R>,
) -> Option<CubeTensor<R>>
where
    R: CubeRuntime,
    B: ModelBackend<FloatTensorPrimitive = CubeTensor<R>>,
{
    let [rows, _] = dims2(x);
    let [inputs, outputs] = dims2(weight);
    let few = rows <= FEW_ROWS && rows * inputs * outputs > 0;
    (few && outputs >= WORDS && weight.is_contiguous())
        .then(|| Packed::of_f32(weight).few_rows::<B>(into_contiguous(x.clone())))
}

/// Some columns, `[columns, inputs]`.
pub(super) fn columns<R: CubeRuntime>(
    weight: &ReducedMatrix,
    columns: CubeTensor<R>,
) -> CubeTensor<R> {
    let columns = into_contiguous(columns);
    Packed::of(weight, &columns).columns(columns)
}

/// `grad . weight^T`.
pub(super) fn linear_backward<R, B>(grad: CubeTensor<R>, weight: &ReducedMatrix) -> CubeTensor<R>
where
    R: CubeRuntime,
    B: ModelBackend<FloatTensorPrimitive = CubeTensor<R>>,
{
    if weight.matmul() == MatmulPrecision::Bf16 {
        return bf16_product::<R, B>(grad, weight, true);
    }
    let weight = Packed::of(weight, &grad).unpacked();
    B::f32_matmul(grad, B::float_transpose(weight))
}

/// `x . weight` or `x . weight^T`, both rounded to bfloat16; packed bfloat16 words are used directly.
fn bf16_product<R, B>(x: CubeTensor<R>, weight: &ReducedMatrix, transposed: bool) -> CubeTensor<R>
where
    R: CubeRuntime,
    B: ModelBackend<FloatTensorPrimitive = CubeTensor<R>>,
{
    let oriented = |weight| match transposed {
        true => B::float_transpose(weight),
        false => weight,
    };
    let packed = Packed::of(weight, &x);
    let words = match bf16::is_native::<R, B>(&x) {
        true => packed.as_bf16(weight),
        false => None,
    };
    match words {
        Some(words) => bf16::native::<R, B>(x, oriented(words)),
        None => bf16::matmul::<R, B>(x, oriented(packed.unpacked())),
    }
}
