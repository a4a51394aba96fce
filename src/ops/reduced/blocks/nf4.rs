//! NF4 with double quantisation, the numbers of bitsandbytes to the bit.
//!
//! # Source
//! Dettmers et al. 2023, arXiv:2305.14314, sections 3 and "Double Quantization"; the map of the scales: Dettmers et al. 2022,
//! arXiv:2110.02861, section 2.1 (dynamic tree quantisation). Rounding and order of operations are bitsandbytes' on a CPU.

use std::sync::{Arc, LazyLock};

use rayon::prelude::*;

use super::BlockFormat;
use super::scales::NESTED;

/// Quantiles of a normal distribution on [-1, 1], zero among them.
pub(in crate::ops) const NF4: [f32; 16] = [
    -1.0,
    -0.696_192_8,
    -0.525_073_05,
    -0.394_917_5,
    -0.284_441_38,
    -0.184_773_43,
    -0.091_050_036,
    0.0,
    0.079_580_3,
    0.160_930_2,
    0.246_112_3,
    0.337_915_24,
    0.440_709_83,
    0.562_617,
    0.722_956_84,
    1.0,
];

/// The largest absolute value of each block of a tensor, as it is stored.
#[derive(Debug, Clone)]
pub enum NestedAbsmax {
    /// In f32.
    Plain(Vec<f32>),
    /// `map[code] * absmax + offset`, `absmax` being that of the block's group of 256.
    Nested {
        /// A code for each block.
        codes: Vec<u8>,
        /// Of each group of 256 blocks.
        absmax: Vec<f32>,
        /// The numbers of the codes, in ascending order.
        map: Arc<[f32; 256]>,
        /// The mean of what was rounded.
        offset: f32,
    },
}

/// Codes of all numbers and the largest absolute value of each block of 64; the last block may be shorter.
///
/// The nearest quantile counts, of two equally near ones the lower. A block of zeros has code 0 throughout: its scale is zero.
pub fn nf4_codes(values: &[f32]) -> (Vec<u8>, Vec<f32>) {
    const LEN: usize = BlockFormat::Nf4.len();
    let mut codes = vec![0u8; values.len()];
    let mut absmax = vec![0f32; values.len().div_ceil(LEN)];
    codes
        .par_chunks_mut(LEN)
        .zip(&mut absmax)
        .zip(values.par_chunks(LEN))
        .for_each(|((codes, absmax), values)| {
            *absmax = values.iter().fold(0f32, |most, x| most.max(x.abs()));
            if *absmax == 0.0 {
                return;
            }
            let inverse = 1.0 / *absmax;
            for (code, x) in codes.iter_mut().zip(values) {
                *code = nearest(&NF4, (x * inverse).clamp(-1.0, 1.0));
            }
        });
    (codes, absmax)
}

/// Double quantisation of the scales: their mean, and what differs from it in 8 bits, in groups of 256 with a scale.
pub fn nf4_nested(absmax: &[f32]) -> NestedAbsmax {
    // bitsandbytes sums in f32, in an order that goes by the threads of the machine; the last bit of the mean may differ.
    let sum: f64 = absmax.iter().map(|&x| f64::from(x)).sum();
    nested_from(absmax, (sum / absmax.len().max(1) as f64) as f32)
}

/// [`nf4_nested`] with a mean that is given.
pub(super) fn nested_from(absmax: &[f32], offset: f32) -> NestedAbsmax {
    let map = &*DYNAMIC;
    let mut codes = Vec::with_capacity(absmax.len());
    let mut groups = Vec::new();
    for group in absmax.chunks(NESTED) {
        let off = |x: &f32| x - offset;
        let largest = group.iter().fold(0f32, |most, x| most.max(off(x).abs()));
        codes.extend(group.iter().map(|x| match largest {
            0.0 => nearest(map.as_slice(), 0.0),
            largest => nearest(map.as_slice(), off(x) / largest),
        }));
        groups.push(largest);
    }
    NestedAbsmax::Nested {
        codes,
        absmax: groups,
        map: Arc::clone(map),
        offset,
    }
}

/// The place of the nearest number of an ascending list, of two equally near ones the lower.
fn nearest(map: &[f32], x: f32) -> u8 {
    let above = map.partition_point(|&number| number <= x);
    let place = match (above.checked_sub(1), map.get(above)) {
        (None, _) => 0,
        (Some(below), Some(right)) if right - x < x - map[below] => below + 1,
        (Some(below), _) => below,
    };
    place as u8
}

/// The map of signed 8-bit scales: a decimal exponent of -6 to 0 in as many bits as it takes, and a fraction in the rest.
static DYNAMIC: LazyLock<Arc<[f32; 256]>> = LazyLock::new(|| {
    const EXPONENTS: i32 = 7;
    let mut numbers = vec![0f32, 1.0];
    for i in 0..EXPONENTS {
        let count = 1usize << i;
        let power = 10f64.powi(i - (EXPONENTS - 1)) as f32;
        for fraction in 0..count {
            let mean = (boundary(fraction, count) + boundary(fraction + 1, count)) / 2.0;
            numbers.extend([power * mean, -(power * mean)]);
        }
    }
    numbers.sort_by(f32::total_cmp);
    let map: [f32; 256] = numbers
        .try_into()
        .expect("2 + 2 * (1 + 2 + .. + 64) numbers");
    Arc::new(map)
});

/// Boundary `i` of `count` equal parts of [0.1, 1], as `torch.linspace` rounds it: once, from the nearer end.
fn boundary(i: usize, count: usize) -> f32 {
    let step = (1.0f32 - 0.1) / count as f32;
    match i < count.div_ceil(2) {
        true => step.mul_add(i as f32, 0.1),
        false => (-step).mul_add((count - i) as f32, 1.0),
    }
}
