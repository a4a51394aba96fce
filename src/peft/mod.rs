//! Parameter-efficient fine-tuning: which layers, and PEFT's files.

pub mod files;
pub mod targets;

pub use files::{AdapterConfig, AdapterKey, LoraMatrix, TaskType, lora_key, parse_key, saved_key};
pub use targets::{LinearSpec, TargetModules, resolve_targets};
