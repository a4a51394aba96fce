//! A recipe and its stages: composition of the configs that live beside the code they configure.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::ops::{MatmulPrecision, Numerics, Precision};
use crate::train::config::{
    CompareConfig, DpoConfig, Peft, PpoConfig, PretrainConfig, RankConfig, RewardModelConfig,
    SftConfig,
};

/// A whole pipeline in one file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    /// Names the run folder.
    pub name: String,
    /// The base model: a name of `temper models`, or a folder / GGUF file. May be absent when every stage has an `init` of its own.
    #[serde(default)]
    pub model: Option<String>,
    /// How the weights of the base model and of whole models from earlier stages are kept; anything but f32 keeps them frozen, so
    /// that stages train adapters only.
    #[serde(default)]
    pub base_precision: Precision,
    /// How products with weights are computed, those of the base and those that stages train.
    #[serde(default)]
    pub matmul_precision: MatmulPrecision,
    /// Root of all randomness.
    #[serde(default = "one")]
    pub seed: u64,
    /// Run folder; `runs/<name>` if absent.
    #[serde(default)]
    pub output: Option<PathBuf>,
    /// The stages, in order.
    pub stages: Vec<Stage>,
}

/// One stage.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub enum Stage {
    /// Plain language modelling.
    Pretrain(PretrainConfig),
    /// Supervised fine-tuning.
    Sft(SftConfig),
    /// Comparisons from a reward source.
    Rank(RankConfig),
    /// Reward model.
    RewardModel(Box<RewardModelConfig>),
    /// Direct preference optimisation.
    Dpo(DpoConfig),
    /// Proximal policy optimisation.
    Ppo(Box<PpoConfig>),
    /// Stages side by side.
    Compare(CompareConfig),
}

impl Recipe {
    /// How weights are kept and multiplied.
    pub fn numerics(&self) -> Numerics {
        Numerics {
            storage: self.base_precision,
            matmul: self.matmul_precision,
        }
    }
}

impl Stage {
    /// The stage's name.
    pub fn name(&self) -> &str {
        match self {
            Self::Pretrain(c) => &c.name,
            Self::Sft(c) => &c.name,
            Self::Rank(c) => &c.name,
            Self::RewardModel(c) => &c.name,
            Self::Dpo(c) => &c.name,
            Self::Ppo(c) => &c.name,
            Self::Compare(c) => &c.name,
        }
    }

    /// Which weights it trains, if it trains any.
    pub fn peft(&self) -> Option<&Peft> {
        match self {
            Self::Pretrain(c) => Some(&c.peft),
            Self::Sft(c) => Some(&c.peft),
            Self::RewardModel(c) => Some(&c.peft),
            Self::Dpo(c) => Some(&c.peft),
            Self::Ppo(c) => Some(&c.peft),
            Self::Rank(_) | Self::Compare(_) => None,
        }
    }

    /// Whether its backward passes compute layers again.
    pub fn gradient_checkpointing(&self) -> bool {
        match self {
            Self::Pretrain(c) => c.gradient_checkpointing,
            Self::Sft(c) => c.gradient_checkpointing,
            Self::RewardModel(c) => c.gradient_checkpointing,
            Self::Dpo(c) => c.gradient_checkpointing,
            Self::Ppo(c) => c.gradient_checkpointing,
            Self::Rank(_) | Self::Compare(_) => false,
        }
    }

    /// The variant's name, as a recipe writes it.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Pretrain(_) => "Pretrain",
            Self::Sft(_) => "Sft",
            Self::Rank(_) => "Rank",
            Self::RewardModel(_) => "RewardModel",
            Self::Dpo(_) => "Dpo",
            Self::Ppo(_) => "Ppo",
            Self::Compare(_) => "Compare",
        }
    }
}

fn one() -> u64 {
    1
}
