//! ROUGE: overlap of a response with a reference text.

use super::reference::{Reference, shared_ngrams};
use super::stem::stem;
use super::{Completion, RewardSource, RougeVariant};
use crate::error::Result;

/// Precision, recall and their harmonic mean, each in `[0, 1]`.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct RougeScore {
    /// Overlap divided by the candidate's size.
    pub precision: f64,
    /// Overlap divided by the reference's size.
    pub recall: f64,
    /// `2 p r / (p + r)`, 0 when both are 0.
    pub fmeasure: f64,
}

impl RougeScore {
    fn new(overlap: usize, reference: usize, candidate: usize) -> Self {
        let precision = overlap as f64 / candidate.max(1) as f64;
        let recall = overlap as f64 / reference.max(1) as f64;
        let fmeasure = if precision + recall > 0.0 {
            2.0 * precision * recall / (precision + recall)
        } else {
            0.0
        };
        Self {
            precision,
            recall,
            fmeasure,
        }
    }
}

/// ROUGE of one pair of texts.
///
/// Texts are lowercased and split into runs of `[a-z0-9]`; with `stem`, words of more than three letters are stemmed.
/// Agrees with the Python package `rouge_score` (`use_stemmer = stem`). Compares whole texts; pass [`first_line`] of the candidate
/// to compare its first line only.
///
/// # Source
/// Lin 2004, "ROUGE: a package for automatic evaluation of summaries".
pub fn rouge(variant: RougeVariant, reference: &str, candidate: &str, stem: bool) -> RougeScore {
    let reference = words(reference, stem);
    let candidate = words(candidate, stem);
    match variant {
        RougeVariant::Rouge1 => ngram_overlap(&reference, &candidate, 1),
        RougeVariant::Rouge2 => ngram_overlap(&reference, &candidate, 2),
        RougeVariant::RougeL => {
            let common = longest_common_subsequence(&reference, &candidate);
            RougeScore::new(common, reference.len(), candidate.len())
        }
    }
}

/// The first line that is not blank, trimmed; empty if there is none.
pub fn first_line(text: &str) -> &str {
    text.lines()
        .map(str::trim)
        .find(|line| !line.is_empty())
        .unwrap_or("")
}

fn words(text: &str, stemmed: bool) -> Vec<String> {
    text.to_lowercase()
        .split(|c: char| !matches!(c, 'a'..='z' | '0'..='9'))
        .filter(|word| !word.is_empty())
        .map(|word| {
            if stemmed && word.len() > 3 {
                stem(word)
            } else {
                word.to_string()
            }
        })
        .collect()
}

fn ngram_overlap(reference: &[String], candidate: &[String], n: usize) -> RougeScore {
    let (overlap, reference, candidate) = shared_ngrams(reference, candidate, n);
    RougeScore::new(overlap, reference, candidate)
}

/// Length of the longest common subsequence, one row of the table at a time.
fn longest_common_subsequence(a: &[String], b: &[String]) -> usize {
    let mut row = vec![0; b.len() + 1];
    for x in a {
        let mut diagonal = 0;
        for (at, y) in b.iter().enumerate() {
            let above = row[at + 1];
            row[at + 1] = if x == y {
                diagonal + 1
            } else {
                above.max(row[at])
            };
            diagonal = above;
        }
    }
    row[b.len()]
}

/// ROUGE F-measure of the whole response, stemmed, against a column of the row.
pub(super) struct Rouge {
    pub(super) variant: RougeVariant,
    pub(super) reference: Reference,
}

impl RewardSource for Rouge {
    fn score(&mut self, completions: &[Completion]) -> Result<Vec<f32>> {
        (completions.iter())
            .map(|completion| {
                let name = self.variant.name();
                let (reference, response) = self.reference.texts(name, completion)?;
                Ok(rouge(self.variant, reference, response, true).fmeasure as f32)
            })
            .collect()
    }
}

impl RougeVariant {
    /// The metric's usual name: `rouge1`, `rouge2` or `rougeL`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Rouge1 => "rouge1",
            Self::Rouge2 => "rouge2",
            Self::RougeL => "rougeL",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn agrees_with_rouge_score() {
        // rouge_score 0.1.2: RougeScorer([..], use_stemmer=..).score(reference, candidate).
        let reference = "The quick brown foxes, jumping over lazily sleeping dogs in 2024";
        let candidate = "a Fox jumped over the sleepy dog; the dogs slept lazily in 2024!";
        let cases = [
            (
                RougeVariant::Rouge1,
                false,
                [0.46153846153846156, 0.5454545454545454, 0.4999999999999999],
            ),
            (
                RougeVariant::Rouge2,
                false,
                [0.08333333333333333, 0.1, 0.0909090909090909],
            ),
            (
                RougeVariant::RougeL,
                false,
                [0.3076923076923077, 0.36363636363636365, 0.33333333333333337],
            ),
            (
                RougeVariant::Rouge1,
                true,
                [0.6153846153846154, 0.7272727272727273, 0.6666666666666667],
            ),
            (RougeVariant::Rouge2, true, [0.25, 0.3, 0.2727272727272727]),
            (
                RougeVariant::RougeL,
                true,
                [0.46153846153846156, 0.5454545454545454, 0.4999999999999999],
            ),
        ];
        for (variant, stem, [precision, recall, fmeasure]) in cases {
            let score = rouge(variant, reference, candidate, stem);
            assert!(
                (score.precision - precision).abs() < 1e-12,
                "{variant:?} {stem}"
            );
            assert!((score.recall - recall).abs() < 1e-12, "{variant:?} {stem}");
            assert!(
                (score.fmeasure - fmeasure).abs() < 1e-12,
                "{variant:?} {stem}"
            );
        }
    }

    #[test]
    fn empty_texts_score_zero() {
        for variant in [
            RougeVariant::Rouge1,
            RougeVariant::Rouge2,
            RougeVariant::RougeL,
        ] {
            assert_eq!(rouge(variant, "", "a b", true), RougeScore::default());
            assert_eq!(rouge(variant, "a b", " ...", false), RougeScore::default());
        }
        // One word has no bigram.
        assert_eq!(rouge(RougeVariant::Rouge2, "a", "a", false).fmeasure, 0.0);
    }

    #[test]
    fn the_source_scores_the_whole_response_and_names_a_missing_column() {
        let mut source = Rouge {
            variant: RougeVariant::RougeL,
            reference: Reference {
                column: "completion".into(),
                first_line: false,
            },
        };
        let mut completion = Completion {
            response: " red key\nblue lamp".into(),
            row: json!({"completion": " a red key"})
                .as_object()
                .unwrap()
                .clone(),
            ..Completion::default()
        };
        // Two of four and two of three words: 2 * (1/2 * 2/3) / (1/2 + 2/3) = 4/7.
        assert_eq!(source.score(&[completion.clone()]).unwrap(), [4.0f32 / 7.0]);
        assert_eq!(first_line("\n red key \nblue lamp"), "red key");
        completion.row = json!({"text": "x"}).as_object().unwrap().clone();
        let message = source.score(&[completion]).unwrap_err().to_string();
        assert_eq!(
            message,
            "reward source rougeL: needs the text column \"completion\"; the row has \"text\""
        );
    }
}
