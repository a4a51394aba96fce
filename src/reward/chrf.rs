//! chrF of a response against a reference text.

use super::reference::{Reference, shared_ngrams, split};
use super::{Completion, RewardSource};
use crate::error::Result;

/// Longest n-grams of characters.
const CHARACTERS: usize = 6;
/// `beta^2`: recall counts twice as much as precision.
const FACTOR: f64 = 4.0;

/// Sentence chrF, 0 to 100: `(1 + 4) P R / (4 P + R)`, where precision and recall are means over the n-grams of 1 to 6 characters, white space
/// left out, and over those of 1 to `word_order` words. Orders that either text is too short for are left out.
///
/// Equals `sacrebleu.sentence_chrf(response, [reference]).score` of sacrebleu 2.6 with its defaults, and with `word_order: 2` chrF++.
///
/// # Source
/// Popovic 2015 and 2017; Post 2018, arXiv:1804.08771.
#[derive(Debug)]
pub(super) struct Chrf {
    pub(super) reference: Reference,
    pub(super) word_order: usize,
}

impl RewardSource for Chrf {
    fn score(&mut self, completions: &[Completion]) -> Result<Vec<f32>> {
        (completions.iter())
            .map(|completion| {
                let (reference, response) = self.reference.texts("chrf", completion)?;
                Ok(chrf(reference, response, self.word_order) as f32)
            })
            .collect()
    }
}

fn chrf(reference: &str, response: &str, word_order: usize) -> f64 {
    let characters = |text| split(text).flat_map(str::chars).collect::<Vec<char>>();
    let of_characters = (characters(reference), characters(response));
    let of_words = (words(reference), words(response));
    let (mut precision, mut recall, mut orders) = (0.0, 0.0, 0.0);
    let characters = (1..=CHARACTERS).map(|n| shared_ngrams(&of_characters.0, &of_characters.1, n));
    let words = (1..=word_order).map(|n| shared_ngrams(&of_words.0, &of_words.1, n));
    for (correct, reference, response) in characters.chain(words) {
        if reference > 0 && response > 0 {
            precision += correct as f64 / response as f64;
            recall += correct as f64 / reference as f64;
            orders += 1.0;
        }
    }
    if precision + recall == 0.0 {
        return 0.0;
    }
    let (precision, recall) = (precision / orders, recall / orders);
    100.0 * (1.0 + FACTOR) * precision * recall / (FACTOR * precision + recall)
}

/// Words, with one punctuation mark split off the end, or else off the start: `(hi)` is `(hi` and `)`.
fn words(text: &str) -> Vec<&str> {
    let mut words = Vec::new();
    for word in split(text) {
        let (mut first, mut last) = (word.chars(), word.chars());
        match (first.next(), last.next_back()) {
            (Some(_), Some(_)) if first.as_str().is_empty() => words.push(word),
            (_, Some(c)) if c.is_ascii_punctuation() => {
                words.extend([last.as_str(), &word[last.as_str().len()..]]);
            }
            (Some(c), _) if c.is_ascii_punctuation() => words.extend([&word[..1], first.as_str()]),
            _ => words.push(word),
        }
    }
    words
}

#[cfg(test)]
mod tests {
    use super::super::reference::testing::sacrebleu;
    use super::*;

    #[test]
    fn recall_counts_twice_as_much() {
        assert!((chrf("the cat", "the cat", 0) - 100.0).abs() < 1e-9);
        assert_eq!(chrf("abc", "xyz", 2), 0.0);
        assert_eq!(chrf("abc", "", 2), 0.0);
        // "ab" of "abc": 2/2 and 1/1 against 2/3 and 1/2; order 3 is left out. P = 1, R = 7/12: 5 * 7/12 / (4 + 7/12).
        let got = chrf("a bc", "ab", 0);
        assert!((got - 100.0 * 35.0 / 55.0).abs() < 1e-9, "{got}");
    }

    #[test]
    fn marks_are_words_of_their_own() {
        assert_eq!(
            words("(hi) \u{e9}. 'x y - a!?"),
            ["(hi", ")", "\u{e9}", ".", "'", "x", "y", "-", "a!", "?"]
        );
    }

    #[test]
    fn equals_sacrebleu() {
        for pair in sacrebleu() {
            let of = |word_order| chrf(&pair.reference, &pair.response, word_order);
            let (plain, plus) = (of(0), of(2));
            assert!((plain - pair.chrf).abs() < 1e-9, "{plain}: {pair:?}");
            assert!((plus - pair.chrf_plus).abs() < 1e-9, "{plus}: {pair:?}");
        }
    }
}
