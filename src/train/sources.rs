//! The reward sources that a stage names.

use std::path::Path;
use std::sync::Arc;

use super::Session;
use crate::data::Tokenizer;
use crate::error::Result;
use crate::ops::ModelBackend;
use crate::reward::{Learned, Reading, RewardConfig, RewardSource};

/// Tokens that a learned reward passes through its model at once.
const SCORE_TOKENS: usize = 4096;

impl<B: ModelBackend> Session<'_, B> {
    /// The reward source that a recipe names, of what a policy with this tokenizer draws.
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
            let reading = Reading::new(stage, &reward.config, own, Some(policy.clone()));
            if let Some(note) = reading.note() {
                self.reporter.message(&note);
            }
            let learned = Learned::new(reward.model, SCORE_TOKENS, self.device.clone());
            Ok(Box::new(learned.with_reading(reading)))
        })
    }
}

/// The folder that a learned reward names, if it names no stage: a path with a separator.
pub fn reward_folder(stage: &str) -> Option<&Path> {
    stage.contains(['/', '\\']).then(|| Path::new(stage))
}
