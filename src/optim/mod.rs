//! Optimisation: update rules, accumulation, clipping, schedules.

mod adafactor;
mod adamw;
mod adamw8bit;
mod algorithm;
mod config;
mod gradients;
mod groups;
mod lion;
mod muon;
mod optimiser;
mod pieces;
mod rule;
mod schedule;
mod sgd;
mod state;

pub use adafactor::Adafactor;
pub use adamw::AdamW;
pub use adamw8bit::AdamW8bit;
pub use algorithm::Algorithm;
pub use config::OptimConfig;
pub use gradients::GradientSum;
pub use groups::ParamGroup;
pub use lion::Lion;
pub use muon::{AdjustLr, Muon};
pub use optimiser::{Optimiser, StateMap};
pub use rule::{ParamForm, ParamUpdate, UpdateRule, UpdateStep, Updated};
pub use schedule::{Decay, Schedule, lr_at};
pub use sgd::Sgd;
pub use state::{StateSpec, StateTensor};
