//! Models: configuration, weights on disk, and what `--model NAME` can be.

pub mod config;
pub mod manifest;
pub mod weights;

pub use config::{Gpt2Config, LinearSpec, LlamaConfig, ModelConfig, Qwen3Config, TensorSpec};
pub use manifest::{Manifest, ModelFiles};
