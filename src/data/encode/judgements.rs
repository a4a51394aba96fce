//! What rows say of responses beside which one is preferred: a probability, ratings, safety.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::data::check::flag;
use crate::data::records::RowParser;
use crate::data::rows::{Row, json_kind};
use crate::error::Result;

/// Judgements of the responses of a row.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Judgements {
    /// Probability that the chosen response is the better one (column `chosen_probability`).
    pub chosen_probability: Option<f32>,
    /// Rating of each response (column `rating`, or the scores of a scored row); empty if there are none.
    pub ratings: Vec<f32>,
    /// Whether each response is safe (columns `chosen_safe`, `rejected_safe`), as far as it is labelled; empty if none is.
    pub safe: Vec<Option<bool>>,
}

impl Judgements {
    /// Those of a preference row.
    ///
    /// # Errors
    /// `Error::Data` for a probability outside 0 to 1, and for columns of other types.
    pub(crate) fn of_preference(parser: &RowParser<'_>, row: &Row) -> Result<Self> {
        let name = "chosen_probability";
        let probability = parser.number(row, name)?;
        if let Some(found) = probability.filter(|p| !(0.0..=1.0).contains(p)) {
            return Err(row.error(format!(
                "column `{name}`: expected a probability, from 0 to 1, found {found}"
            )));
        }
        let safe = [label(row, "chosen_safe")?, label(row, "rejected_safe")?];
        Ok(Self {
            chosen_probability: probability.map(|p| p as f32),
            ratings: Vec::new(),
            safe: match safe {
                [None, None] => Vec::new(),
                safe => safe.to_vec(),
            },
        })
    }

    /// That of a row with a rated completion.
    ///
    /// # Errors
    /// `Error::Data` if it has no rating, and for one that is no finite number.
    pub(crate) fn of_rated(parser: &RowParser<'_>, row: &Row) -> Result<Self> {
        let rating = parser.number(row, "rating")?.ok_or_else(|| {
            row.error(
                "expected a column `rating`, a number, beside `prompt` and `completion`; \
                 `format: (rating: \"{{ .. }}\")` names another column",
            )
        })?;
        Ok(Self {
            ratings: vec![rating as f32],
            ..Self::default()
        })
    }
}

/// A safety label: true or false, or 1 or 0; `None` if the row has none.
fn label(row: &Row, name: &str) -> Result<Option<bool>> {
    match row.columns.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(value) => match (flag(value), value) {
            (Some(flag), _) => Ok(Some(flag)),
            (None, Value::Number(number)) => Err(row.error(format!(
                "column `{name}`: expected true or false, or 1 or 0, found {number}"
            ))),
            (None, other) => Err(row.error(format!(
                "column `{name}`: expected true or false, or 1 or 0, found {}",
                json_kind(other)
            ))),
        },
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::tests::rows;
    use super::*;
    use crate::data::RowFormat;

    fn preference(row: Value, format: &RowFormat) -> Result<Judgements, String> {
        let parser = RowParser::new(format).unwrap();
        Judgements::of_preference(&parser, &rows(&[row])[0]).map_err(|e| e.to_string())
    }

    fn rated(row: Value, format: &RowFormat) -> Result<Judgements, String> {
        let parser = RowParser::new(format).unwrap();
        Judgements::of_rated(&parser, &rows(&[row])[0]).map_err(|e| e.to_string())
    }

    #[test]
    fn probabilities_and_labels_are_read() {
        let plain = RowFormat::default();
        let got = preference(
            json!({"chosen_probability": 0.25, "chosen_safe": true, "rejected_safe": 0}),
            &plain,
        );
        let expected = Judgements {
            chosen_probability: Some(0.25),
            ratings: vec![],
            safe: vec![Some(true), Some(false)],
        };
        assert_eq!(got.unwrap(), expected);
        assert_eq!(preference(json!({}), &plain), Ok(Judgements::default()));
        let one = preference(json!({"rejected_safe": false}), &plain).unwrap();
        assert_eq!(one.safe, [None, Some(false)]);
        let named = RowFormat {
            chosen_probability: Some("{{ votes / 8 }}".into()),
            ..RowFormat::default()
        };
        let got = preference(json!({"votes": 6}), &named).unwrap();
        assert_eq!(got.chosen_probability, Some(0.75));
    }

    #[test]
    fn bad_judgements_are_named() {
        let plain = RowFormat::default();
        let message = |row| preference(row, &plain).unwrap_err();
        for (row, expected) in [
            (
                json!({"chosen_probability": 1.5}),
                "rows.jsonl:1: column `chosen_probability`: expected a probability, from 0 to 1, found 1.5",
            ),
            (
                json!({"chosen_probability": "0.5"}),
                "rows.jsonl:1: column `chosen_probability`: expected a number, found a string",
            ),
            (
                json!({"chosen_safe": 2}),
                "rows.jsonl:1: column `chosen_safe`: expected true or false, or 1 or 0, found 2",
            ),
            (
                json!({"rejected_safe": "yes"}),
                "rows.jsonl:1: column `rejected_safe`: expected true or false, or 1 or 0, found a string",
            ),
        ] {
            assert_eq!(message(row), expected);
        }
    }

    #[test]
    fn ratings_are_finite_numbers() {
        let plain = RowFormat::default();
        assert_eq!(
            rated(json!({"rating": -2}), &plain).unwrap().ratings,
            [-2.0]
        );
        let error = rated(json!({"prompt": "p"}), &plain).unwrap_err();
        assert!(
            error.starts_with("rows.jsonl:1: expected a column `rating`"),
            "{error}"
        );
        let named = RowFormat {
            rating: Some("{{ stars }}".into()),
            ..RowFormat::default()
        };
        assert_eq!(
            rated(json!({"stars": "4.5"}), &named).unwrap().ratings,
            [4.5]
        );
        for stars in ["nan", "inf", "many"] {
            let error = rated(json!({"stars": stars}), &named).unwrap_err();
            assert_eq!(
                error,
                format!("rows.jsonl:1: `format.rating`: expected a finite number, found `{stars}`")
            );
        }
    }
}
