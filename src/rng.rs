//! Counter-based random numbers on the host: the same on every backend, resumable by construction.
//!
//! A [`Seed`] is a pure function from a counter to bits. There is no mutable state: a run's position (step, row, token) determines
//! its random numbers.

/// A named stream of random numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seed(u64);

impl Seed {
    /// The root stream of a run.
    pub fn new(seed: u64) -> Self {
        Self(mix(seed ^ 0x9e37_79b9_7f4a_7c15))
    }

    /// An independent stream for `label`.
    pub fn fork(self, label: &str) -> Self {
        // FNV-1a over the label, then mixed with the parent.
        let hash = label.bytes().fold(0xcbf2_9ce4_8422_2325u64, |h, b| {
            (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3)
        });
        Self(mix(self.0 ^ mix(hash)))
    }

    /// An independent stream for an index (a row, a step, an epoch).
    pub fn fork_index(self, index: u64) -> Self {
        Self(mix(self.0 ^ mix(index.wrapping_add(0xd1b5_4a32_d192_ed03))))
    }

    /// 64 random bits at position `counter`.
    pub fn bits(self, counter: u64) -> u64 {
        mix(self
            .0
            .wrapping_add(counter.wrapping_mul(0x9e37_79b9_7f4a_7c15)))
    }

    /// Uniform in `[0, 1)` with 53 random bits.
    pub fn uniform(self, counter: u64) -> f64 {
        (self.bits(counter) >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Uniform in `0..n`.
    ///
    /// # Panics
    /// If `n` is zero.
    pub fn below(self, counter: u64, n: usize) -> usize {
        assert!(n > 0, "a range needs at least one number");
        // Multiply-shift; the bias is below n / 2^64.
        ((u128::from(self.bits(counter)) * n as u128) >> 64) as usize
    }

    /// Standard normal, by Box and Muller.
    pub fn normal(self, counter: u64) -> f64 {
        let u = 1.0 - self.uniform(2 * counter); // (0, 1]: the logarithm stays finite
        let v = self.uniform(2 * counter + 1);
        (-2.0 * u.ln()).sqrt() * (std::f64::consts::TAU * v).cos()
    }

    /// A random order of `0..n` (Fisher and Yates).
    pub fn permutation(self, n: usize) -> Vec<usize> {
        let mut order: Vec<usize> = (0..n).collect();
        for i in (1..n).rev() {
            order.swap(i, self.below(i as u64, i + 1));
        }
        order
    }
}

/// The finaliser of splitmix64 (Steele, Lea and Flood 2014).
fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn draws_are_pure_functions_of_the_counter() {
        let seed = Seed::new(1).fork("sampling").fork_index(3);
        assert_eq!(seed.bits(7), seed.bits(7));
        assert_ne!(seed.bits(7), seed.bits(8));
        assert_ne!(
            seed.bits(7),
            Seed::new(1).fork("dropout").fork_index(3).bits(7)
        );
    }

    #[test]
    fn uniform_and_normal_have_their_moments() {
        let seed = Seed::new(2);
        let n = 20_000;
        let mean = (0..n).map(|i| seed.uniform(i)).sum::<f64>() / n as f64;
        // Standard error of the mean: sqrt(1/12 / n) = 0.002.
        assert!((mean - 0.5).abs() < 0.008, "{mean}");
        let square = (0..n).map(|i| seed.normal(i).powi(2)).sum::<f64>() / n as f64;
        assert!((square - 1.0).abs() < 0.04, "{square}");
    }

    #[test]
    fn a_permutation_holds_each_index_once() {
        let mut order = Seed::new(3).permutation(100);
        assert_ne!(order, (0..100).collect::<Vec<_>>());
        order.sort_unstable();
        assert_eq!(order, (0..100).collect::<Vec<_>>());
    }
}
