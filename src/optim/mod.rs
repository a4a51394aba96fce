//! Optimisation: learning-rate schedules.

mod config;
mod schedule;

pub use config::{OptimConfig, Schedule};
pub use schedule::lr_at;
