//! The sum of squares of many tensors, with one read; each launch covers as many tensors as a kernel can have buffers.

use burn::tensor::{Shape, Tensor};
use burn_cubecl::CubeRuntime;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use super::reduce::cube_sum;
use super::{UNITS, empty, tables};
use crate::host;
use crate::ops::ModelBackend;
use crate::ops::tensor::wrap;

/// Most cubes per tensor; each sums its share of the entries.
const MOST: usize = 64;

/// Entries per unit.
const SHARE: usize = 16;

/// Most tensors per launch: the kernel's code is unrolled over them.
const GROUP: usize = 32;

/// Other buffers of the kernel: a table, sums, and the runtime's own for scalars and lengths.
const OTHERS: usize = 4;

/// Number of tensors per launch, with `buffers` buffers each.
pub(super) fn group_len<R: CubeRuntime>(like: &CubeTensor<R>, buffers: usize) -> usize {
    let most = like.client.properties().hardware.max_bindings as usize;
    (most.saturating_sub(OTHERS) / buffers).clamp(1, GROUP)
}

/// Launch size with one plane of cubes per tensor: as many as the longest needs, at most `most`.
pub(super) fn by_tensor(
    lens: impl ExactSizeIterator<Item = usize>,
    share: usize,
    most: usize,
) -> (CubeCount, CubeDim) {
    let tensors = lens.len();
    let cubes = lens.map(|len| len.div_ceil(UNITS * share)).max();
    let cubes = cubes.unwrap_or(0).clamp(1, most);
    (
        CubeCount::Static(cubes as u32, tensors as u32, 1),
        CubeDim::new_1d(UNITS as u32),
    )
}

/// Writes the partial sums of the group's tensors from `first` on, those of one tensor contiguous.
#[cube(launch)]
fn partial_sums(
    tensors: &Sequence<Array<f32>>,
    lens: &Array<u32>,
    sums: &mut Array<f32>,
    first: u32,
    #[comptime] count: usize,
) {
    let mut shared = SharedMemory::<f32>::new(UNITS);
    let mut sum = 0.0f32;
    #[unroll]
    for which in 0..count {
        if CUBE_POS_Y as usize == which {
            let x = tensors.index(which);
            let len = lens[which] as usize;
            let mut i = ABSOLUTE_POS_X as usize;
            while i < len {
                let v = x[i];
                sum += v * v;
                i += CUBE_COUNT_X as usize * UNITS;
            }
        }
    }
    let sum = cube_sum(sum, &mut shared);
    if UNIT_POS_X == 0 {
        let place = CUBE_POS_Y as usize * CUBE_COUNT_X as usize + CUBE_POS_X as usize;
        sums[first as usize + place] = sum;
    }
}

pub(super) fn sum_of_squares<R, B>(tensors: Vec<CubeTensor<R>>) -> f64
where
    R: CubeRuntime,
    B: ModelBackend<FloatTensorPrimitive = CubeTensor<R>>,
{
    let len = |tensor: &CubeTensor<R>| tensor.meta.shape().num_elements();
    let tensors: Vec<CubeTensor<R>> = (tensors.into_iter())
        .filter(|tensor| len(tensor) > 0)
        .map(into_contiguous)
        .collect();
    let Some(like) = tensors.first().cloned() else {
        return 0.0;
    };
    let groups: Vec<_> = (tensors.chunks(group_len(&like, 1)))
        .map(|group| (group, by_tensor(group.iter().map(len), SHARE, MOST)))
        .collect();
    let places = |count: &CubeCount| match count {
        CubeCount::Static(x, y, _) => (x * y) as usize,
        CubeCount::Dynamic(_) => unreachable!("known on the host"),
    };
    let total: usize = groups.iter().map(|(_, (count, _))| places(count)).sum();
    let sums = empty(&like, Shape::from([total]));
    let mut first = 0;
    for (group, (count, dim)) in groups {
        let len_table = group.iter().map(|tensor| len(tensor) as u32).collect();
        let next = first + places(&count);
        partial_sums::launch::<R>(
            &like.client,
            count,
            dim,
            (group.iter())
                .map(|tensor| tensor.clone().into_array_arg())
                .collect(),
            tables::table(&like, len_table).into_array_arg(),
            sums.clone().into_array_arg(),
            first as u32,
            group.len(),
        );
        first = next;
    }
    let sums: Tensor<B, 1> = wrap(sums);
    host::read(sums).into_iter().map(f64::from).sum()
}
