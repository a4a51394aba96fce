//! Special tokens that a tokenizer's post-processor adds around a text.

/// Special tokens before and after a text.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Frame {
    before: Vec<u32>,
    after: Vec<u32>,
}

impl Frame {
    /// Determines the tokens by processing a short text.
    ///
    /// # Errors
    /// A message, if the post-processor does more than add tokens before and after.
    pub(super) fn of(inner: &tokenizers::Tokenizer) -> Result<Self, String> {
        const PROBE: &str = "a";
        let encode = |special| inner.encode(PROBE, special).map_err(|e| e.to_string());
        let (plain, whole) = (encode(false)?, encode(true)?);
        let (plain, ids) = (plain.get_ids(), whole.get_ids());
        // A decoder that fails is known before anything is trained.
        inner.decode(plain, false).map_err(|e| e.to_string())?;
        let marks = whole.get_special_tokens_mask();
        let start = marks.iter().take_while(|&&mark| mark == 1).count();
        let frame = Self {
            before: ids[..start].to_vec(),
            after: ids[(start + plain.len()).min(ids.len())..].to_vec(),
        };
        if [&frame.before, plain, &frame.after].concat() != ids {
            return Err("the post-processor does more than to put tokens before and after a text, which is not \
                        supported"
                .into());
        }
        Ok(frame)
    }

    /// Prepends the tokens before a text, unless `ids` begin with them.
    pub(super) fn start(&self, ids: Vec<u32>) -> Vec<u32> {
        // A text usually brings the BOS only.
        let brings = ids
            .first()
            .is_some_and(|id| self.before.first() == Some(id));
        if self.before.is_empty() || brings {
            return ids;
        }
        [self.before.as_slice(), &ids].concat()
    }

    /// The tokens to append to `ids`: none if they end with them already.
    pub(super) fn after(&self, ids: &[u32]) -> &[u32] {
        match ids.ends_with(&self.after) {
            true => &[],
            false => &self.after,
        }
    }
}
