//! Attention on packed rows: one cube per head and block of queries, with an online softmax over blocks of keys. Memory is linear in
//! the row's length.
//!
//! # Source
//! Dao 2023, arXiv:2307.08691, algorithm 1, without tensor cores.

use burn_cubecl::CubeRuntime;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use super::{dims2, empty, tables};
use crate::ops::{Attend, Mask};

/// Units of one cube.
pub(super) const UNITS: usize = 128;

/// Most numbers in shared memory for the tiles of a kernel: 24 KiB.
const SHARED: usize = 6 * 1024;

/// Block size of queries and keys such that `tiles` tiles of heads and `scores` tiles of scores fit in shared memory.
pub(super) fn block(head_dim: usize, tiles: usize, scores: usize) -> usize {
    let fits = |b: &usize| tiles * b * (head_dim + 1) + scores * b * (b + 1) <= SHARED;
    [32, 16, 8, 4].into_iter().find(fits).unwrap_or(2)
}

/// Head layout and compile-time settings of an [`Attend`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Heads {
    pub(super) heads: usize,
    pub(super) kv_heads: usize,
    pub(super) head_dim: usize,
    /// Whether the mask is causal.
    pub(super) causal: bool,
    /// Whether there is a window; its length is an argument of kernels, 0 without one.
    pub(super) windowed: bool,
    /// Whether scores are capped; the cap is an argument of kernels, 0 without one.
    pub(super) capped: bool,
    /// Numbers before the entries of a kernel's table: with ALiBi a slope for each query head, see [`with_slopes`]; otherwise none.
    pub(super) slopes: usize,
}

impl From<&Attend> for Heads {
    fn from(attend: &Attend) -> Self {
        Self {
            heads: attend.layout.heads,
            kv_heads: attend.layout.kv_heads,
            head_dim: attend.layout.head_dim,
            causal: attend.mask != Mask::Full,
            windowed: window(attend) > 0,
            capped: attend.softcap.is_some(),
            slopes: attend.alibi.as_ref().map_or(0, |slopes| slopes.len()),
        }
    }
}

/// Length of the window in tokens; 0 without one.
pub(super) fn window(attend: &Attend) -> u32 {
    match attend.mask {
        // A window longer than any row has no effect.
        Mask::Window(n) => u32::try_from(n).unwrap_or(0),
        Mask::Causal | Mask::Full => 0,
    }
}

/// A kernel's table after the bits of ALiBi's slopes, if there are any.
pub(super) fn with_slopes(attend: &Attend, table: Vec<u32>) -> Vec<u32> {
    match &attend.alibi {
        Some(slopes) => slopes.iter().map(|x| x.to_bits()).chain(table).collect(),
        None => table,
    }
}

/// A score with ALiBi's bias: the head's slope for each token from the query to the key.
#[cube]
pub(super) fn biased(
    score: f32,
    table: &Array<u32>,
    head: usize,
    query: usize,
    key: usize,
    #[comptime] layout: Heads,
) -> f32 {
    let mut sum = score;
    if comptime!(layout.slopes > 0) {
        let distance = f32::cast_from(key as u32) - f32::cast_from(query as u32);
        sum = score + f32::reinterpret(table[head]) * distance;
    }
    sum
}

/// The score for a scaled product.
#[cube]
pub(super) fn capped(product: f32, cap: f32, #[comptime] layout: Heads) -> f32 {
    let mut score = product;
    if comptime!(layout.capped) {
        score = cap * tanh(product / cap);
    }
    score
}

/// tanh without overflow on any driver, and exact near zero: Lambert's continued fraction to the seventh term.
#[cube]
fn tanh(x: f32) -> f32 {
    let mut y = 1.0f32 - 2.0f32 / (1.0f32 + f32::exp(2.0f32 * x));
    if x > 40.0f32 {
        y = 1.0f32;
    }
    let square = x * x;
    if square < 1.0f32 {
        let above = 135_135.0f32 + square * (17_325.0f32 + square * (378.0f32 + square));
        let below =
            135_135.0f32 + square * (62_370.0f32 + square * (3_150.0f32 + square * 28.0f32));
        y = x * above / below;
    }
    y
}

