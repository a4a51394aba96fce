//! Dialogues in the manner of Anthropic's HH-RLHF: both texts hold the whole dialogue.

use serde_json::{Map, Value};

use super::{Shape, fits_all, text};
use crate::data::RowFormat;
use crate::data::records::shared_prompt_len;
use crate::data::rows::Row;
use crate::error::Result;

/// Start of a dialogue.
const START: &str = "\n\nHuman:";

/// HH-RLHF's layout: the prompt is all up to the last `\n\nAssistant:` in common.
pub(super) const SHAPE: Shape = Shape {
    name: "hh_rlhf",
    title: "dialogues of HH-RLHF",
    columns: "`chosen` and `rejected` (\"\\n\\nHuman: .. \\n\\nAssistant: ..\")",
    read_as: Some("`prompt`, `chosen` and `rejected`, divided before the last answer"),
    recognises,
    convert,
    refusal: fits_all,
};

fn recognises(columns: &Map<String, Value>) -> bool {
    let is_dialogue = |name: &str| {
        (columns.get(name).and_then(Value::as_str)).is_some_and(|text| text.starts_with(START))
    };
    is_dialogue("chosen") && is_dialogue("rejected") && !columns.contains_key("prompt")
}

fn convert(row: &mut Row, _: &RowFormat) -> Result<()> {
    let (chosen, rejected) = (text(row, "chosen")?, text(row, "rejected")?);
    let at = shared_prompt_len(chosen, rejected);
    let parts = [
        ("prompt", chosen[..at].to_owned()),
        ("chosen", chosen[at..].to_owned()),
        ("rejected", rejected[at..].to_owned()),
    ];
    (row.columns).extend(parts.map(|(name, text)| (name.to_owned(), Value::String(text))));
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::tests::read;
    use super::*;

    #[test]
    fn a_dialogue_is_divided_before_its_last_answer() {
        let row = json!({
            "chosen": "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant: I do",
            "rejected": "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant: I don't",
        });
        assert_eq!(
            read(row, &RowFormat::default()).unwrap(),
            (
                "hh_rlhf",
                json!({
                    "prompt": "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant:",
                    "chosen": " I do",
                    "rejected": " I don't",
                })
            )
        );
    }
}
