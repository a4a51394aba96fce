//! pass@k.

/// The probability that at least one of `k` samples is right, without bias from `samples` of which `right` are: the share of all subsets of
/// size `k` with a right one, `1 - C(samples - right, k) / C(samples, k)`.
///
/// # Panics
/// If `k` is 0 or more than `samples`, or `right` is more than `samples`.
///
/// # Source
/// Chen et al. 2021, arXiv:2107.03374, equation 1.
pub fn pass_at_k(samples: usize, right: usize, k: usize) -> f64 {
    assert!((1..=samples).contains(&k) && right <= samples);
    if samples - right < k {
        return 1.0;
    }
    // C(n - c, k) / C(n, k) is the product of (1 - k / i) for i from n - c + 1 to n.
    let none: f64 = (samples - right + 1..=samples)
        .map(|i| 1.0 - k as f64 / i as f64)
        .product();
    1.0 - none
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two of five are right: of the ten pairs three have none.
    #[test]
    fn the_share_of_subsets_with_a_right_one() {
        assert!((pass_at_k(5, 2, 2) - 0.7).abs() < 1e-12);
        assert!((pass_at_k(5, 2, 1) - 0.4).abs() < 1e-12);
        assert_eq!(pass_at_k(5, 2, 4), 1.0);
        assert_eq!(pass_at_k(5, 0, 5), 0.0);
        assert_eq!(pass_at_k(5, 5, 1), 1.0);
    }
}
