//! Low-rank products beside a linear layer, all parts of a layer in one launch.
//!
//! Matrices as narrow as a rank do not fill the tiles of general products. A layer's down projections `a` (`[inputs, ranks]`) are
//! treated as one transposed part, so that the same kernels compute their products.

use burn_cubecl::CubeRuntime;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use super::{dims2, empty, tables, writable};
use crate::ops::{LowRankPart, ModelBackend, Owners};

/// Columns of a cube.
const COLUMNS: usize = 64;

/// Rows of a cube: it reads each number of `b` once for all of them.
const ROWS: usize = 16;

/// Inner columns of a cube of [`to_ranks`].
const INNER: usize = 16;

/// Inner columns of a unit of [`outer`], and units that share a column's rows.
const RANKS: usize = 4;
const LANES: usize = 4;

/// Rows of a cube of [`outer`]: a narrow layer's columns alone would not fill a device.
const CHUNK: usize = 512;

/// A table entry of a part: rank, first inner column, first output column, width, offset in `b`, the bits of its scale, and its first
/// row.
const FIELDS: usize = 7;

/// `first_row` of each part.
fn part_table(parts: &[LowRankPart], first_row: impl Fn(usize) -> usize) -> Vec<u32> {
    let (mut inner, mut offset) = (0, 0);
    let mut table = Vec::new();
    for (i, part) in parts.iter().enumerate() {
        let fields = [part.rank, inner, part.column, part.width, offset];
        table.extend(fields.map(|field| field as u32));
        table.push(part.scale.to_bits());
        table.push(first_row(i) as u32);
        inner += part.rank;
        offset += part.rank * part.width;
    }
    table
}

/// Index of number `(i, c)` of a part's `b`, `[rank, width]`, or transposed `[width, rank]`.
#[cube]
fn number_at(i: usize, c: usize, rank: usize, width: usize, #[comptime] transposed: bool) -> usize {
    if transposed {
        c * rank + i
    } else {
        i * width + c
    }
}

/// `y[.., column..] += scale * xa[.., inner..] . b` for the part of each plane of cubes, in `rows` rows from the part's first row on.
#[cube(launch)]
fn add_parts(
    y: &mut Array<f32>,
    xa: &Array<f32>,
    b: &Array<f32>,
    parts: &Array<u32>,
    rows: u32,
    y_width: u32,
    ranks: u32,
    #[comptime] transposed: bool,
) {
    let at = CUBE_POS_Z as usize * FIELDS;
    let (rank, inner) = (parts[at] as usize, parts[at + 1] as usize);
    let (column, width) = (parts[at + 2] as usize, parts[at + 3] as usize);
    let offset = parts[at + 4] as usize;
    let scale = f32::reinterpret(parts[at + 5]);
    let (y_width, ranks) = (y_width as usize, ranks as usize);
    let c = ABSOLUTE_POS_X as usize;
    if c >= width {
        terminate!();
    }
    let mut here = rows as usize - CUBE_POS_Y as usize * ROWS;
    if here > ROWS {
        here = ROWS;
    }
    let first = parts[at + 6] as usize + CUBE_POS_Y as usize * ROWS;
    let mut sums = Array::<f32>::new(ROWS);
    #[unroll]
    for r in 0..ROWS {
        sums[r] = 0.0f32;
    }
    for i in 0..rank {
        let weight = b[offset + number_at(i, c, rank, width, transposed)];
        #[unroll]
        for r in 0..ROWS {
            if r < here {
                sums[r] += xa[(first + r) * ranks + inner + i] * weight;
            }
        }
    }
    #[unroll]
    for r in 0..ROWS {
        if r < here {
            y[(first + r) * y_width + column + c] += sums[r] * scale;
        }
    }
}

