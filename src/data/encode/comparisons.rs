//! Encodes preference rows and scored rows as comparisons of whole responses.

use serde_json::{Map, Number, Value};

use super::completion_row;
use super::encoding::{Preferences, encode_all};
use super::judgements::Judgements;
use super::report::{EncodedRows, Notes, RowOutcome};
use super::scored::ScoredRow;
use super::sequence::{PromptCompletion, check_row_ids, no_stop};
use crate::data::check::margin;
use crate::data::posts::gold_score;
use crate::data::records::{Content, PreferenceRow, RowParser, chat_options};
use crate::data::rows::Row;
use crate::data::{RowFormat, Tokenizer};
use crate::error::Result;
use crate::tokens::packed_len;

/// Responses to one prompt, and the preferences among them.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Comparisons {
    /// Token ids of each response, with prompt and, where the response has one, EOS.
    pub responses: Vec<Vec<u32>>,
    /// Length of the prompt at the start of every response, in tokens.
    pub prompt_len: usize,
    /// Chosen and rejected response, and the margin (0 if the row has none).
    pub pairs: Vec<(usize, usize, f32)>,
    /// Labels of a preference row: its numbers, booleans and short texts, by column.
    pub labels: Map<String, Value>,
    /// Probability of the pair, ratings and safety of the responses, as far as the row has them.
    pub judgements: Judgements,
}

/// Labels with the known scores of the chosen and the rejected response.
pub const GOLD: [&str; 2] = ["gold_chosen", "gold_rejected"];

/// Longest text in bytes that counts as a label.
const LONGEST_LABEL: usize = 64;

/// The columns that are labels; of objects, their labels.
fn labels(columns: &Map<String, Value>) -> Map<String, Value> {
    let label = |(name, value): (&String, &Value)| {
        let value = match value {
            Value::Object(inner) => Value::Object(labels(inner)),
            Value::String(text) if text.len() > LONGEST_LABEL => return None,
            Value::Null | Value::Array(_) => return None,
            scalar => scalar.clone(),
        };
        Some((name.clone(), value))
    };
    columns.iter().filter_map(label).collect()
}

impl Comparisons {
    /// The response that is preferred to every other one, if there is one.
    pub fn best(&self) -> Option<usize> {
        let beats = |i: usize| self.pairs.iter().filter(|pair| pair.0 == i).count();
        (0..self.responses.len()).find(|&i| beats(i) + 1 == self.responses.len())
    }

    /// The label in `column`; a dot addresses a key of a nested object.
    pub fn label(&self, column: &str) -> Option<String> {
        let mut names = column.split('.');
        let first = self.labels.get(names.next()?)?;
        match names.try_fold(first, |value, name| value.get(name))? {
            Value::String(text) => Some(text.clone()),
            Value::Object(_) | Value::Null => None,
            scalar => Some(scalar.to_string()),
        }
    }

    /// Tokens of the responses in a packed batch: their common prefix counts once.
    pub fn packed_len(&self) -> usize {
        packed_len(&self.responses)
    }
}

/// Encodes preference rows (one pair each) and rows of scored responses (every pair whose scores differ by more than the row's
/// `tie_margin`, or as `take` selects).
///
/// Nothing is truncated: a preference row with a response longer than `max_length` is left out, as in TRL, and so is such a
/// response of a scored row. The margin is the column `margin`, or the difference of the scores.
///
/// # Errors
/// At the first row of another kind, and if no row is left.
pub fn encode_comparisons(
    rows: &[Row],
    tokenizer: &Tokenizer,
    format: &RowFormat,
    max_length: usize,
) -> Result<EncodedRows<Comparisons>> {
    let encoding = Preferences {
        max_length,
        with_best: false,
    };
    encode_all(&encoding, rows, tokenizer, format)
}

