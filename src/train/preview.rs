//! Rows of a stage's data as the stage sees them.

use crate::data::{Comparisons, EncodeReport, Encoded, Example, Prompt};

/// Encoded rows with what counts of them, and what became of all rows.
#[derive(Debug, Clone)]
pub struct Preview {
    /// The rows kept.
    pub rows: Vec<PreviewRow>,
    /// Counts.
    pub report: EncodeReport,
}

/// One row: a sequence of tokens, or several with one prompt.
pub type PreviewRow = Vec<Sequence>;

/// Tokens, and which of them the stage's loss or score reads.
#[derive(Debug, Clone)]
pub struct Sequence {
    /// What it is among the row's sequences, if there are several.
    pub title: Option<String>,
    /// Token ids.
    pub ids: Vec<u32>,
    /// Which are read, one entry a token.
    pub marked: Vec<bool>,
    /// Tokens at the start that are the prompt.
    pub prompt_len: usize,
}

impl Preview {
    /// Rows of which some tokens are trained on.
    pub(super) fn examples(encoded: Encoded<Example>) -> Self {
        Self::of(encoded, |item| {
            vec![Sequence {
                title: None,
                ids: item.ids,
                marked: item.trained,
                prompt_len: item.prompt_len,
            }]
        })
    }

    /// Prompts, of which nothing is trained on.
    pub(super) fn prompts(encoded: Encoded<Prompt>) -> Self {
        Self::of(encoded, |item| {
            vec![Sequence {
                title: None,
                marked: vec![false; item.ids.len()],
                prompt_len: item.ids.len(),
                ids: item.ids,
            }]
        })
    }

    /// Responses by prompt; `counts` says of a token, by position, prompt length and length, whether it is read.
    pub(super) fn comparisons(
        encoded: Encoded<Comparisons>,
        counts: impl Fn(usize, usize, usize) -> bool,
    ) -> Self {
        Self::of(encoded, |item| {
            let sequence = |(index, ids): (usize, &Vec<u32>)| {
                let better = item.pairs.iter().filter(|pair| pair.0 == index).count();
                let worse = item.pairs.iter().filter(|pair| pair.1 == index).count();
                Sequence {
                    title: Some(format!(
                        "response {}: chosen {better}, rejected {worse} times",
                        index + 1
                    )),
                    ids: ids.clone(),
                    marked: (0..ids.len())
                        .map(|i| counts(i, item.prompt_len, ids.len()))
                        .collect(),
                    prompt_len: item.prompt_len,
                }
            };
            item.responses.iter().enumerate().map(sequence).collect()
        })
    }

    fn of<T>(encoded: Encoded<T>, row: impl Fn(T) -> PreviewRow) -> Self {
        Self {
            rows: encoded.items.into_iter().map(row).collect(),
            report: encoded.report,
        }
    }
}
