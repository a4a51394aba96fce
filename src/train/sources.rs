//! The reward sources of a stage.

use std::path::Path;
use std::sync::Arc;

use super::Session;
use crate::data::Tokenizer;
use crate::error::Result;
use crate::ops::ModelBackend;
use crate::reward::{CompletionEncoder, Learned, RewardConfig, RewardSource};

/// Most tokens in one forward pass of a learned reward.
const SCORE_TOKENS: usize = 4096;

impl<B: ModelBackend> Session<'_, B> {
    /// The reward source of a recipe, for completions of a policy with this tokenizer.
    ///
    /// # Errors
    /// Those of the source.
    pub(super) fn reward_source(
        &mut self,
        config: &RewardConfig,
        policy: &Arc<Tokenizer>,
    ) -> Result<Box<dyn RewardSource>>
    where
        B: 'static,
    {
        crate::reward::build(config, &mut |stage| {
            let reward = self.reward_model(stage)?;
            let own = Some(reward.tokenizer);
            let before =
                (reward.adapter.as_ref()).map_or(0, |adapter| adapter.num_virtual_tokens());
            let encoder = CompletionEncoder::new(stage, &reward.config, own, Some(policy.clone()))
                .after(before);
            if let Some(note) = encoder.note() {
                self.reporter.message(&note);
            }
            let learned = Learned::new(reward.model, SCORE_TOKENS, self.device.clone());
            Ok(Box::new(learned.with_encoder(encoder)))
        })
    }
}

/// The folder of a learned reward given by path: a name with a separator.
pub fn reward_folder(stage: &str) -> Option<&Path> {
    stage.contains(['/', '\\']).then(|| Path::new(stage))
}
