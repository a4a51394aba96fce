//! Best of n: the expected score of the best among n samples, and how far this moves the policy.

/// An upper bound of the KL of best-of-n sampling from the policy that it samples, `ln n - (n - 1) / n`, in nats per response; nearly exact
/// where no response is likely.
///
/// # Source
/// Stiennon et al. 2020, arXiv:2009.01325, appendix G.3; as a bound: Beirami et al. 2024, arXiv:2401.01879.
pub fn best_of_n_kl(n: usize) -> f64 {
    let n = n as f64;
    n.ln() - (n - 1.0) / n
}

/// The expected `gold` score of the best of `n` samples by `proxy`, without bias: its mean over all subsets of size `n` of one prompt's
/// samples, `sum_i C(i - 1, n - 1) / C(N, n) gold_(i)` in ascending order of `proxy`. Samples of one proxy score are as likely to be taken.
///
/// # Panics
/// If `n` is 0 or more than there are samples, or the lengths differ.
///
/// # Source
/// Nakano et al. 2021, arXiv:2112.09332, appendix I; Gao et al. 2022, arXiv:2210.10760, appendix A.
pub fn best_of_n(proxy: &[f64], gold: &[f64], n: usize) -> f64 {
    let count = proxy.len();
    assert_eq!(count, gold.len(), "a gold score for each sample");
    assert!((1..=count).contains(&n), "a subset of the samples");
    let mut order: Vec<usize> = (0..count).collect();
    order.sort_by(|&a, &b| proxy[a].total_cmp(&proxy[b]));
    // The weight of the largest; that of the rank below `i` is (i - n) / (i - 1) times it.
    let mut weights = vec![0.0; count];
    let mut weight = n as f64 / count as f64;
    for rank in (n..=count).rev() {
        weights[rank - 1] = weight;
        weight *= (rank - n) as f64 / (rank.max(2) - 1) as f64;
    }
    let mut sum = 0.0;
    let mut first = 0;
    for tied in order.chunk_by(|&a, &b| proxy[a] == proxy[b]) {
        let mean = tied.iter().map(|&i| gold[i]).sum::<f64>() / tied.len() as f64;
        sum += mean * weights[first..first + tied.len()].iter().sum::<f64>();
        first += tied.len();
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Four samples, best of two: six pairs. By the proxy 1 < 2 < 3 < 4 the larger one is 2 once, 3 twice, 4 three times.
    #[test]
    fn the_mean_over_all_subsets() {
        let proxy = [3.0, 1.0, 4.0, 2.0];
        let gold = [30.0, 10.0, 0.0, 20.0];
        let expected = (20.0 + 2.0 * 30.0 + 3.0 * 0.0) / 6.0;
        assert!((best_of_n(&proxy, &gold, 2) - expected).abs() < 1e-12);
        // One of one is the mean, four of four the best.
        assert!((best_of_n(&proxy, &gold, 1) - 15.0).abs() < 1e-12);
        assert!(best_of_n(&proxy, &gold, 4).abs() < 1e-12);
        // Three of four: the best is 3 once and 4 three times.
        assert!((best_of_n(&proxy, &gold, 3) - 7.5).abs() < 1e-12);
    }

    /// The two best are equal: in five of six pairs one of them is the best, and each counts for half of these.
    #[test]
    fn equal_samples_are_equally_likely() {
        let proxy = [1.0, 2.0, 2.0, 0.0];
        let gold = [10.0, 4.0, 8.0, 0.0];
        let expected = (5.0 * 6.0 + 10.0) / 6.0;
        assert!((best_of_n(&proxy, &gold, 2) - expected).abs() < 1e-12);
    }

    /// ln 2 - 1/2 and ln 16 - 15/16.
    #[test]
    fn the_divergence_grows_with_the_logarithm() {
        assert_eq!(best_of_n_kl(1), 0.0);
        assert!((best_of_n_kl(2) - 0.193_147_180_559_945).abs() < 1e-12);
        assert!((best_of_n_kl(16) - 1.835_088_722_239_781).abs() < 1e-12);
    }
}
