//! The AdamW update of one parameter, in place.

use burn_cubecl::CubeRuntime;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use super::{entrywise, writable};
use crate::ops::AdamWStep;

#[cube(launch)]
fn step(
    param: &mut Array<f32>,
    grad: &Array<f32>,
    m: &mut Array<f32>,
    v: &mut Array<f32>,
    len: u32,
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
) {
    let mut i = ABSOLUTE_POS;
    while i < len as usize {
        let g = grad[i] * grad_scale;
        let first = keep1 * m[i] + share1 * g;
        let second = keep2 * v[i] + share2 * g * g;
        m[i] = first;
        v[i] = second;
        let update = first * correction1 / (f32::sqrt(second * correction2) + eps);
        param[i] = keep * param[i] - lr * update;
        i += CUBE_COUNT_X as usize * CUBE_DIM_X as usize;
    }
}

pub(super) fn update<R: CubeRuntime>(
    param: CubeTensor<R>,
    grad: CubeTensor<R>,
    m: CubeTensor<R>,
    v: CubeTensor<R>,
    s: AdamWStep,
) -> (CubeTensor<R>, CubeTensor<R>, CubeTensor<R>) {
    let (param, grad) = (writable(param), into_contiguous(grad));
    let (m, v) = (writable(m), writable(v));
    let len = param.meta.shape().num_elements();
    if len > 0 {
        let [(keep1, share1), (keep2, share2)] = s.moment_factors();
        let (count, dim) = entrywise(len);
        step::launch::<R>(
            &param.client.clone(),
            count,
            dim,
            param.clone().into_array_arg(),
            grad.into_array_arg(),
            m.clone().into_array_arg(),
            v.clone().into_array_arg(),
            len as u32,
            s.grad_scale,
            keep1,
            share1,
            keep2,
            share2,
            1.0 / s.bias_correction1,
            1.0 / s.bias_correction2,
            s.eps,
            s.lr,
            1.0 - s.lr * s.weight_decay,
        );
    }
    (param, m, v)
}
