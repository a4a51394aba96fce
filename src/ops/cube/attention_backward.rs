//! Gradient of packed attention with recomputed probabilities: one kernel for the gradient of queries, one for keys and values. Each
//! number is summed by one unit in a fixed order.
//!
//! # Source
//! Dao 2023, arXiv:2307.08691, algorithm 2, in two passes.

use std::iter;

use burn_cubecl::CubeRuntime;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use super::attention::{
    Heads, QUERY_FIELDS, UNITS, biased, block, capped, dot, load_keys, load_rows, query_blocks,
    sees, window, with_slopes,
};
use super::{dims2, empty, entrywise, tables};
use crate::ops::{Attend, Mask};
use crate::tokens::Span;

/// A table entry of a block of keys: first key, number of keys, start of its ranges of queries in the table, and their number.
const KEY_FIELDS: usize = 4;

/// A table entry of a range of queries that attend to a block of keys: first, end, 1 if the mask is causal within it, and the number
/// of tokens between the keys' row and theirs in the batch that are not in their row.
const RANGE_FIELDS: usize = 4;

/// The blocks of keys of a packed batch, and after them the ranges of queries that see them.
fn key_blocks(attend: &Attend, block: usize) -> (usize, Vec<u32>) {
    let segments = &attend.segments;
    let mut children = vec![Vec::new(); segments.num_rows()];
    for (row, span) in segments.spans().enumerate() {
        if let Some(parent) = segments.parent(row) {
            children[parent].push(span.own);
        }
    }
    // Distance from a key to the first query whose window is past it.
    let reach = match attend.mask {
        Mask::Window(n) => n,
        Mask::Causal | Mask::Full => segments.num_tokens(),
    };
    let of_block = |(row, span): (usize, Span)| {
        let children = &children[row];
        let end = span.own.end;
        span.own.clone().step_by(block).map(move |first| {
            let keys = block.min(end - first);
            let last = first + keys - 1;
            let range = |start: usize, end: usize, causal: bool, gap: usize| {
                let end = end.min(last.saturating_add(reach).saturating_add(gap));
                [start, end.max(start), usize::from(causal), gap]
            };
            let own = match attend.mask {
                Mask::Full => range(span.own.start, end, false, 0),
                Mask::Causal | Mask::Window(_) => range(first, end, true, 0),
            };
            let continuing = (children.iter())
                .filter(|child| !child.is_empty())
                .map(|child| range(child.start, child.end, false, child.start - end));
            (
                [first, keys],
                iter::once(own).chain(continuing).collect::<Vec<_>>(),
            )
        })
    };
    let blocks: Vec<_> = segments.spans().enumerate().flat_map(of_block).collect();
    let (mut table, mut tail) = (Vec::new(), Vec::new());
    for (keys, ranges) in &blocks {
        table.extend(keys.map(|field| field as u32));
        table.extend([
            (blocks.len() * KEY_FIELDS + tail.len()) as u32,
            ranges.len() as u32,
        ]);
        tail.extend(ranges.iter().flatten().map(|&field| field as u32));
    }
    table.extend(tail);
    (blocks.len(), table)
}

/// `sum(output * grad)` of each head and token, which the softmax subtracts from every score's gradient.
#[cube(launch)]
fn row_terms(
    output: &Array<f32>,
    grad: &Array<f32>,
    terms: &mut Array<f32>,
    tokens: u32,
    heads: u32,
    head_dim: u32,
) {
    let (tokens, heads, head_dim) = (tokens as usize, heads as usize, head_dim as usize);
    let mut i = ABSOLUTE_POS;
    while i < tokens * heads {
        let (head, token) = (i / tokens, i % tokens);
        let first = (token * heads + head) * head_dim;
        let mut sum = 0.0f32;
        for c in 0..head_dim {
            sum += output[first + c] * grad[first + c];
        }
        terms[i] = sum;
        i += CUBE_COUNT_X as usize * CUBE_DIM_X as usize;
    }
}

