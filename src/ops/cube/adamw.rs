//! The AdamW update of many parameters, in place and in one launch for as many as a kernel may have buffers.

use burn_cubecl::CubeRuntime;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use super::squares::{by_tensor, group_len};
use super::{UNITS, tables, writable};
use crate::ops::AdamWStep;

/// Buffers of one parameter: value, gradient and both moments.
const BUFFERS: usize = 4;

/// Most cubes per parameter.
const MOST: usize = 1024;

/// Entries per unit.
const SHARE: usize = 4;

/// `sizes`: each parameter's number of entries, and whether it decays. One plane of cubes per parameter.
#[cube(launch)]
fn step(
    params: &mut Sequence<Array<f32>>,
    grads: &Sequence<Array<f32>>,
    firsts: &mut Sequence<Array<f32>>,
    seconds: &mut Sequence<Array<f32>>,
    sizes: &Array<u32>,
    grad_scale: f32,
    keep1: f32,
    share1: f32,
    keep2: f32,
    share2: f32,
    correction1: f32,
    correction2: f32,
    eps: f32,
    lr: f32,
    keep: f32,
    #[comptime] count: usize,
) {
    #[unroll]
    for which in 0..count {
        if CUBE_POS_Y as usize == which {
            let len = sizes[2 * which] as usize;
            let mut kept = 1.0f32;
            if sizes[2 * which + 1] == 1u32 {
                kept = keep;
            }
            let param = params.index_mut(which);
            let grad = grads.index(which);
            let m = firsts.index_mut(which);
            let v = seconds.index_mut(which);
            let mut i = ABSOLUTE_POS_X as usize;
            while i < len {
                let g = grad[i] * grad_scale;
                let first = keep1 * m[i] + share1 * g;
                let second = keep2 * v[i] + share2 * g * g;
                m[i] = first;
                v[i] = second;
                let update = first * correction1 / (f32::sqrt(second * correction2) + eps);
                param[i] = kept * param[i] - lr * update;
                i += CUBE_COUNT_X as usize * UNITS;
            }
        }
    }
}

/// One parameter of [`update`].
pub(super) struct Param<R: CubeRuntime> {
    pub(super) value: CubeTensor<R>,
    pub(super) grad: CubeTensor<R>,
    pub(super) moments: [CubeTensor<R>; 2],
    pub(super) decays: bool,
}

impl<R: CubeRuntime> Param<R> {
    fn len(&self) -> usize {
        self.value.meta.shape().num_elements()
    }
}

/// An updated parameter.
type Updated<R> = (CubeTensor<R>, [CubeTensor<R>; 2]);

pub(super) fn update<R: CubeRuntime>(params: Vec<Param<R>>, s: AdamWStep) -> Vec<Updated<R>> {
    let params: Vec<Param<R>> = (params.into_iter())
        .map(|param| Param {
            value: writable(param.value),
            grad: into_contiguous(param.grad),
            moments: param.moments.map(writable),
            decays: param.decays,
        })
        .collect();
    let Some(like) = params.first().map(|param| param.value.clone()) else {
        return Vec::new();
    };
    let [(keep1, share1), (keep2, share2)] = s.moment_factors();
    let launched: Vec<&Param<R>> = params.iter().filter(|param| param.len() > 0).collect();
    for group in launched.chunks(group_len(&like, BUFFERS)) {
        let sizes = group.iter();
        let sizes = sizes.flat_map(|param| [param.len() as u32, u32::from(param.decays)]);
        let of = |tensor: fn(&Param<R>) -> &CubeTensor<R>| {
            let args = group.iter();
            args.map(|param| tensor(param).clone().into_array_arg())
                .collect()
        };
        let (count, dim) = by_tensor(group.iter().map(|param| param.len()), SHARE, MOST);
        step::launch::<R>(
            &like.client,
            count,
            dim,
            of(|param| &param.value),
            of(|param| &param.grad),
            of(|param| &param.moments[0]),
            of(|param| &param.moments[1]),
            tables::table(&like, sizes.collect()).into_array_arg(),
            s.grad_scale,
            keep1,
            share1,
            keep2,
            share2,
            1.0 / s.bias_correction1,
            1.0 / s.bias_correction2,
            s.eps,
            s.lr,
            s.keep(true),
            group.len(),
        );
    }
    let updated = params.into_iter();
    updated.map(|param| (param.value, param.moments)).collect()
}
