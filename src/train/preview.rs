//! Encoded rows of a stage's data, for `temper inspect`.

use crate::data::{Comparisons, EncodeReport, EncodedRows, Example, Labelled, Prompt};

/// Encoded rows with marks on their trained tokens, and the encoding report.
#[derive(Debug, Clone)]
pub struct Preview {
    /// The encoded rows.
    pub rows: Vec<PreviewRow>,
    /// Counts of kept, truncated and dropped rows.
    pub report: EncodeReport,
}

/// One row: a sequence of tokens, or several with one prompt.
pub type PreviewRow = Vec<Sequence>;

/// A token sequence, with marks on the tokens that the stage's loss or score reads.
#[derive(Debug, Clone)]
pub struct Sequence {
    /// Its role in the row, if the row has several sequences.
    pub title: Option<String>,
    /// Token ids.
    pub ids: Vec<u32>,
    /// Whether each token is read.
    pub marked: Vec<bool>,
    /// Length of the prompt at the start, in tokens.
    pub prompt_len: usize,
}

impl Preview {
    /// Rows with trained tokens.
    pub(super) fn examples(encoded: EncodedRows<Example>) -> Self {
        Self::of(encoded, |item| {
            vec![Sequence {
                title: None,
                ids: item.ids,
                marked: item.trained,
                prompt_len: item.prompt_len,
            }]
        })
    }

    /// Prompts, without trained tokens.
    pub(super) fn prompts(encoded: EncodedRows<Prompt>) -> Self {
        Self::of(encoded, |item| {
            vec![Sequence {
                title: None,
                marked: vec![false; item.ids.len()],
                prompt_len: item.ids.len(),
                ids: item.ids,
            }]
        })
    }

    /// Responses by prompt; `counts` decides whether a token is read, given its position, the prompt's length and the sequence's.
    pub(super) fn comparisons(
        encoded: EncodedRows<Comparisons>,
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

    /// Responses with labels; all tokens of a response are read.
    pub(super) fn labelled(encoded: EncodedRows<Labelled>) -> Self {
        Self::of(encoded, |item| {
            let title = match item.label {
                true => "desirable",
                false => "undesirable",
            };
            vec![Sequence {
                title: Some(title.to_owned()),
                marked: (0..item.ids.len())
                    .map(|i| i >= item.prompt_len.max(1))
                    .collect(),
                prompt_len: item.prompt_len,
                ids: item.ids,
            }]
        })
    }

    fn of<T>(encoded: EncodedRows<T>, row: impl Fn(T) -> PreviewRow) -> Self {
        Self {
            rows: encoded.items.into_iter().map(row).collect(),
            report: encoded.report,
        }
    }
}
