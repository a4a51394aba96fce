//! Parameter-efficient fine-tuning.

mod config;

pub use config::LoraConfig;
