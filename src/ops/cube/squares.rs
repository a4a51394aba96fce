//! The sum of squares of many tensors, with one read.

use burn::tensor::Tensor;
use burn_cubecl::CubeRuntime;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use super::reduce::cube_sum;
use super::{UNITS, empty};
use crate::host;
use crate::ops::ModelBackend;
use crate::ops::tensor::wrap;

/// Cubes for one tensor at most; each adds up its share of the entries.
const MOST: usize = 64;

/// Entries for which a unit is worth its launch.
const SHARE: usize = 16;

#[cube(launch)]
fn partial_sums(x: &Array<f32>, sums: &mut Array<f32>, first: u32, len: u32) {
    let mut shared = SharedMemory::<f32>::new(UNITS);
    let mut sum = 0.0f32;
    let mut i = ABSOLUTE_POS;
    while i < len as usize {
        let v = x[i];
        sum += v * v;
        i += CUBE_COUNT_X as usize * UNITS;
    }
    let sum = cube_sum(sum, &mut shared);
    if UNIT_POS_X == 0 {
        sums[first as usize + CUBE_POS_X as usize] = sum;
    }
}

pub(super) fn sum_of_squares<R, B>(tensors: Vec<CubeTensor<R>>) -> f64
where
    R: CubeRuntime,
    B: ModelBackend<FloatTensorPrimitive = CubeTensor<R>>,
{
    let Some(like) = tensors.first().cloned() else {
        return 0.0;
    };
    let len = |tensor: &CubeTensor<R>| tensor.meta.shape().num_elements();
    let cubes = |len: usize| len.div_ceil(UNITS * SHARE).min(MOST);
    let total: usize = tensors.iter().map(|tensor| cubes(len(tensor))).sum();
    let sums = empty(&like, [total]);
    let mut first = 0;
    for tensor in tensors {
        let len = len(&tensor);
        if len == 0 {
            continue;
        }
        partial_sums::launch::<R>(
            &like.client,
            CubeCount::Static(cubes(len) as u32, 1, 1),
            CubeDim::new_1d(UNITS as u32),
            into_contiguous(tensor).into_array_arg(),
            sums.clone().into_array_arg(),
            first as u32,
            len as u32,
        );
        first += cubes(len);
    }
    let sums: Tensor<B, 1> = wrap(sums);
    host::read(sums).into_iter().map(f64::from).sum()
}
