//! Generation: batched sampling with a KV cache. Runs on a backend without autodiff.

mod batch;
mod config;
mod sampler;
mod session;

pub use batch::{
    GenerateOptions, OnProgress, ReadOut, Response, TruncateAt, Watch, generate, generate_watched,
    generate_with,
};
pub use config::{SamplingConfig, Truncate};
pub use sampler::{SampledToken, sample_penalised, sample_token};
pub use session::Session;
