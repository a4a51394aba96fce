//! Rows of single responses that are labelled as desirable or not.

use serde::Serialize;
use serde_json::Value;

use super::encoding::{RowEncoding, encode_all};
use super::report::{EncodedRows, Notes, RowOutcome};
use super::scored::{Divided, ResponseRow, labelled_rows};
use super::sequence::{PromptCompletion, check_row_ids, no_stop};
use crate::data::check::is_scored;
use crate::data::records::{CompletionRow, Content, PreferenceRow, RowParser, chat_options};
use crate::data::rows::{Row, json_kind};
use crate::data::{RowFormat, Tokenizer, flag};
use crate::error::Result;

/// Comparisons whose chosen responses come before their rejected ones: the batch of datasets' `map`, which TRL 1.16's
/// `unpair_preference_dataset` is applied by.
const UNPAIRED_ROWS: usize = 1000;

/// A response to a prompt with its label.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Labelled {
    /// Token ids of prompt and response.
    pub ids: Vec<u32>,
    /// Tokens of the prompt.
    pub prompt_len: usize,
    /// Whether the response is desirable.
    pub label: bool,
}

/// Labelled responses: see [`encode_labelled`].
#[derive(Debug, Clone, Copy, Serialize)]
pub(crate) struct Labels {
    /// Most tokens of a prompt with its response.
    pub(crate) max_length: usize,
}

impl RowEncoding for Labels {
    type Item = Labelled;
    const NAME: &str = "labelled";

    fn max_length(&self) -> usize {
        self.max_length
    }

    /// A comparison becomes two rows: of some rows first those of the chosen responses, then those of the rejected ones, as in TRL, so that
    /// both responses to a prompt are rarely in one batch. Scored responses become a row each.
    fn divided(rows: &[Row], format: &RowFormat) -> Result<Option<Divided>> {
        let is_whole = |row: &Row| !is_comparison(row, format) && !is_scored(row);
        if rows.iter().all(is_whole) {
            return Ok(None);
        }
        let labelled = |row: &Row, label: bool| {
            let mut row = row.clone();
            row.columns.insert("label".to_owned(), Value::Bool(label));
            row
        };
        let mut divided = Vec::new();
        for rows in rows.chunks(UNPAIRED_ROWS) {
            let mut rejected = Vec::new();
            for row in rows {
                match labelled_rows(row, format.take)? {
                    Some(rows) => divided.extend(rows),
                    None if is_comparison(row, format) => {
                        divided.push(labelled(row, true));
                        rejected.push(labelled(row, false));
                    }
                    None => divided.push(row.clone()),
                }
            }
            divided.append(&mut rejected);
        }
        Ok(Some(Divided {
            rows: divided,
            ..Divided::default()
        }))
    }

    fn encode(
        &self,
        parser: &RowParser<'_>,
        row: &Row,
        tokenizer: &Tokenizer,
    ) -> Result<RowOutcome<Labelled>> {
        labelled_row(parser, row, tokenizer, self.max_length)
    }
}

/// Encodes labelled responses: rows with a completion and a `label`; comparisons, whose chosen response is desirable and whose rejected
/// response is not; and scored responses, of which those are desirable that are better than more of the others than they are worse than.
///
/// Nothing is truncated: longer rows are left out.
///
/// # Errors
/// At the first row of another kind, and if no row is left.
pub fn encode_labelled(
    rows: &[Row],
    tokenizer: &Tokenizer,
    format: &RowFormat,
    max_length: usize,
) -> Result<EncodedRows<Labelled>> {
    encode_all(&Labels { max_length }, rows, tokenizer, format)
}

/// Checks that a row is a labelled response or a comparison.
///
/// # Errors
/// `Error::Data` that names what is missing.
pub(crate) fn check_labelled(parser: &RowParser<'_>, row: &Row) -> Result<()> {
    let label = match is_comparison(row, parser.format()) {
        true => true,
        false => label_of(row)?,
    };
    labelled_parts(parser, row, label).map(drop)
}

/// Adds the desirable responses of a row and the others to `counts`; those without a valid label are not counted.
pub(crate) fn count_labels(row: &Row, format: &RowFormat, counts: &mut [usize; 2]) {
    let is_comparison = is_comparison(row, format);
    let label = label_of(row).ok();
    counts[0] += usize::from(is_comparison || label == Some(true));
    counts[1] += usize::from(is_comparison || label == Some(false));
}

/// Whether a row is a comparison of two responses.
fn is_comparison(row: &Row, format: &RowFormat) -> bool {
    let has = |name: &str| row.columns.contains_key(name);
    let templates = format.chosen.is_some() && format.rejected.is_some();
    templates || (has("chosen") && has("rejected"))
}

