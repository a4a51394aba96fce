//! The ways to encode rows, one a kind of stage.

use serde::Serialize;

use super::comparisons::{comparisons_of, rated_of};
use super::report::{EncodedRows, RowOutcome, encode_rows};
use super::scored::{Divided, response_rows};
use super::{Comparisons, Example, Prompt, completion_row, prompt_row, text_row};
use crate::data::check::is_plain_text;
use crate::data::records::RowParser;
use crate::data::rows::Row;
use crate::data::{RowFormat, Tokenizer};
use crate::error::Result;

/// A way to encode rows, with all settings that the result depends on beside tokenizer and format.
pub(crate) trait RowEncoding: Serialize + Sync {
    /// An encoded row.
    type Item: Send;
    /// Its name in the recipe of a file of encoded rows.
    const NAME: &str;

    /// Most tokens of a row.
    fn max_length(&self) -> usize;

    /// Rows to encode in place of `rows`, if these are to be divided.
    ///
    /// # Errors
    /// For a row that cannot be divided.
    fn divided(_rows: &[Row], _format: &RowFormat) -> Result<Option<Divided>> {
        Ok(None)
    }

    /// Encodes a row.
    ///
    /// # Errors
    /// For a row of another kind, and those of template and tokenizer.
    fn encode(
        &self,
        parser: &RowParser<'_>,
        row: &Row,
        tokenizer: &Tokenizer,
    ) -> Result<RowOutcome<Self::Item>>;

    /// Whether an encoded row is used.
    fn uses(&self, _item: &Self::Item) -> bool {
        true
    }
}

/// Encodes some rows of a data set, of which none may be kept.
///
/// # Errors
/// At the first row that cannot be encoded, and for templates that do not parse.
pub(crate) fn encode_batch<E: RowEncoding>(
    encoding: &E,
    rows: &[Row],
    tokenizer: &Tokenizer,
    format: &RowFormat,
) -> Result<EncodedRows<E::Item>> {
    let parser = RowParser::new(format)?;
    let divided = E::divided(rows, format)?;
    let rows = divided.as_ref().map_or(rows, |divided| &divided.rows);
    let mut encoded = encode_rows(rows, tokenizer, format, |row| {
        encoding.encode(&parser, row, tokenizer)
    })?;
    if let Some(divided) = divided {
        encoded.report.rows += divided.not_taken;
        encoded.report.not_taken = divided.not_taken;
        encoded.report.highest_left = divided.highest_left;
    }
    encoded.items.retain(|item| encoding.uses(item));
    Ok(encoded)
}

/// Encodes all rows of a data set.
///
/// # Errors
/// As [`encode_batch`], and if no row is left.
pub(crate) fn encode_all<E: RowEncoding>(
    encoding: &E,
    rows: &[Row],
    tokenizer: &Tokenizer,
    format: &RowFormat,
) -> Result<EncodedRows<E::Item>> {
    let encoded = encode_batch(encoding, rows, tokenizer, format)?;
    let first = rows.first().map(|row| row.path.as_path());
    encoded.report.check_kept(first, encoding.max_length())?;
    Ok(encoded)
}

/// Rows as text, every token of which is trained on: see [`encode_text`](super::encode_text).
#[derive(Debug, Clone, Copy, Serialize)]
pub(crate) struct Texts {
    /// Most tokens of a row.
    pub(crate) max_length: usize,
}

impl RowEncoding for Texts {
    type Item = Example;
    const NAME: &str = "texts";

    fn max_length(&self) -> usize {
        self.max_length
    }

    fn encode(
        &self,
        parser: &RowParser<'_>,
        row: &Row,
        tokenizer: &Tokenizer,
    ) -> Result<RowOutcome<Example>> {
        text_row(parser, row, tokenizer, self.max_length)
    }
}

/// Rows with completions: see [`encode_completions`](super::encode_completions).
#[derive(Debug, Clone, Copy, Serialize)]
pub(crate) struct TextsOrCompletions {
    /// Most tokens of a row.
    pub(crate) max_length: usize,
    /// Whether prompts are not trained on.
    pub(crate) completion_only: bool,
    /// Whether rows of plain text are taken, too, as [`Texts`].
    pub(crate) texts: bool,
}

impl RowEncoding for TextsOrCompletions {
    type Item = Example;
    const NAME: &str = "completions";

    fn max_length(&self) -> usize {
        self.max_length
    }

    fn divided(rows: &[Row], format: &RowFormat) -> Result<Option<Divided>> {
        response_rows(rows, format.take)
    }

    fn encode(
        &self,
        parser: &RowParser<'_>,
        row: &Row,
        tokenizer: &Tokenizer,
    ) -> Result<RowOutcome<Example>> {
        match self.texts && is_plain_text(row) {
            true => text_row(parser, row, tokenizer, self.max_length),
            false => {
                let only = self.completion_only;
                completion_row(parser, row, tokenizer, self.max_length, only)
            }
        }
    }
}

/// Rows of preferences: see [`encode_comparisons`](super::encode_comparisons).
#[derive(Debug, Clone, Copy, Serialize)]
pub(crate) struct Preferences {
    /// Most tokens of a prompt with one response.
    pub(crate) max_length: usize,
    /// Whether only rows are used in which one response is preferred to every other one.
    pub(crate) with_best: bool,
}

impl RowEncoding for Preferences {
    type Item = Comparisons;
    const NAME: &str = "comparisons";

    fn max_length(&self) -> usize {
        self.max_length
    }

    fn encode(
        &self,
        parser: &RowParser<'_>,
        row: &Row,
        tokenizer: &Tokenizer,
    ) -> Result<RowOutcome<Comparisons>> {
        comparisons_of(parser, row, tokenizer, self.max_length)
    }

    fn uses(&self, item: &Comparisons) -> bool {
        !self.with_best || item.best().is_some()
    }
}

/// Rows of responses with a rating each: `prompt`, `completion` and `rating`, or rows of scored responses.
#[derive(Debug, Clone, Copy, Serialize)]
pub(crate) struct Ratings {
    /// Most tokens of a prompt with one response.
    pub(crate) max_length: usize,
}

impl RowEncoding for Ratings {
    type Item = Comparisons;
    const NAME: &str = "ratings";

    fn max_length(&self) -> usize {
        self.max_length
    }

    fn encode(
        &self,
        parser: &RowParser<'_>,
        row: &Row,
        tokenizer: &Tokenizer,
    ) -> Result<RowOutcome<Comparisons>> {
        rated_of(parser, row, tokenizer, self.max_length)
    }
}

/// Prompts to generate responses to: see [`encode_prompts`](super::encode_prompts).
#[derive(Debug, Clone, Copy, Serialize)]
pub(crate) struct Prompts {
    /// Most tokens of a prompt.
    pub(crate) max_length: usize,
}

impl RowEncoding for Prompts {
    type Item = Prompt;
    const NAME: &str = "prompts";

    fn max_length(&self) -> usize {
        self.max_length
    }

    fn encode(
        &self,
        parser: &RowParser<'_>,
        row: &Row,
        tokenizer: &Tokenizer,
    ) -> Result<RowOutcome<Prompt>> {
        prompt_row(parser, row, tokenizer, self.max_length)
    }
}
