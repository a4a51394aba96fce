//! tempering: post-training of language models on burn.

pub mod data;
pub mod error;
pub mod recipe;
pub mod report;
pub mod reward;
pub mod rng;
pub mod tokens;
pub mod train;