/// `out[.., inner..] = scale * x[.., column..] . b^T`: [`ROWS`] rows and [`INNER`] inner columns per cube, one unit per number.
#[cube(launch)]
fn to_ranks(
    x: &Array<f32>,
    b: &Array<f32>,
    parts: &Array<u32>,
    out: &mut Array<f32>,
    rows: u32,
    x_width: u32,
    ranks: u32,
    #[comptime] transposed: bool,
) {
    let at = CUBE_POS_Z as usize * FIELDS;
    let (rank, inner) = (parts[at] as usize, parts[at + 1] as usize);
    let (column, width) = (parts[at + 2] as usize, parts[at + 3] as usize);
    let offset = parts[at + 4] as usize;
    let scale = f32::reinterpret(parts[at + 5]);
    let (rows, x_width, ranks) = (rows as usize, x_width as usize, ranks as usize);
    let first_row = CUBE_POS_X as usize * ROWS;
    let first_inner = CUBE_POS_Y as usize * INNER;
    // The same for all units of the cube.
    if first_inner >= rank {
        terminate!();
    }
    let unit = UNIT_POS_X as usize;
    let (row, i) = (unit / INNER, unit % INNER);
    let mut numbers = SharedMemory::<f32>::new(comptime!(ROWS * (COLUMNS + 1)));
    let mut weights = SharedMemory::<f32>::new(comptime!(INNER * (COLUMNS + 1)));
    let mut sum = 0.0f32;
    let mut start = 0;
    while start < width {
        let mut e = unit;
        while e < comptime!(ROWS * COLUMNS) {
            let (r, c) = (e / COLUMNS, e % COLUMNS);
            let mut value = 0.0f32;
            if first_row + r < rows && start + c < width {
                value = x[(first_row + r) * x_width + column + start + c];
            }
            numbers[r * (COLUMNS + 1) + c] = value;
            let mut weight = 0.0f32;
            if first_inner + r < rank && start + c < width {
                weight = b[offset + number_at(first_inner + r, start + c, rank, width, transposed)];
            }
            weights[r * (COLUMNS + 1) + c] = weight;
            e += comptime!(ROWS * INNER);
        }
        sync_cube();
        for c in 0..COLUMNS {
            sum += numbers[row * (COLUMNS + 1) + c] * weights[i * (COLUMNS + 1) + c];
        }
        sync_cube();
        start += COLUMNS;
    }
    if first_row + row < rows && first_inner + i < rank {
        out[(first_row + row) * ranks + inner + first_inner + i] = sum * scale;
    }
}

/// `db = scale * xa[.., inner..]^T . grad[.., column..]` over chunks of [`CHUNK`] rows, each in the layout of `b`: `[chunks, len]`.
#[cube(launch)]
fn outer(
    grad: &Array<f32>,
    xa: &Array<f32>,
    parts: &Array<u32>,
    db: &mut Array<f32>,
    rows: u32,
    y_width: u32,
    ranks: u32,
    chunks: u32,
    len: u32,
    #[comptime] transposed: bool,
) {
    let at = CUBE_POS_Z as usize * FIELDS;
    let (rank, inner) = (parts[at] as usize, parts[at + 1] as usize);
    let (column, width) = (parts[at + 2] as usize, parts[at + 3] as usize);
    let offset = parts[at + 4] as usize;
    let scale = f32::reinterpret(parts[at + 5]);
    let (rows, y_width, ranks) = (rows as usize, y_width as usize, ranks as usize);
    let chunks = chunks as usize;
    let chunk = CUBE_POS_Y as usize % chunks;
    let first = CUBE_POS_Y as usize / chunks * RANKS;
    let unit = UNIT_POS_X as usize;
    let (lane, place) = (unit / COLUMNS, unit % COLUMNS);
    let c = CUBE_POS_X as usize * COLUMNS + place;
    let mut shared = SharedMemory::<f32>::new(comptime!(LANES * RANKS * COLUMNS));
    let mut sums = Array::<f32>::new(RANKS);
    #[unroll]
    for i in 0..RANKS {
        sums[i] = 0.0f32;
    }
    if c < width {
        let mut row = chunk * CHUNK + lane;
        let mut end = (chunk + 1) * CHUNK;
        if end > rows {
            end = rows;
        }
        while row < end {
            let g = grad[row * y_width + column + c];
            #[unroll]
            for i in 0..RANKS {
                if first + i < rank {
                    sums[i] += xa[row * ranks + inner + first + i] * g;
                }
            }
            row += LANES;
        }
    }
    #[unroll]
    for i in 0..RANKS {
        shared[(lane * RANKS + i) * COLUMNS + place] = sums[i];
    }
    sync_cube();
    // One lane per inner column sums.
    let i = lane;
    if c < width && first + i < rank {
        let mut sum = 0.0f32;
        #[unroll]
        for other in 0..LANES {
            sum += shared[(other * RANKS + i) * COLUMNS + place];
        }
        let to = chunk * len as usize + offset;
        db[to + number_at(first + i, c, rank, width, transposed)] = sum * scale;
    }
}