/// Derivative of a score with respect to its product.
#[cube]
fn slope(score: f32, cap: f32, #[comptime] layout: Heads) -> f32 {
    let mut slope = 1.0f32;
    if comptime!(layout.capped) {
        let t = score / cap;
        slope = 1.0f32 - t * t;
    }
    slope
}

#[cube(launch)]
fn query_gradient(
    qkv: &Array<f32>,
    grad: &Array<f32>,
    lse: &Array<f32>,
    terms: &Array<f32>,
    table: &Array<u32>,
    dqkv: &mut Array<f32>,
    tokens: u32,
    scale: f32,
    window: u32,
    cap: f32,
    #[comptime] layout: Heads,
    #[comptime] block: usize,
) {
    let head_dim = comptime!(layout.head_dim);
    let q_width = comptime!(layout.heads * layout.head_dim);
    let kv_width = comptime!(layout.kv_heads * layout.head_dim);
    let width = comptime!(q_width + 2 * kv_width);
    let group = comptime!(layout.heads / layout.kv_heads);
    let share = comptime!((block * layout.head_dim).div_ceil(UNITS));

    let unit = UNIT_POS_X as usize;
    let head = CUBE_POS_Y as usize;
    let kv_column = q_width + head / group * head_dim;
    let at = comptime!(layout.slopes) + CUBE_POS_X as usize * QUERY_FIELDS;
    let first = table[at] as usize;
    let queries = table[at + 1] as usize;
    let own = table[at + 2] as usize;
    let context = table[at + 3] as usize;
    let before = table[at + 4] as usize;
    let position = before + first - own;
    let keys = table[at + 6] as usize;
    let of_head = head * tokens as usize + first;

    let mut q = SharedMemory::<f32>::new(comptime!(block * (layout.head_dim + 1)));
    let mut g = SharedMemory::<f32>::new(comptime!(block * (layout.head_dim + 1)));
    let mut k = SharedMemory::<f32>::new(comptime!(block * (layout.head_dim + 1)));
    let mut v = SharedMemory::<f32>::new(comptime!(block * (layout.head_dim + 1)));
    let mut ds = SharedMemory::<f32>::new(comptime!(block * (block + 1)));
    let mut sums = Array::<f32>::new(share);
    #[unroll]
    for i in 0..share {
        sums[i] = 0.0f32;
    }
    load_rows(
        &mut q,
        qkv,
        first,
        queries,
        width,
        head * head_dim,
        scale,
        head_dim,
        block,
    );
    load_rows(
        &mut g,
        grad,
        first,
        queries,
        q_width,
        head * head_dim,
        1.0f32,
        head_dim,
        block,
    );
    let mut key = table[at + 5] as usize;
    while key < keys {
        load_keys(
            &mut k, qkv, key, keys, own, context, before, width, kv_column, head_dim, block,
        );
        load_keys(
            &mut v,
            qkv,
            key,
            keys,
            own,
            context,
            before,
            width,
            kv_column + kv_width,
            head_dim,
            block,
        );
        sync_cube();
        let mut e = unit;
        while e < block * block {
            let (r, c) = (e / block, e % block);
            let mut value = 0.0f32;
            if r < queries && sees(position + r, key + c, keys, window, layout) {
                let score = capped(dot(&q, r, &k, c, head_dim), cap, layout);
                let sum = biased(score, table, head, position + r, key + c, layout);
                let p = f32::exp(sum - lse[of_head + r]);
                value = p * (dot(&g, r, &v, c, head_dim) - terms[of_head + r]);
                value *= slope(score, cap, layout);
            }
            ds[r * (block + 1) + c] = value;
            e += UNITS;
        }
        sync_cube();
        #[unroll]
        for i in 0..share {
            let e = unit + i * UNITS;
            if e < block * head_dim {
                let (r, c) = (e / head_dim, e % head_dim);
                let mut sum = sums[i];
                for j in 0..block {
                    sum += ds[r * (block + 1) + j] * k[j * (head_dim + 1) + c];
                }
                sums[i] = sum;
            }
        }
        sync_cube();
        key += block;
    }
    #[unroll]
    for i in 0..share {
        let e = unit + i * UNITS;
        let (r, c) = (e / head_dim, e % head_dim);
        if r < queries {
            dqkv[(first + r) * width + head * head_dim + c] = sums[i] * scale;
        }
    }
}

