//! Divides the rows of a data set into those to train on and those held out.

use serde_json::{Map, Value};

use crate::data::Part;
use crate::rng::Seed;

/// The part of a row, where `valid_fraction` of all rows are held out.
///
/// It is a function of the row's `prompt`, or else of all its columns: neither the order of the rows nor their number matters, and
/// equal rows, or several responses to one prompt, are never in both parts.
pub(crate) fn part_of(columns: &Map<String, Value>, valid_fraction: f64) -> Part {
    let key = match columns.get("prompt") {
        Some(Value::String(prompt)) => prompt.clone(),
        Some(prompt) if !prompt.is_null() => prompt.to_string(),
        _ => serde_json::to_string(columns).unwrap_or_default(),
    };
    let draw = Seed::new(0).fork("held out").fork(&key).uniform(0);
    match draw < valid_fraction {
        true => Part::HeldOut,
        false => Part::Train,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn part(row: Value, fraction: f64) -> Part {
        part_of(row.as_object().unwrap(), fraction)
    }

    #[test]
    fn a_share_of_the_rows_is_held_out() {
        let held_out = |fraction: f64| {
            let is_held = |i: &u32| part(json!({"text": i}), fraction) == Part::HeldOut;
            (0..10_000).filter(is_held).collect::<Vec<_>>()
        };
        let (tenth, fifth) = (held_out(0.1), held_out(0.2));
        // Standard error: sqrt(0.1 * 0.9 / 10000) = 0.003.
        assert!((900..1100).contains(&tenth.len()), "{}", tenth.len());
        assert!(tenth.iter().all(|i| fifth.contains(i)));
        assert!(held_out(0.0).is_empty());
    }

    #[test]
    fn responses_to_one_prompt_stay_together() {
        for i in 0..50 {
            let of = |completion: &str| {
                part(
                    json!({"prompt": format!("{i}"), "completion": completion}),
                    0.5,
                )
            };
            assert_eq!(of("a"), of("b"));
        }
    }
}
