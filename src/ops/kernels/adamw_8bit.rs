//! AdamW with moments in 8 bits, over all parameters at once.

use std::sync::LazyLock;

use rayon::prelude::*;

use super::simd_fn;
use crate::ops::AdamWStep;
use crate::ops::adamw_8bit::{BLOCK, DynamicMap, MAPS, WORDS};

/// Blocks of a task.
const TASK: usize = 64;

/// A moment of a parameter, or of a piece of one.
pub(in crate::ops) struct ByteMomentPart<'a> {
    pub(in crate::ops) words: &'a mut [i32],
    pub(in crate::ops) absmax: &'a mut [f32],
}

/// A parameter, or a piece of one.
pub(in crate::ops) struct AdamW8bitPart<'a> {
    pub(in crate::ops) value: &'a mut [f32],
    pub(in crate::ops) grad: &'a [f32],
    pub(in crate::ops) moments: [ByteMomentPart<'a>; 2],
    /// Factor on the old value.
    pub(in crate::ops) keep: f32,
}

/// A map, and how many of its midpoints lie below every number with the same upper 16 bits: at most one more lies below any of
/// them.
pub(in crate::ops) struct Rounding {
    map: &'static DynamicMap,
    below: Vec<u8>,
}

static ROUNDINGS: LazyLock<[Rounding; 2]> = LazyLock::new(|| {
    let [signed, unsigned] = &*MAPS;
    [signed, unsigned].map(|map| {
        let below = (0..=u16::MAX).map(|upper| {
            let negative = upper >> 15 == 1;
            let least = f32::from_bits(u32::from(upper) << 16 | if negative { 0xffff } else { 0 });
            // Not-a-number is above nothing.
            map.midpoints.partition_point(|midpoint| *midpoint < least) as u8
        });
        Rounding {
            map,
            below: below.collect(),
        }
    })
});

impl Rounding {
    /// The code of a number from -1 to 1.
    #[inline(always)]
    fn code(&self, x: f32) -> u8 {
        let below = self.below[(x.to_bits() >> 16) as usize];
        match self.map.midpoints.get(usize::from(below)) {
            Some(midpoint) => below + u8::from(x > *midpoint),
            None => below,
        }
    }

    #[inline(always)]
    fn unpack(&self, words: &[i32], absmax: f32, out: &mut [f32; BLOCK]) {
        for (i, word) in words.iter().enumerate() {
            for (k, code) in word.to_le_bytes().into_iter().enumerate() {
                out[i + k * WORDS] = self.map.values[usize::from(code)] * absmax;
            }
        }
    }

    #[inline(always)]
    fn pack(&self, x: &[f32; BLOCK], words: &mut [i32]) -> f32 {
        let absmax = x
            .iter()
            .fold(0f32, |most, x| if x.abs() > most { x.abs() } else { most });
        let scale = if absmax == 0.0 { 1.0 } else { absmax };
        for (i, word) in words.iter_mut().enumerate() {
            *word = i32::from_le_bytes([0, 1, 2, 3].map(|k| self.code(x[i + k * WORDS] / scale)));
        }
        absmax
    }
}

/// One AdamW update of all parts in place.
pub(in crate::ops) fn adamw_8bit(parts: Vec<AdamW8bitPart<'_>>, step: AdamWStep) {
    let pieces: Vec<_> = (parts.into_iter())
        .flat_map(|part| {
            let values = part.value.chunks_mut(TASK * BLOCK);
            let values = values.zip(part.grad.chunks(TASK * BLOCK));
            let [m, v] = part.moments.map(|moment| {
                let words = moment.words.chunks_mut(TASK * WORDS);
                words.zip(moment.absmax.chunks_mut(TASK))
            });
            let keep = part.keep;
            (values.zip(m.zip(v))).map(move |(values, moments)| (values, moments, keep))
        })
        .collect();
    let [signed, unsigned] = &*ROUNDINGS;
    (pieces.into_par_iter()).for_each(|((w, g), ((m, m_max), (v, v_max)), keep)| {
        piece(w, g, m, m_max, v, v_max, signed, unsigned, keep, step);
    });
}

simd_fn! {
    fn piece(
        w: &'a mut [f32], g: &'a [f32], m_words: &'a mut [i32], m_max: &'a mut [f32], v_words: &'a mut [i32],
        v_max: &'a mut [f32], signed: &'a Rounding, unsigned: &'a Rounding, keep: f32, s: AdamWStep,
    ) -> () {
        let [(decay1, share1), (decay2, share2)] = s.moment_factors();
        let (c1, c2) = (1.0 / s.bias_correction1, 1.0 / s.bias_correction2);
        let blocks = w.chunks_mut(BLOCK).zip(g.chunks(BLOCK));
        let m_blocks = m_words.chunks_mut(WORDS).zip(m_max);
        let v_blocks = v_words.chunks_mut(WORDS).zip(v_max);
        let (mut m, mut v) = ([0f32; BLOCK], [0f32; BLOCK]);
        for (((w, g), (m_words, m_max)), (v_words, v_max)) in blocks.zip(m_blocks).zip(v_blocks) {
            signed.unpack(m_words, *m_max, &mut m);
            unsigned.unpack(v_words, *v_max, &mut v);
            let n = w.len();
            let (w, g) = (&mut w[..n], &g[..n]);
            // What follows a parameter's end stays zero.
            m[n..].fill(0.0);
            v[n..].fill(0.0);
            for i in 0..n {
                let grad = g[i] * s.grad_scale;
                m[i] = decay1 * m[i] + share1 * grad;
                v[i] = decay2 * v[i] + share2 * grad * grad;
                w[i] = w[i] * keep - s.lr * (m[i] * c1) / ((v[i] * c2).sqrt() + s.eps);
            }
            *m_max = signed.pack(&m, m_words);
            *v_max = unsigned.pack(&v, v_words);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Against the number of midpoints below, at every midpoint, every value, and the numbers next to them.
    #[test]
    fn codes_are_those_of_the_nearest_value() {
        for rounding in &*ROUNDINGS {
            let map = rounding.map;
            let near = |x: &f32| [x.next_down(), *x, x.next_up()];
            let numbers = map.midpoints.iter().chain(&map.values).flat_map(near);
            let sweep = (-4000..=4000).map(|i| i as f32 / 4000.0);
            for x in numbers.chain(sweep) {
                let expected = map
                    .midpoints
                    .iter()
                    .filter(|midpoint| x > **midpoint)
                    .count();
                assert_eq!(usize::from(rounding.code(x)), expected, "{x:e}");
            }
        }
    }
}
