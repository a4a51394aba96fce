//! Reward sources: one score per response.

mod config;

pub use config::{RewardConfig, RougeVariant};

use crate::error::Result;

/// One response to be scored.
#[derive(Debug, Clone, Default)]
pub struct Completion {
    /// Prompt text as the model saw it.
    pub prompt: String,
    /// Response text without special tokens.
    pub response: String,
    /// Prompt token ids.
    pub prompt_ids: Vec<u32>,
    /// Response token ids, the EOS included if there is one.
    pub response_ids: Vec<u32>,
    /// The data row's columns (reference texts and the like).
    pub row: serde_json::Map<String, serde_json::Value>,
}

/// A source of scores. Object-safe; no backend in its type.
pub trait RewardSource {
    /// One score per completion, in order.
    ///
    /// # Errors
    /// When a column is missing, a program fails, or a score is not finite.
    fn score(&mut self, completions: &[Completion]) -> Result<Vec<f32>>;
}
