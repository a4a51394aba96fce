//! Training stages: one readable loop per stage, over shared pieces that exist once.

mod compare;
pub mod config;
mod dpo;
mod drawing;
mod evaluate;
mod forward;
mod journal;
mod policy;
pub mod ppo;
mod pretrain;
mod rank;
mod reward_model;
mod session;
mod sft;
mod shared;
mod sources;
mod state;
mod supervised;

pub use compare::compare;
pub use dpo::dpo;
pub use forward::{example_loss, row_logprobs};
pub use policy::{Policy, RewardModel};
pub use ppo::ppo;
pub use pretrain::pretrain;
pub use rank::rank;
pub use reward_model::reward_model;
pub use session::{Outcome, Session};
pub use sft::sft;
pub use sources::reward_folder;