#[cube(launch)]
fn key_value_gradient(
    qkv: &Array<f32>,
    grad: &Array<f32>,
    lse: &Array<f32>,
    terms: &Array<f32>,
    table: &Array<u32>,
    dqkv: &mut Array<f32>,
    tokens: u32,
    scale: f32,
    window: u32,
    cap: f32,
    #[comptime] layout: Heads,
    #[comptime] block: usize,
) {
    let head_dim = comptime!(layout.head_dim);
    let q_width = comptime!(layout.heads * layout.head_dim);
    let kv_width = comptime!(layout.kv_heads * layout.head_dim);
    let width = comptime!(q_width + 2 * kv_width);
    let group = comptime!(layout.heads / layout.kv_heads);
    let share = comptime!((block * layout.head_dim).div_ceil(UNITS));

    let unit = UNIT_POS_X as usize;
    let kv_head = CUBE_POS_Y as usize;
    let kv_column = q_width + kv_head * head_dim;
    let at = comptime!(layout.slopes) + CUBE_POS_X as usize * KEY_FIELDS;
    let first = table[at] as usize;
    let keys = table[at + 1] as usize;
    let mut range = comptime!(layout.slopes) + table[at + 2] as usize;
    let ranges_end = range + table[at + 3] as usize * RANGE_FIELDS;

    let mut q = SharedMemory::<f32>::new(comptime!(block * (layout.head_dim + 1)));
    let mut g = SharedMemory::<f32>::new(comptime!(block * (layout.head_dim + 1)));
    let mut k = SharedMemory::<f32>::new(comptime!(block * (layout.head_dim + 1)));
    let mut v = SharedMemory::<f32>::new(comptime!(block * (layout.head_dim + 1)));
    let mut p = SharedMemory::<f32>::new(comptime!(block * (block + 1)));
    let mut ds = SharedMemory::<f32>::new(comptime!(block * (block + 1)));
    let mut of_keys = Array::<f32>::new(share);
    let mut of_values = Array::<f32>::new(share);
    #[unroll]
    for i in 0..share {
        of_keys[i] = 0.0f32;
        of_values[i] = 0.0f32;
    }
    load_rows(
        &mut k, qkv, first, keys, width, kv_column, 1.0f32, head_dim, block,
    );
    load_rows(
        &mut v,
        qkv,
        first,
        keys,
        width,
        kv_column + kv_width,
        1.0f32,
        head_dim,
        block,
    );
    while range < ranges_end {
        let end = table[range + 1] as usize;
        let causal = table[range + 2] == 1;
        let gap = table[range + 3] as usize;
        for member in 0..group {
            let head = kv_head * group + member;
            let of_head = head * tokens as usize;
            let mut query = table[range] as usize;
            while query < end {
                load_rows(
                    &mut q,
                    qkv,
                    query,
                    end - query,
                    width,
                    head * head_dim,
                    scale,
                    head_dim,
                    block,
                );
                load_rows(
                    &mut g,
                    grad,
                    query,
                    end - query,
                    q_width,
                    head * head_dim,
                    1.0f32,
                    head_dim,
                    block,
                );
                sync_cube();
                let mut e = unit;
                while e < block * block {
                    let (r, c) = (e / block, e % block);
                    let mut probability = 0.0f32;
                    let mut value = 0.0f32;
                    let mut seen =
                        query + r < end && c < keys && (!causal || first + c <= query + r);
                    if comptime!(layout.windowed) {
                        seen = seen && query + r < first + c + gap + window as usize;
                    }
                    if seen {
                        let score = capped(dot(&q, r, &k, c, head_dim), cap, layout);
                        let sum = biased(score, table, head, query + r, first + c + gap, layout);
                        probability = f32::exp(sum - lse[of_head + query + r]);
                        value = probability
                            * (dot(&g, r, &v, c, head_dim) - terms[of_head + query + r]);
                        value *= slope(score, cap, layout);
                    }
                    p[r * (block + 1) + c] = probability;
                    ds[r * (block + 1) + c] = value;
                    e += UNITS;
                }
                sync_cube();
                #[unroll]
                for i in 0..share {
                    let e = unit + i * UNITS;
                    if e < block * head_dim {
                        let (r, c) = (e / head_dim, e % head_dim);
                        let mut of_key = of_keys[i];
                        let mut of_value = of_values[i];
                        for j in 0..block {
                            of_value += p[j * (block + 1) + r] * g[j * (head_dim + 1) + c];
                            of_key += ds[j * (block + 1) + r] * q[j * (head_dim + 1) + c];
                        }
                        of_keys[i] = of_key;
                        of_values[i] = of_value;
                    }
                }
                sync_cube();
                query += block;
            }
        }
        range += RANGE_FIELDS;
    }
    #[unroll]
    for i in 0..share {
        let e = unit + i * UNITS;
        let (r, c) = (e / head_dim, e % head_dim);
        if r < keys {
            let to = (first + r) * width + kv_column + c;
            // The queries were scaled.
            dqkv[to] = of_keys[i];
            dqkv[to + kv_width] = of_values[i];
        }
    }
}

