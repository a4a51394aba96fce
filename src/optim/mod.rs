//! Optimisation: AdamW, accumulation, clipping, schedules.

mod adamw;
mod config;
mod schedule;

pub use adamw::{AdamW, GradientSum, StateMap};
pub use config::{OptimConfig, Schedule};
pub use schedule::lr_at;
