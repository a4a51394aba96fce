//! Parameter-efficient fine-tuning: which layers, and PEFT's files.

pub mod targets;

pub use targets::LinearSpec;
