//! Generation: batched sampling with a KV cache. Runs on a backend without autodiff.

mod batch;
mod config;
mod sampler;

pub use batch::{GenerateOptions, OnProgress, Response, generate};
pub use config::SamplingConfig;
pub use sampler::{Draw, draw};
