//! Configurations of all stages, and what they share. Plain values: nothing here loads, allocates or checks.
//!
//! Keys have TRL's names where TRL has one. Lengths are in tokens unless stated otherwise.

use serde::{Deserialize, Serialize};

pub use super::alarms::{AlarmKind, AlarmsConfig};
pub use super::compare::CompareConfig;
pub use super::cpo::CpoConfig;
pub use super::distill::DistillConfig;
pub use super::dpo::DpoConfig;
pub use super::group::{DynamicSampling, Overlong};
pub use super::grpo::{GrpoConfig, GrpoLoss, ImportanceLevel};
pub use super::hir::{HirConfig, Instructions};
pub use super::judge::JudgeConfig;
pub use super::kto::KtoConfig;
pub use super::label::{LabelConfig, Labeller};
pub use super::online_dpo::{OnlineDpoConfig, OnlineDpoLoss};
pub use super::orpo::OrpoConfig;
pub use super::ppo::{PpoConfig, PtxConfig, ValueInit, ValueTrunk};
pub use super::pretrain::PretrainConfig;
pub use super::rank::RankConfig;
pub use super::reinforce_plus_plus::ReinforcePlusPlusConfig;
pub use super::revise::{Keep, ReviseConfig};
pub use super::reward_model::RewardModelConfig;
pub use super::rloo::RlooConfig;
pub use super::sample::SampleConfig;
pub use super::sft::{EvalReward, SftConfig};
pub use crate::data::DataConfig;
pub use crate::generate::{SamplingConfig, Truncate};
pub use crate::loss::{CpoLoss, DpoLoss, DpoLosses, InstructionContrast, KtoLoss, RewardLoss};
pub use crate::model::Init;
pub use crate::optim::{Algorithm, OptimConfig, ParamGroup, Schedule};
pub use crate::peft::{LoraConfig, Peft};
pub use crate::rl::rollout::ScaleRewards;
pub use crate::rl::{KlControl, KlEstimator, KlIn, MissingEos};

/// Intervals of evaluations and checkpoints, in optimiser steps.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Cadence {
    /// Steps between evaluations (`None`: only before the first and after the last step).
    pub eval_steps: Option<usize>,
    /// Steps between checkpoints (`None`: none but at Ctrl-C).
    pub save_steps: Option<usize>,
    /// Number of newest checkpoints to keep.
    pub save_total_limit: usize,
    /// Samples generated at each evaluation.
    pub num_samples: usize,
    /// Leave the weights of the evaluation with the best value of a metric, instead of the last ones.
    pub keep_best: Option<KeepBest>,
}

/// The choice of a checkpoint by a metric.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeepBest {
    /// Name of the metric, as `metrics.jsonl` has it.
    pub by: String,
    /// Which of two values is better.
    pub mode: Better,
}

/// Which of two values is better.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Better {
    /// The higher one: rewards, accuracies.
    Max,
    /// The lower one: losses.
    Min,
}

impl Default for Cadence {
    fn default() -> Self {
        Self {
            eval_steps: None,
            save_steps: None,
            save_total_limit: 2,
            num_samples: 4,
            keep_best: None,
        }
    }
}

pub(in crate::train) fn one() -> usize {
    1
}
pub(in crate::train) fn four() -> usize {
    4
}
pub(in crate::train) fn tenth() -> f64 {
    0.1
}
pub(in crate::train) fn yes() -> bool {
    true
}
pub(in crate::train) fn default_micro_tokens() -> usize {
    2048
}
pub(in crate::train) fn default_max_length() -> usize {
    512
}
pub(in crate::train) fn default_rollout_batch() -> usize {
    32
}