/// The label of a row: true or false, as a boolean, as 1 or 0, or as one of these in a text.
///
/// # Errors
/// If the column is missing or holds something else.
fn label_of(row: &Row) -> Result<bool> {
    let Some(value) = row.columns.get("label") else {
        return Err(row.error(
            "the row has no column `label`: expected true for a desirable response, false for an undesirable one",
        ));
    };
    let label = match value {
        Value::String(text) => match text.trim().to_ascii_lowercase().as_str() {
            "true" | "1" => Some(true),
            "false" | "0" => Some(false),
            _ => None,
        },
        other => flag(other),
    };
    label.ok_or_else(|| {
        let found = match value {
            Value::Number(_) | Value::String(_) => value.to_string(),
            other => json_kind(other).to_owned(),
        };
        row.error(format!(
            "column `label`: expected true or false (or 1 or 0), found {found}"
        ))
    })
}

/// Prompt and response of a labelled row, or of one side of a comparison; `None` if both sides are equal.
fn labelled_parts(
    parser: &RowParser<'_>,
    row: &Row,
    label: bool,
) -> Result<Option<(Content, Content)>> {
    if is_comparison(row, parser.format()) {
        let PreferenceRow {
            prompt,
            chosen,
            rejected,
        } = parser.preference(row)?;
        if chosen == rejected {
            return Ok(None);
        }
        return Ok(Some((prompt, if label { chosen } else { rejected })));
    }
    Ok(Some(match parser.completion(row)? {
        CompletionRow::Text { prompt, completion } => {
            (Content::Text(prompt), Content::Text(completion))
        }
        CompletionRow::Messages { prompt, completion } => {
            (Content::Messages(prompt), Content::Messages(completion))
        }
        CompletionRow::Conversation(mut messages) => {
            let last = messages.pop();
            let is_answer = |message: &Value| message["role"] == "assistant";
            match last.filter(is_answer) {
                Some(answer) if !messages.is_empty() => {
                    (Content::Messages(messages), Content::Messages(vec![answer]))
                }
                _ => {
                    return Err(row.error(
                        "the label is that of the last message of `messages`, which must be the assistant's and have a message before it",
                    ));
                }
            }
        }
    }))
}

fn labelled_row(
    parser: &RowParser<'_>,
    row: &Row,
    tokenizer: &Tokenizer,
    max_length: usize,
) -> Result<RowOutcome<Labelled>> {
    let format = parser.format();
    if let Some(scored) = ResponseRow::of(row)? {
        return scored_response(row, scored, tokenizer, max_length);
    }
    let label = label_of(row)?;
    let Some((prompt, response)) = labelled_parts(parser, row, label)? else {
        return Ok(RowOutcome::Equal);
    };
    let is_chat = matches!(response, Content::Messages(_));
    let joint = match (&prompt, &response) {
        (Content::Text(prompt), Content::Text(response)) => {
            // An empty response is missing data.
            let append_eos = format.append_eos && !response.is_empty();
            PromptCompletion::of_text(tokenizer, prompt, response, append_eos)?
        }
        (Content::Messages(prompt), Content::Messages(response)) => {
            let options = chat_options(row, format)?;
            PromptCompletion::of_messages(tokenizer, &options, prompt, response)?
        }
        _ => return Err(row.error("prompt and response are not of one kind")),
    };
    if joint.ids.len() > max_length {
        return Ok(RowOutcome::TooLong);
    }
    // Nothing predicts the first token of a row.
    if joint.ids.len() <= joint.prompt_len.max(1) {
        return Ok(RowOutcome::Untrained);
    }
    let notes = Notes {
        truncated: false,
        without_eos: joint.lacks_eos(tokenizer),
        merged_boundary: joint.merged,
        turn_end: no_stop(tokenizer, joint.ids.last().filter(|_| is_chat)),
        opening: joint.opening,
    };
    let item = Labelled {
        ids: joint.ids,
        prompt_len: joint.prompt_len,
        label,
    };
    Ok(RowOutcome::Kept { item, notes })
}

