//! Rows of scored responses, as stages write them: several responses to one prompt with a score each. The reading stage selects
//! among them by `take`.

use std::cmp::Ordering;

use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::report::{Notes, RowOutcome};
use super::{Comparisons, Judgements};
use crate::data::Take;
use crate::data::rows::Row;
use crate::error::Result;

/// A prompt, generated responses, and their scores.
#[derive(Debug, Deserialize)]
pub(super) struct ScoredRow {
    prompt_ids: Vec<u32>,
    response_ids: Vec<Vec<u32>>,
    /// Absent where no reward source has scored the responses.
    scores: Option<Vec<f64>>,
    #[serde(default)]
    tie_margin: f64,
}

/// Checks that a row has the columns of scored responses.
///
/// # Errors
/// `Error::Data` that names what is missing.
pub(crate) fn check_scored(row: &Row) -> Result<()> {
    ScoredRow::of(row).map(drop)
}

impl ScoredRow {
    /// Parses a row; `None` if it has no column `response_ids`.
    ///
    /// # Errors
    /// `Error::Data` if the columns are not those of scored responses.
    pub(super) fn of(row: &Row) -> Result<Option<Self>> {
        if !row.columns.contains_key("response_ids") {
            return Ok(None);
        }
        let scored: Self = serde_json::from_value(Value::Object(row.columns.clone()))
            .map_err(|e| row.error(format!("not a row of scored responses: {e}")))?;
        let responses = scored.response_ids.len();
        if let Some(scores) = scored.scores.as_ref().map(Vec::len)
            && responses != scores
        {
            return Err(row.error(format!(
                "not a row of scored responses: {responses} responses and {scores} scores"
            )));
        }
        Ok(Some(scored))
    }

    /// Token ids of the prompt and of each response.
    pub(super) fn ids(&self) -> impl Iterator<Item = &[u32]> {
        let all = [&self.prompt_ids].into_iter().chain(&self.response_ids);
        all.map(Vec::as_slice)
    }

    /// The scores of `row`.
    ///
    /// # Errors
    /// `Error::Data` if it has none.
    fn scores(&self, row: &Row) -> Result<&[f64]> {
        self.scores.as_deref().ok_or_else(|| {
            row.error(
                "the responses have no scores to select or compare by; `format: (take: All)` trains on all of them",
            )
        })
    }

    /// The preferences among the responses of `row`: all pairs whose scores differ by more than the tie margin, or the best against the
    /// worst. Responses longer than `max_length`, prompt included, are left out.
    ///
    /// # Errors
    /// `Error::Data` if the responses have no scores.
    pub(super) fn comparisons(
        &self,
        row: &Row,
        take: Option<Take>,
        max_length: usize,
    ) -> Result<RowOutcome<Comparisons>> {
        let prompt_len = self.prompt_ids.len();
        let (mut scores, mut responses) = (Vec::new(), Vec::new());
        for (response, score) in self.response_ids.iter().zip(self.scores(row)?) {
            if prompt_len + response.len() <= max_length && !response.is_empty() {
                responses.push([self.prompt_ids.as_slice(), response].concat());
                scores.push(*score);
            }
        }
        let all = self.response_ids.iter().filter(|ids| !ids.is_empty());
        match (responses.len() < 2, all.count() < 2) {
            (_, true) => return Ok(RowOutcome::NoPreference),
            (true, _) => return Ok(RowOutcome::TooLong),
            _ => {}
        }
        if take == Some(Take::BestAndWorst) {
            let ends = [best(&scores), best(&negated(&scores))];
            responses = ends.map(|i| responses[i].clone()).into();
            scores = ends.map(|i| scores[i]).into();
        }
        let mut pairs = Vec::new();
        for i in 0..responses.len() {
            for j in 0..responses.len() {
                let margin = scores[i] - scores[j];
                // Above zero too: with a tie margin of 0, equal scores make no pair.
                if margin > self.tie_margin.max(0.0) {
                    pairs.push((i, j, margin as f32));
                }
            }
        }
        if pairs.is_empty() {
            return Ok(RowOutcome::NoPreference);
        }
        Ok(RowOutcome::Kept {
            item: Comparisons {
                responses,
                prompt_len,
                pairs,
                labels: Map::new(),
                judgements: Judgements::default(),
            },
            notes: Notes::default(),
        })
    }

