//! BLEU of a response against a reference text.

use regex::Regex;

use super::reference::{Reference, is_space, shared_ngrams, split};
use super::{Completion, RewardSource};
use crate::error::{Error, Result};

/// Longest n-grams.
const ORDER: usize = 4;

/// Sentence BLEU, 0 to 100.
///
/// `BP exp(1/N sum over n of log p_n)` with `BP = exp(1 - reference / response)` of a response that is shorter than the reference, else 1.
/// `p_n` is the share of the response's n-grams that the reference has. The first `p_n` of no match is `1 / 2n` of all, the next one
/// `1 / 4n`, and so on ("exp" smoothing); orders that the response is too short for are left out (effective order).
/// Equals `sacrebleu.sentence_bleu(response, [reference]).score` of sacrebleu 2.6 with its defaults, tokenizer 13a included.
///
/// # Source
/// Papineni et al. 2002; smoothing: Chen and Cherry 2014, method 3; Post 2018, arXiv:1804.08771.
#[derive(Debug)]
pub(super) struct Bleu {
    reference: Reference,
    tokenizer: Tokenizer13a,
}

impl Bleu {
    /// BLEU against the texts of `reference`.
    ///
    /// # Errors
    /// Never, as long as the patterns are regular expressions.
    pub(super) fn new(reference: Reference) -> Result<Self> {
        Ok(Self {
            reference,
            tokenizer: Tokenizer13a::new()?,
        })
    }

    fn of(&self, reference: &str, response: &str) -> f64 {
        let (reference, response) = (
            self.tokenizer.tokens(reference),
            self.tokenizer.tokens(response),
        );
        bleu(&reference, &response)
    }
}

impl RewardSource for Bleu {
    fn score(&mut self, completions: &[Completion]) -> Result<Vec<f32>> {
        (completions.iter())
            .map(|completion| {
                let (reference, response) = self.reference.texts("bleu", completion)?;
                Ok(self.of(reference, response) as f32)
            })
            .collect()
    }
}

/// BLEU of tokens.
fn bleu(reference: &[String], response: &[String]) -> f64 {
    let counts = (1..=ORDER).map(|n| shared_ngrams(reference, response, n));
    let counts: Vec<(usize, usize, usize)> = counts.collect();
    if counts.iter().all(|&(correct, ..)| correct == 0) {
        return 0.0;
    }
    let (mut logs, mut orders, mut smoothing) = (0.0, 0, 1.0);
    for &(correct, _, total) in counts.iter().take_while(|(.., total)| *total > 0) {
        let precision = match correct {
            0 => {
                smoothing *= 2.0;
                100.0 / (smoothing * total as f64)
            }
            correct => 100.0 * correct as f64 / total as f64,
        };
        logs += precision.ln();
        orders += 1;
    }
    let brevity = match response.len() < reference.len() {
        true => (1.0 - reference.len() as f64 / response.len() as f64).exp(),
        false => 1.0,
    };
    brevity * (logs / f64::from(orders)).exp()
}

/// The tokenizer of mteval-v13a, as sacrebleu has it.
#[derive(Debug)]
struct Tokenizer13a {
    /// Patterns of periods, commas and dashes with what replaces them, in order.
    patterns: [(Regex, &'static str); 3],
}

impl Tokenizer13a {
    fn new() -> Result<Self> {
        let pattern = |text: &str| {
            Regex::new(text).map_err(|error| Error::Reward {
                name: "bleu".into(),
                message: error.to_string(),
            })
        };
        Ok(Self {
            patterns: [
                // A period or comma, unless a digit is before it; unless one follows; a dash after a digit.
                (pattern(r"([^0-9])([.,])")?, "$1 $2 "),
                (pattern(r"([.,])([^0-9])")?, " $1 $2"),
                (pattern(r"([0-9])(-)")?, "$1 $2 "),
            ],
        })
    }

    fn tokens(&self, text: &str) -> Vec<String> {
        let text = text.trim_end_matches(is_space);
        let mut text = text.replace("<skipped>", "").replace("-\n", "");
        text = text.replace('\n', " ");
        if text.contains('&') {
            // The ampersand second: `&amp;lt;` becomes `<`.
            for (entity, character) in [
                ("&quot;", "\""),
                ("&amp;", "&"),
                ("&lt;", "<"),
                ("&gt;", ">"),
            ] {
                text = text.replace(entity, character);
            }
        }
        let mut apart = String::from(" ");
        for c in text.chars() {
            // ASCII punctuation but the apostrophe, the comma, the dash and the period.
            match c {
                '{'..='~' | '['..='`' | ' '..='&' | '('..='+' | ':'..='@' | '/' => {
                    apart.extend([' ', c, ' ']);
                }
                c => apart.push(c),
            }
        }
        apart.push(' ');
        for (pattern, by) in &self.patterns {
            apart = pattern.replace_all(&apart, *by).into_owned();
        }
        split(&apart).map(str::to_owned).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::super::reference::testing::sacrebleu;
    use super::*;

    fn bleu() -> Bleu {
        Bleu::new(Reference {
            column: "completion".into(),
            first_line: false,
        })
        .unwrap()
    }

    #[test]
    fn punctuation_is_split_off_numbers_stay() {
        let bleu = bleu();
        let tokens = |text: &str| bleu.tokenizer.tokens(text).join(" ");
        assert_eq!(
            tokens("It's 3.5, \"not\" 1,000-2 (e.g. a/b)."),
            "It's 3.5 , \" not \" 1,000 - 2 ( e . g . a / b ) ."
        );
        assert_eq!(tokens("a &amp;lt; b-\nc <skipped>d\n"), "a < bc d");
    }

    #[test]
    fn smoothing_and_brevity() {
        let bleu = bleu();
        assert!((bleu.of("the cat sat", "the cat sat") - 100.0).abs() < 1e-9);
        assert_eq!(bleu.of("the cat sat", "dogs bark"), 0.0);
        assert_eq!(bleu.of("the cat sat", ""), 0.0);
        // Of three tokens against four: p = 2/3, 0 of 2 -> 1/4, 0 of 1 -> 1/4; BP = exp(1 - 4/3) = 0.716531.
        // (2/3 * 1/4 * 1/4)^(1/3) = 0.346681.
        let got = bleu.of("the cat sat down", "the dog sat");
        assert!(
            (got - 100.0 * 0.346_680_6 * 0.716_531_3).abs() < 1e-4,
            "{got}"
        );
    }

    #[test]
    fn equals_sacrebleu() {
        let bleu = bleu();
        for pair in sacrebleu() {
            let got = bleu.of(&pair.reference, &pair.response);
            assert!((got - pair.bleu).abs() < 1e-9, "{got}: {pair:?}");
        }
    }
}
