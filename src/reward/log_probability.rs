//! The log-probability of a response under another language model.

use super::{Completion, CompletionEncoder, RewardSource, TokenReduction};
use crate::error::Result;
use crate::model::{LanguageModel, row_logprobs};
use crate::ops::ModelBackend;

/// How likely a language model finds a response after its prompt, in nats: the mean over the response's tokens (the logarithm of
/// 1 / perplexity), or their sum. The EOS counts where the response has one; an empty response scores 0.
///
/// It reads the policy's token ids where both have the same tokenizer, else the text, encoded with its own.
#[derive(Debug)]
pub struct LogProbability<B: ModelBackend> {
    model: LanguageModel<B>,
    reduction: TokenReduction,
    micro_batch_tokens: usize,
    device: B::Device,
    encoder: CompletionEncoder,
}

impl<B: ModelBackend> LogProbability<B> {
    /// A source with at most `micro_batch_tokens` tokens in one forward pass.
    pub fn new(
        model: LanguageModel<B>,
        reduction: TokenReduction,
        micro_batch_tokens: usize,
        device: B::Device,
        encoder: CompletionEncoder,
    ) -> Self {
        Self {
            model,
            reduction,
            micro_batch_tokens,
            device,
            encoder,
        }
    }
}

impl<B: ModelBackend> RewardSource for LogProbability<B> {
    fn score(&mut self, completions: &[Completion]) -> Result<Vec<f32>> {
        let rows = self.encoder.rows_with_prompts(completions)?;
        // The first token of a row has no prediction, and an empty response no token.
        let has_response =
            |(ids, prompt_len): &&(Vec<u32>, usize)| ids.len() > (*prompt_len).max(1);
        let read: Vec<&(Vec<u32>, usize)> = rows.iter().filter(has_response).collect();
        let prompt_lens: Vec<usize> = read.iter().map(|(_, prompt_len)| *prompt_len).collect();
        let ids: Vec<&[u32]> = read.iter().map(|(ids, _)| ids.as_slice()).collect();
        let logprobs = row_logprobs(
            &self.model,
            &ids,
            &prompt_lens,
            1.0,
            self.micro_batch_tokens,
            &self.device,
        );
        let mut logprobs = logprobs.into_iter();
        let mut of = |row| match has_response(&row) {
            true => logprobs.next().unwrap_or_default(),
            false => Vec::new(),
        };
        Ok(rows.iter().map(|row| self.reduction.of(&of(row))).collect())
    }
}

impl TokenReduction {
    fn of(self, logprobs: &[f32]) -> f32 {
        let sum: f64 = logprobs.iter().map(|&x| f64::from(x)).sum();
        match self {
            Self::Sum => sum as f32,
            Self::Mean => (sum / logprobs.len().max(1) as f64) as f32,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_averaged_or_added() {
        let logprobs = [-1.0, -2.0, -4.5];
        assert_eq!(TokenReduction::Mean.of(&logprobs), -2.5);
        assert_eq!(TokenReduction::Sum.of(&logprobs), -7.5);
        assert_eq!(TokenReduction::Mean.of(&[]), 0.0);
    }
}
