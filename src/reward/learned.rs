//! The score of a trained reward model.

use super::{Completion, CompletionEncoder, RewardSource};
use crate::error::Result;
use crate::model::ScalarModel;
use crate::ops::ModelBackend;
use crate::tokens::row_groups;

/// A reward model as a source: its score at the last token of prompt and response.
///
/// It reads the policy's token ids, unless a [`CompletionEncoder`] encodes the text again.
#[derive(Debug)]
pub struct Learned<B: ModelBackend> {
    model: ScalarModel<B>,
    micro_batch_tokens: usize,
    device: B::Device,
    encoder: Option<CompletionEncoder>,
}

impl<B: ModelBackend> Learned<B> {
    /// A source with at most `micro_batch_tokens` tokens in one forward pass.
    pub fn new(model: ScalarModel<B>, micro_batch_tokens: usize, device: B::Device) -> Self {
        Self {
            model,
            micro_batch_tokens,
            device,
            encoder: None,
        }
    }

    /// Encodes completions by `encoder` instead of reading the policy's ids.
    #[must_use]
    pub fn with_encoder(mut self, encoder: CompletionEncoder) -> Self {
        self.encoder = Some(encoder);
        self
    }
}

impl<B: ModelBackend> RewardSource for Learned<B> {
    fn score(&mut self, completions: &[Completion]) -> Result<Vec<f32>> {
        let ids = |c: &Completion| [c.prompt_ids.as_slice(), &c.response_ids].concat();
        let rows: Vec<Vec<u32>> = match &self.encoder {
            Some(encoder) => encoder.rows(completions)?,
            None => completions.iter().map(ids).collect(),
        };
        let rows: Vec<&[u32]> = rows.iter().map(Vec::as_slice).collect();
        // Responses to one prompt that stand together share its pass.
        let prompt = |row: usize| &completions[row].prompt_ids;
        let groups = row_groups(&rows, self.micro_batch_tokens, |a, b| {
            prompt(a) == prompt(b)
        });
        let groups: Vec<Vec<&[u32]>> = (groups.into_iter())
            .map(|range| rows[range].to_vec())
            .collect();
        let (most, device) = (self.micro_batch_tokens, &self.device);
        let scores = (self.model).group_scores(&groups, most, device, &mut |_, _| {});
        Ok(scores.concat())
    }
}
