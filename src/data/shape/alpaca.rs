//! Instructions with an optional input, in the manner of Stanford's Alpaca.

use serde_json::{Map, Value, json};

use super::{Shape, fits_all, has_any, optional_text, text};
use crate::data::RowFormat;
use crate::data::rows::Row;
use crate::error::Result;

/// Columns of the input beside an instruction, and of the answer.
const INPUTS: [&str; 2] = ["input", "context"];
const OUTPUTS: [&str; 2] = ["output", "response"];

/// Alpaca's layout; Dolly's names `context` and `response` are read as well.
pub(super) const SHAPE: Shape = Shape {
    name: "alpaca",
    title: "Alpaca's",
    columns: "`instruction`, `input` and `output`",
    read_as: Some(
        "`prompt` and `completion`: instruction and input below headings, or with `chat: true` as the user's message",
    ),
    recognises,
    convert,
    refusal: fits_all,
};

fn recognises(columns: &Map<String, Value>) -> bool {
    let has_output = OUTPUTS.iter().any(|name| columns.contains_key(*name));
    columns.contains_key("instruction")
        && has_output
        && !has_any(columns, &["prompt", "completion", "messages", "chosen"])
}

fn convert(row: &mut Row, format: &RowFormat) -> Result<()> {
    let instruction = text(row, "instruction")?;
    let mut input = None;
    for name in INPUTS {
        input = input.or(optional_text(row, name)?);
    }
    let output = (OUTPUTS.into_iter()).find(|name| row.columns.contains_key(*name));
    let completion = text(row, output.unwrap_or(OUTPUTS[0]))?.to_owned();
    let system = optional_text(row, "system")?;
    let asked = match (format.chat, input) {
        (true, None) => instruction.to_owned(),
        (true, Some(input)) => format!("{instruction}\n\n{input}"),
        (false, input) => {
            let parts = [
                system.map(|system| format!("{system}\n\n")),
                Some(format!("### Instruction:\n{instruction}\n\n")),
                input.map(|input| format!("### Input:\n{input}\n\n")),
                Some("### Response:\n".to_owned()),
            ];
            parts.into_iter().flatten().collect()
        }
    };
    let prompt = match system.filter(|_| format.chat) {
        Some(system) => json!([
            {"role": "system", "content": system},
            {"role": "user", "content": asked},
        ]),
        None => Value::String(asked),
    };
    row.columns.insert("prompt".into(), prompt);
    row.columns
        .insert("completion".into(), Value::String(completion));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::tests::{read, refused};
    use super::*;

    #[test]
    fn an_instruction_is_a_prompt_below_headings_or_a_message() {
        let plain = RowFormat::default();
        let chat = RowFormat {
            chat: true,
            ..RowFormat::default()
        };
        let both = json!({"instruction": "Add.", "input": "1 2", "output": "3"});
        let (name, columns) = read(both.clone(), &plain).unwrap();
        assert_eq!(name, "alpaca");
        assert_eq!(
            columns,
            json!({"prompt": "### Instruction:\nAdd.\n\n### Input:\n1 2\n\n### Response:\n", "completion": "3"})
        );
        let (_, columns) = read(both, &chat).unwrap();
        assert_eq!(columns, json!({"prompt": "Add.\n\n1 2", "completion": "3"}));
        // An empty input is none; Dolly's names; a system message.
        let dolly =
            json!({"instruction": "Hi", "context": " ", "response": "Ho", "system": "Be brief."});
        let (_, columns) = read(dolly.clone(), &plain).unwrap();
        assert_eq!(
            columns["prompt"],
            "Be brief.\n\n### Instruction:\nHi\n\n### Response:\n"
        );
        let (_, columns) = read(dolly, &chat).unwrap();
        assert_eq!(
            columns["prompt"],
            json!([{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}])
        );
    }

    #[test]
    fn other_types_are_named() {
        assert_eq!(
            refused(json!({"instruction": "i", "output": null})),
            "column `output` is null"
        );
        assert_eq!(
            refused(json!({"instruction": "i", "input": 3, "output": "o"})),
            "column `input`: expected a string, found a number"
        );
    }
}
