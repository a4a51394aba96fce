//! Statistics of evaluations: pure functions of scores, outcomes and counts, on the host.

mod best_of_n;
mod bootstrap;
mod bradley_terry;
mod games;
mod length_control;
mod logistic;
mod pass_at_k;
mod win_rate;

pub use best_of_n::{best_of_n, best_of_n_kl};
pub use bootstrap::{Interval, ROUNDS, bootstrap};
pub use bradley_terry::{bradley_terry, bradley_terry_with, elo};
pub use games::{Game, groups, online_elo, win_matrix};
pub use length_control::length_controlled;
pub use pass_at_k::pass_at_k;
pub use win_rate::{WinRate, outcome};

/// Reads a number that is null in a file where it was not finite.
pub(crate) fn number<'de, D: serde::Deserializer<'de>>(from: D) -> Result<f64, D::Error> {
    Ok(<Option<f64> as serde::Deserialize>::deserialize(from)?.unwrap_or(f64::NAN))
}

/// The arithmetic mean; NaN without values.
pub(crate) fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}