/// A table entry of a block of queries: first query, number of queries, the row's first token, its context's first token, the
/// context's length, and first and end of the keys that they attend to, as positions in the row.
pub(super) const QUERY_FIELDS: usize = 7;

/// The blocks of queries of a packed batch, [`QUERY_FIELDS`] numbers each.
pub(super) fn query_blocks(attend: &Attend, block: usize) -> Vec<u32> {
    let mut table = Vec::new();
    for span in attend.segments.spans() {
        for first in span.own.clone().step_by(block) {
            let queries = block.min(span.own.end - first);
            let position = span.context.len() + first - span.own.start;
            let seen = |position| attend.mask.seen(position, span.len());
            let fields = [
                first,
                queries,
                span.own.start,
                span.context.start,
                span.context.len(),
                seen(position).start,
                seen(position + queries - 1).end,
            ];
            table.extend(fields.map(|field| field as u32));
        }
    }
    table
}

/// Copies `block` rows of one head, times `factor`, into shared memory: row `r` is token `first + r` of `matrix`; zeros from row
/// `rows` on.
#[cube]
pub(super) fn load_rows(
    tile: &mut SharedMemory<f32>,
    matrix: &Array<f32>,
    first: usize,
    rows: usize,
    width: usize,
    column: usize,
    factor: f32,
    #[comptime] head_dim: usize,
    #[comptime] block: usize,
) {
    let mut e = UNIT_POS_X as usize;
    while e < block * head_dim {
        let (r, c) = (e / head_dim, e % head_dim);
        let mut value = 0.0f32;
        if r < rows {
            value = matrix[(first + r) * width + column + c] * factor;
        }
        tile[r * (head_dim + 1) + c] = value;
        e += UNITS;
    }
}

/// The same for keys `key..key + block` of a row with its context; zeros from key `keys` on.
#[cube]
pub(super) fn load_keys(
    tile: &mut SharedMemory<f32>,
    matrix: &Array<f32>,
    key: usize,
    keys: usize,
    own: usize,
    context: usize,
    before: usize,
    width: usize,
    column: usize,
    #[comptime] head_dim: usize,
    #[comptime] block: usize,
) {
    let mut e = UNIT_POS_X as usize;
    while e < block * head_dim {
        let (r, c) = (e / head_dim, e % head_dim);
        let j = key + r;
        let mut value = 0.0f32;
        if j < keys {
            let mut token = context + j;
            if j >= before {
                token = own + j - before;
            }
            value = matrix[token * width + column + c];
        }
        tile[r * (head_dim + 1) + c] = value;
        e += UNITS;
    }
}

/// Product of row `r` of one tile and row `c` of another.
#[cube]
pub(super) fn dot(
    left: &SharedMemory<f32>,
    r: usize,
    right: &SharedMemory<f32>,
    c: usize,
    #[comptime] head_dim: usize,
) -> f32 {
    let (left_at, right_at) = (r * (head_dim + 1), c * (head_dim + 1));
    let mut sum = 0.0f32;
    for i in 0..head_dim {
        sum += left[left_at + i] * right[right_at + i];
    }
    sum
}

/// Whether the query at `position` attends to `key`; `keys` is the end of the keys of its block.
#[cube]
pub(super) fn sees(
    position: usize,
    key: usize,
    keys: usize,
    window: u32,
    #[comptime] layout: Heads,
) -> bool {
    let mut seen = key < keys;
    if comptime!(layout.causal) {
        seen = key <= position;
    }
    if comptime!(layout.windowed) {
        seen = seen && position < key + window as usize;
    }
    seen
}

