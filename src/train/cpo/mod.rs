//! Contrastive preference optimisation (CPO) and SimPO.
//!
//! # Source
//! Xu et al. 2024, arXiv:2401.08417; Meng et al. 2024, arXiv:2405.14734; keys, metrics and details of TRL 1.16's `CPOTrainer`.

mod config;
mod spec;

pub use config::CpoConfig;
