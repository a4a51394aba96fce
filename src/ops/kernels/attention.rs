//! Softmax, its gradient, and cached attention of one query.

use super::{dot, exp, max, simd_fn, sum};

simd_fn! {
    /// Scores to causal probabilities in place, `[queries, keys]` for each head; the last query sees all keys, each one
    /// before it one less. Returns the log-sum-exp of each row.
    fn causal_softmax(scores: &'a mut [f32], queries: usize, keys: usize, scale: f32) -> Vec<f32> {
        let mut lse = Vec::with_capacity(scores.len() / keys);
        for (i, row) in scores.chunks_exact_mut(keys).enumerate() {
            let (seen, hidden) = row.split_at_mut(keys - queries + i % queries + 1);
            let top = max(seen) * scale;
            for x in seen.iter_mut() {
                *x = exp(*x * scale - top);
            }
            let z = sum(seen);
            for x in seen.iter_mut() {
                *x /= z;
            }
            hidden.fill(0.0);
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
        for (i, (row, &lse)) in scores.chunks_exact_mut(keys).zip(lse).enumerate() {
            let (seen, hidden) = row.split_at_mut(keys - queries + i % queries + 1);
            for x in seen.iter_mut() {
                *x = exp(*x * scale - lse);
            }
            hidden.fill(0.0);
        }
    }
}

simd_fn! {
    /// `dP` to `dS` in place: `p * (dp - rowsum(o * do)) * scale`.
    fn softmax_backward(
        ds: &'a mut [f32], p: &'a [f32], o: &'a [f32], go: &'a [f32], keys: usize, head_dim: usize, scale: f32,
    ) -> () {
        let rows = ds.chunks_exact_mut(keys).zip(p.chunks_exact(keys));
        for (((ds, p), o), go) in rows.zip(o.chunks_exact(head_dim)).zip(go.chunks_exact(head_dim)) {
            let delta = dot(o, go);
            for t in 0..keys {
                ds[t] = p[t] * (ds[t] - delta) * scale;
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

/// `[heads, len, head_dim]` copy of the heads that start at `column` of the rows `row..row + len`.
pub(in crate::ops) fn gather_heads(
    matrix: &[f32],
    width: usize,
    rows: std::ops::Range<usize>,
    column: usize,
    heads: usize,
    head_dim: usize,
) -> Vec<f32> {
    let mut out = Vec::with_capacity(heads * rows.len() * head_dim);
    for head in 0..heads {
        for row in rows.clone() {
            let from = row * width + column + head * head_dim;
            out.extend_from_slice(&matrix[from..from + head_dim]);
        }
    }
    out
}
