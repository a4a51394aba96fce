//! Generation: batched sampling with a KV cache. Runs on a backend without autodiff.

mod batch;
mod config;
pub mod continuous;
mod penalties;
mod prompt_logprobs;
mod ranks;
mod sampler;
mod session;

pub use batch::{
    GenerateOptions, OnProgress, ReadOut, Response, TruncateAt, Watch, generate, generate_numbered,
    generate_watched, generate_with,
};
pub use config::{SamplingConfig, Truncate};
pub use penalties::{Penalties, TokenLogprobs};
pub use prompt_logprobs::prompt_logprobs;
pub use sampler::{SampledToken, sample_penalised, sample_token};
pub use session::Session;
