//! Generation: batched sampling with a KV cache. Runs on a backend without autodiff.

mod batch;
mod config;
mod sampler;

pub use batch::{
    GenerateOptions, OnProgress, ReadOut, Response, TruncateAt, generate, generate_with,
};
pub use config::{SamplingConfig, Truncate};
pub use sampler::{SampledToken, sample_token};
