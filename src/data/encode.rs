//! Rows to token ids, with what is trained on decided by position: tokens after the prompt are targets, whatever they are.
//!
//! # Source
//! TRL 1.16, `SFTTrainer._prepare_dataset` and `RewardTrainer._prepare_dataset`: prompt and prompt + completion are
//! tokenised, and the remainder is trained on. Where the tokenizer merges across the boundary TRL warns and cuts at the
//! prompt's length; here the cut moves back to the last token that both share, and the row is counted.

use std::fmt;
use std::ops::Range;

use rayon::prelude::*;
use serde_json::{Map, Value};

use crate::data::records::{CompletionRow, Content, RowParser, prompt_text};
use crate::data::rows::Row;
use crate::data::{RowFormat, Tokenizer};
use crate::error::{Error, Result};

/// One row to learn from.
#[derive(Debug, Clone, PartialEq)]
pub struct Example {
    /// Prompt and completion.
    pub ids: Vec<u32>,
    /// Whether token `i` is a target; as long as `ids`. Never the first token: nothing comes before it.
    pub trained: Vec<bool>,
    /// Tokens before the completion (of a conversation: before the assistant's first words); 0 for plain text.
    pub prompt_len: usize,
    /// The row's columns.
    pub row: Map<String, Value>,
}

/// A prompt to respond to.
#[derive(Debug, Clone, PartialEq)]
pub struct Prompt {
    /// Token ids, BOS included where the tokenizer has one.
    pub ids: Vec<u32>,
    /// The text that they stand for.
    pub text: String,
    /// The row's columns.
    pub row: Map<String, Value>,
}

/// Responses to one prompt and which of them is better than which.
#[derive(Debug, Clone, PartialEq)]
pub struct Comparisons {
    /// Prompt, response and EOS (where the response has one) of each response.
    pub responses: Vec<Vec<u32>>,
    /// Tokens at the start of every response that are the prompt.
    pub prompt_len: usize,
    /// Chosen and rejected response, and by how much the chosen one is better (0 if the row does not say).
    pub pairs: Vec<(usize, usize, f32)>,
}

/// Encoded rows and what became of the others.
#[derive(Debug, Clone, PartialEq)]
pub struct Encoded<T> {
    /// The rows kept, in the order of the data.
    pub items: Vec<T>,
    /// Counts to show the user.
    pub report: EncodeReport,
}

/// What became of the rows. Displays as nothing when all went in whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct EncodeReport {
    /// Rows read.
    pub rows: usize,
    /// Rows kept.
    pub kept: usize,
    /// Rows kept that lost tokens at their end.
    pub truncated: usize,
    /// Rows left out because a prompt or a response is longer than allowed.
    pub dropped_too_long: usize,
    /// Rows left out because no token of theirs is trained on (of comparisons: no response is better than another).
    pub dropped_untrained: usize,
    /// Rows kept that should end with EOS and do not: truncated, or a chat template that does not end its turns so.
    pub without_eos: usize,
    /// Rows kept whose prompt the tokenizer merges with the start of the completion; the merged token is trained on.
    pub merged_boundary: usize,
}

