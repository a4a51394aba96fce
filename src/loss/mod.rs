//! Losses: tensors in, tensors out, summed.
//!
//! Each loss returns a *sum* as `[1]`, over tokens or over prompts. Policy losses return one entry per token, because methods weight
//! tokens differently. The caller divides by the count of the whole minibatch, so that the split into micro-batches does not
//! change the gradient.

mod best_of_k;
mod bradley_terry;
mod cpo;
mod cross_entropy;
mod dpo;
mod dpo_losses;
mod hir;
mod kto;
mod orpo;
mod pointwise;
mod ppo;

pub use best_of_k::{Choices, best_of_k};
pub use bradley_terry::{Comparisons, RewardLoss, bradley_terry, centring};
pub use cpo::{CpoLoss, CpoObjective, cpo};
pub use cross_entropy::cross_entropy;
pub use dpo::{DpoObjective, ResponseValues, chosen_tokens, dpo, response_sums};
pub use dpo_losses::{DpoLoss, DpoLosses};
pub use hir::{HirObjective, HirTerms, InstructionContrast, hir};
pub use kto::{KtoLoss, KtoObjective, kto};
pub use orpo::{log_odds, orpo};
pub use pointwise::{Targets, classification, squared_error};
pub use ppo::{kl_loss, log_ratios, policy_loss, ratios, surrogate_loss, value_loss};

#[cfg(test)]
mod test_support;
