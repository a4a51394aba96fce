//! Whitening over all positions of a rollout.

use super::stats::moments;

/// Which estimate of the variance divides.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Variance {
    /// Divided by `n` (lm-human-preferences, N+).
    Biased,
    /// Divided by `n - 1` (TRL, and the groups of GRPO). One value alone has variance 0 here, where PyTorch gives NaN.
    Unbiased,
}

impl Variance {
    /// The variance of `values`; 0 for none and for one alone.
    pub fn of(self, values: &[f32]) -> f64 {
        let n = values.len() as f64;
        match self {
            Self::Biased => moments(values).1,
            Self::Unbiased => moments(values).1 * n / (n - 1.0).max(1.0),
        }
    }
}

/// Scales to variance 1, and with `shift_mean` shifts to mean 0: `(x - mean) rsqrt(var + 1e-8) (+ mean)`.
///
/// Mean and variance are taken over all of `values`. Give it the whole rollout, so that the minibatch split does not
/// matter: rewards on value positions with `shift_mean = false`, advantages on policy positions with `shift_mean = true`.
///
/// # Source
/// arXiv:2403.17031, its code's `whiten`.
pub fn whiten(values: &[f32], shift_mean: bool, variance: Variance) -> Vec<f32> {
    let (mean, _) = moments(values);
    let scale = 1.0 / (variance.of(values) + 1e-8).sqrt();
    let shift = if shift_mean { 0.0 } else { mean };
    (values.iter())
        .map(|&x| ((f64::from(x) - mean) * scale + shift) as f32)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const REWARDS: [f32; 9] = [1.2, 1.3, 1.4, 1.5, 1.6, 1.7, 1.8, 1.9, 2.0];

    fn assert_close(got: &[f32], want: &[f32], tolerance: f32) {
        assert_eq!(got.len(), want.len());
        for (g, w) in got.iter().zip(want) {
            assert!((g - w).abs() < tolerance, "{got:?}, expected {want:?}");
        }
    }

    // Both vectors: "The N Implementation Details of RLHF with PPO" (Hugging Face blog), printed to four digits.
    #[test]
    fn whitening_with_biased_variance() {
        let want = [
            0.0508, 0.4381, 0.8254, 1.2127, 1.6, 1.9873, 2.3746, 2.7619, 3.1492,
        ];
        assert_close(&whiten(&REWARDS, false, Variance::Biased), &want, 6e-5);
    }

    #[test]
    fn whitening_with_unbiased_variance() {
        let want = [
            0.1394, 0.5046, 0.8697, 1.2349, 1.6, 1.9651, 2.3303, 2.6954, 3.0606,
        ];
        assert_close(&whiten(&REWARDS, false, Variance::Unbiased), &want, 6e-5);
    }

    #[test]
    fn shifting_removes_the_mean() {
        // The biased vector less 1.6; its mean is 0 and its mean square 1.
        let got = whiten(&REWARDS, true, Variance::Biased);
        assert_close(&got[..2], &[-1.5492, -1.1619], 6e-5);
        let square: f32 = got.iter().map(|x| x * x).sum::<f32>() / 9.0;
        assert!((square - 1.0).abs() < 1e-5, "{square}");
    }

    #[test]
    fn constant_single_and_absent_values_stay_finite() {
        assert_eq!(whiten(&[3.0; 4], true, Variance::Biased), [0.0; 4]);
        assert_eq!(whiten(&[3.0], true, Variance::Unbiased), [0.0]);
        assert_eq!(whiten(&[3.0], false, Variance::Unbiased), [3.0]);
        assert!(whiten(&[], true, Variance::Biased).is_empty());
    }
}
