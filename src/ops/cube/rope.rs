//! Rotary embedding, in place if the matrix has no other owner.

use burn_cubecl::CubeRuntime;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use super::{dims2, entrywise, writable};

/// Rotates each pair `(i, i + half)` of each head.
#[cube(launch)]
fn rotate(
    x: &mut Array<f32>,
    cos: &Array<f32>,
    sin: &Array<f32>,
    width: u32,
    heads: u32,
    half: u32,
    pairs: u32,
    sign: f32,
) {
    let (width, heads, half) = (width as usize, heads as usize, half as usize);
    let by_token = heads * half;
    let mut pair = ABSOLUTE_POS;
    while pair < pairs as usize {
        let token = pair / by_token;
        let head = pair % by_token / half;
        let i = pair % half;
        let c = cos[token * half + i];
        let s = sin[token * half + i] * sign;
        let at = token * width + head * 2 * half + i;
        let first = x[at];
        let second = x[at + half];
        x[at] = first * c - second * s;
        x[at + half] = second * c + first * s;
        pair += CUBE_COUNT_X as usize * CUBE_DIM_X as usize;
    }
}

pub(super) fn rope<R: CubeRuntime>(
    x: CubeTensor<R>,
    cos: CubeTensor<R>,
    sin: CubeTensor<R>,
    num_heads: usize,
    inverse: bool,
) -> CubeTensor<R> {
    let (x, cos, sin) = (writable(x), into_contiguous(cos), into_contiguous(sin));
    let ([tokens, width], half) = (dims2(&x), dims2(&cos)[1]);
    let pairs = tokens * num_heads * half;
    if pairs == 0 {
        return x;
    }
    let (count, dim) = entrywise(pairs);
    rotate::launch::<R>(
        &x.client.clone(),
        count,
        dim,
        x.clone().into_array_arg(),
        cos.into_array_arg(),
        sin.into_array_arg(),
        width as u32,
        num_heads as u32,
        half as u32,
        pairs as u32,
        if inverse { -1.0 } else { 1.0 },
    );
    x
}
