//! Responses to a prompt as text, for judges.

use serde_json::Value;

use crate::data::records::{Content, RowParser};
use crate::data::rows::Row;
use crate::data::{DataConfig, DataContext, RowFormat, read_rows};
use crate::error::Result;

/// A prompt and the responses to it.
#[derive(Debug, Clone, PartialEq)]
pub struct ResponseSet {
    /// The prompt as a row has it: a text, or messages.
    pub prompt: Value,
    /// The prompt for a reader: of messages each below its role.
    pub text: String,
    /// The responses.
    pub responses: Vec<String>,
    /// What the row says of them: of a preference 1 and 0, of scored responses their scores.
    pub scores: Vec<f64>,
}

/// The responses to each prompt of a data set: of preference rows two, of rows of scored responses all.
///
/// # Errors
/// As [`read_rows`], and at the first row of another kind.
pub fn read_response_sets(config: &DataConfig, context: &DataContext) -> Result<Vec<ResponseSet>> {
    let rows = read_rows(config, context)?;
    response_sets(&rows, &config.format)
}

/// See [`read_response_sets`].
pub(crate) fn response_sets(rows: &[Row], format: &RowFormat) -> Result<Vec<ResponseSet>> {
    let parser = RowParser::new(format)?;
    rows.iter().map(|row| response_set(&parser, row)).collect()
}

fn response_set(parser: &RowParser<'_>, row: &Row) -> Result<ResponseSet> {
    if let Some(responses) = row.columns.get("responses").and_then(Value::as_array) {
        let responses: Option<Vec<String>> = (responses.iter())
            .map(|text| text.as_str().map(str::to_owned))
            .collect();
        let responses = responses.ok_or_else(|| row.error("column `responses`: expected texts"))?;
        let prompt = row.columns.get("prompt").cloned();
        let prompt =
            prompt.ok_or_else(|| row.error("expected a column `prompt` beside `responses`"))?;
        let scores = row.columns.get("scores").and_then(Value::as_array);
        let scores: Vec<f64> = (scores.into_iter().flatten())
            .filter_map(Value::as_f64)
            .collect();
        return Ok(ResponseSet {
            text: readable(&prompt),
            prompt,
            scores: match scores.len() == responses.len() {
                true => scores,
                false => vec![0.0; responses.len()],
            },
            responses,
        });
    }
    let pair = parser.preference(row)?;
    let prompt = match pair.prompt {
        Content::Text(text) => Value::String(text),
        Content::Messages(messages) => Value::Array(messages),
    };
    let response = |content: Content| match content {
        Content::Text(text) => text,
        Content::Messages(messages) => {
            let contents = messages.iter().map(content_of);
            contents.collect::<Vec<_>>().join("\n\n")
        }
    };
    Ok(ResponseSet {
        text: readable(&prompt),
        prompt,
        responses: vec![response(pair.chosen), response(pair.rejected)],
        scores: vec![1.0, 0.0],
    })
}

/// A prompt for a reader: a text as it is, of messages each below its role.
pub(crate) fn readable(prompt: &Value) -> String {
    match prompt {
        Value::String(text) => text.clone(),
        Value::Array(messages) => {
            let lines = messages.iter().map(|message| {
                let role = message["role"].as_str().unwrap_or("user");
                format!("{role}: {}", content_of(message))
            });
            lines.collect::<Vec<_>>().join("\n\n")
        }
        other => other.to_string(),
    }
}

fn content_of(message: &Value) -> String {
    match &message["content"] {
        Value::String(text) => text.clone(),
        Value::Null => String::new(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn sets(columns: Value) -> Result<Vec<ResponseSet>> {
        let Value::Object(columns) = columns else {
            panic!("a row is an object")
        };
        let row = Row {
            columns,
            path: "rows.jsonl".into(),
            line: 3,
        };
        response_sets(&[row], &RowFormat::default())
    }

    #[test]
    fn preferences_and_scored_responses_are_sets() {
        let set = &sets(json!({"prompt": "p", "chosen": " a", "rejected": " b"})).unwrap()[0];
        assert_eq!(set.responses, [" a", " b"]);
        assert_eq!(
            (set.text.as_str(), set.scores.as_slice()),
            ("p", &[1.0, 0.0][..])
        );
        let set =
            &sets(json!({"prompt": "p", "responses": ["a", "b", "c"], "scores": [1.0, 3.0, 2.0]}))
                .unwrap()[0];
        assert_eq!((set.responses.len(), set.scores[1]), (3, 3.0));
        let error = sets(json!({"prompt": "p", "responses": [1]})).unwrap_err();
        assert_eq!(
            error.to_string(),
            "rows.jsonl:3: column `responses`: expected texts"
        );
    }

    #[test]
    fn conversations_are_read_below_their_roles() {
        let user = json!({"role": "user", "content": "Hello"});
        let says = |text: &str| json!({"role": "assistant", "content": text});
        let set = &sets(json!({"chosen": [user, says("hi")], "rejected": [user, says("no")]}))
            .unwrap()[0];
        assert_eq!(set.text, "user: Hello");
        assert_eq!(set.prompt, json!([user]));
        assert_eq!(set.responses, ["hi", "no"]);
    }
}