/// See [`encode_comparisons`].
pub(super) fn comparisons_of(
    parser: &RowParser<'_>,
    row: &Row,
    tokenizer: &Tokenizer,
    max_length: usize,
) -> Result<RowOutcome<Comparisons>> {
    let format = parser.format();
    if let Some(scored) = ScoredRow::of(row)? {
        for ids in scored.ids() {
            check_row_ids(row, tokenizer, ids)?;
        }
        return scored.comparisons(row, format.take, max_length);
    }
    let parts = parser.preference(row)?;
    let margin = margin(row)?;
    let judgements = Judgements::of_preference(parser, row)?;
    if parts.chosen == parts.rejected {
        return Ok(RowOutcome::Equal);
    }
    let encode = |response: &Content| match (&parts.prompt, response) {
        (Content::Text(prompt), Content::Text(response)) => {
            PromptCompletion::of_text(tokenizer, prompt, response, format.append_eos)
        }
        (Content::Messages(prompt), Content::Messages(response)) => {
            let options = chat_options(row, format)?;
            PromptCompletion::of_messages(tokenizer, &options, prompt, response)
        }
        _ => Err(row.error("prompt and responses are not of one kind")),
    };
    let (chosen, rejected) = (encode(&parts.chosen)?, encode(&parts.rejected)?);
    if chosen.ids.len() > max_length || rejected.ids.len() > max_length {
        return Ok(RowOutcome::TooLong);
    }
    if chosen.ids.is_empty() || rejected.ids.is_empty() {
        return Ok(RowOutcome::Untrained);
    }
    let is_chat = matches!(parts.chosen, Content::Messages(_));
    let end = chosen.ids.last().filter(|_| is_chat);
    let notes = Notes {
        truncated: false,
        without_eos: chosen.lacks_eos(tokenizer) || rejected.lacks_eos(tokenizer),
        merged_boundary: chosen.merged || rejected.merged,
        turn_end: no_stop(tokenizer, end),
        opening: chosen.opening.or(rejected.opening),
    };
    let item = Comparisons {
        prompt_len: chosen.prompt_len.min(rejected.prompt_len),
        responses: vec![chosen.ids, rejected.ids],
        pairs: vec![(0, 1, margin as f32)],
        labels: with_gold(row, &parts, labels(&row.columns)),
        judgements,
    };
    Ok(RowOutcome::Kept { item, notes })
}

/// The labels with the known scores of responses to the embedded posts, unless the row says how good they are itself.
fn with_gold(
    row: &Row,
    parts: &PreferenceRow,
    mut labels: Map<String, Value>,
) -> Map<String, Value> {
    if labels.contains_key(GOLD[0]) || !row.columns.contains_key("facts") {
        return labels;
    }
    for (name, response) in GOLD.into_iter().zip([&parts.chosen, &parts.rejected]) {
        if let Content::Text(response) = response
            && let Some(score) = Number::from_f64(gold_score(&row.columns, response).into())
        {
            labels.insert(name.into(), Value::Number(score));
        }
    }
    labels
}

