//! The rollout core: what every on-policy method does with a policy, whatever its advantages and its objective are.
//!
//! # How an update flows
//! A `Generator` has responses generated and scored ([`Episodes`]); [`Models::samples`] adds what forward passes say of
//! them; an [`Advantage`](crate::rl::rollout::Advantage) makes a [`Rollout`] of that; [`minibatch_orders`] shuffles;
//! [`update`] trains. All but the first take no part in I/O or sampling, so that a given rollout can be checked against
//! another implementation, number by number.
//!
//! A stage on this core is its configuration, what it says of itself, and a loop that names these steps in order. A value
//! function, a reference and pre-training text are each optional.

mod average;
mod episodes;
mod held_out;
mod micro_batch;
mod networks;
mod passes;
mod prompts;
mod ptx;
mod report;
mod state;
mod update;
mod value;

pub use super::shared::NonFinite;
pub use crate::rl::rollout::{Rollout, Samples, ValueTargets};
pub use episodes::Episodes;
pub(super) use episodes::{GOLD, Generator, SCORE};
pub(super) use held_out::evaluate;
pub use networks::Networks;
pub use passes::{Models, SampleSettings};
pub use prompts::minibatch_orders;
pub(super) use prompts::{endless, next_prompts, prompts};
pub use ptx::Ptx;
pub use report::{MinibatchReport, UpdateReport};
pub(super) use state::State;
pub use update::{PolicyUpdate, UpdateSettings, ValueUpdate, update};
pub use value::{FrozenValue, ValueFunction, ValueHead};

/// How much passes through a model at once in an update.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PassSettings {
    /// Tokens of one pass at most.
    pub micro_batch_tokens: usize,
    /// Keep only the states between layers and compute the rest again in the backward pass.
    pub gradient_checkpointing: bool,
}