impl fmt::Display for EncodeReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let notes = [
            (self.truncated, "truncated"),
            (self.dropped_too_long, "left out as too long"),
            (self.dropped_untrained, "left out with nothing to train on"),
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
enum Outcome<T> {
    Kept { item: T, notes: Notes },
    TooLong,
    Untrained,
}

/// What to count about a row that is kept.
#[derive(Default)]
struct Notes {
    truncated: bool,
    without_eos: bool,
    merged_boundary: bool,
}

/// Language modelling: every token but the first is trained on.
///
/// Plain text ends with EOS if the format says so; a conversation is rendered by the chat template and ends as that
/// ends it. Longer rows keep their first `max_length` tokens.
///
/// # Errors
/// At the first row that is not `text` or `messages`, and if no row is left.
pub fn encode_text(
    rows: &[Row],
    tokenizer: &Tokenizer,
    format: &RowFormat,
    max_length: usize,
) -> Result<Encoded<Example>> {
    let parser = RowParser::new(format)?;
    encode_rows(rows, max_length, |row| {
        let (ids, should_end) = match parser.text(row)? {
            Content::Text(text) => {
                let mut ids = tokenizer.encode_document(&text)?;
                end_with_eos(&mut ids, tokenizer, format.append_eos);
                (ids, format.append_eos)
            }
            Content::Messages(messages) => {
                let tools = row.columns.get("tools");
                let text = tokenizer
                    .chat()?
                    .render_with_tools(&messages, tools, false)?;
                (encode_chat(tokenizer, &text)?, false)
            }
        };
        let draft = Draft {
            trained: vec![true; ids.len()],
            ids,
            prompt_len: 0,
            should_end,
            merged_boundary: false,
        };
        Ok(draft.finish(row, tokenizer, max_length))
    })
}

/// Completions: the tokens after the prompt are trained on, or with `completion_only` false all but the first.
///
/// Of a conversation (`messages`) the assistant's turns are trained on, each with its end-of-turn token but without
/// the line break that templates write after it. Rows longer than `max_length` keep their start and then have no EOS.
///
/// # Errors
/// At the first row that has no completion, or whose chat template does not show what the assistant wrote; and if no
/// row is left.
pub fn encode_completions(
    rows: &[Row],
    tokenizer: &Tokenizer,
    format: &RowFormat,
    max_length: usize,
    completion_only: bool,
) -> Result<Encoded<Example>> {
    let parser = RowParser::new(format)?;
    encode_rows(rows, max_length, |row| {
        let tools = row.columns.get("tools");
        let joint = match parser.completion(row)? {
            CompletionRow::Text { prompt, completion } => {
                // An empty completion is a hole in the data, not a lesson to say nothing.
                let append_eos = format.append_eos && !completion.is_empty();
                Joint::of_text(tokenizer, &prompt, &completion, append_eos)?
            }
            CompletionRow::Messages { prompt, completion } => {
                Joint::of_messages(row, tokenizer, &prompt, &completion)?
            }
            CompletionRow::Conversation(messages) => {
                let (text, spans) = tokenizer.chat()?.assistant_spans(&messages, tools)?;
                let (ids, trained) = encode_spans(tokenizer, &text, &spans)?;
                let prompt_len = trained.iter().position(|&t| t).unwrap_or(ids.len());
                let draft = Draft {
                    trained: if completion_only {
                        trained
                    } else {
                        vec![true; ids.len()]
                    },
                    ids,
                    prompt_len,
                    should_end: true,
                    merged_boundary: false,
                };
                return Ok(draft.finish(row, tokenizer, max_length));
            }
        };
        let from = if completion_only { joint.prompt_len } else { 0 };
        let draft = Draft {
            trained: (0..joint.ids.len()).map(|i| i >= from).collect(),
            ids: joint.ids,
            prompt_len: joint.prompt_len,
            should_end: joint.should_end,
            merged_boundary: joint.merged,
        };
        Ok(draft.finish(row, tokenizer, max_length))
    })
}

/// Preference rows, each a pair, and the rows of a `Rank` stage, with every pair whose scores differ by more than the
/// row's `tie_margin`.
///
/// A reward model judges whole responses, so nothing is truncated: a preference row with a response longer than
/// `max_length` is left out, as TRL does, and so is such a response of a ranked row. `margin` is the column of that
/// name, or the difference of the scores.
///
/// # Errors
/// At the first row that is neither, and if no row is left.
pub fn encode_comparisons(
    rows: &[Row],
    tokenizer: &Tokenizer,
    format: &RowFormat,
    max_length: usize,
) -> Result<Encoded<Comparisons>> {
    let parser = RowParser::new(format)?;
    encode_rows(rows, max_length, |row| {
        if row.columns.contains_key("response_ids") {
            return ranked_row(row, max_length);
        }
        let parts = parser.preference(row)?;
        let margin = match row.columns.get("margin") {
            None | Some(Value::Null) => 0.0,
            Some(margin) => margin
                .as_f64()
                .ok_or_else(|| row.error("column `margin`: expected a number"))?,
        };
        if parts.chosen == parts.rejected {
            return Ok(Outcome::Untrained);
        }
        let encode = |response: &Content| match (&parts.prompt, response) {
            (Content::Text(prompt), Content::Text(response)) => {
                Joint::of_text(tokenizer, prompt, response, format.append_eos)
            }
            (Content::Messages(prompt), Content::Messages(response)) => {
                Joint::of_messages(row, tokenizer, prompt, response)
            }
            _ => Err(row.error("prompt and responses are not of one kind")),
        };
        let (chosen, rejected) = (encode(&parts.chosen)?, encode(&parts.rejected)?);
        if chosen.ids.len() > max_length || rejected.ids.len() > max_length {
            return Ok(Outcome::TooLong);
        }
        if chosen.ids.is_empty() || rejected.ids.is_empty() {
            return Ok(Outcome::Untrained);
        }
        let notes = Notes {
            truncated: false,
            without_eos: chosen.lacks_eos(tokenizer) || rejected.lacks_eos(tokenizer),
            merged_boundary: chosen.merged || rejected.merged,
        };
        let item = Comparisons {
            prompt_len: chosen.prompt_len.min(rejected.prompt_len),
            responses: vec![chosen.ids, rejected.ids],
            pairs: vec![(0, 1, margin as f32)],
        };
        Ok(Outcome::Kept { item, notes })
    })
}

/// Prompts to respond to; of a conversation the assistant's last turns are left out and the generation prompt is added.
///
/// A prompt longer than `max_prompt_length` tokens is left out: cut off, it would ask for something else.
///
/// # Errors
/// At the first row without a prompt, and if no row is left.
pub fn encode_prompts(
    rows: &[Row],
    tokenizer: &Tokenizer,
    format: &RowFormat,
    max_prompt_length: usize,
) -> Result<Encoded<Prompt>> {
    let parser = RowParser::new(format)?;
    encode_rows(rows, max_prompt_length, |row| {
        let prompt = parser.prompt(row)?;
        let text = prompt_text(row, &prompt, tokenizer)?;
        let ids = match prompt {
            Content::Text(_) => tokenizer.encode_document(&text)?,
            Content::Messages(_) => encode_chat(tokenizer, &text)?,
        };
        if ids.len() > max_prompt_length {
            return Ok(Outcome::TooLong);
        }
        if ids.is_empty() {
            return Err(row.error(
                "the prompt has no tokens, and the tokenizer has no BOS token to start from",
            ));
        }
        let item = Prompt {
            ids,
            text,
            row: row.columns.clone(),
        };
        Ok(Outcome::Kept {
            item,
            notes: Notes::default(),
        })
    })
}

/// Encodes all rows, in parallel and in order, and counts.
fn encode_rows<T: Send>(
    rows: &[Row],
    max_length: usize,
    encode: impl Fn(&Row) -> Result<Outcome<T>> + Sync,
) -> Result<Encoded<T>> {
    let outcomes: Vec<Result<Outcome<T>>> = rows
        .par_iter()
        .map(|row| encode(row).map_err(|e| at_row(row, e)))
        .collect();
    let mut report = EncodeReport {
        rows: rows.len(),
        ..EncodeReport::default()
    };
    let mut items = Vec::with_capacity(rows.len());
    for outcome in outcomes {
        match outcome? {
            Outcome::Kept { item, notes } => {
                items.push(item);
                report.kept += 1;
                report.truncated += usize::from(notes.truncated);
                report.without_eos += usize::from(notes.without_eos);
                report.merged_boundary += usize::from(notes.merged_boundary);
            }
            Outcome::TooLong => report.dropped_too_long += 1,
            Outcome::Untrained => report.dropped_untrained += 1,
        }
    }
    if !items.is_empty() {
        return Ok(Encoded { items, report });
    }
    match rows.first() {
        None => Err(Error::Usage("there are no rows to encode".into())),
        Some(row) => Err(Error::format(
            &row.path,
            format!(
                "no row is left to train on: of {}, {} are longer than the limit of {max_length} tokens and {} have no token to \
                 train on within it. Raise the limit, shorten the rows in the format's templates, or check the columns",
                rows.len(),
                report.dropped_too_long,
                report.dropped_untrained
            ),
        )),
    }
}

/// Says at which row a template or the tokenizer failed.
fn at_row(row: &Row, error: Error) -> Error {
    match error {
        Error::Format { path, message } => row.error(format!("{}: {message}", path.display())),
        other => other,
    }
}

/// Prompt and completion as one sequence.
struct Joint {
    ids: Vec<u32>,
    prompt_len: usize,
    /// A token spans the end of the prompt.
    merged: bool,
    /// An EOS is due at the end.
    should_end: bool,
}

impl Joint {
    fn of_text(
        tokenizer: &Tokenizer,
        prompt: &str,
        completion: &str,
        append_eos: bool,
    ) -> Result<Self> {
        let prompt_ids = tokenizer.encode_document(prompt)?;
        let mut ids = tokenizer.encode_document(&format!("{prompt}{completion}"))?;
        let (prompt_len, merged) = boundary(&prompt_ids, &ids);
        end_with_eos(&mut ids, tokenizer, append_eos);
        Ok(Self {
            ids,
            prompt_len,
            merged,
            should_end: append_eos,
        })
    }

    fn of_messages(
        row: &Row,
        tokenizer: &Tokenizer,
        prompt: &[Value],
        completion: &[Value],
    ) -> Result<Self> {
        let (chat, tools) = (tokenizer.chat()?, row.columns.get("tools"));
        let prompt_text = chat.render_with_tools(prompt, tools, true)?;
        let messages = [prompt, completion].concat();
        let text = chat.render_with_tools(&messages, tools, false)?;
        if !text.starts_with(&prompt_text) {
            return Err(row.error(
                "the chat template does not start the conversation with its own rendering of the prompt: \
                 what the assistant wrote cannot be told apart. Give `messages` and a template with {% generation %}",
            ));
        }
        let prompt_ids = encode_chat(tokenizer, &prompt_text)?;
        let mut ids = encode_chat(tokenizer, &text)?;
        let (prompt_len, merged) = boundary(&prompt_ids, &ids);
        let end = end_of_turn(tokenizer, &ids, prompt_len..ids.len())?;
        ids.truncate(end);
        Ok(Self {
            ids,
            prompt_len,
            merged,
            should_end: true,
        })
    }

    fn lacks_eos(&self, tokenizer: &Tokenizer) -> bool {
        self.should_end && !ends_with_stop(tokenizer, &self.ids)
    }
}

/// Tokens of the prompt at the start of the joint ids, and whether the tokenizer merged across its end.
fn boundary(prompt_ids: &[u32], ids: &[u32]) -> (usize, bool) {
    let shared = prompt_ids
        .iter()
        .zip(ids)
        .take_while(|(a, b)| a == b)
        .count();
    (shared, shared < prompt_ids.len())
}

/// Tokens of a rendered conversation: the template has written the special tokens itself.
fn encode_chat(tokenizer: &Tokenizer, text: &str) -> Result<Vec<u32>> {
    let ids = tokenizer.encode(text, false)?;
    tokenizer.check_bos(&ids)?;
    Ok(ids)
}

/// Tokens of a text, and which of them start within one of the `spans` of bytes.
fn encode_spans(
    tokenizer: &Tokenizer,
    text: &str,
    spans: &[Range<usize>],
) -> Result<(Vec<u32>, Vec<bool>)> {
    let tokens = tokenizer.encode_with_offsets(text)?;
    let ids: Vec<u32> = tokens.iter().map(|(id, _)| *id).collect();
    tokenizer.check_bos(&ids)?;
    let mut trained = vec![false; ids.len()];
    for span in spans {
        // Offsets rise, so the tokens that start within the span are neighbours.
        let from = tokens.partition_point(|(_, bytes)| bytes.start < span.start);
        let to = tokens.partition_point(|(_, bytes)| bytes.start < span.end);
        let end = end_of_turn(tokenizer, &ids, from..to)?;
        trained[from..end].fill(true);
    }
    Ok((ids, trained))
}

/// End of a turn's tokens without the white space that the template writes after its last special token: generation
/// stops before it.
fn end_of_turn(tokenizer: &Tokenizer, ids: &[u32], turn: Range<usize>) -> Result<usize> {
    let last = ids[turn.clone()]
        .iter()
        .rposition(|&id| tokenizer.is_special(id));
    let Some(last) = last else {
        return Ok(turn.end);
    };
    let end = turn.start + last + 1;
    let rest = tokenizer.decode(&ids[end..turn.end], false)?;
    Ok(if rest.trim().is_empty() {
        end
    } else {
        turn.end
    })
}

fn ends_with_stop(tokenizer: &Tokenizer, ids: &[u32]) -> bool {
    ids.last()
        .is_some_and(|id| tokenizer.stop_ids().contains(id))
}

fn end_with_eos(ids: &mut Vec<u32>, tokenizer: &Tokenizer, append: bool) {
    if append && ids.last() != Some(&tokenizer.eos_id()) {
        ids.push(tokenizer.eos_id());
    }
}

/// An example before truncation.
struct Draft {
    ids: Vec<u32>,
    trained: Vec<bool>,
    prompt_len: usize,
    should_end: bool,
    merged_boundary: bool,
}

impl Draft {
    /// Truncates, and decides whether the row is kept.
    fn finish(mut self, row: &Row, tokenizer: &Tokenizer, max_length: usize) -> Outcome<Example> {
        let truncated = self.ids.len() > max_length;
        self.ids.truncate(max_length);
        self.trained.truncate(max_length);
        if let Some(first) = self.trained.first_mut() {
            *first = false;
        }
        let Some(last) = self.trained.iter().rposition(|&t| t) else {
            return Outcome::Untrained;
        };
        // A prompt that fills the limit leaves nothing of the completion, even where prompts are trained on too.
        if self.prompt_len >= self.ids.len() {
            return Outcome::Untrained;
        }
        let notes = Notes {
            truncated,
            without_eos: self.should_end && !ends_with_stop(tokenizer, &self.ids[..=last]),
            merged_boundary: self.merged_boundary,
        };
        let item = Example {
            ids: self.ids,
            trained: self.trained,
            prompt_len: self.prompt_len,
            row: row.columns.clone(),
        };
        Outcome::Kept { item, notes }
    }
}

/// A row that a `Rank` stage wrote.
#[derive(serde::Deserialize)]
struct Ranked {
    prompt_ids: Vec<u32>,
    response_ids: Vec<Vec<u32>>,
    scores: Vec<f64>,
    #[serde(default)]
    tie_margin: f64,
}

fn ranked_row(row: &Row, max_length: usize) -> Result<Outcome<Comparisons>> {
    let ranked: Ranked = serde_json::from_value(Value::Object(row.columns.clone()))
        .map_err(|e| row.error(format!("not a row of a Rank stage: {e}")))?;
    if ranked.scores.len() != ranked.response_ids.len() {
        return Err(row.error(format!(
            "not a row of a Rank stage: {} responses and {} scores",
            ranked.response_ids.len(),
            ranked.scores.len()
        )));
    }
    let prompt_len = ranked.prompt_ids.len();
    let mut scores = Vec::new();
    let mut responses = Vec::new();
    for (response, score) in ranked.response_ids.iter().zip(&ranked.scores) {
        if prompt_len + response.len() <= max_length && !response.is_empty() {
            responses.push([ranked.prompt_ids.as_slice(), response].concat());
            scores.push(*score);
        }
    }
    if responses.len() < 2 {
        return Ok(Outcome::TooLong);
    }
    let mut pairs = Vec::new();
    for i in 0..responses.len() {
        for j in 0..responses.len() {
            let margin = scores[i] - scores[j];
            // Above zero too: with a tie margin of 0, equal scores are no comparison.
            if margin > ranked.tie_margin.max(0.0) {
                pairs.push((i, j, margin as f32));
            }
        }
    }
    if pairs.is_empty() {
        return Ok(Outcome::Untrained);
    }
    Ok(Outcome::Kept {
        item: Comparisons {
            responses,
            prompt_len,
            pairs,
        },
        notes: Notes::default(),
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::data::tokenizer::testing::{self, BOS, CHATML, EOS, HI, IM_END, IM_START, NN};

    fn rows(values: &[Value]) -> Vec<Row> {
        let row = |(i, value): (usize, &Value)| Row {
            columns: value.as_object().unwrap().clone(),
            path: "rows.jsonl".into(),
            line: i + 1,
        };
        values.iter().enumerate().map(row).collect()
    }

    fn plain() -> RowFormat {
        RowFormat::default()
    }

    /// Ids that are trained on.
    fn targets(example: &Example) -> Vec<u32> {
        let pairs = example.ids.iter().zip(&example.trained);
        pairs
            .filter(|(_, trained)| **trained)
            .map(|(&id, _)| id)
            .collect()
    }

    #[test]
    fn a_completion_is_trained_on_with_its_eos() {
        let tok = testing::tokenizer(true, None);
        let data = rows(&[json!({"prompt": "ab", "completion": " hi", "label": 7})]);
        let got = encode_completions(&data, &tok, &plain(), 16, true).unwrap();
        let example = &got.items[0];
        assert_eq!(example.ids, [BOS, 97, 98, 32, HI, EOS]);
        assert_eq!(example.trained, [false, false, false, true, true, true]);
        assert_eq!((example.prompt_len, &example.row["label"]), (3, &json!(7)));
        assert_eq!(got.report.to_string(), "");
        let all = encode_completions(&data, &tok, &plain(), 16, false).unwrap();
        assert_eq!(all.items[0].trained, [false, true, true, true, true, true]);
        assert_eq!(all.items[0].prompt_len, 3);
    }

    #[test]
    fn eos_is_appended_once_and_only_if_asked_for() {
        let tok = testing::tokenizer(false, None);
        let data = rows(&[json!({"prompt": "a", "completion": "b</s>"})]);
        let got = encode_completions(&data, &tok, &plain(), 16, true).unwrap();
        assert_eq!(got.items[0].ids, [97, 98, EOS]);
        let data = rows(&[json!({"prompt": "a", "completion": "b"})]);
        let format = RowFormat {
            append_eos: false,
            ..plain()
        };
        let got = encode_completions(&data, &tok, &format, 16, true).unwrap();
        assert_eq!(got.items[0].ids, [97, 98]);
        assert_eq!(got.report.without_eos, 0);
    }

    #[test]
    fn eos_inside_a_prompt_or_completion_is_a_token_like_any_other() {
        let tok = testing::tokenizer(false, None);
        let data = rows(&[json!({"prompt": "a</s>b", "completion": "c</s>d"})]);
        let got = encode_completions(&data, &tok, &plain(), 16, true).unwrap();
        assert_eq!(got.items[0].ids, [97, EOS, 98, 99, EOS, 100, EOS]);
        assert_eq!(targets(&got.items[0]), [99, EOS, 100, EOS]);
    }

    #[test]
    fn truncation_keeps_the_start_and_is_counted() {
        let tok = testing::tokenizer(false, None);
        let data = rows(&[
            json!({"prompt": "ab", "completion": "cd"}),
            json!({"prompt": "ab", "completion": "c"}),
            json!({"prompt": "abcd", "completion": "e"}),
            json!({"prompt": "ab", "completion": ""}),
        ]);
        let got = encode_completions(&data, &tok, &plain(), 4, true).unwrap();
        assert_eq!(got.items[0].ids, [97, 98, 99, 100]);
        assert_eq!(targets(&got.items[0]), [99, 100]);
        assert_eq!(got.items[1].ids, [97, 98, 99, EOS]);
        let report = EncodeReport {
            rows: 4,
            kept: 2,
            truncated: 1,
            dropped_untrained: 2,
            without_eos: 1,
            ..EncodeReport::default()
        };
        assert_eq!(got.report, report);
        assert_eq!(
            report.to_string(),
            "2 of 4 rows kept: 1 truncated, 2 left out with nothing to train on, 1 without EOS at the end"
        );
        let error = encode_completions(&data[2..], &tok, &plain(), 4, true)
            .unwrap_err()
            .to_string();
        assert!(
            error.starts_with("rows.jsonl: no row is left to train on: of 2,"),
            "{error}"
        );
        assert!(encode_completions(&[], &tok, &plain(), 4, true).is_err());
    }

    #[test]
    fn a_token_across_the_boundary_belongs_to_the_completion() {
        let tok = testing::tokenizer(false, None);
        let data = rows(&[json!({"prompt": "ah", "completion": "it"})]);
        let got = encode_completions(&data, &tok, &plain(), 16, true).unwrap();
        assert_eq!(got.items[0].ids, [97, HI, 116, EOS]);
        assert_eq!(
            (got.items[0].prompt_len, targets(&got.items[0])),
            (1, vec![HI, 116, EOS])
        );
        assert_eq!(got.report.merged_boundary, 1);
    }

    #[test]
    fn text_is_trained_on_but_for_its_first_token() {
        let tok = testing::tokenizer(true, Some(CHATML));
        let data = rows(&[json!({"text": "ab"}), json!({"text": ""})]);
        let got = encode_text(&data, &tok, &plain(), 16).unwrap();
        assert_eq!(
            (&got.items[0].ids, targets(&got.items[0])),
            (&vec![BOS, 97, 98, EOS], vec![97, 98, EOS])
        );
        // An empty text still teaches to stop.
        assert_eq!(got.items[1].ids, [BOS, EOS]);
        let data = rows(&[json!({"messages": [{"role": "user", "content": "a"}]})]);
        let got = encode_text(&data, &tok, &plain(), 5).unwrap();
        assert_eq!(got.items[0].ids[0], IM_START);
        assert_eq!(
            (
                got.items[0].ids.len(),
                got.report.truncated,
                got.report.without_eos
            ),
            (5, 1, 0)
        );
    }

    #[test]
    fn the_assistant_turns_of_a_conversation_are_trained_on() {
        let tok = testing::tokenizer(true, Some(CHATML));
        let talk = |roles: &[(&str, &str)]| -> Value {
            roles
                .iter()
                .map(|(role, content)| json!({"role": role, "content": content}))
                .collect()
        };
        let messages = talk(&[
            ("user", "a"),
            ("assistant", "hi"),
            ("user", "c"),
            ("assistant", "d\u{e9}"),
        ]);
        let data = rows(&[json!({"messages": messages})]);
        let got = encode_completions(&data, &tok, &plain(), 200, true).unwrap();
        assert_eq!(
            targets(&got.items[0]),
            [HI, IM_END, 100, 0xc3, 0xa9, IM_END]
        );
        // <|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n
        assert_eq!(got.items[0].prompt_len, 1 + 5 + 1 + 1 + 1 + 1 + 10);
        assert_eq!(got.report.to_string(), "");
        // Prompt and completion columns give the same ids, without the line break after the last turn.
        let prompt = talk(&[("user", "a"), ("assistant", "hi"), ("user", "c")]);
        let pair =
            rows(&[json!({"prompt": prompt, "completion": talk(&[("assistant", "d\u{e9}")])})]);
        let pair = encode_completions(&pair, &tok, &plain(), 200, true).unwrap();
        let (whole, part) = (&got.items[0].ids, &pair.items[0].ids);
        assert_eq!(part[..], whole[..whole.len() - 1]);
        assert_eq!(targets(&pair.items[0]), [100, 0xc3, 0xa9, IM_END]);
        // A conversation without an answer has nothing to train on.
        let data = rows(&[
            json!({"messages": talk(&[("user", "a")])}),
            json!({"messages": messages}),
        ]);
        let got = encode_completions(&data, &tok, &plain(), 200, true).unwrap();
        assert_eq!((got.report.kept, got.report.dropped_untrained), (1, 1));
    }

    #[test]
    fn a_template_that_writes_bos_gets_no_second_one() {
        let template = format!("{{{{ bos_token }}}}{CHATML}");
        let tok = testing::tokenizer(true, Some(&template));
        let format = RowFormat {
            chat: true,
            ..plain()
        };
        let data = rows(&[json!({"prompt": "a"})]);
        let got = encode_prompts(&data, &tok, &format, 100).unwrap();
        assert_eq!(got.items[0].ids[..2], [BOS, IM_START]);
        let twice = testing::tokenizer(true, Some(&format!("{{{{ bos_token }}}}{template}")));
        let error = encode_prompts(&data, &twice, &format, 100)
            .unwrap_err()
            .to_string();
        assert!(
            error.starts_with("rows.jsonl:1: toy: a text starts with two BOS"),
            "{error}"
        );
    }

    #[test]
    fn prompts_open_the_assistant_turn_and_are_never_cut() {
        let tok = testing::tokenizer(false, Some(CHATML));
        let data = rows(&[json!({"prompt": "a"}), json!({"prompt": "a long one"})]);
        let format = RowFormat {
            chat: true,
            ..plain()
        };
        let got = encode_prompts(&data, &tok, &format, 20).unwrap();
        assert_eq!(
            got.items[0].text,
            "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n"
        );
        assert_eq!(
            (got.items[0].ids.len(), got.report.dropped_too_long),
            (20, 1)
        );
        let got = encode_prompts(&data, &tok, &plain(), 20).unwrap();
        assert_eq!(got.items[0].ids, [97]);
        let error = encode_prompts(&data[1..], &tok, &plain(), 3)
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("of 1, 1 are longer than the limit of 3 tokens"),
            "{error}"
        );
    }

    #[test]
    fn a_preference_is_a_pair_of_whole_rows() {
        let tok = testing::tokenizer(false, None);
        let data = rows(&[
            json!({"prompt": "p\n\n", "chosen": "hi", "rejected": "b", "margin": 1.5}),
            json!({"chosen": "x y", "rejected": "x z"}),
            json!({"prompt": "p", "chosen": "same", "rejected": "same"}),
            json!({"prompt": "p", "chosen": "far too long", "rejected": "b"}),
        ]);
        let got = encode_comparisons(&data, &tok, &plain(), 6).unwrap();
        let first = Comparisons {
            responses: vec![vec![112, NN, HI, EOS], vec![112, NN, 98, EOS]],
            prompt_len: 2,
            pairs: vec![(0, 1, 1.5)],
        };
        assert_eq!(got.items[0], first);
        let second = Comparisons {
            responses: vec![vec![120, 32, 121, EOS], vec![120, 32, 122, EOS]],
            prompt_len: 1,
            pairs: vec![(0, 1, 0.0)],
        };
        assert_eq!(got.items[1], second);
        assert_eq!(
            (got.report.dropped_untrained, got.report.dropped_too_long),
            (1, 1)
        );
    }

    #[test]
    fn conversations_are_compared_through_the_template() {
        let tok = testing::tokenizer(false, Some(CHATML));
        let user = json!({"role": "user", "content": "p"});
        let says = |text: &str| json!({"role": "assistant", "content": text});
        let data = rows(&[json!({"chosen": [user, says("c")], "rejected": [user, says("r")]})]);
        let got = encode_comparisons(&data, &tok, &plain(), 100).unwrap();
        let Comparisons {
            responses,
            prompt_len,
            ..
        } = &got.items[0];
        assert_eq!(responses[0][*prompt_len..], [99, IM_END]);
        assert_eq!(responses[1][*prompt_len..], [114, IM_END]);
        assert_eq!(got.report.to_string(), "");
    }

    #[test]
    fn a_ranked_row_gives_all_pairs_beyond_the_tie_margin() {
        let tok = testing::tokenizer(false, None);
        let row = json!({"prompt": "p", "prompt_ids": [1, 2], "responses": ["", "", "", ""],
            "response_ids": [[3, EOS], [4], [5, 5, 5, 5], [6]], "scores": [0.5, 2.0, 9.0, 0.25], "tie_margin": 0.25});
        let tied = json!({"prompt_ids": [1], "response_ids": [[3], [4]], "scores": [1.0, 1.0]});
        let got = encode_comparisons(&rows(&[row, tied]), &tok, &plain(), 5).unwrap();
        assert_eq!(
            got.items[0].responses,
            vec![vec![1, 2, 3, EOS], vec![1, 2, 4], vec![1, 2, 6]]
        );
        assert_eq!(got.items[0].pairs, [(1, 0, 1.5), (1, 2, 1.75)]);
        assert_eq!(
            (got.items[0].prompt_len, got.report.dropped_untrained),
            (2, 1)
        );
        let bad = rows(&[json!({"prompt_ids": [1], "response_ids": [[3]], "scores": []})]);
        let error = encode_comparisons(&bad, &tok, &plain(), 5)
            .unwrap_err()
            .to_string();
        assert_eq!(
            error,
            "rows.jsonl:1: not a row of a Rank stage: 1 responses and 0 scores"
        );
    }

    #[test]
    fn the_first_bad_row_is_named() {
        let tok = testing::tokenizer(false, None);
        let data = rows(&[
            json!({"prompt": "p", "completion": "c"}),
            json!({"prompt": "p"}),
            json!({}),
        ]);
        let error = encode_completions(&data, &tok, &plain(), 9, true)
            .unwrap_err()
            .to_string();
        assert!(
            error.starts_with("rows.jsonl:2: expected `prompt` and `completion`"),
            "{error}"
        );
    }

    proptest! {
        #[test]
        fn prompt_and_targets_read_back_as_the_row(prompt in "[ah i\n\u{e9}]{0,12}", completion in "[ah i\n\u{e9}]{1,12}") {
            let tok = testing::tokenizer(true, None);
            let data = rows(&[json!({"prompt": prompt, "completion": completion})]);
            let got = encode_completions(&data, &tok, &plain(), 99, true).unwrap();
            let example = &got.items[0];
            prop_assert_eq!(tok.decode(&example.ids, true).unwrap(), format!("{prompt}{completion}"));
            prop_assert_eq!(example.ids.last(), Some(&EOS));
            let first = example.trained.iter().position(|&t| t).unwrap();
            prop_assert_eq!(first, example.prompt_len);
            // Everything after the prompt is a target, and the prompt is the row's unless a token crosses its end.
            prop_assert!(example.trained[first..].iter().all(|&t| t));
            if got.report.merged_boundary == 0 {
                prop_assert_eq!(tok.decode(&example.ids[..first], true).unwrap(), prompt);
            }
        }
    }
}
