//! Rows as TRL's trainers tokenise them (`tests/reference/trl_rows.py`): what stands around a text, templates that open a
//! turn with more than a finished one has, and another EOS.

use serde_json::{Value, json};

use tempering::data::{Row, RowFormat, Tokenizer, encode_comparisons, encode_completions};

use super::text::{check_against, ids, of_files, read, reference};

/// The special token that ends turns in one of the templates.
const END: u32 = 279;
/// A line break.
const LINE_BREAK: u32 = 198;

fn rows(values: &Value) -> Vec<Row> {
    let row = |(i, value): (usize, &Value)| Row {
        columns: value.as_object().unwrap().clone(),
        path: "rows.jsonl".into(),
        line: i + 1,
    };
    let values = values.as_array().unwrap().iter();
    values.enumerate().map(row).collect()
}

/// What is expected here of a row of TRL's: one EOS where it appends one to what the tokenizer ends with EOS already, and
/// no line break after the end of a turn.
fn expected(mut ids: Vec<u32>, tokenizer: &Tokenizer) -> Vec<u32> {
    let eos = tokenizer.eos_id();
    if ids.ends_with(&[eos, eos]) || ids.ends_with(&[END, LINE_BREAK]) {
        ids.pop();
    }
    ids
}

/// Every case in every kind of row that it has.
pub(crate) fn trl_rows() {
    let reference = read(&reference("trl_rows/ref.json"));
    let format = RowFormat::default();
    let (mut cases, mut differing) = (0, Vec::new());
    for (name, case) in reference["cases"].as_object().unwrap() {
        let mut tokenizer = of_files(&reference, &case["files"]).unwrap();
        if let Some(text) = case["eos_token"].as_str() {
            tokenizer = tokenizer.with_eos_token(text).unwrap();
        }
        for (kind, data) in reference["rows"].as_object().unwrap() {
            let Some(by_trl) = case.get(kind) else {
                continue;
            };
            let data = rows(data);
            let by_trl = by_trl.get("rows").unwrap_or(by_trl);
            let got: Vec<Value> = if kind.contains("preference") {
                let encoded = encode_comparisons(&data, &tokenizer, &format, 99).unwrap();
                let parts = encoded.items.iter().map(|item| {
                    let (prompt, chosen) = item.responses[0].split_at(item.prompt_len);
                    json!([prompt, chosen, item.responses[1][item.prompt_len..]])
                });
                parts.collect()
            } else {
                let encoded = encode_completions(&data, &tokenizer, &format, 99, true).unwrap();
                let parts = encoded.items.iter().map(|item| {
                    let marks = item.trained.iter().map(|&t| u8::from(t));
                    json!([item.ids, marks.collect::<Vec<u8>>()])
                });
                parts.collect()
            };
            for (got, by_trl) in got.iter().zip(by_trl.as_array().unwrap()) {
                cases += 1;
                let expected: Vec<Vec<u32>> = match kind.contains("preference") {
                    true => {
                        let parts = by_trl.as_array().unwrap().iter().map(ids);
                        parts.map(|part| expected(part, &tokenizer)).collect()
                    }
                    false => {
                        let ids_only = expected(ids(&by_trl[0]), &tokenizer);
                        let mut marks = ids(&by_trl[1]);
                        marks.truncate(ids_only.len());
                        vec![ids_only, marks]
                    }
                };
                if *got != json!(expected) {
                    differing.push(format!("{name}, {kind}:\n  {got}\n  {}", json!(expected)));
                }
            }
        }
    }
    check_against("TRL 1.16", "rows", "rows that differ", cases, &differing);
}

/// Where a prompt and its responses must begin alike, whatever the tokenizer puts around a text.
pub(crate) fn prompts_begin_as_rows_do() {
    let reference = read(&reference("trl_rows/ref.json"));
    for name in ["nothing", "before", "after", "both"] {
        let files = &reference["cases"][name]["files"];
        let tokenizer = of_files(&reference, files).unwrap();
        let format = RowFormat::default();
        let data = rows(&json!([{"prompt": "a b", "completion": " hi"}]));
        let prompt = &tempering::data::encode_prompts(&data, &tokenizer, &format, 99)
            .unwrap()
            .items[0];
        let row = &encode_completions(&data, &tokenizer, &format, 99, true).unwrap();
        let example = &row.items[0];
        assert_eq!(prompt.ids, example.ids[..example.prompt_len], "{name}");
        assert_eq!(row.report.to_string(), "", "{name}");
        let eos = tokenizer.eos_id();
        assert_ne!(prompt.ids.last(), Some(&eos), "{name}: a prompt goes on");
        let ends = example.ids.iter().rev().take_while(|&&id| id == eos);
        assert_eq!(ends.count(), 1, "{name}: one EOS");
    }
}
