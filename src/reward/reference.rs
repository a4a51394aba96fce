//! Reference texts in a column of the rows.

use std::collections::HashMap;
use std::hash::Hash;

use super::rouge::first_line;
use super::{Completion, columns};
use crate::error::{Error, Result};

/// Where a source finds its reference texts, and how much of a response it compares with them.
#[derive(Debug, Clone)]
pub(super) struct Reference {
    /// The column.
    pub(super) column: String,
    /// Whether only the first line of the response is compared.
    pub(super) first_line: bool,
}

impl Reference {
    /// Reference and response of a completion that the source `name` compares.
    ///
    /// # Errors
    /// `Error::Reward` if the row has no such text column.
    pub(super) fn texts<'a>(
        &self,
        name: &str,
        completion: &'a Completion,
    ) -> Result<(&'a str, &'a str)> {
        let reference = completion.row.get(&self.column).and_then(|v| v.as_str());
        let reference = reference.ok_or_else(|| Error::Reward {
            name: name.into(),
            message: format!(
                "needs the text column {:?}; the row has {}",
                self.column,
                columns(&completion.row)
            ),
        })?;
        let response = match self.first_line {
            true => first_line(&completion.response),
            false => completion.response.as_str(),
        };
        Ok((reference, response))
    }
}

/// Numbers of n-grams: those in both texts, each as often as in the text that has fewer of it, those of the reference and those of the
/// response.
pub(super) fn shared_ngrams<T: Eq + Hash>(
    reference: &[T],
    response: &[T],
    n: usize,
) -> (usize, usize, usize) {
    let mut left: HashMap<&[T], usize> = HashMap::new();
    for ngram in reference.windows(n) {
        *left.entry(ngram).or_default() += 1;
    }
    let mut shared = 0;
    for ngram in response.windows(n) {
        if let Some(count) = left.get_mut(ngram).filter(|count| **count > 0) {
            *count -= 1;
            shared += 1;
        }
    }
    let ngrams = |len: usize| (len + 1).saturating_sub(n);
    (shared, ngrams(reference.len()), ngrams(response.len()))
}

/// Python's `str.split()`: runs without white space. Unlike Rust's, four control characters separate, too.
pub(super) fn split(text: &str) -> impl Iterator<Item = &str> {
    text.split(is_space).filter(|word| !word.is_empty())
}

/// Python's `str.isspace()` of one character.
pub(super) fn is_space(c: char) -> bool {
    c.is_whitespace() || matches!(c, '\u{1c}'..='\u{1f}')
}

#[cfg(test)]
pub(super) mod testing {
    use std::path::Path;

    use serde::Deserialize;

    /// Two texts and sacrebleu's scores.
    #[derive(Debug, Deserialize)]
    pub(in crate::reward) struct ScoredPair {
        pub(in crate::reward) reference: String,
        pub(in crate::reward) response: String,
        pub(in crate::reward) bleu: f64,
        pub(in crate::reward) chrf: f64,
        #[serde(rename = "chrf++")]
        pub(in crate::reward) chrf_plus: f64,
    }

    /// The pairs of `tests/reference/sacrebleu.json`.
    pub(in crate::reward) fn sacrebleu() -> Vec<ScoredPair> {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/reference/sacrebleu.json");
        let text = std::fs::read_to_string(file).unwrap();
        serde_json::from_str(&text).unwrap()
    }
}
