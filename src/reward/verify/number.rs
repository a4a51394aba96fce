//! The last number of a response against a column.

use super::column;
use crate::data::last_number;
use crate::error::{Error, Result};
use crate::reward::{Completion, RewardSource};

/// 1 if the last number of the response differs from the column's by no more than `tolerance`, else 0, and 0 without a number.
///
/// The column holds a number, or text whose last number counts (GSM8K's `.. #### 42`).
pub(in crate::reward) struct Number {
    pub(in crate::reward) answer: String,
    pub(in crate::reward) tolerance: f64,
    pub(in crate::reward) name: String,
}

impl RewardSource for Number {
    fn score(&mut self, completions: &[Completion]) -> Result<Vec<f32>> {
        (completions.iter())
            .map(|completion| {
                let value = column(completion, &self.answer, &self.name)?;
                let expected = last_number(&value).ok_or_else(|| Error::Reward {
                    name: self.name.clone(),
                    message: format!(
                        "the column {:?} of a row holds no number: {value:?}",
                        self.answer
                    ),
                })?;
                let found = last_number(&completion.response);
                let is_equal = |found: f64| (found - expected).abs() <= self.tolerance;
                Ok(f32::from(u8::from(found.is_some_and(is_equal))))
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn right_and_wrong_answers_and_rows_without_one() {
        let completion = |response: &str, answer| Completion {
            response: response.into(),
            row: json!({ "answer": answer }).as_object().unwrap().clone(),
            ..Completion::default()
        };
        let mut source = Number {
            answer: "answer".into(),
            tolerance: 0.01,
            name: "number(answer)".into(),
        };
        let completions = [
            completion("so 41.995", json!(42)),
            completion("42 or 43", json!("6 * 7 #### 42")),
            completion("I do not know", json!(0)),
        ];
        assert_eq!(source.score(&completions).unwrap(), [1.0, 0.0, 0.0]);
        let mut message = |row| source.score(&[row]).unwrap_err().to_string();
        assert_eq!(
            message(completion("1", json!("many"))),
            "reward source number(answer): the column \"answer\" of a row holds no number: \"many\""
        );
        assert_eq!(
            message(Completion::default()),
            "reward source number(answer): reads the column \"answer\" as text or a number; this row has no columns"
        );
    }
}
