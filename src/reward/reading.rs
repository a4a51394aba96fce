//! Token ids of a policy's completions for a reward model: the policy's own ids, or the text encoded by the reward model's
//! tokenizer.

use std::sync::Arc;

use super::Completion;
use crate::data::{Tokenizer, encode_judged};
use crate::error::{Error, Result};
use crate::model::ModelConfig;

/// Which completions keep the policy's ids.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ids {
    /// All: both models have the same tokens and the same chat template.
    All,
    /// Those with a plain-text prompt: the chat templates differ.
    OfText,
    /// None: the tokens differ.
    None,
}

/// Encodes a policy's completions for a reward model.
#[derive(Debug, Clone)]
pub struct CompletionEncoder {
    name: String,
    own: Option<Arc<Tokenizer>>,
    policy: Option<Arc<Tokenizer>>,
    ids: Ids,
    vocab_size: usize,
    max_positions: usize,
}

impl CompletionEncoder {
    /// For the reward model `name` with the tokenizer `own` and the tokenizer of the policy. If either is absent the policy's ids
    /// are used.
    pub fn new(
        name: &str,
        config: &ModelConfig,
        own: Option<Arc<Tokenizer>>,
        policy: Option<Arc<Tokenizer>>,
    ) -> Self {
        let ids = match (&own, &policy) {
            (Some(own), Some(policy)) if !own.reads_ids_of(policy) => Ids::None,
            (Some(own), Some(policy)) if !own.renders_as(policy) => Ids::OfText,
            _ => Ids::All,
        };
        Self {
            name: name.to_owned(),
            own,
            policy,
            ids,
            vocab_size: config.vocab_size(),
            max_positions: match config.has_learned_positions() {
                true => config.max_positions(),
                false => usize::MAX,
            },
        }
    }

    /// The same before rows that begin with virtual tokens, which have the first positions.
    pub fn after(self, virtual_tokens: usize) -> Self {
        let max_positions = self.max_positions.saturating_sub(virtual_tokens);
        Self {
            max_positions,
            ..self
        }
    }

    /// A note for the user if text is tokenised again.
    pub fn note(&self) -> Option<String> {
        let what = match self.ids {
            Ids::All => return None,
            Ids::OfText => {
                "another chat template than the policy: conversations are rendered by its own"
            }
            Ids::None => "another tokenizer than the policy: text is encoded again with its own",
        };
        Some(format!("the model {} of a reward has {what}", self.name))
    }

    /// Token ids of each completion, prompt included.
    ///
    /// # Errors
    /// `Error::Reward` for a row that does not fit the model; those of [`encode_judged`].
    pub fn rows(&self, completions: &[Completion]) -> Result<Vec<Vec<u32>>> {
        let rows = self.rows_with_prompts(completions)?;
        Ok(rows.into_iter().map(|(row, _)| row).collect())
    }

    /// As [`CompletionEncoder::rows`], each with the number of tokens before the response.
    ///
    /// # Errors
    /// As [`CompletionEncoder::rows`].
    pub fn rows_with_prompts(&self, completions: &[Completion]) -> Result<Vec<(Vec<u32>, usize)>> {
        completions
            .iter()
            .map(|completion| {
                let (row, prompt_len) = self.row(completion)?;
                self.check(&row)?;
                Ok((row, prompt_len))
            })
            .collect()
    }

    fn row(&self, completion: &Completion) -> Result<(Vec<u32>, usize)> {
        let by_ids = match self.ids {
            Ids::All => true,
            Ids::OfText => completion.conversation.is_none(),
            Ids::None => false,
        };
        match (&self.own, &self.policy) {
            (Some(own), Some(policy)) if !by_ids => {
                let last = completion.response_ids.last();
                let ended = last.is_some_and(|id| policy.stop_ids().contains(id));
                encode_judged(
                    own,
                    &completion.prompt,
                    completion.conversation.as_ref(),
                    &completion.response,
                    ended,
                )
            }
            _ => {
                let row = [completion.prompt_ids.as_slice(), &completion.response_ids].concat();
                Ok((row, completion.prompt_ids.len()))
            }
        }
    }

    fn check(&self, row: &[u32]) -> Result<()> {
        let refuse = |message: String| {
            Err(Error::Reward {
                name: self.name.clone(),
                message,
            })
        };
        if let Some(id) = row.iter().find(|&&id| id as usize >= self.vocab_size) {
            return refuse(format!(
                "token id {id} of a response: the model has ids 0 to {}",
                self.vocab_size - 1
            ));
        }
        if row.len() > self.max_positions {
            return refuse(format!(
                "prompt and response have {} tokens; the model takes at most {}",
                row.len(),
                self.max_positions
            ));
        }
        Ok(())
    }
}