/// The largest width and the largest rank.
fn largest(parts: &[LowRankPart]) -> (usize, usize) {
    let most = |of: fn(&LowRankPart) -> usize| parts.iter().map(of).max().unwrap_or(0);
    (most(|part| part.width), most(|part| part.rank))
}

/// The down projections `a`, `[inputs, ranks]`, as one part.
fn whole(inputs: usize, ranks: usize) -> [LowRankPart; 1] {
    [LowRankPart {
        rank: ranks,
        scale: 1.0,
        column: 0,
        width: inputs,
    }]
}

/// `x . a`. `a`: `[inputs, ranks]`.
pub(super) fn ranks_of<R: CubeRuntime>(x: CubeTensor<R>, a: CubeTensor<R>) -> CubeTensor<R> {
    let [inputs, ranks] = dims2(&a);
    to_ranks_of(
        into_contiguous(x),
        into_contiguous(a),
        &whole(inputs, ranks),
        ranks,
        true,
    )
}

/// `y + dxa . a^T`.
pub(super) fn add_through<R: CubeRuntime>(
    y: CubeTensor<R>,
    dxa: CubeTensor<R>,
    a: CubeTensor<R>,
) -> CubeTensor<R> {
    let [inputs, ranks] = dims2(&a);
    let owners = Owners {
        shares: 1,
        of_parts: &[0],
    };
    add_as(y, dxa, a, &whole(inputs, ranks), owners, true)
}

/// `x^T . dxa`, the gradient of `a`.
pub(super) fn gradient_of_a<R, B>(x: CubeTensor<R>, dxa: CubeTensor<R>) -> CubeTensor<R>
where
    R: CubeRuntime,
    B: ModelBackend<FloatTensorPrimitive = CubeTensor<R>>,
{
    let ([_, inputs], [_, ranks]) = (dims2(&x), dims2(&dxa));
    let parts = whole(inputs, ranks);
    let da = outer_of::<R, B>(into_contiguous(x), into_contiguous(dxa), &parts, true);
    B::float_reshape(da, [inputs, ranks].into())
}

/// Adds each part's product to its columns of `y`. `xa`: `[tokens, sum of ranks]`.
pub(super) fn add<R: CubeRuntime>(
    y: CubeTensor<R>,
    xa: CubeTensor<R>,
    b: CubeTensor<R>,
    parts: &[LowRankPart],
) -> CubeTensor<R> {
    let owners = Owners {
        shares: 1,
        of_parts: &vec![0; parts.len()],
    };
    add_as(y, xa, b, parts, owners, false)
}

/// The same, with each part in its own share of the rows. Parts do not overlap within a share, so no number is written twice.
pub(super) fn add_shared<R: CubeRuntime>(
    y: CubeTensor<R>,
    xa: CubeTensor<R>,
    b: CubeTensor<R>,
    parts: &[LowRankPart],
    owners: Owners<'_>,
) -> CubeTensor<R> {
    add_as(y, xa, b, parts, owners, false)
}

