//! Several scored completions to an instruction, in the manner of UltraFeedback.

use serde_json::{Map, Value, json};

use super::{Shape, fits_all, text};
use crate::data::RowFormat;
use crate::data::rows::Row;
use crate::error::Result;

/// UltraFeedback's layout: the best completion is chosen, the worst rejected.
///
/// # Source
/// Cui et al. 2023, arXiv:2310.01377, section 2; `overall_score` is the column that its authors' rows are ranked by.
pub(super) const SHAPE: Shape = Shape {
    name: "ultrafeedback",
    title: "UltraFeedback's",
    columns: "`instruction` and `completions` (`response`, `overall_score`)",
    read_as: Some(
        "`prompt`, `completion` and `chosen` (the highest score), `rejected` (the lowest score)",
    ),
    recognises,
    convert,
    refusal: fits_all,
};

fn recognises(columns: &Map<String, Value>) -> bool {
    let first = (columns.get("completions").and_then(Value::as_array)).and_then(|all| all.first());
    columns.contains_key("instruction") && first.is_some_and(|one| one.get("response").is_some())
}

fn convert(row: &mut Row, _: &RowFormat) -> Result<()> {
    let prompt = text(row, "instruction")?.to_owned();
    let completions = row.columns.get("completions").and_then(Value::as_array);
    let completions = completions
        .filter(|all| !all.is_empty())
        .ok_or_else(|| row.error("column `completions`: expected a list of completions"))?;
    let mut scored = Vec::with_capacity(completions.len());
    for (i, completion) in completions.iter().enumerate() {
        let response = completion.get("response").and_then(Value::as_str);
        let score = completion.get("overall_score").and_then(Value::as_f64);
        let (Some(response), Some(score)) = (response, score) else {
            return Err(row.error(format!(
                "column `completions`, number {}: expected `response` as a string and `overall_score` as a number",
                i + 1
            )));
        };
        scored.push((response, score));
    }
    // The first one of several with the same score.
    let (mut best, mut worst) = (scored[0], scored[0]);
    for &one in &scored[1..] {
        if one.1 > best.1 {
            best = one;
        }
        if one.1 < worst.1 {
            worst = one;
        }
    }
    let new = [
        ("prompt", json!(prompt)),
        ("completion", json!(best.0)),
        ("chosen", json!(best.0)),
        ("rejected", json!(worst.0)),
        ("score_chosen", json!(best.1)),
        ("score_rejected", json!(worst.1)),
    ];
    (row.columns).extend(new.map(|(name, value)| (name.to_owned(), value)));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::tests::{read, refused};
    use super::*;

    #[test]
    fn the_best_is_chosen_and_the_worst_rejected() {
        let one = |response: &str, score: f64| json!({"response": response, "overall_score": score, "model": "m"});
        let row = json!({"instruction": "i", "models": ["m"], "completions": [
            one("a", 5.0), one("b", 8.5), one("c", 2.0), one("d", 8.5),
        ]});
        let (name, columns) = read(row, &RowFormat::default()).unwrap();
        assert_eq!(name, "ultrafeedback");
        assert_eq!(
            columns,
            json!({"prompt": "i", "completion": "b", "chosen": "b", "rejected": "c", "score_chosen": 8.5, "score_rejected": 2.0})
        );
        assert_eq!(
            refused(json!({"instruction": "i", "completions": [{"response": "a"}]})),
            "column `completions`, number 1: expected `response` as a string and `overall_score` as a number"
        );
    }
}
