//! Shortens rows that are too long.

use serde_json::Value;

use super::report::RowOutcome;
use crate::data::rows::Row;
use crate::error::Result;

/// Encodes a row. If it is too long and `column` names one of its texts, that text is cut at its last line break, again and
/// again until the row fits; if even its first line is too long, to as many characters as fit. A row that would not fit without
/// the text is not cut. Also returns whether the text was cut.
///
/// # Errors
/// Those of `encode`; if the row is too long and the column is not text.
///
/// # Source
/// openai/summarize-from-feedback, `process_query`, with `truncate_text` a line break. Where no break is left it drops one
/// character at a time; this bisects.
pub(super) fn fitted<T>(
    row: &Row,
    column: Option<&str>,
    encode: &impl Fn(&Row) -> Result<RowOutcome<T>>,
) -> Result<(RowOutcome<T>, bool)> {
    let outcome = encode(row)?;
    let Some(column) = column.filter(|_| outcome.exceeds()) else {
        return Ok((outcome, false));
    };
    let Some(Value::String(text)) = row.columns.get(column) else {
        return Err(row.error(format!(
            "the row is too long, and its column `{column}`, which `shorten` names, is not text"
        )));
    };
    let cut = |end: usize| {
        let mut shorter = row.clone();
        let kept = Value::String(text[..end].to_owned());
        shorter.columns.insert(column.to_owned(), kept);
        encode(&shorter)
    };
    for (end, _) in text.rmatch_indices('\n') {
        let outcome = cut(end)?;
        if !outcome.exceeds() {
            return Ok((outcome, true));
        }
    }
    let line = &text[..text.find('\n').unwrap_or(text.len())];
    let ends: Vec<usize> = line.char_indices().map(|(end, _)| end).collect();
    let mut longest = None;
    // The row fits with the first `low` of `ends`, and not with `ends[high]`.
    let (mut low, mut high) = (0, ends.len());
    while low < high {
        let middle = low + (high - low) / 2;
        let outcome = cut(ends[middle])?;
        if outcome.exceeds() {
            high = middle;
        } else {
            longest = Some(outcome);
            low = middle + 1;
        }
    }
    Ok(match longest {
        Some(outcome) => (outcome, true),
        None => (outcome, false),
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::encode_completions;
    use super::super::tests::{plain, rows};
    use crate::data::tokenizer::testing;
    use crate::data::{RowFormat, encode_prompts};

    fn shortening() -> RowFormat {
        RowFormat {
            prompt: Some("<{{ post }}>".into()),
            shorten: Some("post".into()),
            ..plain()
        }
    }

    /// The prompt of `post` within `limit` tokens; each character is one.
    fn prompt(post: &str, limit: usize) -> Option<String> {
        let tok = testing::tokenizer(false, None);
        let data = rows(&[json!({ "post": post })]);
        let got = encode_prompts(&data, &tok, &shortening(), limit).ok()?;
        assert_eq!(
            got.report.shortened,
            usize::from(got.items[0].text.len() < post.len() + 2)
        );
        Some(got.items[0].text.clone())
    }

    #[test]
    fn a_post_is_cut_at_its_last_line_break_that_fits() {
        let post = "ab\ncd\nef";
        assert_eq!(prompt(post, 10).as_deref(), Some("<ab\ncd\nef>"));
        assert_eq!(prompt(post, 9).as_deref(), Some("<ab\ncd>"));
        assert_eq!(prompt(post, 7).as_deref(), Some("<ab\ncd>"));
        assert_eq!(prompt(post, 6).as_deref(), Some("<ab>"));
    }

    #[test]
    fn without_a_line_break_it_is_cut_between_characters() {
        assert_eq!(prompt("abcdefg\nx", 6).as_deref(), Some("<abcd>"));
        assert_eq!(prompt("abcdefg", 3).as_deref(), Some("<a>"));
        assert_eq!(prompt("abcdefg", 2).as_deref(), Some("<>"));
        // Nothing of the post is left to cut: the row is left out.
        assert_eq!(prompt("abcdefg", 1), None);
        // A character is never split: each of these is two bytes, and two tokens here.
        assert_eq!(
            prompt("\u{e4}\u{e4}\u{e4}", 6).as_deref(),
            Some("<\u{e4}\u{e4}>")
        );
    }

    #[test]
    fn a_completion_is_kept_whole_by_a_shorter_prompt() {
        let tok = testing::tokenizer(false, None);
        let data = rows(&[json!({"post": "abcd\nefgh", "completion": "xyz"})]);
        let got = encode_completions(&data, &tok, &shortening(), 10, true).unwrap();
        let text = tok.decode(&got.items[0].ids, true).unwrap();
        assert_eq!(text, "<abcd>xyz");
        assert_eq!((got.report.shortened, got.report.truncated), (1, 0));
    }

    #[test]
    fn the_column_must_be_a_text() {
        let tok = testing::tokenizer(false, None);
        let data = rows(&[json!({"post": [1, 2, 3, 4]})]);
        let error = encode_prompts(&data, &tok, &shortening(), 4).unwrap_err();
        assert_eq!(
            error.to_string(),
            "rows.jsonl:1: the row is too long, and its column `post`, which `shorten` names, is not text"
        );
    }
}