fn add_as<R: CubeRuntime>(
    y: CubeTensor<R>,
    xa: CubeTensor<R>,
    b: CubeTensor<R>,
    parts: &[LowRankPart],
    owners: Owners<'_>,
    transposed: bool,
) -> CubeTensor<R> {
    let (y, xa, b) = (writable(y), into_contiguous(xa), into_contiguous(b));
    let ([rows, y_width], [_, ranks]) = (dims2(&y), dims2(&xa));
    let rows = rows / owners.shares;
    let (width, _) = largest(parts);
    if rows * width > 0 {
        let first_row = |part: usize| owners.of_parts[part] * rows;
        let table = tables::table(&y, part_table(parts, first_row));
        add_parts::launch::<R>(
            &y.client.clone(),
            CubeCount::Static(
                width.div_ceil(COLUMNS) as u32,
                rows.div_ceil(ROWS) as u32,
                parts.len() as u32,
            ),
            CubeDim::new_1d(COLUMNS as u32),
            y.clone().into_array_arg(),
            xa.into_array_arg(),
            b.into_array_arg(),
            table.into_array_arg(),
            rows as u32,
            y_width as u32,
            ranks as u32,
            transposed,
        );
    }
    y
}

/// The gradients of `xa` and `b` in [`add`].
pub(super) fn gradients<R, B>(
    grad: CubeTensor<R>,
    xa: CubeTensor<R>,
    b: CubeTensor<R>,
    parts: &[LowRankPart],
) -> (CubeTensor<R>, CubeTensor<R>)
where
    R: CubeRuntime,
    B: ModelBackend<FloatTensorPrimitive = CubeTensor<R>>,
{
    let grad = into_contiguous(grad);
    let ranks = dims2(&xa)[1];
    let dxa = to_ranks_of(grad.clone(), into_contiguous(b), parts, ranks, false);
    let db = outer_of::<R, B>(grad, into_contiguous(xa), parts, false);
    (dxa, db)
}

/// [`to_ranks`] of contiguous tensors.
fn to_ranks_of<R: CubeRuntime>(
    x: CubeTensor<R>,
    b: CubeTensor<R>,
    parts: &[LowRankPart],
    ranks: usize,
    transposed: bool,
) -> CubeTensor<R> {
    let [rows, x_width] = dims2(&x);
    let (_, rank) = largest(parts);
    let out = empty(&x, [rows, ranks]);
    if rows * rank > 0 {
        let table = tables::table(&x, part_table(parts, |_| 0));
        to_ranks::launch::<R>(
            &x.client.clone(),
            CubeCount::Static(
                rows.div_ceil(ROWS) as u32,
                rank.div_ceil(INNER) as u32,
                parts.len() as u32,
            ),
            CubeDim::new_1d((ROWS * INNER) as u32),
            x.into_array_arg(),
            b.into_array_arg(),
            table.into_array_arg(),
            out.clone().into_array_arg(),
            rows as u32,
            x_width as u32,
            ranks as u32,
            transposed,
        );
    }
    out
}

/// [`outer`] of contiguous tensors over all rows, in the layout of `b`.
fn outer_of<R, B>(
    grad: CubeTensor<R>,
    xa: CubeTensor<R>,
    parts: &[LowRankPart],
    transposed: bool,
) -> CubeTensor<R>
where
    R: CubeRuntime,
    B: ModelBackend<FloatTensorPrimitive = CubeTensor<R>>,
{
    let ([rows, y_width], [_, ranks]) = (dims2(&grad), dims2(&xa));
    let (width, rank) = largest(parts);
    let len: usize = parts.iter().map(|part| part.rank * part.width).sum();
    let chunks = rows.div_ceil(CHUNK).max(1);
    let db = empty(&grad, [chunks, len]);
    if width * rank > 0 {
        let table = tables::table(&grad, part_table(parts, |_| 0));
        outer::launch::<R>(
            &grad.client.clone(),
            CubeCount::Static(
                width.div_ceil(COLUMNS) as u32,
                (rank.div_ceil(RANKS) * chunks) as u32,
                parts.len() as u32,
            ),
            CubeDim::new_1d((COLUMNS * LANES) as u32),
            grad.into_array_arg(),
            xa.into_array_arg(),
            table.into_array_arg(),
            db.clone().into_array_arg(),
            rows as u32,
            y_width as u32,
            ranks as u32,
            chunks as u32,
            len as u32,
            transposed,
        );
    }
    let db = if chunks == 1 {
        db
    } else {
        B::float_sum_dim(db, 0)
    };
    B::float_reshape(db, [len].into())
}
