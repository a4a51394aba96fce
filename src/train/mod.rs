//! Training stages: one loop per stage, over shared parts.

pub mod alarms;
pub mod checks;
mod clock;
mod compare;
pub mod config;
mod cpo;
mod distill;
mod dpo;
mod evaluate;
mod forward;
mod generation;
pub mod group;
pub mod grpo;
mod hir;
mod journal;
mod judge;
mod kto;
mod label;
mod lineage;
mod measure;
mod metric_names;
mod online_dpo;
mod orpo;
pub mod plan;
mod policy;
pub mod ppo;
mod preference;
mod pretrain;
mod preview;
mod rank;
pub mod reinforce_plus_plus;
mod rescue;
mod revise;
mod reward_model;
pub mod rloo;
pub mod rollout;
mod sample;
mod session;
mod sft;
mod shared;
mod sources;
mod stage;
mod state;
mod supervised;

pub use clock::RunClock;
pub use compare::COMPARED;
pub use forward::{example_loss, row_logprobs};
pub use measure::measure;
pub use metric_names::MetricNames;
pub use policy::{Policy, RewardModel};
pub use ppo::OTHER_TOKENS;
pub use preview::{Preview, PreviewRow, Sequence};
pub use session::{Outcome, Session};
pub use sources::reward_folder;
pub use stage::{
    DataUse, GenerationSettings, StageInputs, StageOutput, StageSpec, TrainingSettings,
};

// The list of stages. A new stage needs a line here and a folder with its configuration, its `StageSpec` and its loop.
stage::stages! {
    /// Plain language modelling.
    Pretrain(config::PretrainConfig),
    /// Supervised fine-tuning.
    Sft(config::SftConfig),
    /// Generation and ranking of responses.
    Rank(config::RankConfig),
    /// Sampling of responses, with scores.
    Sample(config::SampleConfig),
    /// Labels of pairs by a judge.
    Judge(config::JudgeConfig),
    /// Labels of pairs by people.
    Label(config::LabelConfig),
    /// Critique and revision of responses.
    Revise(config::ReviseConfig),
    /// Reward model.
    RewardModel(config::RewardModelConfig),
    /// Direct preference optimisation.
    Dpo(config::DpoConfig),
    /// Contrastive preference optimisation and SimPO: without a reference.
    Cpo(config::CpoConfig),
    /// Odds ratio preference optimisation: without a reference.
    Orpo(config::OrpoConfig),
    /// Kahneman-Tversky optimisation on labelled responses.
    Kto(config::KtoConfig),
    /// Direct preference optimisation on the policy's own responses.
    OnlineDpo(config::OnlineDpoConfig),
    /// Hindsight instruction relabelling.
    Hir(config::HirConfig),
    /// Proximal policy optimisation.
    Ppo(config::PpoConfig),
    /// Group relative policy optimisation.
    Grpo(config::GrpoConfig),
    /// REINFORCE leave-one-out.
    Rloo(config::RlooConfig),
    /// REINFORCE++.
    ReinforcePlusPlus(config::ReinforcePlusPlusConfig),
    /// On-policy distillation.
    Distill(config::DistillConfig),
    /// Comparison of policies.
    Compare(config::CompareConfig),
}
