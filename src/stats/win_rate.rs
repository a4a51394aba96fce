//! Win rates of one policy against another on the same prompts.

use serde::{Deserialize, Serialize};

use super::{Interval, bootstrap, length_controlled, mean, number};
use crate::rng::Seed;

/// 1 if score `own` wins against `other`, 0 if it loses, 1/2 if they differ by `tie_margin` or less. NaN loses, and two are a tie.
pub fn outcome(own: f64, other: f64, tie_margin: f64) -> f64 {
    match (own.is_nan(), other.is_nan()) {
        (true, true) => 0.5,
        (true, false) => 0.0,
        (false, true) => 1.0,
        _ if (own - other).abs() <= tie_margin => 0.5,
        _ if own > other => 1.0,
        _ => 0.0,
    }
}

/// How often a policy wins.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct WinRate {
    /// Share of wins, ties counting one half.
    #[serde(deserialize_with = "number")]
    pub rate: f64,
    /// Its 95 % interval, by the bootstrap over prompts.
    pub interval: Interval,
    /// Share of ties.
    #[serde(deserialize_with = "number")]
    pub ties: f64,
    /// The rate with the part of length taken out, see [`length_controlled`].
    #[serde(deserialize_with = "number")]
    pub length_controlled: f64,
    /// Its 95 % interval.
    pub length_controlled_interval: Interval,
}

impl WinRate {
    /// The rate over prompts. `outcomes`: see [`outcome`], a mean where a prompt has several responses. `ties`: share of ties by prompt.
    /// `differences`: how much longer the policy's responses are than the other's.
    pub fn of(outcomes: &[f64], ties: &[f64], differences: &[f64], seed: Seed) -> Self {
        let of = |values: &[f64], sample: &[usize]| -> Vec<f64> {
            sample.iter().map(|&i| values[i]).collect()
        };
        let intervals = bootstrap(outcomes.len(), seed, |sample| {
            let (outcomes, differences) = (of(outcomes, sample), of(differences, sample));
            vec![mean(&outcomes), length_controlled(&outcomes, &differences)]
        });
        let interval = |index: usize| intervals.get(index).copied().unwrap_or_default();
        Self {
            rate: mean(outcomes),
            interval: interval(0),
            ties: mean(ties),
            length_controlled: length_controlled(outcomes, differences),
            length_controlled_interval: interval(1),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn near_scores_are_ties() {
        assert_eq!(outcome(1.0, 0.5, 0.0), 1.0);
        assert_eq!(outcome(0.5, 1.0, 0.0), 0.0);
        assert_eq!(outcome(0.5, 0.5, 0.0), 0.5);
        assert_eq!(outcome(1.0, 0.5, 0.5), 0.5);
        assert_eq!(outcome(f64::NAN, 0.5, 0.5), 0.0);
        assert_eq!(outcome(0.5, f64::NAN, 0.0), 1.0);
        assert_eq!(outcome(f64::NAN, f64::NAN, 0.0), 0.5);
    }

    /// Three wins, a tie and a loss of five: 0.7. Equal lengths leave the rate as it is.
    #[test]
    fn a_tie_is_half_a_win() {
        let outcomes = [1.0, 1.0, 1.0, 0.5, 0.0];
        let ties = [0.0, 0.0, 0.0, 1.0, 0.0];
        let found = WinRate::of(&outcomes, &ties, &[0.0; 5], Seed::new(1));
        assert!((found.rate - 0.7).abs() < 1e-12 && (found.ties - 0.2).abs() < 1e-12);
        assert!((found.length_controlled - 0.7).abs() < 1e-12);
        assert!(
            found.interval.low < 0.7 && found.interval.high > 0.7,
            "{found:?}"
        );
        assert!(
            found.interval.low >= 0.0 && found.interval.high <= 1.0,
            "{found:?}"
        );
    }
}
