//! From scores to advantages: pure functions on packed rows, on the host.
//!
//! A rollout's numbers are `f32` slices, one per response token, with the row boundaries in [`Segments`](crate::tokens::Segments).
//! They are a few bytes per token, so they live on the host; the losses that need gradients are in [`crate::loss`].
//!
//! # The chain of one PPO rollout
//! ```
//! use tempering::rl::{
//!     KlEstimator, MissingEos, ResponseLayout, Variance, apply_missing_eos, gae, kl_per_token, token_rewards, whiten,
//! };
//! use tempering::tokens::Segments;
//!
//! // Two responses of at most 4 tokens: the first stopped by EOS after 2, the second was cut off.
//! let responses = Segments::from_lens([2, 4]);
//! let layout = ResponseLayout::after_eos(responses.clone(), 4);
//! let logprobs = [-1.0, -2.0, -1.0, -1.0, -1.0, -1.0];
//! let ref_logprobs = [-1.5, -1.8, -1.0, -1.0, -1.0, -1.0];
//! let mut scores = [2.0, 3.0];
//! let values = [0.5, 0.6, 0.7, 0.1, 0.2, 0.3, 0.4]; // one more than tokens: the state after the first row's EOS
//!
//! apply_missing_eos(&mut scores, &[true, false], MissingEos::Replace(-1.0));
//! let kl = kl_per_token(KlEstimator::K1, &logprobs, &ref_logprobs);
//! let rewards = token_rewards(&kl, &scores, 0.05, &layout);
//! let gae = gae(&rewards, &values, layout.values(), 1.0, 0.95);
//! let advantages = whiten(&layout.at_responses(&gae.advantages), true, Variance::Biased);
//! assert_eq!((gae.returns.len(), advantages.len()), (7, 6));
//! ```

mod config;
mod gae;
mod kl;
mod layout;
mod rewards;
pub mod rollout;
mod stats;
mod whiten;

pub use config::{KlControl, KlEstimator, KlIn, MissingEos};
pub use gae::{Gae, gae};
pub(crate) use kl::MAX_LOG_RATIO;
pub use kl::{AdaptiveKl, KlController, KlTerm, kl_per_token};
pub use layout::ResponseLayout;
pub use rewards::{apply_missing_eos, token_rewards};
pub use stats::{
    ObjectiveStats, UpdateStats, explained_variance, mean, objective_stats, row_sums, variance,
};
pub use whiten::{Variance, whiten};
