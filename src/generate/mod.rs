//! Drawing responses from a model.

mod config;

pub use config::SamplingConfig;
