//! Encodes rows and counts the outcomes.

use std::fmt;
use std::path::Path;

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::fit::fitted;
use crate::data::rows::Row;
use crate::data::{RowFormat, Tokenizer};
use crate::error::{Error, Result};

/// Encoded rows, and counts of all rows.
#[derive(Debug, Clone, PartialEq)]
pub struct EncodedRows<T> {
    /// The encoded rows, in the order of the data.
    pub items: Vec<T>,
    /// Counts for the user.
    pub report: EncodeReport,
}

/// A token that ends the assistant's turns in a template but is not a stop token.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TurnEnd {
    /// Token id.
    pub id: u32,
    /// The token's text.
    pub text: String,
    /// The tokenizer's EOS, as text.
    pub eos: String,
}

/// Counts of the rows by outcome. Displays as nothing if all rows were kept whole.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct EncodeReport {
    /// Rows read.
    pub rows: usize,
    /// Rows kept.
    pub kept: usize,
    /// Rows kept whose `shorten` column was cut.
    pub shortened: usize,
    /// Rows kept that lost tokens at their end.
    pub truncated: usize,
    /// Rows left out because a prompt or a response is longer than allowed.
    pub dropped_too_long: usize,
    /// Rows left out because they have no trained tokens.
    pub dropped_untrained: usize,
    /// Scored rows left out because no response is preferred to another one: their scores tie, or there is one response.
    #[serde(default)]
    pub dropped_no_preference: usize,
    /// Rows left out because `chosen` and `rejected` are equal.
    pub dropped_equal: usize,
    /// Scored responses that `take` leaves out; they count as rows.
    pub not_taken: usize,
    /// The highest score among these.
    pub highest_left: Option<f64>,
    /// Rows kept that should end with EOS but do not: truncated, or with a chat template that ends turns otherwise.
    pub without_eos: usize,
    /// Rows kept in which a token spans the end of the prompt; that token is trained on.
    pub merged_boundary: usize,
    /// Rows kept whose prompt is rendered differently with the generation prompt; they are trained on from where the two texts
    /// diverge.
    pub diverging: usize,
    /// End of the first such prompt with the generation prompt.
    pub opening: Option<String>,
    /// The token that conversations end with, if it is not a stop token.
    pub turn_end: Option<TurnEnd>,
}

impl EncodeReport {
    /// Warnings beside the counts, with advice.
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
                "with the generation prompt the chat template ends a prompt with {opening:?}, which a finished conversation lacks \
                 ({} of {} rows): they are trained on from where the two diverge, so that training and generation have different \
                 contexts. A template that renders the prompt alike in both avoids this",
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
            (self.dropped_no_preference, "left out without a preference"),
            (
                self.dropped_equal,
                "left out with chosen and rejected equal",
            ),
            (self.not_taken, "left out by `take`"),
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

/// The outcome of encoding one row.
pub(crate) enum RowOutcome<T> {
    Kept {
        item: T,
        notes: Notes,
    },
    TooLong,
    Untrained,
    /// No response is preferred to another one.
    NoPreference,
    /// The chosen and the rejected response are equal.
    Equal,
    /// Truncation leaves no trained token.
    CutAway,
}

impl<T> RowOutcome<T> {
    /// Whether the row exceeds the limit, so that shortening it would help.
    pub(super) fn exceeds(&self) -> bool {
        match self {
            Self::Kept { notes, .. } => notes.truncated,
            Self::TooLong | Self::CutAway => true,
            Self::Untrained | Self::NoPreference | Self::Equal => false,
        }
    }
}

/// Facts to count about a kept row.
#[derive(Default)]
pub(crate) struct Notes {
    pub(super) truncated: bool,
    pub(super) without_eos: bool,
    pub(super) merged_boundary: bool,
    pub(super) opening: Option<String>,
    /// The special token that a conversation ends with, if it is not a stop token.
    pub(super) turn_end: Option<u32>,
}

/// Encodes rows in parallel, in order, and counts the outcomes.
///
/// # Errors
/// Those of `encode`, at the first row that has one.
pub(super) fn encode_rows<T: Send>(
    rows: &[Row],
    tokenizer: &Tokenizer,
    format: &RowFormat,
    encode: impl Fn(&Row) -> Result<RowOutcome<T>> + Sync,
) -> Result<EncodedRows<T>> {
    let outcomes: Vec<Result<(RowOutcome<T>, bool)>> = rows
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
            RowOutcome::Kept { item, notes } => {
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
            RowOutcome::TooLong => report.dropped_too_long += 1,
            RowOutcome::Equal => report.dropped_equal += 1,
            RowOutcome::NoPreference => report.dropped_no_preference += 1,
            RowOutcome::Untrained | RowOutcome::CutAway => report.dropped_untrained += 1,
        }
    }
    Ok(EncodedRows { items, report })
}