pub(super) fn backward<R: CubeRuntime>(
    qkv: CubeTensor<R>,
    output: CubeTensor<R>,
    lse: CubeTensor<R>,
    grad: CubeTensor<R>,
    attend: &Attend,
) -> CubeTensor<R> {
    let layout = attend.layout;
    let (qkv, output) = (into_contiguous(qkv), into_contiguous(output));
    let (lse, grad) = (into_contiguous(lse), into_contiguous(grad));
    let [tokens, width] = dims2(&qkv);
    let dqkv = empty(&qkv, [tokens, width]);
    if tokens == 0 {
        return dqkv;
    }
    let client = qkv.client.clone();
    let terms = empty(&qkv, [layout.heads, tokens]);
    let (count, dim) = entrywise(tokens * layout.heads);
    row_terms::launch::<R>(
        &client,
        count,
        dim,
        output.into_array_arg(),
        grad.clone().into_array_arg(),
        terms.clone().into_array_arg(),
        tokens as u32,
        layout.heads as u32,
        layout.head_dim as u32,
    );
    let queries_block = block(layout.head_dim, 4, 1);
    let blocks = query_blocks(attend, queries_block);
    let cubes = blocks.len() / QUERY_FIELDS;
    let table = tables::table(&qkv, with_slopes(attend, blocks));
    query_gradient::launch::<R>(
        &client,
        CubeCount::Static(cubes as u32, layout.heads as u32, 1),
        CubeDim::new_1d(UNITS as u32),
        qkv.clone().into_array_arg(),
        grad.clone().into_array_arg(),
        lse.clone().into_array_arg(),
        terms.clone().into_array_arg(),
        table.into_array_arg(),
        dqkv.clone().into_array_arg(),
        tokens as u32,
        attend.scale,
        window(attend),
        attend.softcap.unwrap_or(0.0),
        attend.into(),
        queries_block,
    );
    let keys_block = block(layout.head_dim, 4, 2);
    let (cubes, blocks) = key_blocks(attend, keys_block);
    let table = tables::table(&qkv, with_slopes(attend, blocks));
    key_value_gradient::launch::<R>(
        &client,
        CubeCount::Static(cubes as u32, layout.kv_heads as u32, 1),
        CubeDim::new_1d(UNITS as u32),
        qkv.into_array_arg(),
        grad.into_array_arg(),
        lse.into_array_arg(),
        terms.into_array_arg(),
        table.into_array_arg(),
        dqkv.clone().into_array_arg(),
        tokens as u32,
        attend.scale,
        window(attend),
        attend.softcap.unwrap_or(0.0),
        attend.into(),
        keys_block,
    );
    dqkv
}
