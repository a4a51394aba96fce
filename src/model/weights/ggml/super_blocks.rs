//! Blocks of 256 values in groups that have scales of their own, small integers times a scale of the whole block.
//!
//! A scale of a group is rounded before it meets a code, as in the reference.

use super::half_at;

/// Scales 16 bytes (minimum in the high nibble), codes 64, `d` 2, `m` 2.
pub(super) fn q2_k(block: &[u8; 84], out: &mut [f32; 256]) {
    let (scales, rest) = block.split_at(16);
    let (codes, rest) = rest.split_at(64);
    let (d, m) = (half_at(rest, 0), half_at(rest, 2));
    for (group, x) in out.chunks_exact_mut(16).enumerate() {
        let scale = d * f32::from(scales[group] & 15);
        let minimum = m * f32::from(scales[group] >> 4);
        for (x, q) in x.iter_mut().zip(twos(codes, group)) {
            *x = scale * f32::from(q) - minimum;
        }
    }
}

/// Third bits 32 bytes, codes 64, scales 12, `d` 2.
pub(super) fn q3_k(block: &[u8; 110], out: &mut [f32; 256]) {
    let (thirds, rest) = block.split_at(32);
    let (codes, rest) = rest.split_at(64);
    let (scales, d) = (&rest[..12], half_at(rest, 12));
    for (group, x) in out.chunks_exact_mut(16).enumerate() {
        // Four low bits of two scales in each of eight bytes, two high bits of four in each of the others.
        let low = scales[group % 8] >> (group / 8 * 4) & 15;
        let high = scales[8 + group % 4] >> (group / 4 * 2) & 3;
        let scale = d * (f32::from(low | high << 4) - 32.0);
        let third = thirds[group % 2 * 16..].iter();
        for ((x, q), third) in x.iter_mut().zip(twos(codes, group)).zip(third) {
            // The bit says that nothing is subtracted.
            let minus = match third >> (group / 2) & 1 {
                0 => 4.0,
                _ => 0.0,
            };
            *x = scale * (f32::from(q) - minus);
        }
    }
}

/// Codes of 2 bits of a group of 16: each 32 bytes hold 128 values, 32 in each pair of bits.
fn twos(codes: &[u8], group: usize) -> impl Iterator<Item = u8> {
    let (half, run, part) = (group / 8, group % 8 / 2, group % 2);
    let bytes = &codes[half * 32 + part * 16..][..16];
    bytes.iter().map(move |byte| byte >> (run * 2) & 3)
}

/// `d` 2 bytes, `m` 2, scales and minima 12, nibbles 128.
pub(super) fn q4_k(block: &[u8; 144], out: &mut [f32; 256]) {
    let (head, codes) = block.split_at(16);
    let pairs = out.chunks_exact_mut(64).zip(codes.chunks_exact(32));
    for (pair, (x, codes)) in pairs.enumerate() {
        let (low, high) = x.split_at_mut(32);
        let [first, second] = [0, 1].map(|part| scale_and_minimum(head, pair * 2 + part));
        for ((&byte, low), high) in codes.iter().zip(low).zip(high) {
            *low = first.0 * f32::from(byte & 15) - first.1;
            *high = second.0 * f32::from(byte >> 4) - second.1;
        }
    }
}

/// `d` 2 bytes, `m` 2, scales and minima 12, fifth bits 32, nibbles 128.
pub(super) fn q5_k(block: &[u8; 176], out: &mut [f32; 256]) {
    let (head, rest) = block.split_at(16);
    let (fifths, codes) = rest.split_at(32);
    let pairs = out.chunks_exact_mut(64).zip(codes.chunks_exact(32));
    for (pair, (x, codes)) in pairs.enumerate() {
        let (low, high) = x.split_at_mut(32);
        let [first, second] = [0, 1].map(|part| scale_and_minimum(head, pair * 2 + part));
        let bytes = codes.iter().zip(fifths).zip(low).zip(high);
        for (((&byte, &fifths), low), high) in bytes {
            let fifth = fifths >> (pair * 2);
            *low = first.0 * f32::from(byte & 15 | (fifth & 1) << 4) - first.1;
            *high = second.0 * f32::from(byte >> 4 | (fifth >> 1 & 1) << 4) - second.1;
        }
    }
}

/// Scale and minimum of a group of 32, from the first 16 bytes of a block: `d`, `m`, and 6 bits of each.
///
/// Of groups 0 to 3 they are in the low bits of the bytes 0 to 3 and 4 to 7; of groups 4 to 7 four bits are in the bytes
/// 8 to 11, and the two high ones above those of groups 0 to 3.
fn scale_and_minimum(head: &[u8], group: usize) -> (f32, f32) {
    let packed = &head[4..16];
    let (scale, minimum) = match group {
        0..4 => (packed[group] & 63, packed[group + 4] & 63),
        _ => (
            packed[group + 4] & 15 | packed[group - 4] >> 6 << 4,
            packed[group + 4] >> 4 | packed[group] >> 6 << 4,
        ),
    };
    (
        half_at(head, 0) * f32::from(scale),
        half_at(head, 2) * f32::from(minimum),
    )
}

/// Nibbles 128 bytes, high pairs of bits 64, signed scales 16, `d` 2.
pub(super) fn q6_k(block: &[u8; 210], out: &mut [f32; 256]) {
    let (nibbles, rest) = block.split_at(128);
    let (pairs, rest) = rest.split_at(64);
    let (scales, d) = (&rest[..16], half_at(rest, 16));
    for (group, x) in out.chunks_exact_mut(16).enumerate() {
        let scale = d * f32::from(scales[group].cast_signed());
        let (half, run, part) = (group / 8, group % 8 / 2, group % 2);
        let low = &nibbles[half * 64 + run % 2 * 32 + part * 16..][..16];
        let high = &pairs[half * 32 + part * 16..][..16];
        for ((x, low), high) in x.iter_mut().zip(low).zip(high) {
            let q = low >> (run / 2 * 4) & 15 | (high >> (run * 2) & 3) << 4;
            *x = scale * (f32::from(q) - 32.0);
        }
    }
}
