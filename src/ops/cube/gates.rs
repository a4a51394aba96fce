//! Gated units and GELU, entry by entry.

use burn_cubecl::CubeRuntime;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use super::{dims2, empty, entrywise};
use crate::ops::{Gate, Gelu};

#[cube]
fn logistic(x: f32) -> f32 {
    1.0f32 / (1.0f32 + f32::exp(-x))
}

/// GELU's `Phi(x)`, and its slope times `x`.
#[cube]
fn phi(x: f32, #[comptime] tanh: bool) -> (f32, f32) {
    if tanh {
        // (1 + tanh(u)) / 2 = logistic(2 u), without tanh's overflow on some drivers.
        let factor = 1.595_769_2f32;
        let s = logistic(factor * (x + 0.044_715f32 * x * x * x));
        let slope = s * (1.0f32 - s) * factor * (1.0f32 + 0.134_145f32 * x * x);
        (s, x * slope)
    } else {
        let s = 0.5f32 * (1.0f32 + Erf::erf(x * 0.707_106_77f32));
        (s, x * 0.398_942_3f32 * f32::exp(-0.5f32 * x * x))
    }
}

/// The factor by which a gate multiplies its argument, and the factor's slope times the argument.
#[cube]
fn factor(x: f32, #[comptime] gate: Gate) -> (f32, f32) {
    if comptime!(gate == Gate::Silu) {
        let s = logistic(x);
        (s, x * s * (1.0f32 - s))
    } else {
        phi(x, comptime!(gate == Gate::Gelu(Gelu::Tanh)))
    }
}

#[cube(launch)]
fn gated_forward(
    gate_up: &Array<f32>,
    y: &mut Array<f32>,
    half: u32,
    len: u32,
    #[comptime] gate: Gate,
) {
    let half = half as usize;
    let mut i = ABSOLUTE_POS;
    while i < len as usize {
        let at = i / half * 2 * half + i % half;
        let x = gate_up[at];
        let (p, _slope) = factor(x, gate);
        y[i] = x * p * gate_up[at + half];
        i += CUBE_COUNT_X as usize * CUBE_DIM_X as usize;
    }
}

#[cube(launch)]
fn gated_gradient(
    gate_up: &Array<f32>,
    grad: &Array<f32>,
    dx: &mut Array<f32>,
    half: u32,
    len: u32,
    #[comptime] gate: Gate,
) {
    let half = half as usize;
    let mut i = ABSOLUTE_POS;
    while i < len as usize {
        let at = i / half * 2 * half + i % half;
        let (x, up, g) = (gate_up[at], gate_up[at + half], grad[i]);
        let (p, slope) = factor(x, gate);
        dx[at] = g * up * (p + slope);
        dx[at + half] = g * x * p;
        i += CUBE_COUNT_X as usize * CUBE_DIM_X as usize;
    }
}

#[cube(launch)]
fn gelu_forward(x: &Array<f32>, y: &mut Array<f32>, len: u32, #[comptime] tanh: bool) {
    let mut i = ABSOLUTE_POS;
    while i < len as usize {
        let v = x[i];
        let (p, _slope) = phi(v, tanh);
        y[i] = v * p;
        i += CUBE_COUNT_X as usize * CUBE_DIM_X as usize;
    }
}

#[cube(launch)]
fn gelu_gradient(
    x: &Array<f32>,
    grad: &Array<f32>,
    dx: &mut Array<f32>,
    len: u32,
    #[comptime] tanh: bool,
) {
    let mut i = ABSOLUTE_POS;
    while i < len as usize {
        let (p, slope) = phi(x[i], tanh);
        dx[i] = grad[i] * (p + slope);
        i += CUBE_COUNT_X as usize * CUBE_DIM_X as usize;
    }
}

pub(super) fn gated_unit<R: CubeRuntime>(gate_up: CubeTensor<R>, gate: Gate) -> CubeTensor<R> {
    let gate_up = into_contiguous(gate_up);
    let [tokens, width] = dims2(&gate_up);
    let y = empty(&gate_up, [tokens, width / 2]);
    let len = tokens * width / 2;
    if len > 0 {
        let (count, dim) = entrywise(len);
        gated_forward::launch::<R>(
            &gate_up.client.clone(),
            count,
            dim,
            gate_up.into_array_arg(),
            y.clone().into_array_arg(),
            (width / 2) as u32,
            len as u32,
            gate,
        );
    }
    y
}

pub(super) fn gated_unit_backward<R: CubeRuntime>(
    gate_up: CubeTensor<R>,
    grad: CubeTensor<R>,
    gate: Gate,
) -> CubeTensor<R> {
    let (gate_up, grad) = (into_contiguous(gate_up), into_contiguous(grad));
    let [tokens, width] = dims2(&gate_up);
    let dx = empty(&gate_up, [tokens, width]);
    let len = tokens * width / 2;
    if len > 0 {
        let (count, dim) = entrywise(len);
        gated_gradient::launch::<R>(
            &gate_up.client.clone(),
            count,
            dim,
            gate_up.into_array_arg(),
            grad.into_array_arg(),
            dx.clone().into_array_arg(),
            (width / 2) as u32,
            len as u32,
            gate,
        );
    }
    dx
}

pub(super) fn gelu<R: CubeRuntime>(x: CubeTensor<R>, form: Gelu) -> CubeTensor<R> {
    let x = into_contiguous(x);
    let y = empty(&x, x.meta.shape().clone());
    let len = x.meta.shape().num_elements();
    if len > 0 {
        let (count, dim) = entrywise(len);
        gelu_forward::launch::<R>(
            &x.client.clone(),
            count,
            dim,
            x.into_array_arg(),
            y.clone().into_array_arg(),
            len as u32,
            form == Gelu::Tanh,
        );
    }
    y
}

pub(super) fn gelu_backward<R: CubeRuntime>(
    x: CubeTensor<R>,
    grad: CubeTensor<R>,
    form: Gelu,
) -> CubeTensor<R> {
    let (x, grad) = (into_contiguous(x), into_contiguous(grad));
    let dx = empty(&x, x.meta.shape().clone());
    let len = x.meta.shape().num_elements();
    if len > 0 {
        let (count, dim) = entrywise(len);
        gelu_gradient::launch::<R>(
            &x.client.clone(),
            count,
            dim,
            x.into_array_arg(),
            grad.into_array_arg(),
            dx.clone().into_array_arg(),
            len as u32,
            form == Gelu::Tanh,
        );
    }
    dx
}
