//! The AdamW update of parameters whose moments are kept in 8 bits.

use std::sync::LazyLock;

use burn::tensor::backend::Backend;
use burn::tensor::ops::{FloatTensor, IntTensor};
use burn::tensor::{Int, IntDType, Tensor, TensorMetadata};

use super::AdamWStep;
use super::tensor::{unwrap, wrap};
use crate::host;

/// Entries that share a scale.
pub const BLOCK: usize = 256;

/// Codes in a word.
const IN_WORD: usize = 4;

/// Words of a block.
pub(in crate::ops) const WORDS: usize = BLOCK / IN_WORD;

/// A moment in 8 bits, in blocks of [`BLOCK`] entries of the flattened parameter; the last block is filled with zeros.
#[derive(Debug, Clone)]
pub struct ByteMoment<B: Backend> {
    /// Codes, `[blocks, 64]` words of 32 bits. Word `i` holds those of entries `i`, `i + 64`, `i + 128` and `i + 192` of its block, the
    /// first of them lowest.
    pub words: IntTensor<B>,
    /// Largest magnitude of each block, `[blocks]`.
    pub absmax: FloatTensor<B>,
}

/// A parameter that is updated.
#[derive(Debug, Clone)]
pub struct AdamW8bitParam<B: Backend> {
    /// Its numbers. Updated in place where nothing else holds them, like the moments.
    pub value: FloatTensor<B>,
    /// Before [`AdamWStep::grad_scale`].
    pub grad: FloatTensor<B>,
    /// First and second moment.
    pub moments: [ByteMoment<B>; 2],
    /// Whether it decays.
    pub decays: bool,
}

/// An updated parameter: its numbers and both moments.
pub type AdamW8bitResult<B> = (FloatTensor<B>, [ByteMoment<B>; 2]);

/// What the 256 codes stand for, as a part of a block's largest magnitude: seven decades, in each of which twice as many numbers lie
/// at equal distances as in the one below, then 0 and 1.
///
/// # Source
/// Dettmers et al. 2022, arXiv:2110.02861, section 2.2 (dynamic tree quantisation); `create_dynamic_map` of bitsandbytes.
#[derive(Debug)]
pub(in crate::ops) struct DynamicMap {
    /// In ascending order.
    pub(in crate::ops) values: [f32; 256],
    /// Between each and the next: a number is rounded up from there.
    pub(in crate::ops) midpoints: [f32; 255],
}

/// That of the first moment, which has a sign, and of the second, which has none.
pub(in crate::ops) static MAPS: LazyLock<[DynamicMap; 2]> =
    LazyLock::new(|| [true, false].map(DynamicMap::new));

impl DynamicMap {
    fn new(signed: bool) -> Self {
        const DECADES: i32 = 7;
        let mut values = vec![0.0, 1.0];
        for decade in 0..DECADES {
            let count = if signed { 1 << decade } else { 2 << decade };
            let scale = 10f64.powi(decade - DECADES + 1);
            let edge = |i: usize| 0.1 + 0.9 * i as f64 / count as f64;
            for i in 0..count {
                let value = (scale * (edge(i) + edge(i + 1)) / 2.0) as f32;
                values.push(value);
                if signed {
                    values.push(-value);
                }
            }
        }
        values.sort_by(f32::total_cmp);
        let values: [f32; 256] = values.try_into().expect("256 values");
        Self {
            midpoints: std::array::from_fn(|i| (values[i] + values[i + 1]) / 2.0),
            values,
        }
    }
}

/// The moment in f32, `[blocks, BLOCK]`.
fn unpacked<B: Backend>(moment: ByteMoment<B>, map: &DynamicMap) -> Tensor<B, 2> {
    let absmax = wrap::<B, 1>(moment.absmax);
    let device = absmax.device();
    let blocks = absmax.dims()[0];
    let codes = (0..IN_WORD as i64).map(|k| {
        let shifted = B::bitwise_right_shift_scalar(moment.words.clone(), (8 * k).into());
        let code = B::bitwise_and_scalar(shifted, 255i64.into());
        Tensor::<B, 2, Int>::from_primitive(code)
    });
    let codes = Tensor::cat(codes.collect(), 1).reshape([blocks * BLOCK]);
    let values = host::floats::<B>(&map.values, &device).select(0, codes);
    values.reshape([blocks, BLOCK]) * absmax.reshape([blocks, 1])
}

