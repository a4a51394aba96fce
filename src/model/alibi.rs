//! ALiBi: the slopes of attention biases that are linear in the distance.
//!
//! # Source
//! Press et al. 2022, arXiv:2108.12409, section 3; for numbers of heads that are no power of two, the authors' code.

use std::sync::Arc;

/// The slope of each of `heads` heads: `2^(-8 i / n)` for the first `n` heads, `i` from 1 on, `n` being the largest power of two that
/// `heads` reaches. Further heads have every other slope of `2 n` heads, from the first on.
pub(super) fn slopes(heads: usize) -> Arc<[f32]> {
    let power = 1usize << heads.max(1).ilog2();
    let series = |n: usize| {
        // Rounded as in transformers, which raises the first slope in f32.
        let first = (-8.0 / n as f64).exp2() as f32;
        (1..=n).map(move |i| f64::from(first).powi(i as i32) as f32)
    };
    let further = series(2 * power).step_by(2).take(heads - power);
    series(power).chain(further).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `_get_alibi_slopes` of transformers 5.23.
    #[test]
    fn slopes_are_those_of_transformers() {
        for (heads, expected) in [
            (1, vec![0.003_906_25]),
            (3, vec![0.0625, 0.003_906_25, 0.25]),
            (4, vec![0.25, 0.0625, 0.015_625, 0.003_906_25]),
            (6, vec![0.25, 0.0625, 0.015_625, 0.003_906_25, 0.5, 0.125]),
            (
                12,
                vec![
                    0.5,
                    0.25,
                    0.125,
                    0.0625,
                    0.031_25,
                    0.015_625,
                    0.007_812_5,
                    0.003_906_25,
                    0.707_106_77,
                    0.353_553_39,
                    0.176_776_68,
                    0.088_388_34,
                ],
            ),
        ] {
            let found = slopes(heads);
            assert_eq!(found.len(), heads);
            for (found, expected) in found.iter().zip(expected) {
                let off = (found / expected - 1.0).abs();
                assert!(off <= 2e-7, "{heads}: {found} and not {expected}");
            }
        }
    }
}
