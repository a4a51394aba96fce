//! Histograms of scores.

use serde::{Deserialize, Serialize};

/// Most bins.
const MAX_BINS: usize = 30;
/// Fewest bins.
const MIN_BINS: usize = 5;

/// Counts of numbers in bins of equal width, for one or more series over the same range.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Histogram {
    /// Lower edge of the first bin.
    pub low: f64,
    /// Upper edge of the last bin.
    pub high: f64,
    /// The series, in the order of the legend.
    pub series: Vec<BinCounts>,
}

/// The counts of one series.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BinCounts {
    /// Its name in the legend.
    pub label: String,
    /// Mean of its numbers; `None` if it has none.
    pub mean: Option<f64>,
    /// Numbers in each bin; the last bin has its upper edge too.
    pub counts: Vec<u32>,
}

impl Histogram {
    /// The histogram of all series, named; numbers that are not finite are left out. `None` without any number.
    ///
    /// Whole numbers within a small range get a bin each; others as many bins as the root of their count.
    pub fn of(series: &[(&str, &[f64])]) -> Option<Self> {
        let finite = || {
            let all = series.iter().flat_map(|(_, values)| values.iter());
            all.copied().filter(|value| value.is_finite())
        };
        let (low, high) = (
            finite().fold(f64::INFINITY, f64::min),
            finite().fold(f64::NEG_INFINITY, f64::max),
        );
        let count = finite().count();
        if count == 0 {
            return None;
        }
        let whole = finite().all(|value| value.fract() == 0.0);
        let (low, high, bins) = if whole && high - low < MAX_BINS as f64 {
            (low - 0.5, high + 0.5, (high - low) as usize + 1)
        } else if high > low {
            let bins = (count as f64).sqrt() as usize;
            (low, high, bins.clamp(MIN_BINS, MAX_BINS))
        } else {
            (low - low.abs() / 2.0, high + high.abs() / 2.0, 1)
        };
        let bin = |value: f64| {
            let place = (value - low) / (high - low) * bins as f64;
            (place as usize).min(bins - 1)
        };
        let counted = |(label, values): &(&str, &[f64])| {
            let mut counts = vec![0; bins];
            let (mut sum, mut number) = (0.0, 0.0);
            for &value in values.iter().filter(|value| value.is_finite()) {
                counts[bin(value)] += 1;
                sum += value;
                number += 1.0;
            }
            BinCounts {
                label: (*label).to_owned(),
                mean: (number > 0.0).then(|| sum / number),
                counts,
            }
        };
        Some(Self {
            low,
            high,
            series: series.iter().map(counted).collect(),
        })
    }

    /// The histogram of scored responses to prompts: all of them, and the best and the worst to each prompt, which are what comparisons
    /// are made of. `None` without any score.
    pub fn of_ranked(scores: &[Vec<f64>]) -> Option<Self> {
        let all: Vec<f64> = scores.concat();
        let of_each = |choose: fn(f64, f64) -> f64| -> Vec<f64> {
            let of_one = |scores: &Vec<f64>| scores.iter().copied().reduce(choose);
            scores.iter().filter_map(of_one).collect()
        };
        let (best, worst) = (of_each(f64::max), of_each(f64::min));
        Self::of(&[
            ("all responses", &all),
            ("best to each prompt", &best),
            ("worst to each prompt", &worst),
        ])
    }

    /// Lower edge of bin `index`.
    pub(super) fn edge(&self, index: usize) -> f64 {
        let bins = self.series.first().map_or(1, |series| series.counts.len());
        self.low + (self.high - self.low) * index as f64 / bins.max(1) as f64
    }
}

impl BinCounts {
    /// The share of the numbers that is in each bin.
    pub(super) fn shares(&self) -> Vec<f64> {
        let all = self.counts.iter().sum::<u32>().max(1);
        (self.counts.iter())
            .map(|&count| f64::from(count) / f64::from(all))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_is_in_one_bin() {
        let values: Vec<f64> = (0..=100).map(|i| f64::from(i) / 100.0).collect();
        let histogram = Histogram::of(&[("a", &values), ("b", &[1.0, f64::NAN])]).unwrap();
        assert_eq!((histogram.low, histogram.high), (0.0, 1.0));
        let [a, b] = &histogram.series[..] else {
            panic!("two series");
        };
        // The root of 102 is 10.1; the last bin has both of its edges.
        assert_eq!(a.counts, [10, 10, 10, 10, 10, 10, 10, 10, 10, 11]);
        assert_eq!(b.counts.iter().sum::<u32>(), 1);
        assert!((a.mean.unwrap() - 0.5).abs() < 1e-12);
        assert_eq!(Histogram::of(&[("a", &[f64::NAN])]), None);
    }

    #[test]
    fn whole_numbers_have_a_bin_each() {
        let histogram = Histogram::of(&[("a", &[1.0, 3.0, 3.0])]).unwrap();
        assert_eq!((histogram.low, histogram.high), (0.5, 3.5));
        assert_eq!(histogram.series[0].counts, [1, 0, 2]);
        assert_eq!(histogram.series[0].shares(), [1.0 / 3.0, 0.0, 2.0 / 3.0]);
        assert_eq!(histogram.edge(1), 1.5);
    }

    #[test]
    fn ranked_responses_show_the_best_and_the_worst() {
        let histogram = Histogram::of_ranked(&[vec![0.0, 2.0], vec![1.0, 4.0]]).unwrap();
        let means: Vec<_> = histogram.series.iter().map(|s| s.mean).collect();
        assert_eq!(means, [Some(1.75), Some(3.0), Some(0.5)]);
        assert_eq!(Histogram::of_ranked(&[]), None);
        // Constant fractions have one bin around them.
        let constant = Histogram::of(&[("a", &[0.5, 0.5])]).unwrap();
        assert_eq!((constant.low, constant.high), (0.25, 0.75));
    }
}
