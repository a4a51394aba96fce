//! RMSNorm and LayerNorm, one cube per row.

use burn::tensor::backend::Backend;
use burn::tensor::ops::FloatTensor;
use burn_cubecl::CubeRuntime;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use super::reduce::cube_sum;
use super::{by_row, dims2, empty};

/// Mean (0 unless `centred`) and inverse deviation of the row that starts at `first`.
#[cube]
fn statistics(
    x: &Array<f32>,
    first: usize,
    columns: usize,
    eps: f32,
    shared: &mut SharedMemory<f32>,
    #[comptime] centred: bool,
) -> (f32, f32) {
    let (unit, units) = (UNIT_POS_X as usize, CUBE_DIM_X as usize);
    let width = f32::cast_from(columns as u32);
    let mut mean = 0.0f32;
    if centred {
        let mut sum = 0.0f32;
        let mut i = unit;
        while i < columns {
            sum += x[first + i];
            i += units;
        }
        mean = cube_sum(sum, shared) / width;
    }
    let mut squares = 0.0f32;
    let mut i = unit;
    while i < columns {
        let v = x[first + i] - mean;
        squares += v * v;
        i += units;
    }
    let variance = cube_sum(squares, shared) / width;
    (mean, 1.0f32 / f32::sqrt(variance + eps))
}

#[cube(launch)]
fn norm_forward(
    x: &Array<f32>,
    weight: &Array<f32>,
    bias: &Array<f32>,
    y: &mut Array<f32>,
    rows: u32,
    columns: u32,
    eps: f32,
    #[comptime] centred: bool,
    #[comptime] units: usize,
) {
    let (rows, columns) = (rows as usize, columns as usize);
    let mut shared = SharedMemory::<f32>::new(units);
    let mut row = CUBE_POS_X as usize;
    while row < rows {
        let first = row * columns;
        let (mean, inverse) = statistics(x, first, columns, eps, &mut shared, centred);
        let mut i = UNIT_POS_X as usize;
        while i < columns {
            let mut v = (x[first + i] - mean) * inverse * weight[i];
            if centred {
                v += bias[i];
            }
            y[first + i] = v;
            i += units;
        }
        row += CUBE_COUNT_X as usize;
    }
}

/// With `n` the normed row: `dx = (w g - mean(w g) - n mean(w g n)) * inverse`, the middle term for LayerNorm only. Also writes mean
/// and inverse deviation of each row.
#[cube(launch)]
fn norm_backward(
    x: &Array<f32>,
    weight: &Array<f32>,
    grad: &Array<f32>,
    dx: &mut Array<f32>,
    kept: &mut Array<f32>,
    rows: u32,
    columns: u32,
    eps: f32,
    #[comptime] centred: bool,
    #[comptime] units: usize,
) {
    let (rows, columns) = (rows as usize, columns as usize);
    let width = f32::cast_from(columns as u32);
    let mut shared = SharedMemory::<f32>::new(units);
    let mut row = CUBE_POS_X as usize;
    while row < rows {
        let first = row * columns;
        let (mean, inverse) = statistics(x, first, columns, eps, &mut shared, centred);
        let mut sum = 0.0f32;
        let mut along = 0.0f32;
        let mut i = UNIT_POS_X as usize;
        while i < columns {
            let wg = grad[first + i] * weight[i];
            sum += wg;
            along += wg * (x[first + i] - mean) * inverse;
            i += units;
        }
        let along = cube_sum(along, &mut shared) / width;
        let mut mean_wg = 0.0f32;
        if centred {
            mean_wg = cube_sum(sum, &mut shared) / width;
        }
        let mut i = UNIT_POS_X as usize;
        while i < columns {
            let wg = grad[first + i] * weight[i];
            let normed = (x[first + i] - mean) * inverse;
            dx[first + i] = (wg - mean_wg - normed * along) * inverse;
            i += units;
        }
        if UNIT_POS_X == 0 {
            kept[2 * row] = mean;
            kept[2 * row + 1] = inverse;
        }
        row += CUBE_COUNT_X as usize;
    }
}

