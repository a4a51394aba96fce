//! Products of matrices rounded to bfloat16, with f32 sums: burn's kernels, in bfloat16 if the device supports it, otherwise in f32 on
//! the rounded numbers.

use burn::tensor::backend::Backend;
use burn::tensor::{DType, FloatDType};
use burn_cubecl::CubeRuntime;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use super::{empty, entrywise, product};

/// The nearest bfloat16 of each number, ties to even, as an f32.
#[cube(launch)]
fn round_entries(x: &Array<f32>, y: &mut Array<f32>, len: u32) {
    let mut i = ABSOLUTE_POS;
    while i < len as usize {
        let value = x[i];
        let bits = u32::reinterpret(value);
        let nearest = (bits + 0x7FFFu32 + (bits >> 16u32 & 1u32)) >> 16u32 << 16u32;
        let mut rounded = f32::reinterpret(nearest);
        // NaN: the sum above may have overflowed.
        if (bits & 0x7FFF_FFFFu32) > 0x7F80_0000u32 {
            rounded = value;
        }
        y[i] = rounded;
        i += CUBE_COUNT_X as usize * CUBE_DIM_X as usize;
    }
}

/// Rounds entries to bfloat16, stored as f32.
pub(super) fn rounded<R: CubeRuntime>(x: CubeTensor<R>) -> CubeTensor<R> {
    let x = into_contiguous(x);
    let len = x.meta.shape().num_elements();
    let y = empty(&x, x.meta.shape().clone());
    if len > 0 {
        let (count, dim) = entrywise(len);
        round_entries::launch::<R>(
            &x.client.clone(),
            count,
            dim,
            x.into_array_arg(),
            y.clone().into_array_arg(),
            len as u32,
        );
    }
    y
}

/// Whether the device has bfloat16 products.
pub(super) fn is_native<R, B>(x: &CubeTensor<R>) -> bool
where
    R: CubeRuntime,
    B: Backend<FloatTensorPrimitive = CubeTensor<R>>,
{
    B::supports_dtype(&B::float_device(x), DType::BF16)
}

/// `a . b`, both `f32`.
pub(super) fn matmul<R, B>(a: CubeTensor<R>, b: CubeTensor<R>) -> CubeTensor<R>
where
    R: CubeRuntime,
    B: Backend<FloatTensorPrimitive = CubeTensor<R>>,
{
    if is_native::<R, B>(&a) {
        return native::<R, B>(a, B::float_cast(b, FloatDType::BF16));
    }
    // A transposed view is rounded in its own layout, without a copy.
    let [a, b] = [a, b].map(|side| match side.is_contiguous() {
        true => rounded(side),
        false => B::float_transpose(rounded(B::float_transpose(side))),
    });
    // The runtime's default kernel: TF32 represents bfloat16 numbers exactly.
    B::float_matmul(a, b)
}

/// `a . b` with `b` in bfloat16 on a device that [multiplies](is_native) it.
pub(super) fn native<R, B>(a: CubeTensor<R>, b: CubeTensor<R>) -> CubeTensor<R>
where
    R: CubeRuntime,
    B: Backend<FloatTensorPrimitive = CubeTensor<R>>,
{
    let a = B::float_cast(a, FloatDType::BF16);
    product::bf16s(a, b)
}
