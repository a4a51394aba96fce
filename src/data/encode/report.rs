//! Encodes rows one by one and counts what became of them.

use std::fmt;

use rayon::prelude::*;

use super::fit::fitted;
use crate::data::rows::Row;
use crate::data::{RowFormat, Tokenizer};
use crate::error::{Error, Result};

/// Encoded rows and what became of the others.
#[derive(Debug, Clone, PartialEq)]
pub struct Encoded<T> {
    /// The rows kept, in the order of the data.
    pub items: Vec<T>,
    /// Counts to show the user.
    pub report: EncodeReport,
}

/// A token that ends the assistant's turns in a template, and at which generation does not stop.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TurnEnd {
    /// Its id.
    pub id: u32,
    /// Its text.
    pub text: String,
    /// The tokenizer's EOS, as text.
    pub eos: String,
}

/// What became of the rows. Displays as nothing when all went in whole.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct EncodeReport {
    /// Rows read.
    pub rows: usize,
    /// Rows kept.
    pub kept: usize,
    /// Rows kept whose `shorten` column was cut until they fit.
    pub shortened: usize,
    /// Rows kept that lost tokens at their end.
    pub truncated: usize,
    /// Rows left out because a prompt or a response is longer than allowed.
    pub dropped_too_long: usize,
    /// Rows left out because no token of theirs is trained on (of a `Rank` stage's: no response is better than another).
    pub dropped_untrained: usize,
    /// Rows left out because `chosen` and `rejected` are equal.
    pub dropped_equal: usize,
    /// Rows kept that should end with EOS and do not: truncated, or a chat template that does not end its turns so.
    pub without_eos: usize,
    /// Rows kept whose prompt the tokenizer merges with the start of the completion; the merged token is trained on.
    pub merged_boundary: usize,
    /// Rows kept whose prompt the chat template renders otherwise when it asks for a response; they are trained on from
    /// where the two renderings part.
    pub diverging: usize,
    /// How the prompt of the first of these ends when a response is asked for.
    pub opening: Option<String>,
    /// What conversations end with, if it is no stop token.
    pub turn_end: Option<TurnEnd>,
}

impl EncodeReport {
    /// What the user should know beside the counts, and what to do about it.
    pub fn warnings(&self) -> Vec<String> {
        let mut warnings = Vec::new();
        if let Some(TurnEnd { text, eos, .. }) = &self.turn_end {
            warnings.push(format!(
                "the chat template ends turns with {text:?}, the tokenizer's EOS is {eos:?}, and no file names {text:?} as a \
                 token to stop at. A policy that is trained on them stops at both. To make {text:?} the EOS, of rows without a template \
                 and in all files that are written too, set `eos_token: {text:?}` beside `model` in the recipe"
            ));
        }
        if let Some(opening) = &self.opening {
            warnings.push(format!(
                "asked for a response, the chat template ends the prompt with {opening:?}, which a finished conversation lacks \
                 ({} of {} rows): they are trained on from where the two part, so that the model learns in another context \
                 than it answers in. A template that renders the prompt alike in both avoids it",
                self.diverging, self.kept
            ));
        }
        warnings
    }
}

impl fmt::Display for EncodeReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let notes = [
            (self.shortened, "shortened to fit"),
            (self.truncated, "truncated"),
            (self.dropped_too_long, "left out as too long"),
            (self.dropped_untrained, "left out with nothing to train on"),
            (
                self.dropped_equal,
                "left out with chosen and rejected equal",
            ),
            (self.without_eos, "without EOS at the end"),
            (
                self.merged_boundary,
                "with a token across the end of the prompt",
            ),
        ];
        let notes: Vec<String> = notes
            .iter()
            .filter(|(count, _)| *count > 0)
            .map(|(count, what)| format!("{count} {what}"))
            .collect();
        if notes.is_empty() {
            return Ok(());
        }
        let rows = if self.rows == 1 { "row" } else { "rows" };
        write!(
            f,
            "{} of {} {rows} kept: {}",
            self.kept,
            self.rows,
            notes.join(", ")
        )
    }
}

