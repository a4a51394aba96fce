//! Odds ratio preference optimisation (ORPO).
//!
//! # Source
//! Hong et al. 2024, arXiv:2403.07691; keys, metrics and details of TRL 1.16's `ORPOTrainer`.

mod config;
mod spec;

pub use config::OrpoConfig;
