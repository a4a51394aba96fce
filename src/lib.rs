//! tempering: post-training of language models without Python. The program `temper` is this library's [`cli`].
//!
//! # How data flows
//! A recipe file is read and checked ([`recipe`]), then its stages run in order ([`train`]). A stage reads rows and turns
//! them into token ids ([`data`]), takes a model ([`model`]) with adapters ([`peft`]) from the base or an earlier stage,
//! and computes on packed batches ([`tokens::TokenBatch`]: rows end to end, no padding) with fused operations ([`ops`]).
//! Losses ([`loss`]) give gradients, summed and clipped, and optimisers step ([`optim`]). PPO generates responses ([`generate`]),
//! scores them ([`reward`]), and turns scores and KL into advantages ([`rl`]). A stage writes checkpoints ([`checkpoint`]), metrics,
//! samples and a report ([`report`]).
//!
//! # Training from Rust
//! What `temper recipe` does is a library call. `cargo run --example sft [ROWS.csv]` runs this:
//!
//! ```no_run
#![doc = include_str!("../examples/sft.rs")]
//! ```
//!
//! # Backends
//! Everything is generic over [`ops::ModelBackend`]: burn's `Backend` with fused operations, each with a portable body in plain
//! burn. Only [`mod@backend`] names concrete backends.
//!
//! # Words
//! | word | meaning |
//! |---|---|
//! | query, response | the input of the policy, and the tokens that it generates; together a row |
//! | sample, generate | sample one token from a distribution; generate a whole response |
//! | policy, reference | the trained model, and the frozen one that the KL term compares it with |
//! | score | one number per response, of a reward source |
//! | reward | one number per token: the KL term, and the score at the end |
//! | value | expected sum of rewards from a token on, as estimated by the value function |
//! | stop token | EOS, or another token that ends a response; it is part of the response |
//! | gold | a reward source that is reported but not trained against |
//! | frozen | not trained |
//! | reduced | stored in less than f32; reduced weights are frozen |
//! | packed | laid out for a kernel: rows in a batch, weights in panels |

pub mod atomic;
pub mod backend;
pub mod checkpoint;
pub mod cli;
pub mod collective;
pub mod data;
pub mod device;
pub mod error;
pub mod generate;
pub mod guard;
pub mod host;
pub mod hub;
pub mod label;
pub mod loss;
pub mod model;
pub mod ops;
pub mod optim;
mod outside;
pub mod params;
pub mod peft;
mod read_at;
pub mod recipe;
pub mod report;
pub mod reward;
pub mod rl;
pub mod rng;
mod serve;
pub mod settings;
mod sizes;
pub mod snapshot;
pub mod start;
pub mod stats;
mod suggest;
pub mod terminal;
pub mod tokens;
pub mod train;
pub(crate) mod web;

/// The code of the page compiles.
#[cfg(doctest)]
#[doc = include_str!("../docs/rust.md")]
mod rust_page {}
