//! Gated units: an activation of one half of each row times the other half.

use super::gelu::{logistic, normal};
use super::{exp, for_rows, simd_fn};
use crate::ops::{Gate, Gelu};

/// `activation(gate) * up` of `gate_up`, `[rows, 2 * width]`, gate first.
pub(in crate::ops) fn gated_unit(gate_up: &[f32], width: usize, gate: Gate, y: &mut [f32]) {
    for_rows(y, width, [(gate_up, 2 * width)], |y, [gate_up]| {
        gated_rows(gate_up, width, gate, y)
    });
}

simd_fn! {
    fn gated_rows(gate_up: &'a [f32], width: usize, gate: Gate, y: &'a mut [f32]) -> () {
        for (y, row) in y.chunks_exact_mut(width).zip(gate_up.chunks_exact(2 * width)) {
            let (g, u) = row.split_at(width);
            match gate {
                Gate::Silu => {
                    for i in 0..width {
                        y[i] = g[i] / (1.0 + exp(-g[i])) * u[i];
                    }
                }
                Gate::Gelu(Gelu::Erf) => {
                    for i in 0..width {
                        y[i] = g[i] * normal(g[i]).0 * u[i];
                    }
                }
                Gate::Gelu(Gelu::Tanh) => {
                    for i in 0..width {
                        y[i] = g[i] * logistic(g[i]).0 * u[i];
                    }
                }
            }
        }
    }
}

/// The gradient of [`gated_unit`] with respect to `gate_up`.
pub(in crate::ops) fn gated_unit_backward(
    gate_up: &[f32],
    grad: &[f32],
    width: usize,
    gate: Gate,
    out: &mut [f32],
) {
    for_rows(
        out,
        2 * width,
        [(gate_up, 2 * width), (grad, width)],
        |out, [gate_up, grad]| {
            gated_backward_rows(gate_up, grad, width, gate, out);
        },
    );
}

simd_fn! {
    fn gated_backward_rows(
        gate_up: &'a [f32], grad: &'a [f32], width: usize, gate: Gate, out: &'a mut [f32],
    ) -> () {
        let rows = out.chunks_exact_mut(2 * width).zip(gate_up.chunks_exact(2 * width)).zip(grad.chunks_exact(width));
        for ((out, row), dy) in rows {
            let (g, u) = row.split_at(width);
            let (dg, du) = out.split_at_mut(width);
            match gate {
                Gate::Silu => {
                    for i in 0..width {
                        let s = 1.0 / (1.0 + exp(-g[i]));
                        du[i] = dy[i] * g[i] * s;
                        dg[i] = dy[i] * u[i] * s * (1.0 + g[i] * (1.0 - s));
                    }
                }
                Gate::Gelu(Gelu::Erf) => {
                    for i in 0..width {
                        let (phi, density) = normal(g[i]);
                        du[i] = dy[i] * g[i] * phi;
                        dg[i] = dy[i] * u[i] * (phi + g[i] * density);
                    }
                }
                Gate::Gelu(Gelu::Tanh) => {
                    for i in 0..width {
                        let (s, slope) = logistic(g[i]);
                        du[i] = dy[i] * g[i] * s;
                        dg[i] = dy[i] * u[i] * s * (1.0 + g[i] * (1.0 - s) * slope);
                    }
                }
            }
        }
    }
}