/// Sums over chunks of rows, one unit per column: of `grad * n` into `of_weight`, of `grad` into `of_bias`, both `[chunks, columns]`.
#[cube(launch)]
fn norm_weights(
    x: &Array<f32>,
    grad: &Array<f32>,
    kept: &Array<f32>,
    of_weight: &mut Array<f32>,
    of_bias: &mut Array<f32>,
    rows: u32,
    columns: u32,
    chunk: u32,
    #[comptime] centred: bool,
) {
    let columns = columns as usize;
    let column = ABSOLUTE_POS_X as usize;
    if column >= columns {
        terminate!();
    }
    let mut row = CUBE_POS_Y as usize * chunk as usize;
    let mut end = row + chunk as usize;
    if end > rows as usize {
        end = rows as usize;
    }
    let mut with_normed = 0.0f32;
    let mut plain = 0.0f32;
    while row < end {
        let g = grad[row * columns + column];
        with_normed += g * (x[row * columns + column] - kept[2 * row]) * kept[2 * row + 1];
        plain += g;
        row += 1;
    }
    let at = CUBE_POS_Y as usize * columns + column;
    of_weight[at] = with_normed;
    if centred {
        of_bias[at] = plain;
    }
}

/// LayerNorm with a bias, RMSNorm without one.
pub(super) fn forward<R: CubeRuntime>(
    x: CubeTensor<R>,
    weight: CubeTensor<R>,
    bias: Option<CubeTensor<R>>,
    eps: f32,
) -> CubeTensor<R> {
    let (x, weight) = (into_contiguous(x), into_contiguous(weight));
    let centred = bias.is_some();
    // RMSNorm's kernel does not read it.
    let bias = bias.map_or_else(|| weight.clone(), into_contiguous);
    let [rows, columns] = dims2(&x);
    let y = empty(&x, [rows, columns]);
    if rows == 0 {
        return y;
    }
    let (count, dim, units) = by_row(rows, columns);
    norm_forward::launch::<R>(
        &x.client.clone(),
        count,
        dim,
        x.into_array_arg(),
        weight.into_array_arg(),
        bias.into_array_arg(),
        y.clone().into_array_arg(),
        rows as u32,
        columns as u32,
        eps,
        centred,
        units,
    );
    y
}

/// Gradients of x and, if requested, of weight and bias. For RMSNorm, which has no bias, the latter is undefined.
pub(super) fn backward<B, R>(
    x: CubeTensor<R>,
    weight: CubeTensor<R>,
    grad: CubeTensor<R>,
    eps: f32,
    centred: bool,
    with_weight: bool,
) -> (CubeTensor<R>, Option<[CubeTensor<R>; 2]>)
where
    R: CubeRuntime,
    B: Backend<FloatTensorPrimitive = CubeTensor<R>>,
{
    let (x, weight, grad) = (
        into_contiguous(x),
        into_contiguous(weight),
        into_contiguous(grad),
    );
    let [rows, columns] = dims2(&x);
    let (dx, kept) = (empty(&x, [rows, columns]), empty(&x, [rows, 2]));
    if rows > 0 {
        let (count, dim, units) = by_row(rows, columns);
        norm_backward::launch::<R>(
            &x.client.clone(),
            count,
            dim,
            x.clone().into_array_arg(),
            weight.into_array_arg(),
            grad.clone().into_array_arg(),
            dx.clone().into_array_arg(),
            kept.clone().into_array_arg(),
            rows as u32,
            columns as u32,
            eps,
            centred,
            units,
        );
    }
    let of_weights = with_weight.then(|| weights::<B, R>(x, grad, kept, centred));
    (dx, of_weights)
}

/// Columns of a cube of [`norm_weights`].
const COLUMNS: usize = 64;

fn weights<B, R>(
    x: CubeTensor<R>,
    grad: CubeTensor<R>,
    kept: CubeTensor<R>,
    centred: bool,
) -> [CubeTensor<R>; 2]
where
    R: CubeRuntime,
    B: Backend<FloatTensorPrimitive = CubeTensor<R>>,
{
    let [rows, columns] = dims2(&x);
    // Enough chunks to fill a device, few enough that summing them is cheap.
    let chunk = rows.div_ceil(256).max(16);
    let chunks = rows.div_ceil(chunk);
    let of_weight = empty(&x, [chunks, columns]);
    let of_bias = if centred {
        empty(&x, [chunks, columns])
    } else {
        of_weight.clone()
    };
    if rows > 0 {
        norm_weights::launch::<R>(
            &x.client.clone(),
            CubeCount::Static(columns.div_ceil(COLUMNS) as u32, chunks as u32, 1),
            CubeDim::new_1d(COLUMNS as u32),
            x.into_array_arg(),
            grad.into_array_arg(),
            kept.into_array_arg(),
            of_weight.clone().into_array_arg(),
            of_bias.clone().into_array_arg(),
            rows as u32,
            columns as u32,
            chunk as u32,
            centred,
        );
    }
    let total =
        |parts: FloatTensor<B>| B::float_reshape(B::float_sum_dim(parts, 0), [columns].into());
    let dweight = total(of_weight);
    let dbias = if centred {
        total(of_bias)
    } else {
        dweight.clone()
    };
    [dweight, dbias]
}
