//! The reward sources that a stage names.

use super::Session;
use crate::error::{Error, Result};
use crate::ops::ModelBackend;
use crate::reward::{Learned, RewardConfig, RewardSource};

impl<B: ModelBackend> Session<'_, B> {
    /// The reward source that a recipe names. A learned one reads tokens, so it must have the policy's vocabulary.
    ///
    /// # Errors
    /// Those of the source.
    pub(super) fn reward_source(
        &mut self,
        config: &RewardConfig,
        vocab: usize,
    ) -> Result<Box<dyn RewardSource>>
    where
        B: 'static,
    {
        crate::reward::build(config, &mut |stage| {
            let reward = self.reward_model(stage)?;
            if reward.vocab_size != vocab {
                return Err(Error::Reward {
                    name: stage.to_owned(),
                    message: format!(
                        "it has a vocabulary of {} tokens and the policy one of {vocab}; train it from the same model",
                        reward.vocab_size
                    ),
                });
            }
            Ok(Box::new(Learned::new(
                reward.model,
                SCORE_TOKENS,
                self.device.clone(),
            )))
        })
    }
}

/// Tokens that a learned reward passes through its model at once.
const SCORE_TOKENS: usize = 4096;
