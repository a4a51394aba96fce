//! Blocks whose codes stand for the numbers of a table.

use super::{half_at, nibbles};

/// The numbers of IQ4_NL and IQ4_XS, denser around zero.
const UNEVEN: [f32; 16] = [
    -127.0, -104.0, -83.0, -65.0, -49.0, -35.0, -22.0, -10.0, 1.0, 13.0, 25.0, 38.0, 53.0, 69.0,
    89.0, 113.0,
];

/// Twice the numbers of a float of two exponent bits and one mantissa bit.
const E2M1: [f32; 16] = [
    0.0, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 0.0, -1.0, -2.0, -3.0, -4.0, -6.0, -8.0, -12.0,
];

/// `d` 2 bytes, nibbles 16.
pub(super) fn iq4_nl(block: &[u8; 18], out: &mut [f32; 32]) {
    let d = half_at(block, 0);
    nibbles(&block[2..], out, |q| d * UNEVEN[usize::from(q)]);
}

/// `d` 2 bytes, high pairs of bits of eight scales 2, their nibbles 4, nibbles of values 128.
pub(super) fn iq4_xs(block: &[u8; 136], out: &mut [f32; 256]) {
    let d = half_at(block, 0);
    let high = u16::from_le_bytes([block[2], block[3]]);
    let groups = out.chunks_exact_mut(32).zip(block[8..].chunks_exact(16));
    for (group, (x, codes)) in groups.enumerate() {
        let low = block[4 + group / 2] >> (group % 2 * 4) & 15;
        let high = (high >> (group * 2) & 3) as u8;
        let scale = d * (f32::from(low | high << 4) - 32.0);
        nibbles(codes, x, |q| scale * UNEVEN[usize::from(q)]);
    }
}

/// Exponent 1 byte, nibbles 16.
pub(super) fn mxfp4(block: &[u8; 17], out: &mut [f32; 32]) {
    // Half of 2^(exponent - 127), since the table is doubled; below 2^-126 that is a subnormal.
    let scale = f32::from_bits(match block[0] {
        exponent @ 0..2 => 0x0020_0000 << exponent,
        exponent => (u32::from(exponent) - 1) << 23,
    });
    nibbles(&block[1..], out, |q| scale * E2M1[usize::from(q)]);
}
