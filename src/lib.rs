//! tempering: post-training of language models on burn.

pub mod data;
pub mod error;
pub mod ops;
pub mod recipe;
pub mod reward;
pub mod rng;
pub mod tokens;
pub mod train;
