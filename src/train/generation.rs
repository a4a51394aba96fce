//! How a stage generates responses.

use crate::data::Tokenizer;
use crate::error::Result;
use crate::generate::{GenerateOptions, SamplingConfig, Truncate, TruncateAt};

/// What the stages that generate responses say about it, in their own keys.
pub(super) struct Generation<'a> {
    /// Most tokens of a response.
    pub(super) response_length: usize,
    /// How each token is chosen.
    pub(super) sampling: SamplingConfig,
    /// A token that ends a response beside EOS.
    pub(super) truncate: Option<&'a Truncate>,
    /// Responses generated at once.
    pub(super) batch_size: usize,
}

impl Generation<'_> {
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
