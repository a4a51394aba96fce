//! Intervals by the bootstrap.

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::number;
use crate::rng::Seed;

/// Rounds of a bootstrap.
///
/// # Source
/// As many as Chatbot Arena's leaderboard has, arXiv:2403.04132.
pub const ROUNDS: usize = 1000;

/// An interval that holds 95 % of what a bootstrap gave.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Interval {
    /// The quantile 0.025.
    #[serde(deserialize_with = "number")]
    pub low: f64,
    /// The quantile 0.975.
    #[serde(deserialize_with = "number")]
    pub high: f64,
}

impl Interval {
    /// The quantiles of `values`, between order statistics linearly; NaN without values.
    fn of(mut values: Vec<f64>) -> Self {
        values.sort_by(f64::total_cmp);
        let quantile = |share: f64| {
            let place = share * values.len().saturating_sub(1) as f64;
            let (below, above) = (place.floor() as usize, place.ceil() as usize);
            match (values.get(below), values.get(above)) {
                (Some(below), Some(above)) => below + (above - below) * place.fract(),
                _ => f64::NAN,
            }
        };
        Self {
            low: quantile(0.025),
            high: quantile(0.975),
        }
    }

    /// Whether `value` is outside.
    pub fn excludes(&self, value: f64) -> bool {
        value < self.low || value > self.high
    }
}

/// 95 % intervals of `statistics`, over [`ROUNDS`] samples of `count` units with replacement; it is given the indices of a sample, and
/// all its numbers come from the same samples. No intervals without units.
///
/// # Source
/// Efron 1979, the percentile method.
pub fn bootstrap(
    count: usize,
    seed: Seed,
    statistics: impl Fn(&[usize]) -> Vec<f64> + Sync,
) -> Vec<Interval> {
    if count == 0 {
        return Vec::new();
    }
    let rounds: Vec<Vec<f64>> = (0..ROUNDS as u64)
        .into_par_iter()
        .map(|round| {
            let seed = seed.fork_index(round);
            let sample: Vec<usize> = (0..count as u64).map(|i| seed.below(i, count)).collect();
            statistics(&sample)
        })
        .collect();
    (0..rounds[0].len())
        .map(|k| Interval::of(rounds.iter().map(|round| round[k]).collect()))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_between_order_statistics() {
        // 0..=100: the quantiles 2.5 and 97.5.
        let all = Interval::of((0..=100).rev().map(f64::from).collect());
        assert_eq!((all.low, all.high), (2.5, 97.5));
        assert!(all.excludes(2.4) && all.excludes(97.6) && !all.excludes(50.0));
        assert!(Interval::of(Vec::new()).low.is_nan());
    }

    /// The mean of 400 throws of a coin has the standard error 0.025: 95 % are within 1.96 of them.
    #[test]
    fn the_interval_of_a_mean_is_two_standard_errors_wide() {
        let values: Vec<f64> = (0..400).map(|i| f64::from(i % 2)).collect();
        let mean = |sample: &[usize]| vec![sample.iter().map(|&i| values[i]).sum::<f64>() / 400.0];
        let found = bootstrap(400, Seed::new(1), mean)[0];
        assert!((found.low - 0.451).abs() < 0.005, "{found:?}");
        assert!((found.high - 0.549).abs() < 0.005, "{found:?}");
        assert_eq!(found, bootstrap(400, Seed::new(1), mean)[0]);
        assert_ne!(found, bootstrap(400, Seed::new(2), mean)[0]);
        assert!(bootstrap(0, Seed::new(1), mean).is_empty());
    }
}