impl EncodeReport {
    /// Adds the counts of the rows that come after these.
    pub(crate) fn add(&mut self, later: Self) {
        let Self {
            rows,
            kept,
            shortened,
            truncated,
            dropped_too_long,
            dropped_untrained,
            dropped_no_preference,
            dropped_equal,
            not_taken,
            highest_left,
            without_eos,
            merged_boundary,
            diverging,
            opening,
            turn_end,
        } = later;
        self.rows += rows;
        self.kept += kept;
        self.shortened += shortened;
        self.truncated += truncated;
        self.dropped_too_long += dropped_too_long;
        self.dropped_untrained += dropped_untrained;
        self.dropped_no_preference += dropped_no_preference;
        self.dropped_equal += dropped_equal;
        self.not_taken += not_taken;
        self.highest_left = [self.highest_left, highest_left]
            .into_iter()
            .flatten()
            .reduce(f64::max);
        self.without_eos += without_eos;
        self.merged_boundary += merged_boundary;
        self.diverging += diverging;
        self.opening = self.opening.take().or(opening);
        self.turn_end = self.turn_end.take().or(turn_end);
    }

    /// Refuses a data set of which no row is kept; `path` is its first row's file.
    ///
    /// # Errors
    /// `Error::Format` with the causes; `Error::Usage` if there were no rows.
    pub(crate) fn check_kept(&self, path: Option<&Path>, max_length: usize) -> Result<()> {
        match path {
            _ if self.kept > 0 => Ok(()),
            Some(path) if self.rows > 0 => {
                Err(Error::format(path, self.why_nothing_is_left(max_length)))
            }
            _ => Err(Error::Usage("there are no rows to encode".into())),
        }
    }

    /// The error message if no row is left.
    fn why_nothing_is_left(&self, max_length: usize) -> String {
        if let (true, Some(score)) = (self.not_taken == self.rows, self.highest_left) {
            return format!(
                "`take` keeps none of the {} responses; the highest score is {score}. Lower the threshold, or generate more responses",
                self.rows
            );
        }
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
                self.dropped_no_preference,
                "without a preference (scores that tie, or fewer than two responses)".to_owned(),
            ),
            (
                self.dropped_equal,
                "with `chosen` and `rejected` equal".to_owned(),
            ),
            (self.not_taken, "left out by `take`".to_owned()),
        ];
        let causes: Vec<String> = (causes.into_iter())
            .filter(|(count, _)| *count > 0)
            .map(|(count, what)| {
                format!("{count} {} {what}", if count == 1 { "is" } else { "are" })
            })
            .collect();
        let advice = if self.dropped_equal == self.rows {
            "Check the columns, or the templates of `format`"
        } else if self.dropped_no_preference == self.rows {
            "Where these rows are written, raise `num_responses`, lower `tie_margin`, or take a `reward` that tells responses apart"
        } else {
            "Raise the limit, shorten the rows in the format's templates, or check the columns"
        };
        format!(
            "no row is left to train on: of {}, {}. {advice}",
            self.rows,
            causes.join(" and ")
        )
    }
}

/// Adds the row to an error of a template or the tokenizer.
fn at_row(row: &Row, error: Error) -> Error {
    match error {
        Error::Format { path, message } => row.error(format!("{}: {message}", path.display())),
        other => other,
    }
}
