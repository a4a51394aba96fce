//! How a reward model reads what a policy drew: the policy's tokens, or the text in tokens of its own.

use std::sync::Arc;

use super::Completion;
use crate::data::{Tokenizer, encode_judged};
use crate::error::{Error, Result};
use crate::model::ModelConfig;

/// Which completions are read by the policy's ids.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ids {
    /// All: both models have the same tokens and chat template.
    All,
    /// Those whose prompt is text: conversations have another template.
    OfText,
    /// None: the reward model has other tokens.
    None,
}

/// A reward model's way to read completions.
#[derive(Debug, Clone)]
pub struct Reading {
    name: String,
    own: Option<Arc<Tokenizer>>,
    policy: Option<Arc<Tokenizer>>,
    ids: Ids,
    vocab_size: usize,
    max_positions: usize,
}

impl Reading {
    /// The reading of the reward model `name` with this configuration and tokenizer, of what a policy with another
    /// tokenizer drew. Without either tokenizer the policy's ids are read.
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

    /// What the user should know: that text is tokenised again.
    pub fn note(&self) -> Option<String> {
        let what = match self.ids {
            Ids::All => return None,
            Ids::OfText => {
                "another chat template than the policy: conversations are rendered by its own"
            }
            Ids::None => {
                "another tokenizer than the policy: it reads the text in tokens of its own"
            }
        };
        Some(format!("the reward model {} has {what}", self.name))
    }

    /// The rows that the reward model scores.
    ///
    /// # Errors
    /// `Error::Reward` for a row that does not fit the model; those of [`encode_judged`].
    pub fn rows(&self, completions: &[Completion]) -> Result<Vec<Vec<u32>>> {
        completions
            .iter()
            .map(|completion| {
                let row = self.row(completion)?;
                self.check(&row)?;
                Ok(row)
            })
            .collect()
    }

    fn row(&self, completion: &Completion) -> Result<Vec<u32>> {
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
            _ => Ok([completion.prompt_ids.as_slice(), &completion.response_ids].concat()),
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
                "token id {id} of a response: the reward model has ids 0 to {}",
                self.vocab_size - 1
            ));
        }
        if row.len() > self.max_positions {
            return refuse(format!(
                "prompt and response have {} tokens; the reward model takes at most {}",
                row.len(),
                self.max_positions
            ));
        }
        Ok(())
    }
}