/// What one row became.
pub(super) enum Outcome<T> {
    Kept {
        item: T,
        notes: Notes,
    },
    TooLong,
    Untrained,
    /// The chosen response is the rejected one.
    Equal,
    /// Nothing to train on is left of it within the limit.
    CutAway,
}

impl<T> Outcome<T> {
    /// Whether a shorter row would fare better.
    pub(super) fn exceeds(&self) -> bool {
        match self {
            Self::Kept { notes, .. } => notes.truncated,
            Self::TooLong | Self::CutAway => true,
            Self::Untrained | Self::Equal => false,
        }
    }
}

/// What to count about a row that is kept.
#[derive(Default)]
pub(super) struct Notes {
    pub(super) truncated: bool,
    pub(super) without_eos: bool,
    pub(super) merged_boundary: bool,
    pub(super) opening: Option<String>,
    /// The special token that a conversation ends with, if it is no stop token.
    pub(super) turn_end: Option<u32>,
}

/// Encodes all rows, in parallel and in order, and counts.
pub(super) fn encode_rows<T: Send>(
    rows: &[Row],
    tokenizer: &Tokenizer,
    format: &RowFormat,
    max_length: usize,
    encode: impl Fn(&Row) -> Result<Outcome<T>> + Sync,
) -> Result<Encoded<T>> {
    let outcomes: Vec<Result<(Outcome<T>, bool)>> = rows
        .par_iter()
        .map(|row| fitted(row, format.shorten.as_deref(), &encode).map_err(|e| at_row(row, e)))
        .collect();
    let mut report = EncodeReport {
        rows: rows.len(),
        ..EncodeReport::default()
    };
    let mut items = Vec::with_capacity(rows.len());
    for outcome in outcomes {
        let (outcome, shortened) = outcome?;
        match outcome {
            Outcome::Kept { item, notes } => {
                items.push(item);
                report.kept += 1;
                report.shortened += usize::from(shortened);
                report.truncated += usize::from(notes.truncated);
                report.without_eos += usize::from(notes.without_eos);
                report.merged_boundary += usize::from(notes.merged_boundary);
                report.diverging += usize::from(notes.opening.is_some());
                report.opening = report.opening.or(notes.opening);
                if let (Some(id), None) = (notes.turn_end, &report.turn_end) {
                    report.turn_end = Some(TurnEnd {
                        id,
                        text: tokenizer.token_str(id).unwrap_or_default(),
                        eos: tokenizer.eos_text().to_owned(),
                    });
                }
            }
            Outcome::TooLong => report.dropped_too_long += 1,
            Outcome::Equal => report.dropped_equal += 1,
            Outcome::Untrained | Outcome::CutAway => report.dropped_untrained += 1,
        }
    }
    if !items.is_empty() {
        return Ok(Encoded { items, report });
    }
    match rows.first() {
        None => Err(Error::Usage("there are no rows to encode".into())),
        Some(row) => Err(Error::format(
            &row.path,
            report.why_nothing_is_left(max_length),
        )),
    }
}

impl EncodeReport {
    /// Says what became of rows of which none is left.
    fn why_nothing_is_left(&self, max_length: usize) -> String {
        let causes = [
            (
                self.dropped_too_long,
                format!("longer than the limit of {max_length} tokens"),
            ),
            (
                self.dropped_untrained,
                "without a token to train on within the limit".to_owned(),
            ),
            (
                self.dropped_equal,
                "with `chosen` and `rejected` equal".to_owned(),
            ),
        ];
        let causes: Vec<String> = (causes.into_iter())
            .filter(|(count, _)| *count > 0)
            .map(|(count, what)| {
                format!("{count} {} {what}", if count == 1 { "is" } else { "are" })
            })
            .collect();
        let advice = match self.dropped_equal == self.rows {
            true => "Check the columns, or the templates of `format`",
            false => {
                "Raise the limit, shorten the rows in the format's templates, or check the columns"
            }
        };
        format!(
            "no row is left to train on: of {}, {}. {advice}",
            self.rows,
            causes.join(" and ")
        )
    }
}

/// Says at which row a template or the tokenizer failed.
fn at_row(row: &Row, error: Error) -> Error {
    match error {
        Error::Format { path, message } => row.error(format!("{}: {message}", path.display())),
        other => other,
    }
}