    /// The responses with their scores as ratings; those longer than `max_length`, prompt included, are left out.
    ///
    /// # Errors
    /// `Error::Data` for a score that is not finite.
    pub(super) fn rated(&self, row: &Row, max_length: usize) -> Result<RowOutcome<Comparisons>> {
        let mut item = Comparisons {
            prompt_len: self.prompt_ids.len(),
            ..Comparisons::default()
        };
        for (response, score) in self.response_ids.iter().zip(self.scores(row)?) {
            if !score.is_finite() {
                return Err(row.error(format!("a score is {score}; expected a finite number")));
            }
            if item.prompt_len + response.len() <= max_length && !response.is_empty() {
                item.responses
                    .push([self.prompt_ids.as_slice(), response].concat());
                item.judgements.ratings.push(*score as f32);
            }
        }
        if item.responses.is_empty() {
            return Ok(RowOutcome::TooLong);
        }
        let notes = Notes::default();
        Ok(RowOutcome::Kept { item, notes })
    }

    /// Indices of the responses of `row` to train on.
    fn selected(&self, row: &Row, take: Option<Take>) -> Result<Vec<usize>> {
        let all = 0..self.response_ids.len();
        let take = take.unwrap_or(Take::Best);
        if take == Take::All {
            return Ok(all.collect());
        }
        let scores = self.scores(row)?;
        Ok(match take {
            Take::Above(least) => all.filter(|&i| scores[i] > least).collect(),
            Take::TopFraction(share) => {
                let mut order: Vec<usize> = all.collect();
                // Stable: of equal scores the first ones.
                order.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]));
                order.truncate(num_top(share, scores.len()));
                order.sort_unstable();
                order
            }
            _ if scores.is_empty() => Vec::new(),
            _ => vec![best(scores)],
        })
    }
}

/// How many of `count` responses are this share of them: one at least.
pub(crate) fn num_top(share: f64, count: usize) -> usize {
    // Without the rounding error that 0.7 of 10 has.
    let wanted = (share * count as f64 - 1e-9).ceil() as usize;
    wanted.clamp(1.min(count), count)
}

/// Index of the highest score; the first one of several.
fn best(scores: &[f64]) -> usize {
    (0..scores.len()).fold(0, |best, i| if scores[i] > scores[best] { i } else { best })
}

fn negated(scores: &[f64]) -> Vec<f64> {
    scores.iter().map(|score| -score).collect()
}

/// Rows of single responses in place of rows of scored ones.
#[derive(Debug, Default)]
pub(crate) struct Divided {
    /// One row per selected response, with columns `prompt_ids` and `completion_ids`; other rows as they are.
    pub(crate) rows: Vec<Row>,
    /// Responses that were not selected.
    pub(crate) not_taken: usize,
    /// The highest score among these.
    pub(crate) highest_left: Option<f64>,
}

/// Replaces each row of scored responses by one row per selected response; `None` if there are no such rows.
///
/// # Errors
/// `Error::Data` for columns that are not those of scored responses, and for a selection by scores that are absent.
pub(super) fn response_rows(rows: &[Row], take: Option<Take>) -> Result<Option<Divided>> {
    if !rows
        .iter()
        .any(|row| row.columns.contains_key("response_ids"))
    {
        return Ok(None);
    }
    let mut divided = Divided::default();
    for row in rows {
        let Some(scored) = ScoredRow::of(row)? else {
            divided.rows.push(row.clone());
            continue;
        };
        let selected = scored.selected(row, take)?;
        divided.not_taken += scored.response_ids.len() - selected.len();
        let scores = scored.scores.iter().flatten().enumerate();
        let left = scores.filter(|(i, _)| !selected.contains(i));
        divided.highest_left = (left.map(|(_, score)| *score))
            .chain(divided.highest_left)
            .reduce(f64::max);
        for i in selected {
            let columns = Map::from_iter([
                ("prompt_ids".to_owned(), json!(scored.prompt_ids)),
                ("completion_ids".to_owned(), json!(scored.response_ids[i])),
            ]);
            divided.rows.push(Row {
                columns,
                ..row.clone()
            });
        }
    }
    Ok(Some(divided))
}

