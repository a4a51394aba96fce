//! Direct preference optimisation.
//!
//! # Source
//! Rafailov et al. 2023, arXiv:2305.18290; keys, metrics and details of TRL 1.16's `DPOTrainer`.

mod config;
mod spec;

pub use config::DpoConfig;