/// A moment in 8 bits: each entry as the nearest value of the map.
fn packed<B: Backend>(moment: Tensor<B, 2>, map: &DynamicMap) -> ByteMoment<B> {
    let [blocks, _] = moment.dims();
    let absmax = moment.clone().abs().max_dim(1);
    // A block of zeros has no scale.
    let scale = absmax
        .clone()
        .mask_fill(absmax.clone().equal_elem(0.0), 1.0);
    let parts = (moment / scale).reshape([blocks * BLOCK]);
    let midpoints = host::floats::<B>(&map.midpoints, &parts.device());
    // How many midpoints are below it, bit by bit.
    let mut codes: Tensor<B, 1, Int> = parts.zeros_like().int();
    for bit in [128i64, 64, 32, 16, 8, 4, 2, 1] {
        let midpoint = midpoints
            .clone()
            .select(0, codes.clone().add_scalar(bit - 1));
        codes = codes + parts.clone().greater(midpoint).int().mul_scalar(bit);
    }
    let codes = codes.reshape([blocks, BLOCK]);
    // The highest code of a word carries its sign.
    let plane = |k: usize| codes.clone().slice([0..blocks, k * WORDS..(k + 1) * WORDS]);
    let high = plane(3);
    let sign = high.clone().greater_elem(127).int().mul_scalar(256);
    let words = plane(0)
        + plane(1).mul_scalar(1 << 8)
        + plane(2).mul_scalar(1 << 16)
        + (high - sign).mul_scalar(1 << 24);
    ByteMoment {
        words: B::int_cast(words.into_primitive(), IntDType::I32),
        absmax: unwrap(absmax.reshape([blocks])),
    }
}

pub(super) fn portable<B: Backend>(param: AdamW8bitParam<B>, s: AdamWStep) -> AdamW8bitResult<B> {
    let AdamW8bitParam {
        value,
        grad,
        moments: [m, v],
        decays,
    } = param;
    let shape = value.shape();
    let entries = shape.num_elements();
    let blocks = entries.div_ceil(BLOCK);
    let grad = wrap::<B, 1>(B::float_reshape(grad, [entries].into())).mul_scalar(s.grad_scale);
    let missing = blocks * BLOCK - entries;
    let grad = match missing {
        0 => grad,
        _ => {
            let zeros = Tensor::zeros([missing], &grad.device());
            Tensor::cat(vec![grad, zeros], 0)
        }
    };
    let grad = grad.reshape([blocks, BLOCK]);
    let [(decay1, share1), (decay2, share2)] = s.moment_factors();
    let [signed, unsigned] = &*MAPS;
    let m = unpacked(m, signed).mul_scalar(decay1) + grad.clone().mul_scalar(share1);
    let v = unpacked(v, unsigned).mul_scalar(decay2) + grad.square().mul_scalar(share2);
    let root = v.clone().mul_scalar(1.0 / s.bias_correction2).sqrt();
    let step = m.clone().mul_scalar(1.0 / s.bias_correction1) / root.add_scalar(s.eps);
    let step = step
        .reshape([blocks * BLOCK])
        .narrow(0, 0, entries)
        .mul_scalar(s.lr);
    let value = B::float_mul_scalar(value, s.keep(decays).into());
    let value = B::float_sub(value, B::float_reshape(unwrap(step), shape));
    (value, [packed(m, signed), packed(v, unsigned)])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_maps_are_those_of_bitsandbytes() {
        let [signed, unsigned] = &*MAPS;
        // create_dynamic_map(signed=True): the lowest decade has one number of each sign, 0.55e-6, the highest 64.
        let near = |got: f32, want: f32| (got - want).abs() <= 1e-7 * want.abs();
        assert_eq!((signed.values[127], signed.values[255]), (0.0, 1.0));
        assert!(near(signed.values[128], 5.5e-7) && near(signed.values[126], -5.5e-7));
        assert!(near(signed.values[129], 3.25e-6) && near(signed.values[130], 7.75e-6));
        assert!(near(signed.values[0], -0.992_968_74) && near(signed.values[254], 0.992_968_74));
        assert_eq!((unsigned.values[0], unsigned.values[255]), (0.0, 1.0));
        assert!(near(unsigned.values[1], 3.25e-7) && near(unsigned.values[2], 7.75e-7));
        assert!(near(unsigned.values[254], 0.996_484_4));
        for map in &*MAPS {
            assert!(map.values.windows(2).all(|pair| pair[0] < pair[1]));
        }
    }
}