/// The responses of a row of scored ones, each a row with columns `prompt_ids`, `completion_ids` and `label`: true for a response that is
/// better than more of the others than it is worse than, false for the reverse, null for neither. With `BestAndWorst` only these two.
/// `None` if the row is none of scored responses.
pub(super) fn labelled_rows(row: &Row, take: Option<Take>) -> Result<Option<Vec<Row>>> {
    let Some(scored) = ScoredRow::of(row)? else {
        return Ok(None);
    };
    let scores = scored.scores(row)?;
    let count = scores.len();
    let chosen: Vec<usize> = match take {
        Some(Take::BestAndWorst) if count > 1 => vec![best(scores), best(&negated(scores))],
        _ => (0..count).collect(),
    };
    let label = |i: usize| {
        let beats = |a: usize, b: usize| scores[a] - scores[b] > scored.tie_margin.max(0.0);
        let better = (0..count).filter(|&j| beats(i, j)).count();
        let worse = (0..count).filter(|&j| beats(j, i)).count();
        match better.cmp(&worse) {
            Ordering::Greater => Value::Bool(true),
            Ordering::Less => Value::Bool(false),
            Ordering::Equal => Value::Null,
        }
    };
    let rows = chosen.into_iter().map(|i| Row {
        columns: Map::from_iter([
            ("prompt_ids".to_owned(), json!(scored.prompt_ids)),
            ("completion_ids".to_owned(), json!(scored.response_ids[i])),
            ("label".to_owned(), label(i)),
        ]),
        ..row.clone()
    });
    Ok(Some(rows.collect()))
}

/// Prompt and response of a row that [`response_rows`] made.
#[derive(Debug, Deserialize)]
pub(super) struct ResponseRow {
    pub(super) prompt_ids: Vec<u32>,
    pub(super) completion_ids: Vec<u32>,
}