/// A response of a row of scored ones; it has no label if it is neither better nor worse than the others.
fn scored_response(
    row: &Row,
    scored: ResponseRow,
    tokenizer: &Tokenizer,
    max_length: usize,
) -> Result<RowOutcome<Labelled>> {
    check_row_ids(row, tokenizer, &scored.prompt_ids)?;
    check_row_ids(row, tokenizer, &scored.completion_ids)?;
    let prompt_len = scored.prompt_ids.len();
    let ids = [scored.prompt_ids, scored.completion_ids].concat();
    let label = row.columns.get("label").and_then(Value::as_bool);
    Ok(match label {
        _ if ids.len() > max_length => RowOutcome::TooLong,
        Some(label) if ids.len() > prompt_len.max(1) => RowOutcome::Kept {
            item: Labelled {
                ids,
                prompt_len,
                label,
            },
            notes: Notes::default(),
        },
        Some(_) => RowOutcome::Untrained,
        None => RowOutcome::NoPreference,
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::tests::{plain, rows};
    use super::*;
    use crate::data::Take;
    use crate::data::tokenizer::testing::{self, CHATML, EOS, HI, IM_END, NN};

    #[test]
    fn labels_and_comparisons_are_labelled_responses() {
        let tok = testing::tokenizer(false, None);
        let data = rows(&[
            json!({"prompt": "p\n\n", "completion": "hi", "label": true}),
            json!({"prompt": "p\n\n", "completion": "b", "label": "False"}),
            json!({"prompt": "p\n\n", "chosen": "b", "rejected": "hi", "label": 7}),
            json!({"prompt": "p", "completion": "far too long", "label": 1}),
            json!({"prompt": "p", "chosen": "same", "rejected": "same"}),
        ]);
        let got = encode_labelled(&data, &tok, &plain(), 6).unwrap();
        let row = |last: u32, label: bool| Labelled {
            ids: vec![112, NN, last, EOS],
            prompt_len: 2,
            label,
        };
        assert_eq!(
            got.items,
            [row(HI, true), row(98, false), row(98, true), row(HI, false)]
        );
        let report = got.report;
        assert_eq!((report.dropped_too_long, report.dropped_equal), (1, 2));
    }

    #[test]
    fn scored_responses_are_desirable_if_they_are_better_than_most() {
        let tok = testing::tokenizer(false, None);
        let row = json!({"prompt_ids": [1, 2], "response_ids": [[3], [4], [5], [6]], "scores": [0.5, 2.0, 1.0, 0.5]});
        let of = |take: Option<Take>| {
            let format = RowFormat { take, ..plain() };
            encode_labelled(&rows(std::slice::from_ref(&row)), &tok, &format, 9).unwrap()
        };
        let all = of(None);
        let labels: Vec<_> = (all.items.iter())
            .map(|item| (item.ids[2], item.label))
            .collect();
        assert_eq!(labels, [(3, false), (4, true), (5, true), (6, false)]);
        let ends = of(Some(Take::BestAndWorst)).items;
        assert_eq!(ends.len(), 2);
        assert_eq!((ends[0].ids[2], ends[1].ids[2]), (4, 3));
        // The middle one of three is neither.
        let row =
            json!({"prompt_ids": [1], "response_ids": [[3], [4], [5]], "scores": [0.0, 1.0, 2.0]});
        let got = encode_labelled(&rows(&[row]), &tok, &plain(), 9).unwrap();
        assert_eq!((got.items.len(), got.report.dropped_no_preference), (2, 1));
    }

    #[test]
    fn the_label_of_a_conversation_is_that_of_its_last_message() {
        let tok = testing::tokenizer(false, Some(CHATML));
        let says = |role: &str, text: &str| json!({"role": role, "content": text});
        let data = rows(&[
            json!({"messages": [says("user", "p"), says("assistant", "c")], "label": false}),
        ]);
        let got = encode_labelled(&data, &tok, &plain(), 100).unwrap();
        let item = &got.items[0];
        assert_eq!(item.ids[item.prompt_len..], [99, IM_END]);
        assert!(!item.label);
        let data = rows(&[json!({"messages": [says("user", "p")], "label": false})]);
        let error = encode_labelled(&data, &tok, &plain(), 100).unwrap_err();
        assert!(
            error.to_string().contains("must be the assistant's"),
            "{error}"
        );
    }

    #[test]
    fn a_label_is_true_or_false() {
        let tok = testing::tokenizer(false, None);
        let refused = |label: Value| {
            let data = rows(&[json!({"prompt": "p", "completion": "c", "label": label})]);
            let error = encode_labelled(&data, &tok, &plain(), 6).unwrap_err();
            error.to_string()
        };
        assert_eq!(
            refused(json!(0.5)),
            "rows.jsonl:1: column `label`: expected true or false (or 1 or 0), found 0.5"
        );
        assert!(refused(json!("good")).ends_with("found \"good\""));
        assert!(refused(json!([true])).ends_with("found an array"));
        let data = rows(&[json!({"prompt": "p", "completion": "c"})]);
        let error = encode_labelled(&data, &tok, &plain(), 6).unwrap_err();
        assert!(error.to_string().contains("no column `label`"), "{error}");
    }
}
