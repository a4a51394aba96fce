//! The score of a trained reward model.

use super::{Completion, Reading, RewardSource};
use crate::error::Result;
use crate::model::ScalarModel;
use crate::ops::ModelBackend;

/// Scores prompt and response by their tokens, at the last one (the EOS, if there is one).
///
/// The tokens are those that the policy saw and drew, unless a [`Reading`] says otherwise.
#[derive(Debug)]
pub struct Learned<B: ModelBackend> {
    model: ScalarModel<B>,
    micro_batch_tokens: usize,
    device: B::Device,
    reading: Option<Reading>,
}

impl<B: ModelBackend> Learned<B> {
    /// A source that passes at most `micro_batch_tokens` tokens through the model at once.
    pub fn new(model: ScalarModel<B>, micro_batch_tokens: usize, device: B::Device) -> Self {
        Self {
            model,
            micro_batch_tokens,
            device,
            reading: None,
        }
    }

    /// The same with another way to read completions than by the policy's ids.
    #[must_use]
    pub fn with_reading(mut self, reading: Reading) -> Self {
        self.reading = Some(reading);
        self
    }
}

impl<B: ModelBackend> RewardSource for Learned<B> {
    fn score(&mut self, completions: &[Completion]) -> Result<Vec<f32>> {
        let ids = |c: &Completion| [c.prompt_ids.as_slice(), &c.response_ids].concat();
        let rows: Vec<Vec<u32>> = match &self.reading {
            Some(reading) => reading.rows(completions)?,
            None => completions.iter().map(ids).collect(),
        };
        let rows: Vec<&[u32]> = rows.iter().map(Vec::as_slice).collect();
        Ok(self
            .model
            .row_scores(&rows, self.micro_batch_tokens, &self.device, &mut |_, _| {}))
    }
}
