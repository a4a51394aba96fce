//! tempering: post-training of language models on burn.

pub mod atomic;
pub mod checkpoint;
pub mod data;
pub mod error;
pub mod model;
pub mod peft;
pub mod recipe;
pub mod reward;
pub mod rng;
pub mod tokens;
pub mod train;
