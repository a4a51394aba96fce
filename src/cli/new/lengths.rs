//! How long the rows of a data set are, in tokens.

use super::NewKind;
use crate::data::{
    Row, RowFormat, Tokenizer, encode_comparisons, encode_completions, encode_labelled,
};
use crate::error::Result;

/// Lengths of a sample of rows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Lengths {
    /// Whole rows, ascending; of comparisons the longer response.
    rows: Vec<usize>,
    /// Longest prompt.
    pub(super) prompt: usize,
    /// Longest response.
    pub(super) response: usize,
    /// Most tokens of a row that the model takes.
    most: usize,
}

impl Lengths {
    /// Rows looked at.
    pub(super) fn count(&self) -> usize {
        self.rows.len()
    }

    /// The same for a model that takes rows of `most` tokens.
    pub(super) fn capped(mut self, most: usize) -> Self {
        self.most = most;
        self
    }

    /// The limit for rows: the longest one, or if few are much longer than the others the 99th percentile; a multiple of 32.
    pub(super) fn limit(&self) -> usize {
        let at = |share: f64| self.rows[((self.rows.len() - 1) as f64 * share) as usize];
        let (usual, longest) = (at(0.99), at(1.0));
        let limit = match longest > 2 * usual {
            true => usual,
            false => longest,
        };
        limit.next_multiple_of(32).min(self.most)
    }

    /// Rows of the sample that are cut at the limit.
    pub(super) fn cut(&self) -> usize {
        let limit = self.limit();
        self.rows.iter().filter(|len| **len > limit).count()
    }
}

/// Lengths of rows as they are trained on.
///
/// # Errors
/// At the first row that cannot be read as the kind needs it.
pub(super) fn measure(
    rows: &[Row],
    kind: NewKind,
    chat: bool,
    tokenizer: &Tokenizer,
) -> Result<Lengths> {
    let format = RowFormat {
        chat,
        ..RowFormat::default()
    };
    let mut found: Vec<(usize, usize)> = match kind {
        NewKind::Dpo | NewKind::Reward => {
            let encoded = encode_comparisons(rows, tokenizer, &format, usize::MAX)?;
            let longest = |pair: &crate::data::Comparisons| {
                let longest = pair.responses.iter().map(Vec::len).max().unwrap_or(0);
                (longest, pair.prompt_len)
            };
            encoded.items.iter().map(longest).collect()
        }
        NewKind::Kto => {
            let encoded = encode_labelled(rows, tokenizer, &format, usize::MAX)?;
            let items = encoded.items.iter();
            items
                .map(|item| (item.ids.len(), item.prompt_len))
                .collect()
        }
        NewKind::Sft | NewKind::Pipeline => {
            let encoded = encode_completions(rows, tokenizer, &format, usize::MAX, true)?;
            let items = encoded.items.iter();
            items
                .map(|example| (example.ids.len(), example.prompt_len))
                .collect()
        }
    };
    found.sort_unstable();
    let longest = |part: fn(&(usize, usize)) -> usize| found.iter().map(part).max().unwrap_or(1);
    Ok(Lengths {
        prompt: longest(|(_, prompt)| *prompt),
        response: longest(|(row, prompt)| row.saturating_sub(*prompt)),
        rows: found.iter().map(|(row, _)| *row).collect(),
        most: usize::MAX,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_few_long_rows_do_not_set_the_limit() {
        let lengths = |rows: Vec<usize>| Lengths {
            rows,
            prompt: 1,
            response: 1,
            most: 300,
        };
        let even = lengths((1..=200).collect());
        assert_eq!((even.limit(), even.cut()), (224, 0));
        let mut rows = vec![50; 300];
        rows.push(5_000);
        let uneven = lengths(rows);
        assert_eq!((uneven.limit(), uneven.cut(), uneven.count()), (64, 1, 301));
        assert_eq!(lengths(vec![400]).limit(), 300);
    }
}
