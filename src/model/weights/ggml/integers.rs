//! Blocks of 32 integers with a scale, and a minimum in those whose name ends with 1.
//!
//! Products and sums are rounded one after the other, as the reference does: a fused sum would differ in the last bit.

use super::{half_at, nibbles};

/// `d` 2 bytes, nibbles 16.
pub(super) fn q4_0(block: &[u8; 18], out: &mut [f32; 32]) {
    let d = half_at(block, 0);
    nibbles(&block[2..], out, |q| d * (f32::from(q) - 8.0));
}

/// `d` 2 bytes, `m` 2, nibbles 16.
pub(super) fn q4_1(block: &[u8; 20], out: &mut [f32; 32]) {
    let (d, m) = (half_at(block, 0), half_at(block, 2));
    nibbles(&block[4..], out, |q| d * f32::from(q) + m);
}

/// `d` 2 bytes, fifth bits 4, nibbles 16.
pub(super) fn q5_0(block: &[u8; 22], out: &mut [f32; 32]) {
    let d = half_at(block, 0);
    fives(&block[2..], out, |q| d * (f32::from(q) - 16.0));
}

/// `d` 2 bytes, `m` 2, fifth bits 4, nibbles 16.
pub(super) fn q5_1(block: &[u8; 24], out: &mut [f32; 32]) {
    let (d, m) = (half_at(block, 0), half_at(block, 2));
    fives(&block[4..], out, |q| d * f32::from(q) + m);
}

/// `d` 2 bytes, signed codes 32.
pub(super) fn q8_0(block: &[u8; 34], out: &mut [f32; 32]) {
    let d = half_at(block, 0);
    for (x, &q) in out.iter_mut().zip(&block[2..]) {
        *x = f32::from(q.cast_signed()) * d;
    }
}

/// Codes of 5 bits: the fifth of value `i` is bit `i` of the first four bytes.
fn fives(packed: &[u8], out: &mut [f32; 32], value: impl Fn(u8) -> f32) {
    let fifths = u32::from_le_bytes([packed[0], packed[1], packed[2], packed[3]]);
    let fifth = |i: usize| ((fifths >> i & 1) as u8) << 4;
    let (low, high) = out.split_at_mut(16);
    for (i, ((&byte, low), high)) in packed[4..].iter().zip(low).zip(high).enumerate() {
        *low = value(byte & 15 | fifth(i));
        *high = value(byte >> 4 | fifth(i + 16));
    }
}