#[cube(launch)]
fn attention_forward(
    qkv: &Array<f32>,
    table: &Array<u32>,
    output: &mut Array<f32>,
    lse: &mut Array<f32>,
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
    // Position in its row of the block's first query.
    let position = before + first - own;
    let keys = table[at + 6] as usize;

    let mut q = SharedMemory::<f32>::new(comptime!(block * (layout.head_dim + 1)));
    let mut kv = SharedMemory::<f32>::new(comptime!(block * (layout.head_dim + 1)));
    let mut scores = SharedMemory::<f32>::new(comptime!(block * (block + 1)));
    let mut largest = SharedMemory::<f32>::new(block);
    let mut total = SharedMemory::<f32>::new(block);
    let mut shrink = SharedMemory::<f32>::new(block);
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
    if unit < block {
        largest[unit] = f32::new(-1e30);
        total[unit] = 0.0f32;
    }
    let mut key = table[at + 5] as usize;
    while key < keys {
        load_keys(
            &mut kv, qkv, key, keys, own, context, before, width, kv_column, head_dim, block,
        );
        sync_cube();
        let mut e = unit;
        while e < block * block {
            let (r, c) = (e / block, e % block);
            let mut score = f32::new(-1e30);
            if sees(position + r, key + c, keys, window, layout) {
                score = capped(dot(&q, r, &kv, c, head_dim), cap, layout);
                score = biased(score, table, head, position + r, key + c, layout);
            }
            scores[r * (block + 1) + c] = score;
            e += UNITS;
        }
        sync_cube();
        load_keys(
            &mut kv,
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
        if unit < block {
            let old = largest[unit];
            let mut new = old;
            for c in 0..block {
                let score = scores[unit * (block + 1) + c];
                if score > new {
                    new = score;
                }
            }
            let mut sum = 0.0f32;
            for c in 0..block {
                let p = f32::exp(scores[unit * (block + 1) + c] - new);
                scores[unit * (block + 1) + c] = p;
                sum += p;
            }
            let factor = f32::exp(old - new);
            shrink[unit] = factor;
            total[unit] = total[unit] * factor + sum;
            largest[unit] = new;
        }
        sync_cube();
        #[unroll]
        for i in 0..share {
            let e = unit + i * UNITS;
            if e < block * head_dim {
                let (r, c) = (e / head_dim, e % head_dim);
                let mut sum = sums[i] * shrink[r];
                for j in 0..block {
                    sum += scores[r * (block + 1) + j] * kv[j * (head_dim + 1) + c];
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
            output[(first + r) * q_width + head * head_dim + c] = sums[i] / total[r];
        }
    }
    if unit < queries {
        lse[head * tokens as usize + first + unit] = largest[unit] + f32::ln(total[unit]);
    }
}

pub(super) fn forward<R: CubeRuntime>(
    qkv: CubeTensor<R>,
    attend: &Attend,
) -> (CubeTensor<R>, CubeTensor<R>) {
    let (qkv, layout) = (into_contiguous(qkv), attend.layout);
    let [tokens, _] = dims2(&qkv);
    let output = empty(&qkv, [tokens, layout.q_width()]);
    let lse = empty(&qkv, [layout.heads, tokens]);
    let block = block(layout.head_dim, 2, 1);
    let blocks = query_blocks(attend, block);
    if !blocks.is_empty() {
        let cubes = blocks.len() / QUERY_FIELDS;
        let table = tables::table(&qkv, with_slopes(attend, blocks));
        attention_forward::launch::<R>(
            &qkv.client.clone(),
            CubeCount::Static(cubes as u32, layout.heads as u32, 1),
            CubeDim::new_1d(UNITS as u32),
            qkv.into_array_arg(),
            table.into_array_arg(),
            output.clone().into_array_arg(),
            lse.clone().into_array_arg(),
            tokens as u32,
            attend.scale,
            window(attend),
            attend.softcap.unwrap_or(0.0),
            attend.into(),
            block,
        );
    }
    (output, lse)
}
