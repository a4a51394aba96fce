//! How a stage draws responses.

use crate::data::Tokenizer;
use crate::error::Result;
use crate::generate::{GenerateOptions, SamplingConfig, Truncate, TruncateAt};

/// What the stages that draw responses say about it, in their own keys.
pub(super) struct Drawing<'a> {
    pub(super) response_length: usize,
    pub(super) sampling: SamplingConfig,
    pub(super) truncate: Option<&'a Truncate>,
    pub(super) batch_size: usize,
}

impl Drawing<'_> {
    /// The same with the tokenizer's stop tokens.
    ///
    /// # Errors
    /// `Error::Usage` if the text to truncate at is not one token.
    pub(super) fn options(self, tokenizer: &Tokenizer) -> Result<GenerateOptions> {
        let at = |truncate: &Truncate| {
            Ok(TruncateAt {
                id: tokenizer.single_token(&truncate.token)?,
                after: truncate.after,
            })
        };
        Ok(GenerateOptions {
            max_new_tokens: self.response_length,
            sampling: self.sampling,
            stop_ids: tokenizer.stop_ids().to_vec(),
            truncate: self.truncate.map(at).transpose()?,
            batch_size: self.batch_size,
        })
    }
}
