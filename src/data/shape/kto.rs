//! Responses that are labelled as good or bad, for KTO.

use serde_json::{Map, Value};

use super::Shape;
use crate::data::RowKind;

/// TRL's unpaired preferences: `prompt`, `completion` and a `label` of true or false.
pub(super) const SHAPE: Shape = Shape {
    name: "kto",
    title: "KTO's",
    columns: "`prompt`, `completion` and `label` (true, false)",
    read_as: None,
    recognises,
    convert: |_, _| Ok(()),
    refusal,
};

fn recognises(columns: &Map<String, Value>) -> bool {
    let is_label = columns.get("label").is_some_and(Value::is_boolean);
    is_label && columns.contains_key("completion")
}

/// What learns from all completions would learn the bad ones.
fn refusal(kind: RowKind) -> Option<&'static str> {
    match kind {
        RowKind::Completion | RowKind::TextOrCompletion => Some(
            "this stage would train on completions with a false label, too; keep those with a true one",
        ),
        RowKind::Preference | RowKind::Responses => Some(
            "this stage compares two responses to one prompt, and these are single ones with a label; train on them with a stage `Kto`, or bring them into pairs of `chosen` and `rejected`",
        ),
        RowKind::Labelled | RowKind::Text | RowKind::Prompt | RowKind::Scored | RowKind::Rated => {
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::tests::read;
    use super::*;
    use crate::data::RowFormat;

    #[test]
    fn a_label_is_true_or_false() {
        let of = |label: Value| {
            let row = json!({"prompt": "p", "completion": "c", "label": label});
            read(row, &RowFormat::default()).unwrap()
        };
        assert_eq!(of(json!(true)), ("kto", json!({})));
        assert_eq!(of(json!(1)), ("", json!({})));
        let refused = SHAPE.refusal(RowKind::Completion).unwrap();
        assert!(
            refused.starts_with("the columns `prompt`, `completion` and `label` (true, false) are KTO's: this stage would train on"),
            "{refused}"
        );
        assert!(SHAPE.refusal(RowKind::Preference).is_some());
        assert!(SHAPE.refusal(RowKind::Prompt).is_none());
        assert!(SHAPE.refusal(RowKind::Labelled).is_none());
    }
}
