//! Generation settings of a stage.

use crate::data::Tokenizer;
use crate::error::{Error, Result};
use crate::generate::{GenerateOptions, SamplingConfig, Truncate, TruncateAt};

/// Generation settings, from the keys of a stage.
pub(super) struct Generation<'a> {
    /// Most tokens of a response.
    pub(super) response_length: usize,
    /// How tokens are sampled.
    pub(super) sampling: SamplingConfig,
    /// A further token that ends a response.
    pub(super) truncate: Option<&'a Truncate>,
    /// Responses generated at once.
    pub(super) batch_size: usize,
}

impl Generation<'_> {
    /// The options of [`generate`](crate::generate::generate), with the tokenizer's stop tokens.
    ///
    /// # Errors
    /// `Error::Usage` if the text to truncate at is not one token.
    pub(super) fn options(self, tokenizer: &Tokenizer) -> Result<GenerateOptions> {
        let at = |truncate: &Truncate| {
            Ok::<_, Error>(TruncateAt {
                id: tokenizer.single_token(&truncate.token)?,
                after: truncate.after,
            })
        };
        Ok(GenerateOptions {
            max_new_tokens: self.response_length,
            sampling: self.sampling,
            repetition_penalty: 1.0,
            stop_ids: tokenizer.stop_ids().to_vec(),
            truncate: self.truncate.map(at).transpose()?,
            batch_size: self.batch_size,
        })
    }
}
