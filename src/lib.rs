//! tempering: post-training of language models on burn.

pub mod atomic;
pub mod backend;
pub mod checkpoint;
pub mod cli;
pub mod data;
pub mod error;
pub mod generate;
pub mod guard;
pub mod loss;
pub mod model;
pub mod ops;
pub mod optim;
pub mod params;
pub mod peft;
pub mod recipe;
pub mod report;
pub mod reward;
pub mod rl;
pub mod rng;
pub mod tokens;
pub mod train;
