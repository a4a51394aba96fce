//! The configuration of a Revise stage.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::train::config::{
    DataConfig, Init, SamplingConfig, default_max_length, default_rollout_batch, four, yes,
};

/// Lets a policy answer prompts, criticise its answers and revise them; writes prompts with the revisions.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReviseConfig {
    /// The stage's name, unique in the recipe.
    pub name: String,
    /// The policy that answers, criticises and revises.
    pub init: Init,
    /// Prompts.
    pub data: DataConfig,
    /// A JSONL file of principles, each with a request for a critique and one for a revision: every round takes one, drawn at random.
    pub principles: PathBuf,
    /// A JSONL file of whole dialogues, which stand before every request.
    #[serde(default)]
    pub examples: Option<PathBuf>,
    /// Rounds of critique and revision.
    #[serde(default = "four")]
    pub num_revisions: usize,
    /// Ask for a critique before each revision.
    #[serde(default = "yes")]
    pub critique: bool,
    /// Which revisions become rows.
    #[serde(default)]
    pub keep: Keep,
    /// Most tokens of a response and of a revision.
    pub response_length: usize,
    /// Most tokens of a critique; those of a response if absent.
    #[serde(default)]
    pub critique_length: Option<usize>,
    /// Longest prompt in tokens; longer rows are counted and dropped.
    #[serde(default = "default_max_length")]
    pub max_prompt_length: usize,
    /// How all texts are generated.
    #[serde(default)]
    pub sampling: SamplingConfig,
    /// Texts at which what is generated ends, beside EOS; they are cut off. In plain text also the headings of the next request.
    #[serde(default)]
    pub stop: Vec<String>,
    /// Texts generated at once.
    #[serde(default = "default_rollout_batch")]
    pub generation_batch_size: usize,
    /// Fraction of prompts whose rows are held out (`<stage>/valid.jsonl`).
    #[serde(default)]
    pub valid_fraction: f64,
}

/// Which revisions of a prompt become rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub enum Keep {
    /// Those of every round.
    #[default]
    All,
    /// The last one.
    Last,
}