impl ResponseRow {
    /// Parses a row; `None` if it has no column `completion_ids`.
    pub(super) fn of(row: &Row) -> Result<Option<Self>> {
        if !row.columns.contains_key("completion_ids") {
            return Ok(None);
        }
        serde_json::from_value(Value::Object(row.columns.clone()))
            .map(Some)
            .map_err(|e| row.error(format!("columns `prompt_ids` and `completion_ids`: {e}")))
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{plain, rows};
    use super::super::{Example, encode_comparisons, encode_completions};
    use super::*;
    use crate::data::RowFormat;
    use crate::data::tokenizer::testing;

    fn data() -> Vec<Row> {
        rows(&[
            json!({"prompt": "p", "prompt_ids": [1, 2], "responses": ["a", "b", "c"],
                "response_ids": [[3], [4, 5], [6]], "scores": [0.5, 2.0, 1.0], "tie_margin": 0.0}),
            json!({"prompt": "q", "prompt_ids": [7], "responses": ["d", "e"],
                "response_ids": [[8], [9]], "scores": [0.25, 0.25], "tie_margin": 0.0}),
        ])
    }

    fn taking(take: Option<Take>) -> RowFormat {
        RowFormat { take, ..plain() }
    }

    fn learned(take: Option<Take>) -> Vec<Vec<u32>> {
        let tok = testing::tokenizer(false, None);
        let encoded = encode_completions(&data(), &tok, &taking(take), 16, true).unwrap();
        encoded.items.into_iter().map(|item| item.ids).collect()
    }

    #[test]
    fn the_best_response_is_learned_or_those_above_a_score() {
        assert_eq!(learned(None), [vec![1, 2, 4, 5], vec![7, 8]]);
        assert_eq!(learned(Some(Take::Best)), learned(None));
        assert_eq!(
            learned(Some(Take::Above(0.5))),
            [vec![1, 2, 4, 5], vec![1, 2, 6]]
        );
        assert_eq!(learned(Some(Take::All)).len(), 5);
        // Two of three, and one of two.
        assert_eq!(
            learned(Some(Take::TopFraction(0.5))),
            [vec![1, 2, 4, 5], vec![1, 2, 6], vec![7, 8]]
        );
        let tok = testing::tokenizer(false, None);
        let encoded = encode_completions(&data(), &tok, &plain(), 16, true).unwrap();
        let Example {
            trained,
            prompt_len,
            ..
        } = &encoded.items[0];
        assert_eq!(
            (trained.as_slice(), *prompt_len),
            (&[false, false, true, true][..], 2)
        );
    }

    #[test]
    fn what_is_not_taken_is_counted() {
        let tok = testing::tokenizer(false, None);
        let encode = |take| encode_completions(&data(), &tok, &taking(Some(take)), 16, true);
        let report = encode(Take::Above(0.5)).unwrap().report;
        assert_eq!((report.kept, report.not_taken), (2, 3));
        assert_eq!(report.to_string(), "2 of 5 rows kept: 3 left out by `take`");
        let error = encode(Take::Above(2.0)).unwrap_err().to_string();
        assert!(
            error.ends_with(
                "`take` keeps none of the 5 responses; the highest score is 2. Lower the threshold, or generate more responses"
            ),
            "{error}"
        );
    }

    #[test]
    fn a_share_is_rounded_up_and_at_least_one() {
        assert_eq!(num_top(0.7, 10), 7);
        assert_eq!(
            (num_top(0.01, 4), num_top(1.0, 4), num_top(0.26, 4)),
            (1, 4, 2)
        );
        assert_eq!(num_top(0.5, 0), 0);
    }

    #[test]
    fn responses_without_scores_are_taken_as_a_whole() {
        let tok = testing::tokenizer(false, None);
        let rows = rows(&[
            json!({"prompt": "p", "prompt_ids": [1], "responses": ["a"], "response_ids": [[3]]}),
        ]);
        let all = encode_completions(&rows, &tok, &taking(Some(Take::All)), 16, true).unwrap();
        assert_eq!(all.items[0].ids, [1, 3]);
        for error in [
            encode_completions(&rows, &tok, &plain(), 16, true).unwrap_err(),
            encode_comparisons(&rows, &tok, &plain(), 16).unwrap_err(),
        ] {
            assert!(error.to_string().contains("have no scores"), "{error}");
        }
    }

    #[test]
    fn comparisons_are_all_pairs_or_the_best_against_the_worst() {
        let tok = testing::tokenizer(false, None);
        let of = |take| {
            let encoded = encode_comparisons(&data(), &tok, &taking(take), 16).unwrap();
            encoded.items[0].clone()
        };
        assert_eq!(of(None).pairs, [(1, 0, 1.5), (1, 2, 1.0), (2, 0, 0.5)]);
        let ends = of(Some(Take::BestAndWorst));
        assert_eq!(ends.responses, [vec![1, 2, 4, 5], vec![1, 2, 3]]);
        assert_eq!(ends.pairs, [(0, 1, 1.5)]);
    }

    #[test]
    fn rows_without_a_preference_are_counted_as_such() {
        let tok = testing::tokenizer(false, None);
        let tied = json!({"prompt_ids": [1], "response_ids": [[3], [4]], "scores": [1.0, 1.0]});
        let alone = json!({"prompt_ids": [1], "response_ids": [[3]], "scores": [1.0]});
        let long =
            json!({"prompt_ids": [1], "response_ids": [[3, 4], [5, 6]], "scores": [1.0, 2.0]});
        let says = |data: &[Value]| {
            let error = encode_comparisons(&rows(data), &tok, &plain(), 2);
            error.unwrap_err().to_string()
        };
        let found = says(&[tied.clone(), alone.clone()]);
        let expected = "no row is left to train on: of 2, 2 are without a preference (scores that tie, or fewer than two responses). \
                        Where these rows are written, raise `num_responses`, lower `tie_margin`, or take";
        assert!(found.contains(expected), "{found}");
        let found = says(&[tied, alone, long]);
        let expected =
            "of 3, 1 is longer than the limit of 2 tokens and 2 are without a preference";
        assert!(found.contains(expected), "{found}");
    }

    #[test]
    fn best_and_worst_are_found_in_any_place() {
        // Each response is one token, its score: all 4^4 ways to score four responses, with ties.
        for code in 0..256u32 {
            let scores = [0, 2, 4, 6].map(|shift| code >> shift & 3);
            let (most, least) = (scores.into_iter().max(), scores.into_iter().min());
            let row = json!({"prompt": "p", "prompt_ids": [9], "response_ids": scores.map(|score| [score]), "scores": scores});
            let row = &rows(&[row])[0];
            let item = ScoredRow::of(row).unwrap().unwrap();
            let taken = item.comparisons(row, Some(Take::BestAndWorst), 16);
            match (taken.unwrap(), most.zip(least)) {
                (RowOutcome::Kept { item, .. }, Some((most, least))) => {
                    assert_eq!(item.responses, [[9, most], [9, least]], "{scores:?}");
                    assert_eq!(item.pairs, [(0, 1, (most - least) as f32)]);
                }
                (RowOutcome::NoPreference, _) => assert_eq!(most, least),
                _ => panic!("{scores:?}"),
            }
        }
    }
}
