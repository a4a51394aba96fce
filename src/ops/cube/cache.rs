//! Writes into the KV cache, and attention of one query per row over it.

use burn_cubecl::CubeRuntime;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use super::attention::{Heads, biased, capped, with_slopes};
use super::reduce::{cube_max, cube_sum};
use super::{UNITS, dims2, empty, entrywise, tables, writable};
use crate::ops::{Attend, CacheWrite};

/// Copies row `places[2 i]` of `packed` to row `places[2 i + 1]` of `cache`.
#[cube(launch)]
fn copy_rows(
    cache: &mut Array<f32>,
    packed: &Array<f32>,
    places: &Array<u32>,
    width: u32,
    len: u32,
) {
    let width = width as usize;
    let mut i = ABSOLUTE_POS;
    while i < len as usize {
        let (row, column) = (i / width, i % width);
        let (from, to) = (places[2 * row] as usize, places[2 * row + 1] as usize);
        cache[to * width + column] = packed[from * width + column];
        i += CUBE_COUNT_X as usize * CUBE_DIM_X as usize;
    }
}

pub(super) fn write<R: CubeRuntime>(
    cache: CubeTensor<R>,
    packed: CubeTensor<R>,
    writes: &[CacheWrite],
) -> CubeTensor<R> {
    let (cache, packed) = (writable(cache), into_contiguous(packed));
    let [_, capacity, width] = cache.meta.shape().dims();
    let places: Vec<u32> = writes
        .iter()
        .flat_map(|write| {
            let first = write.slot * capacity + write.start;
            let pair = move |(i, token)| [token as u32, (first + i) as u32];
            write.tokens.clone().enumerate().flat_map(pair)
        })
        .collect();
    let len = places.len() / 2 * width;
    if len > 0 {
        let places = tables::table(&cache, places);
        let (count, dim) = entrywise(len);
        copy_rows::launch::<R>(
            &cache.client.clone(),
            count,
            dim,
            cache.clone().into_array_arg(),
            packed.into_array_arg(),
            places.into_array_arg(),
            width as u32,
            len as u32,
        );
    }
    cache
}

/// One cube per token and head; `rows`: slot, first and end of the positions that each token attends to, its own being the last.
/// Keys are processed in blocks of [`UNITS`].
#[cube(launch)]
fn decode(
    q: &Array<f32>,
    keys: &Array<f32>,
    values: &Array<f32>,
    rows: &Array<u32>,
    output: &mut Array<f32>,
    capacity: u32,
    scale: f32,
    cap: f32,
    #[comptime] layout: Heads,
    #[comptime] units: usize,
) {
    let head_dim = comptime!(layout.head_dim);
    let width = comptime!(layout.kv_heads * layout.head_dim);
    let group = comptime!(layout.heads / layout.kv_heads);
    let share = comptime!(layout.head_dim.div_ceil(units));

    let unit = UNIT_POS_X as usize;
    let (row, head) = (CUBE_POS_X as usize, CUBE_POS_Y as usize);
    let at = comptime!(layout.slopes) + 3 * row;
    let (slot, end) = (rows[at] as usize, rows[at + 2] as usize);
    let first = slot * capacity as usize * width + head / group * head_dim;
    let to = (row * comptime!(layout.heads) + head) * head_dim;

    let mut query = SharedMemory::<f32>::new(head_dim);
    let mut p = SharedMemory::<f32>::new(units);
    let mut shared = SharedMemory::<f32>::new(units);
    let mut sums = Array::<f32>::new(share);
    #[unroll]
    for i in 0..share {
        sums[i] = 0.0f32;
        let c = unit + i * units;
        if c < head_dim {
            query[c] = q[to + c] * scale;
        }
    }
    sync_cube();
    let mut largest = f32::new(-1e30);
    let mut total = 0.0f32;
    let mut start = rows[at + 1] as usize;
    while start < end {
        let key = start + unit;
        let mut score = f32::new(-1e30);
        if key < end {
            let at = first + key * width;
            let mut product = 0.0f32;
            for c in 0..head_dim {
                product += query[c] * keys[at + c];
            }
            score = biased(
                capped(product, cap, layout),
                rows,
                head,
                end - 1,
                key,
                layout,
            );
        }
        let mut new = cube_max(score, &mut shared);
        if largest > new {
            new = largest;
        }
        let shrink = f32::exp(largest - new);
        let mut weight = 0.0f32;
        if key < end {
            weight = f32::exp(score - new);
        }
        p[unit] = weight;
        // The last reduction also synchronises all units.
        total = total * shrink + cube_sum(weight, &mut shared);
        let mut seen = end - start;
        if seen > units {
            seen = units;
        }
        #[unroll]
        for i in 0..share {
            let c = unit + i * units;
            if c < head_dim {
                let mut sum = sums[i] * shrink;
                for j in 0..seen {
                    sum += p[j] * values[first + (start + j) * width + c];
                }
                sums[i] = sum;
            }
        }
        sync_cube();
        largest = new;
        start += units;
    }
    #[unroll]
    for i in 0..share {
        let c = unit + i * units;
        if c < head_dim {
            output[to + c] = sums[i] / total;
        }
    }
}

pub(super) fn attention<R: CubeRuntime>(
    q: CubeTensor<R>,
    keys: CubeTensor<R>,
    values: CubeTensor<R>,
    slots: &[usize],
    held: &[usize],
    attend: &Attend,
) -> CubeTensor<R> {
    let (q, keys, values) = (
        into_contiguous(q),
        into_contiguous(keys),
        into_contiguous(values),
    );
    let shape = dims2(&q);
    let output = empty(&q, shape);
    let queries = attend.cached(slots, held);
    if queries.is_empty() {
        return output;
    }
    let [_, capacity, _]: [usize; 3] = keys.meta.shape().dims();
    let rows = (queries.iter())
        .flat_map(|(slot, seen)| [*slot, seen.start, seen.end].map(|field| field as u32));
    let rows = tables::table(&q, with_slopes(attend, rows.collect()));
    decode::launch::<R>(
        &q.client.clone(),
        CubeCount::Static(queries.len() as u32, attend.layout.heads as u32, 1),
        CubeDim::new_1d(UNITS as u32),
        q.into_array_arg(),
        keys.into_array_arg(),
        values.into_array_arg(),
        rows.into_array_arg(),
        output.clone().into_array_arg(),
        capacity as u32,
        attend.scale,
        attend.softcap.unwrap_or(0.0),
        attend.into(),
        UNITS,
    );
    output
}
