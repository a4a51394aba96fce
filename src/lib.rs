//! tempering: post-training of language models without Python. The program `temper` is this library's [`cli`].
//!
//! # How data flows
//! A recipe file is read and checked ([`recipe`]), then its stages run in order ([`train`]). A stage reads rows and turns
//! them into token ids ([`data`]), takes a model ([`model`]) with adapters ([`peft`]) from the base or an earlier stage,
//! and computes on packed batches ([`tokens::TokenBatch`]: rows end to end, no padding) with fused operations ([`ops`]).
//! Losses ([`loss`]) give gradients, summed and clipped, and AdamW steps ([`optim`]). PPO draws responses ([`generate`]),
//! scores them ([`reward`]), and turns scores and KL into advantages ([`rl`]). What a stage leaves are checkpoints
//! ([`checkpoint`]), and metrics, samples and a report ([`report`]).
//!
//! # Backends
//! Everything is generic over [`ops::ModelBackend`], burn's `Backend` with the operations that deserve kernels of their
//! own; each has a portable body in plain burn. Concrete backends are named in [`mod@backend`] alone.
//!
//! # Words
//! | word | meaning |
//! |---|---|
//! | query, response | what the policy is given, and what it draws; together a row |
//! | policy, reference | the model that is trained, and the frozen one that the KL term holds it to |
//! | score | one number per response, of a reward source |
//! | reward | one number per token: the KL term, and the score at the end |
//! | value | what the value network expects of the rewards from a token on |
//! | stop token | EOS, or another token that ends a response; it is part of the response |
//! | gold | a reward source that judges and is not trained against |

pub mod atomic;
pub mod backend;
pub mod checkpoint;
pub mod cli;
pub mod data;
pub mod device;
pub mod error;
pub mod generate;
pub mod guard;
pub mod host;
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
pub mod snapshot;
pub mod start;
mod suggest;
pub mod tokens;
pub mod train;
