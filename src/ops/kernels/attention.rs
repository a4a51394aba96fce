//! Softmax, its gradient, and cached attention of one query.

use super::{LANES, dot, exp, max, simd_fn, sum};

/// Numbers from row to row of scores over so many keys: whole vectors, those behind the last key being no key's.
pub(in crate::ops) fn score_stride(keys: usize) -> usize {
    keys.next_multiple_of(LANES)
}

/// The keys that query `i` of a block sees, of `keys` that the last one sees, each one before it one less.
#[inline(always)]
fn seen(keys: usize, queries: usize, i: usize) -> usize {
    keys - queries + i % queries + 1
}

simd_fn! {
    /// Scores to causal probabilities in place, `[queries, score_stride(keys)]`; the last query sees all keys, each one before it
    /// one less, and what it does not see becomes zero. Returns the log-sum-exp of each row.
    fn causal_softmax(scores: &'a mut [f32], queries: usize, keys: usize, scale: f32) -> Vec<f32> {
        let stride = score_stride(keys);
        let mut lse = Vec::with_capacity(scores.len() / stride);
        for (i, row) in scores.chunks_exact_mut(stride).enumerate() {
            let seen = seen(keys, queries, i);
            let (row, hidden) = row.split_at_mut(score_stride(seen));
            hidden.fill(0.0);
            row[seen..].fill(f32::NEG_INFINITY);
            let top = max(row) * scale;
            for x in row.iter_mut() {
                *x = exp(*x * scale - top);
            }
            row[seen..].fill(0.0);
            let z = sum(row);
            let share = 1.0 / z;
            for x in row.iter_mut() {
                *x *= share;
            }
            lse.push(top + z.ln());
        }
        lse
    }
}

simd_fn! {
    /// Scores to the same probabilities, from the saved log-sum-exp.
    fn causal_exp(
        scores: &'a mut [f32], queries: usize, keys: usize, scale: f32, lse: &'a [f32],
    ) -> () {
        let rows = scores.chunks_exact_mut(score_stride(keys)).zip(lse);
        for (i, (row, &lse)) in rows.enumerate() {
            let seen = seen(keys, queries, i);
            let (row, hidden) = row.split_at_mut(score_stride(seen));
            hidden.fill(0.0);
            for x in row.iter_mut() {
                *x = exp(*x * scale - lse);
            }
            row[seen..].fill(0.0);
        }
    }
}

simd_fn! {
    /// Products of the first `columns` numbers of each of `rows` rows of `a` and `b`, rows being `width` numbers apart.
    fn row_dots(a: &'a [f32], b: &'a [f32], width: usize, columns: usize, rows: usize) -> Vec<f32> {
        let mut dots = vec![0f32; rows];
        // No closure: it would be compiled for any CPU.
        for ((sum, a), b) in dots.iter_mut().zip(a.chunks(width)).zip(b.chunks(width)) {
            *sum = dot(&a[..columns], &b[..columns]);
        }
        dots
    }
}

simd_fn! {
    /// `dP` to `dS` in place, rows as scores: `p * (dp - delta) * scale`, `delta` being the row's product of output and its gradient.
    fn softmax_backward(ds: &'a mut [f32], p: &'a [f32], deltas: &'a [f32], scale: f32) -> () {
        let stride = ds.len() / deltas.len();
        let rows = ds.chunks_exact_mut(stride).zip(p.chunks_exact(stride));
        for ((ds, p), delta) in rows.zip(deltas) {
            for (ds, p) in ds.iter_mut().zip(p) {
                *ds = p * (*ds - delta) * scale;
            }
        }
    }
}

simd_fn! {
    /// Queries of one key head's group (`[group, head_dim]`) over the `len` positions of its cache.
    fn decode_head(
        q: &'a [f32], keys: &'a [f32], values: &'a [f32], len: usize, stride: usize, offset: usize, head_dim: usize,
        scale: f32, out: &'a mut [f32],
    ) -> () {
        let group = q.len() / head_dim;
        let mut p = vec![0f32; group * len];
        for t in 0..len {
            let key = &keys[t * stride + offset..t * stride + offset + head_dim];
            for j in 0..group {
                p[j * len + t] = dot(&q[j * head_dim..(j + 1) * head_dim], key) * scale;
            }
        }
        for p in p.chunks_exact_mut(len) {
            let top = max(p);
            for x in p.iter_mut() {
                *x = exp(*x - top);
            }
            let z = sum(p);
            for x in p.iter_mut() {
                *x /= z;
            }
        }
        out.fill(0.0);
        for t in 0..len {
            let value = &values[t * stride + offset..t * stride + offset + head_dim];
            for j in 0..group {
                let w = p[j * len + t];
                let out = &mut out[j * head_dim..(j + 1) * head_dim];
                for i in 0..head_dim {
                    out[i] = w.mul_add(value[i], out[i]);
                }
            }
        }
    }
}
