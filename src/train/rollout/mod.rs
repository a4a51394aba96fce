//! The rollout core: the steps common to all on-policy methods, independent of advantage estimator and objective.
//!
//! # How an update flows
//! 1. A `Generator` generates and scores responses: [`Episodes`].
//! 2. [`Models::samples`] adds log-probabilities and values from forward passes.
//! 3. An [`AdvantageEstimator`](crate::rl::rollout::AdvantageEstimator) turns these samples into a [`Rollout`].
//! 4. [`minibatch_orders`] shuffles its rows, and [`update`] trains.
//!
//! Only the first step does I/O or sampling, so that a given rollout can be compared with another implementation number by
//! number.
//!
//! A stage on this core consists of a configuration, a stage specification, and a loop over these steps. A value function, a
//! reference and pre-training text are each optional.

mod average;
mod episodes;
mod held_out;
mod micro_batch;
mod networks;
mod passes;
mod prompts;
mod ptx;
mod report;
mod shared_queries;
mod state;
mod update;
mod value;

pub use super::shared::NonFinite;
pub use crate::rl::rollout::{Rollout, Samples, ValueTargets};
pub use episodes::Episodes;
pub(super) use episodes::{GOLD, Generator, SCORE};
pub(super) use held_out::{HeldOut, evaluate};
pub use networks::Networks;
pub use passes::{Models, SampleSettings};
pub use prompts::minibatch_orders;
pub(super) use prompts::{endless, held_out_prompts, next_prompts, prompts};
pub use ptx::Ptx;
pub use report::{MinibatchReport, UpdateReport};
pub(super) use state::State;
pub use update::{PolicyUpdate, UpdateSettings, ValueUpdate, update};
pub use value::{FrozenValue, ValueFunction, ValueHead};

/// Settings of the forward and backward passes of an update.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PassSettings {
    /// Tokens of one pass at most.
    pub micro_batch_tokens: usize,
    /// Recompute layers in the backward pass instead of storing their activations.
    pub gradient_checkpointing: bool,
    /// Whether responses to one query, in one pass, share the query's tokens. The order of sums in attention changes.
    pub share_prompts: bool,
}
