//! Tokens by what people call them.

use super::Tokenizer;
use crate::error::{Error, Result};
use crate::suggest::did_you_mean;

impl Tokenizer {
    /// The id of the token that is called `text`: an entry of the vocabulary in its own spelling (`<|im_end|>`, `Ġthe`), or else a text
    /// that is encoded as one token (` the`).
    ///
    /// # Errors
    /// `Error::Usage` with the entry that comes close, if one does; those of encoding.
    pub fn token_named(&self, text: &str) -> Result<u32> {
        if let Some(id) = self.inner.token_to_id(text) {
            return Ok(id);
        }
        let pieces = match self.encode(text, false)?.as_slice() {
            [id] => return Ok(*id),
            pieces => pieces.len(),
        };
        let mut entries: Vec<(String, u32)> = self.inner.get_vocab(true).into_iter().collect();
        // Added tokens are what texts like these are mistyped for.
        entries.sort_by_key(|(_, id)| (!self.is_special(*id), *id));
        let close = did_you_mean(text, entries.iter().map(|(entry, _)| entry.as_str()));
        let help = close.unwrap_or_else(|| {
            format!("as a text it is {pieces} tokens; `add_tokens` makes it one")
        });
        Err(Error::Usage(format!(
            "{text:?} is no token of the vocabulary; {help}"
        )))
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::*;

    #[test]
    fn a_token_is_found_by_its_entry_or_by_a_text_that_is_one_token() {
        let tok = tokenizer(false, None);
        assert_eq!(tok.token_named("<|im_end|>").unwrap(), IM_END);
        assert_eq!(tok.token_named("hi").unwrap(), HI);
        let message = |text: &str| tok.token_named(text).unwrap_err().to_string();
        assert_eq!(
            message("<|im_ed|>"),
            "\"<|im_ed|>\" is no token of the vocabulary; did you mean `<|im_end|>`?"
        );
        assert_eq!(
            message("zzzzzzzz"),
            "\"zzzzzzzz\" is no token of the vocabulary; as a text it is 8 tokens; `add_tokens` makes it one"
        );
    }
}
