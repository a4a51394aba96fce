//! Softmax, its gradient, and cached attention of one query.

use std::ops::Range;

use super::{LANES, dot, exp, max, simd_fn, sum};

/// Numbers from row to row of scores over so many keys: whole vectors, those behind the last key being no key's.
pub(in crate::ops) fn score_stride(keys: usize) -> usize {
    keys.next_multiple_of(LANES)
}

/// Which keys of a block each query of a block sees.
#[derive(Debug, Clone, Copy)]
pub(in crate::ops) struct Visible {
    /// Keys of the block.
    pub(in crate::ops) keys: usize,
    /// Of so many queries the last one sees the keys to the block's end, each one before it one less; 1 if each sees them to the end.
    pub(in crate::ops) queries: usize,
    /// So many keys at the block's beginning are before the first query's window, and one more for each query after it; negative if
    /// the window begins before the block.
    pub(in crate::ops) before_window: isize,
}

impl Visible {
    /// [`Visible::before_window`] of queries without a window.
    pub(in crate::ops) const NO_WINDOW: isize = isize::MIN / 2;

    /// The keys that query `i` sees.
    #[inline(always)]
    fn of(self, i: usize) -> Range<usize> {
        let Self { keys, queries, .. } = self;
        let end = keys - queries + i % queries + 1;
        let start = (self.before_window + i as isize).clamp(0, end as isize);
        start as usize..end
    }
}

simd_fn! {
    /// Scores to probabilities in place, `[queries, score_stride(keys)]`; what a query does not see becomes zero. Returns the
    /// log-sum-exp of each row, negative infinity if it sees none of these keys.
    fn masked_softmax(scores: &'a mut [f32], visible: Visible, scale: f32) -> Vec<f32> {
        let stride = score_stride(visible.keys);
        let mut lse = Vec::with_capacity(scores.len() / stride);
        for (i, row) in scores.chunks_exact_mut(stride).enumerate() {
            let seen = visible.of(i);
            if seen.is_empty() {
                row.fill(0.0);
                lse.push(f32::NEG_INFINITY);
                continue;
            }
            let (row, hidden) = row.split_at_mut(score_stride(seen.end));
            hidden.fill(0.0);
            row[..seen.start].fill(f32::NEG_INFINITY);
            row[seen.end..].fill(f32::NEG_INFINITY);
            let top = max(row) * scale;
            for x in row.iter_mut() {
                *x = exp(*x * scale - top);
            }
            row[..seen.start].fill(0.0);
            row[seen.end..].fill(0.0);
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
    /// Scores to the same probabilities, from the saved log-sum-exp over all keys.
    fn masked_exp(scores: &'a mut [f32], visible: Visible, scale: f32, lse: &'a [f32]) -> () {
        let rows = scores.chunks_exact_mut(score_stride(visible.keys)).zip(lse);
        for (i, (row, &lse)) in rows.enumerate() {
            let seen = visible.of(i);
            let (row, hidden) = row.split_at_mut(score_stride(seen.end));
            hidden.fill(0.0);
            for x in row.iter_mut() {
                *x = exp(*x * scale - lse);
            }
            row[..seen.start].fill(0.0);
            row[seen.end..].fill(0.0);
        }
    }
}

/// tanh to about 2 ulp, branch-free.
#[inline(always)]
fn tanh(x: f32) -> f32 {
    // Near zero the form with exp loses digits; there the seventh convergent of Lambert's continued fraction is exact in f32.
    let square = x * x;
    let above = 135_135.0 + square * (17_325.0 + square * (378.0 + square));
    let below = 135_135.0 + square * (62_370.0 + square * (3_150.0 + square * 28.0));
    let far = 1.0 - 2.0 / (1.0 + exp(2.0 * x));
    if x.abs() < 1.0 {
        x * above / below
    } else {
        far
    }
}

simd_fn! {
    /// Products of queries and keys to capped scores in place, `cap * tanh(x * scale / cap)`.
    fn soft_cap(scores: &'a mut [f32], scale: f32, cap: f32) -> () {
        let inner = scale / cap;
        for x in scores.iter_mut() {
            *x = cap * tanh(*x * inner);
        }
    }
}

simd_fn! {
    /// The derivative of [`soft_cap`] by the scaled product, given its results: `1 - (score / cap)^2`.
    fn soft_cap_slopes(scores: &'a [f32], cap: f32, slopes: &'a mut [f32]) -> () {
        for (slope, score) in slopes.iter_mut().zip(scores) {
            let t = score / cap;
            *slope = 1.0 - t * t;
        }
    }
}

simd_fn! {
    /// Adds ALiBi's bias to scores in place, `x * scale + slope * (key - query)`, rows being `stride` numbers apart; `distance`: from the
    /// first query to the first key.
    fn add_alibi(scores: &'a mut [f32], stride: usize, scale: f32, slope: f32, distance: isize) -> () {
        for (i, row) in scores.chunks_exact_mut(stride).enumerate() {
            let first = (distance - i as isize) as f32;
            for (j, x) in row.iter_mut().enumerate() {
                // A whole number of 32 bits is converted in vectors.
                *x = *x * scale + slope * (first + j as i32 as f32);
            }
        }
    }
}

simd_fn! {
    /// `x *= y`, entry by entry.
    fn multiply(x: &'a mut [f32], y: &'a [f32]) -> () {
        for (x, y) in x.iter_mut().zip(y) {
            *x *= y;
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
    /// Queries of one key head's group (`[group, head_dim]`) over the `len` positions that it sees of its cache, the last one being its
    /// own; `slopes`: ALiBi's, of the group.
    fn decode_head(
        q: &'a [f32], keys: &'a [f32], values: &'a [f32], len: usize, stride: usize, offset: usize, head_dim: usize,
        scale: f32, cap: Option<f32>, slopes: Option<&'a [f32]>, out: &'a mut [f32],
    ) -> () {
        let group = q.len() / head_dim;
        let mut p = vec![0f32; group * len];
        for t in 0..len {
            let key = &keys[t * stride + offset..t * stride + offset + head_dim];
            for j in 0..group {
                p[j * len + t] = dot(&q[j * head_dim..(j + 1) * head_dim], key) * scale;
            }
        }
        if let Some(cap) = cap {
            for x in p.iter_mut() {
                *x = cap * tanh(*x / cap);
            }
        }
        if let Some(slopes) = slopes {
            for (p, slope) in p.chunks_exact_mut(len).zip(slopes) {
                for (t, x) in p.iter_mut().enumerate() {
                    *x += slope * (t as f32 + 1.0 - len as f32);
                }
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

#[cfg(test)]
mod tests {
    use super::*;

    /// tanh in f64; 1e-7 of the value is two units in the last place.
    #[test]
    fn tanh_is_exact_near_zero_and_far_from_it() {
        for x in [
            1e-6f32, 0.01, 0.3, 0.7, 0.999, 1.0, 1.001, 2.0, 5.0, 20.0, 1e4,
        ] {
            for x in [x, -x] {
                let expected = f64::from(x).tanh();
                let off = (f64::from(tanh(x)) - expected).abs() / expected.abs();
                assert!(off < 1.5e-7, "tanh({x}) is {} and not {expected}", tanh(x));
            }
        }
        assert!(tanh(f32::NAN).is_nan());
    }
}