/// See [`Ratings`]: a response with its rating, or scored responses with their scores.
pub(super) fn rated_of(
    parser: &RowParser<'_>,
    row: &Row,
    tokenizer: &Tokenizer,
    max_length: usize,
) -> Result<RowOutcome<Comparisons>> {
    if let Some(scored) = ScoredRow::of(row)? {
        for ids in scored.ids() {
            check_row_ids(row, tokenizer, ids)?;
        }
        return scored.rated(row, max_length);
    }
    let judgements = Judgements::of_rated(parser, row)?;
    let outcome = completion_row(parser, row, tokenizer, usize::MAX, true)?;
    Ok(match outcome {
        RowOutcome::Kept { item, .. } if item.ids.len() > max_length => RowOutcome::TooLong,
        RowOutcome::Kept { item, notes } => RowOutcome::Kept {
            item: Comparisons {
                responses: vec![item.ids],
                prompt_len: item.prompt_len,
                pairs: Vec::new(),
                labels: labels(&row.columns),
                judgements,
            },
            notes,
        },
        RowOutcome::Equal => RowOutcome::Equal,
        RowOutcome::TooLong | RowOutcome::CutAway => RowOutcome::TooLong,
        RowOutcome::Untrained => RowOutcome::Untrained,
        RowOutcome::NoPreference => RowOutcome::NoPreference,
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::encoding::Ratings;
    use super::super::tests::{plain, rows};
    use super::*;
    use crate::data::tokenizer::testing::{self, CHATML, EOS, HI, IM_END, NN};

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
            labels: got.items[0].labels.clone(),
            judgements: Judgements::default(),
        };
        assert_eq!(got.items[0], first);
        let second = Comparisons {
            responses: vec![vec![120, 32, 121, EOS], vec![120, 32, 122, EOS]],
            prompt_len: 1,
            pairs: vec![(0, 1, 0.0)],
            labels: got.items[1].labels.clone(),
            judgements: Judgements::default(),
        };
        assert_eq!(got.items[1], second);
        assert_eq!(
            (got.report.dropped_equal, got.report.dropped_too_long),
            (1, 1)
        );
    }

    #[test]
    fn labels_are_the_short_columns() {
        let tok = testing::tokenizer(false, None);
        let data = rows(&[
            json!({"prompt": "p", "chosen": "a", "rejected": "b", "batch": 7, "worker": "w", "ids": [1],
            "note": "x".repeat(65), "extra": {"confidence": 9, "text": "y".repeat(65)}}),
        ]);
        let item = &encode_comparisons(&data, &tok, &plain(), 100)
            .unwrap()
            .items[0];
        assert_eq!(item.label("batch").as_deref(), Some("7"));
        assert_eq!(item.label("worker").as_deref(), Some("w"));
        assert_eq!(item.label("extra.confidence").as_deref(), Some("9"));
        for absent in ["ids", "note", "extra", "extra.text", "batch.x", "none"] {
            assert_eq!(item.label(absent), None, "{absent}");
        }
    }

    #[test]
    fn judgements_and_gold_come_with_the_pair() {
        let tok = testing::tokenizer(false, None);
        let post = crate::data::posts::posts(1, 1).remove(0);
        let mut with_facts = post.clone();
        with_facts.insert(
            "chosen".into(),
            json!(format!(" {}", post["ideal"].as_str().unwrap())),
        );
        with_facts.insert("rejected".into(), json!(" x"));
        let data = rows(&[
            json!({"prompt": "p", "chosen": "a", "rejected": "b", "chosen_probability": 0.125, "gold_chosen": 2,
                "gold_rejected": 3.5, "chosen_safe": true}),
            Value::Object(with_facts),
        ]);
        let got = encode_comparisons(&data, &tok, &plain(), 1000).unwrap();
        let Comparisons {
            judgements, labels, ..
        } = &got.items[0];
        assert_eq!(judgements.chosen_probability, Some(0.125));
        assert_eq!(judgements.safe, [Some(true), None]);
        assert_eq!(
            (&labels[GOLD[0]], &labels[GOLD[1]]),
            (&json!(2), &json!(3.5))
        );
        let labels = &got.items[1].labels;
        assert_eq!(labels[GOLD[0]], json!(1.0));
        assert!(labels[GOLD[1]].as_f64().unwrap() < 1.0);
    }

    #[test]
    fn rated_rows_are_single_responses_or_scored_ones() {
        let tok = testing::tokenizer(false, None);
        let data = rows(&[
            json!({"prompt": "p", "completion": "hi", "rating": 4}),
            json!({"prompt": "p", "completion": "far too long", "rating": 1}),
            json!({"prompt_ids": [1], "response_ids": [[3, EOS], [4, 4, 4, 4, 4, 4], []], "scores": [0.5, 2.0, 1.0]}),
        ]);
        let encoding = Ratings { max_length: 6 };
        let got = encode_all(&encoding, &data, &tok, &plain()).unwrap();
        assert_eq!(got.items[0].responses, [vec![112, HI, EOS]]);
        assert_eq!(got.items[0].judgements.ratings, [4.0]);
        assert_eq!(got.items[1].responses, [vec![1, 3, EOS]]);
        assert_eq!(got.items[1].judgements.ratings, [0.5]);
        assert_eq!(got.report.dropped_too_long, 1);
        assert!(got.items.iter().all(|item| item.pairs.is_empty()));
    }

    #[test]
    fn the_best_response_is_better_than_every_other() {
        let item = |pairs: &[(usize, usize)]| Comparisons {
            responses: vec![vec![1]; 3],
            prompt_len: 0,
            pairs: pairs.iter().map(|&(c, r)| (c, r, 0.0)).collect(),
            labels: Map::new(),
            judgements: Judgements::default(),
        };
        assert_eq!(item(&[(0, 2), (1, 0), (1, 2)]).best(), Some(1));
        assert_eq!(item(&[(0, 2), (1, 2)]).best(), None, "two tie");
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
            (got.items[0].prompt_len, got.report.dropped_no_preference),
            (2, 1)
        );
        let bad = rows(&[json!({"prompt_ids": [1], "response_ids": [[3]], "scores": []})]);
        let error = encode_comparisons(&bad, &tok, &plain(), 5)
            .unwrap_err()
            .to_string();
        assert_eq!(
            error,
            "rows.jsonl:1: not a row of scored responses: 1 responses and 0 scores"
        );
    }
}
