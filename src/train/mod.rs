//! Training stages.

pub mod config;
