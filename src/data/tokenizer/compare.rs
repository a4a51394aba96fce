//! Compares tokenizers.

use std::time::{SystemTime, UNIX_EPOCH};

use sha2::Digest;

use super::Tokenizer;
use crate::data::chat::ChatTemplate;

/// Days since 1970.
pub(in crate::data) fn today() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.unwrap_or_default().as_secs() / (24 * 3600)
}

impl Tokenizer {
    /// Whether this tokenizer's model can read ids of `other`: every token of `other` has the same id here, and text is split in the
    /// same way. This tokenizer may have more tokens.
    pub fn reads_ids_of(&self, other: &Self) -> bool {
        let known = self.inner.get_vocab(true);
        let same_ids = || {
            let theirs = other.inner.get_vocab(true);
            theirs.iter().all(|(text, id)| known.get(text) == Some(id))
        };
        let file = self.files.get("tokenizer.json");
        let same_file = file.is_some() && file == other.files.get("tokenizer.json");
        same_ids() && (same_file || self.splits_as(other))
    }

    /// Whether normalisation, pre-tokenisation and merges are the same.
    fn splits_as(&self, other: &Self) -> bool {
        fn same<T: serde::Serialize>(left: &T, right: &T) -> bool {
            match (serde_json::to_value(left), serde_json::to_value(right)) {
                (Ok(left), Ok(right)) => left == right,
                _ => false,
            }
        }
        let (left, right) = (&self.inner, &other.inner);
        same(&left.get_normalizer(), &right.get_normalizer())
            && same(&left.get_pre_tokenizer(), &right.get_pre_tokenizer())
            && same(left.get_model(), right.get_model())
    }

    /// A hash of all that token ids of texts and conversations depend on: its files, and the day if its chat template reads the clock.
    pub(crate) fn fingerprint(&self) -> String {
        let mut hash = self.files.hash();
        if self.chat.as_ref().is_some_and(ChatTemplate::reads_clock) {
            hash.update(today().to_le_bytes());
        }
        format!("{:x}", hash.finalize())
    }

    /// Whether both render conversations alike, or one of them has no chat template.
    pub fn renders_as(&self, other: &Self) -> bool {
        match (&self.chat, &other.chat) {
            (Some(own), Some(theirs)) => own.same_source(theirs),
            _ => true,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::path::Path;

    use serde_json::{Value, json};

    use super::*;
    use crate::data::tokenizer::testing::{self, CHATML};

    /// The tokenizer of a `tokenizer.json`.
    fn tokenizer(file: &Value) -> Tokenizer {
        let config = json!({"eos_token": "b"});
        let files = BTreeMap::from([
            ("tokenizer.json".to_owned(), file.to_string().into_bytes()),
            (
                "tokenizer_config.json".to_owned(),
                config.to_string().into_bytes(),
            ),
        ]);
        Tokenizer::from_files(files, Path::new("toy")).unwrap()
    }

    #[test]
    fn ids_are_read_where_every_token_is_the_same() {
        let added = |id: u32, text: &str| {
            json!({"id": id, "content": text, "special": true, "single_word": false, "lstrip": false,
                   "rstrip": false, "normalized": false})
        };
        let file = |vocab: Value, merges: Value, added: Value| json!({"version": "1.0", "added_tokens": added, "model": {"type": "BPE", "vocab": vocab, "merges": merges}});
        let vocab = json!({"a": 0, "b": 1, "c": 2, "ab": 3, "bc": 4});
        let merges = json!([["a", "b"], ["b", "c"]]);
        let policy = tokenizer(&file(vocab.clone(), merges.clone(), json!([])));
        let with_pad = tokenizer(&file(
            vocab.clone(),
            merges.clone(),
            json!([added(5, "<pad>")]),
        ));
        assert!(policy.reads_ids_of(&policy) && with_pad.reads_ids_of(&policy));
        // The policy may generate an id that the other tokenizer lacks.
        assert!(!policy.reads_ids_of(&with_pad));
        let other_ids = json!({"a": 1, "b": 0, "c": 2, "ab": 3, "bc": 4});
        let other_ids = tokenizer(&file(other_ids, merges, json!([])));
        let other_order = json!([["b", "c"], ["a", "b"]]);
        let other_merges = tokenizer(&file(vocab, other_order, json!([])));
        assert!(!other_ids.reads_ids_of(&policy) && !other_merges.reads_ids_of(&policy));
    }

    #[test]
    fn templates_are_compared_where_both_have_one() {
        let plain = testing::tokenizer(false, None);
        let chatml = testing::tokenizer(false, Some(CHATML));
        let other = testing::tokenizer(false, Some("{{ messages[0].content }}"));
        assert!(chatml.renders_as(&chatml) && chatml.renders_as(&plain));
        assert!(!chatml.renders_as(&other));
    }
}
