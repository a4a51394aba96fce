//! Encodes rows as token ids. Trained tokens are determined by position: all tokens after the prompt, whatever their ids.
//!
//! # Source
//! TRL 1.16, `SFTTrainer._prepare_dataset` and `RewardTrainer._prepare_dataset`: prompt and prompt + completion are
//! tokenised, and the remainder is trained on. Where the tokenizer merges across the boundary TRL warns and cuts at the
//! prompt's length; here the cut moves back to the end of the common prefix, and the row is counted.

mod comparisons;
mod encoding;
mod fit;
mod judged;
mod judgements;
mod labelled;
mod report;
mod scored;
mod sequence;

use std::sync::Arc;

use serde_json::{Map, Value};

pub use comparisons::{Comparisons, GOLD, encode_comparisons};
pub(crate) use encoding::{
    Preferences, Prompts, Ratings, RowEncoding, Texts, TextsOrCompletions, encode_all, encode_batch,
};
pub use judged::{Conversation, encode_for_reward_model, encode_judged};
pub use judgements::Judgements;
pub use labelled::{Labelled, encode_labelled};
pub(crate) use labelled::{Labels, check_labelled, count_labels};
pub use report::{EncodeReport, EncodedRows, TurnEnd};
pub(crate) use scored::{check_scored, num_top};

use crate::data::complaints::roles;
use crate::data::records::{CompletionRow, Content, RowParser, chat_options, prompt_text};
use crate::data::rows::Row;
use crate::data::{RowFormat, Tokenizer, TruncationMode};
use crate::error::Result;
use report::{Notes, RowOutcome};
use scored::ResponseRow;
use sequence::{
    ConversationTokens, PromptCompletion, check_row_ids, encode_chat, encode_spans, end_with_eos,
    ends_with_stop, no_stop,
};

/// An encoded row to train on.
#[derive(Debug, Clone, PartialEq)]
pub struct Example {
    /// Token ids of prompt and completion.
    pub ids: Vec<u32>,
    /// Whether token `i` is a target; as long as `ids`. Never the first token, which nothing predicts.
    pub trained: Vec<bool>,
    /// Tokens before the completion (of a conversation: before the assistant's first span); 0 for plain text.
    pub prompt_len: usize,
}

/// A prompt to generate responses to.
#[derive(Debug, Clone, PartialEq)]
pub struct Prompt {
    /// Token ids, BOS included where the tokenizer has one.
    pub ids: Vec<u32>,
    /// The prompt as text.
    pub text: String,
    /// The conversation that the text was rendered from, if any.
    pub conversation: Option<Arc<Conversation>>,
    /// The row's columns.
    pub row: Map<String, Value>,
}

/// Encodes rows for language modelling: every token but the first is trained on.
///
/// Plain text gets an EOS if the format has `append_eos`; conversations are rendered by the chat template, end of turn included.
/// Longer rows keep `max_length` tokens, the first or the last ones by `truncation_mode`.
///
/// # Errors
/// At the first row that is not `text` or `messages`, and if no row is left.
pub fn encode_text(
    rows: &[Row],
    tokenizer: &Tokenizer,
    format: &RowFormat,
    max_length: usize,
) -> Result<EncodedRows<Example>> {
    encode_all(&Texts { max_length }, rows, tokenizer, format)
}

/// See [`encode_text`].
fn text_row(
    parser: &RowParser<'_>,
    row: &Row,
    tokenizer: &Tokenizer,
    max_length: usize,
) -> Result<RowOutcome<Example>> {
    let format = parser.format();
    let mut turn_end = None;
    let (ids, should_end) = match parser.text(row)? {
        Content::Text(text) => {
            let mut ids = tokenizer.encode_document(&text)?;
            end_with_eos(&mut ids, tokenizer, format.append_eos);
            (ids, format.append_eos)
        }
        Content::Messages(messages) => {
            let options = chat_options(row, format)?;
            let text = tokenizer.chat()?.render(&messages, &options)?;
            let ids = encode_chat(tokenizer, &text)?;
            turn_end = no_stop(tokenizer, sequence::turn_end(tokenizer, &ids)?);
            (ids, false)
        }
    };
    let draft = UntruncatedExample {
        trained: vec![true; ids.len()],
        ids,
        prompt_len: 0,
        should_end,
        merged_boundary: false,
        opening: None,
        turn_end,
    };
    Ok(draft.finish(tokenizer, format, max_length))
}

/// Encodes rows with completions: the tokens after the prompt are trained on; without `completion_only` all but the first.
///
/// Of a conversation (`messages`) the assistant's turns are trained on, or only the last one (`assistant_turns`): the template's
/// `{% generation %}` blocks, or else each turn with its end-of-turn token, without the line break after it.
///
/// Rows longer than `max_length` keep that many tokens, as in TRL: the first ones (`keep_start`), without EOS, where a row is
/// left out if its prompt fills the limit; or the last ones (`keep_end`).
///
/// # Errors
/// At the first row without a completion, at a conversation without trained tokens or whose template does not reveal the
/// assistant's turns, and if no row is left.
pub fn encode_completions(
    rows: &[Row],
    tokenizer: &Tokenizer,
    format: &RowFormat,
    max_length: usize,
    completion_only: bool,
) -> Result<EncodedRows<Example>> {
    let encoding = TextsOrCompletions {
        max_length,
        completion_only,
        texts: false,
    };
    encode_all(&encoding, rows, tokenizer, format)
}

/// See [`encode_completions`].
fn completion_row(
    parser: &RowParser<'_>,
    row: &Row,
    tokenizer: &Tokenizer,
    max_length: usize,
    completion_only: bool,
) -> Result<RowOutcome<Example>> {
    let format = parser.format();
    if let Some(learned) = ResponseRow::of(row)? {
        check_row_ids(row, tokenizer, &learned.prompt_ids)?;
        check_row_ids(row, tokenizer, &learned.completion_ids)?;
        let prompt_len = learned.prompt_ids.len();
        let from = if completion_only { prompt_len } else { 0 };
        let ids = [learned.prompt_ids, learned.completion_ids].concat();
        let draft = UntruncatedExample {
            trained: (0..ids.len()).map(|i| i >= from).collect(),
            ids,
            prompt_len,
            // A response that was cut off at its limit has no EOS.
            should_end: false,
            merged_boundary: false,
            opening: None,
            turn_end: None,
        };
        return Ok(draft.finish(tokenizer, format, max_length));
    }
    let (joint, is_chat) = match parser.completion(row)? {
        CompletionRow::Text { prompt, completion } => {
            // An empty completion is missing data; it should not teach the model to generate nothing.
            let append_eos = format.append_eos && !completion.is_empty();
            let joint = PromptCompletion::of_text(tokenizer, &prompt, &completion, append_eos)?;
            (joint, false)
        }
        CompletionRow::Messages { prompt, completion } => {
            let options = chat_options(row, format)?;
            let joint = PromptCompletion::of_messages(tokenizer, &options, &prompt, &completion)?;
            (joint, true)
        }
        CompletionRow::Conversation(messages) => {
            let options = chat_options(row, format)?;
            let turns = format.assistant_turns;
            let spoken = tokenizer
                .chat()?
                .assistant_spans(&messages, &options, turns)?;
            let ConversationTokens {
                ids,
                trained,
                opening,
            } = encode_spans(tokenizer, &spoken)?;
            let Some(prompt_len) = trained.iter().position(|&t| t) else {
                return Err(row.error(format!(
                    "no token of the conversation is trained on: {}",
                    match (spoken.marked, spoken.spans.is_empty()) {
                        (true, true) =>
                            "the chat template marks nothing in it with {% generation %}".to_owned(),
                        (false, true) => format!(
                            "it has no assistant turn; its roles are {}, expected user and assistant",
                            roles(&messages)
                        ),
                        (_, false) => "the assistant's turns are empty".to_owned(),
                    }
                )));
            };
            let last = trained.iter().rposition(|&t| t).map(|last| &ids[last]);
            let draft = UntruncatedExample {
                turn_end: no_stop(tokenizer, last),
                opening,
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
            return Ok(draft.finish(tokenizer, format, max_length));
        }
    };
    let from = if completion_only { joint.prompt_len } else { 0 };
    let draft = UntruncatedExample {
        turn_end: no_stop(tokenizer, joint.ids.last().filter(|_| is_chat)),
        opening: joint.opening,
        trained: (0..joint.ids.len()).map(|i| i >= from).collect(),
        ids: joint.ids,
        prompt_len: joint.prompt_len,
        should_end: joint.should_end,
        merged_boundary: joint.merged,
    };
    Ok(draft.finish(tokenizer, format, max_length))
}

/// Encodes prompts. Of a conversation the assistant's last turns are removed, and the generation prompt is added.
///
/// A prompt longer than `max_prompt_length` tokens is left out: truncated, it would be another prompt. (`shorten` in the format
/// cuts one of its columns instead.)
///
/// # Errors
/// At the first row without a prompt, and if no row is left.
pub fn encode_prompts(
    rows: &[Row],
    tokenizer: &Tokenizer,
    format: &RowFormat,
    max_prompt_length: usize,
) -> Result<EncodedRows<Prompt>> {
    let encoding = Prompts {
        max_length: max_prompt_length,
    };
    encode_all(&encoding, rows, tokenizer, format)
}

/// See [`encode_prompts`].
fn prompt_row(
    parser: &RowParser<'_>,
    row: &Row,
    tokenizer: &Tokenizer,
    max_prompt_length: usize,
) -> Result<RowOutcome<Prompt>> {
    let format = parser.format();
    let prompt = parser.prompt(row)?;
    let text = prompt_text(row, &prompt, tokenizer, format)?;
    let ids = match prompt {
        Content::Text(_) => tokenizer.encode_start(&text)?,
        Content::Messages(_) => encode_chat(tokenizer, &text)?,
    };
    let conversation = match prompt {
        Content::Text(_) => None,
        Content::Messages(messages) => Some(Arc::new(Conversation {
            messages,
            options: chat_options(row, format)?,
        })),
    };
    if ids.len() > max_prompt_length {
        return Ok(RowOutcome::TooLong);
    }
    if ids.is_empty() {
        return Err(
            row.error("the prompt has no tokens, and the tokenizer has no BOS token to start from")
        );
    }
    let item = Prompt {
        ids,
        text,
        conversation,
        row: row.columns.clone(),
    };
    Ok(RowOutcome::Kept {
        item,
        notes: Notes::default(),
    })
}

/// An example before truncation.
struct UntruncatedExample {
    ids: Vec<u32>,
    trained: Vec<bool>,
    prompt_len: usize,
    should_end: bool,
    merged_boundary: bool,
    opening: Option<String>,
    turn_end: Option<u32>,
}

impl UntruncatedExample {
    /// Truncates, and decides whether the row is kept.
    fn finish(
        mut self,
        tokenizer: &Tokenizer,
        format: &RowFormat,
        max_length: usize,
    ) -> RowOutcome<Example> {
        let surplus = self.ids.len().saturating_sub(max_length);
        let truncated = surplus > 0;
        match format.truncation_mode {
            TruncationMode::KeepStart => {
                self.ids.truncate(max_length);
                self.trained.truncate(max_length);
            }
            TruncationMode::KeepEnd => {
                self.ids.drain(..surplus);
                self.trained.drain(..surplus);
                self.prompt_len = self.prompt_len.saturating_sub(surplus);
            }
        }
        if let Some(first) = self.trained.first_mut() {
            *first = false;
        }
        let nothing = || match truncated {
            true => RowOutcome::CutAway,
            false => RowOutcome::Untrained,
        };
        let Some(last) = self.trained.iter().rposition(|&t| t) else {
            return nothing();
        };
        // If the prompt fills the limit nothing of the completion is left; this holds even where prompts are trained on.
        if self.prompt_len >= self.ids.len() {
            return nothing();
        }
        let notes = Notes {
            truncated,
            without_eos: self.should_end && !ends_with_stop(tokenizer, &self.ids[..=last]),
            merged_boundary: self.merged_boundary,
            opening: self.opening,
            turn_end: self.turn_end,
        };
        let item = Example {
            ids: self.ids,
            trained: self.trained,
            prompt_len: self.prompt_len,
        };
        RowOutcome::Kept { item, notes }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::data::AssistantTurns;
    use crate::data::tokenizer::testing::{self, BOS, CHATML, EOS, HI, IM_END, IM_START};

    pub(super) fn rows(values: &[Value]) -> Vec<Row> {
        let row = |(i, value): (usize, &Value)| Row {
            columns: value.as_object().unwrap().clone(),
            path: "rows.jsonl".into(),
            line: i + 1,
        };
        values.iter().enumerate().map(row).collect()
    }

    pub(super) fn plain() -> RowFormat {
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
        assert_eq!(example.prompt_len, 3);
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
        // A conversation without an answer is a mistake in the data, and named.
        let data = rows(&[
            json!({"messages": messages}),
            json!({"messages": talk(&[("user", "a")])}),
        ]);
        let error = encode_completions(&data, &tok, &plain(), 200, true).unwrap_err();
        assert_eq!(
            error.to_string(),
            "rows.jsonl:2: no token of the conversation is trained on: it has no assistant turn; its roles are user, expected user and assistant"
        );
        // The last turn alone.
        let format = RowFormat {
            assistant_turns: AssistantTurns::Last,
            ..plain()
        };
        let got = encode_completions(&data[..1], &tok, &format, 200, true).unwrap();
        assert_eq!(targets(&got.items[0]), [100, 0xc3, 0xa9, IM_END]);
        assert_eq!(got.items[0].ids, *whole);
    }

    #[test]
    fn marks_of_the_template_are_followed_to_the_letter() {
        // The line break after the turn is marked too; the last character's three bytes are all in.
        let source = "{% for m in messages %}{{ m.role[0] }}:{% generation %}{% if m.role == 'assistant' %}{{ m.content }}\n{% endif %}{% endgeneration %}{% endfor %}{% generation %}{{ '\u{20ac}' }}{% endgeneration %}";
        let tok = testing::tokenizer(false, Some(source));
        let data = rows(&[
            json!({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "hi"}]}),
        ]);
        let got = encode_completions(&data, &tok, &plain(), 200, true).unwrap();
        assert_eq!(targets(&got.items[0]), [HI, 10, 0xe2, 0x82, 0xac]);
        assert_eq!(got.items[0].prompt_len, 4);
        let silent = testing::tokenizer(
            false,
            Some("{% generation %}{% endgeneration %}{{ messages | length }}"),
        );
        let error = encode_completions(&data, &silent, &plain(), 200, true)
            .unwrap_err()
            .to_string();
        assert!(error.contains("rows.jsonl:1: no token"), "{error}");
    }

    #[test]
    fn padding_with_eos_never_hides_an_eos() {
        let mut files = testing::files(false, Some(CHATML));
        let config =
            json!({"eos_token": "<|im_end|>", "pad_token": "<|im_end|>", "chat_template": CHATML});
        files.insert(
            "tokenizer_config.json".into(),
            config.to_string().into_bytes(),
        );
        let tok = Tokenizer::from_files(files, std::path::Path::new("toy")).unwrap();
        let turn = |role: &str, content: &str| json!({"role": role, "content": content});
        let data = rows(&[
            json!({"messages": [turn("user", "a"), turn("assistant", "b")]}),
            json!({"prompt": "a", "completion": "b"}),
        ]);
        let got = encode_completions(&data, &tok, &plain(), 99, true).unwrap();
        for example in &got.items {
            assert_eq!(targets(example), [98, IM_END]);
        }
    }

    #[test]
    fn the_end_can_be_kept_instead_of_the_start() {
        let tok = testing::tokenizer(false, None);
        let data = rows(&[
            json!({"prompt": "ab", "completion": "cd"}),
            json!({"prompt": "a", "completion": "cdefg"}),
            json!({"prompt": "ab", "completion": "c"}),
        ]);
        let format = RowFormat {
            truncation_mode: TruncationMode::KeepEnd,
            ..plain()
        };
        let got = encode_completions(&data, &tok, &format, 4, true).unwrap();
        let row = |i: usize| {
            (
                &got.items[i].ids[..],
                &got.items[i].trained[..],
                got.items[i].prompt_len,
            )
        };
        assert_eq!(
            row(0),
            (&[98, 99, 100, EOS][..], &[false, true, true, true][..], 1)
        );
        // Nothing comes before the first token, so that it cannot be a target.
        assert_eq!(
            row(1),
            (&[101, 102, 103, EOS][..], &[false, true, true, true][..], 0)
        );
        assert_eq!(row(2).0, [97, 98, 99, EOS]);
        assert_eq!((got.report.truncated, got.report.without_eos), (2, 0));
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
            error.contains("of 1, 1 is longer than the limit of 3 tokens"),
            "{error}"
        );
    }

    #[test]
    fn the_end_of_turns_is_named_where_generation_goes_past_it() {
        let mut files = testing::files(false, Some(CHATML));
        let stops = Tokenizer::from_files(files.clone(), std::path::Path::new("toy")).unwrap();
        files.remove("generation_config.json");
        let tok = Tokenizer::from_files(files, std::path::Path::new("toy")).unwrap();
        let talk = json!([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]);
        let data = rows(&[json!({"messages": talk})]);
        let encoded = encode_completions(&data, &tok, &plain(), 100, true).unwrap();
        let end = encoded.report.turn_end.clone().unwrap();
        assert_eq!(
            (end.id, end.text.as_str(), end.eos.as_str()),
            (IM_END, "<|im_end|>", "</s>")
        );
        assert_eq!(encoded.report.without_eos, 1);
        let warning = &encoded.report.warnings()[0];
        assert!(
            warning.contains("set `eos_token: \"<|im_end|>\"`"),
            "{warning}"
        );
        let text = encode_text(&data, &tok, &plain(), 100).unwrap();
        assert_eq!(text.report.turn_end, Some(end));
        // Where a file names it, or it is the EOS, there is nothing to say.
        let changed = tok.with_eos_token("<|im_end|>").unwrap();
        for tok in [stops, changed] {
            let encoded = encode_completions(&data, &tok, &plain(), 100, true).unwrap();
            assert_eq!(
                (
                    encoded.report.to_string().as_str(),
                    encoded.report.warnings().len()
                ),
                ("", 0)
            );
        }
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
