//! Conversations as OpenAI's chat interface has them: functions are called with their arguments as JSON in a string.

use serde_json::{Map, Value, json};

use super::{Shape, fits_all};
use crate::data::RowFormat;
use crate::data::rows::Row;
use crate::error::Result;

/// OpenAI's layout of calls; conversations without any are `messages` already.
///
/// Chat templates expect arguments as objects, and write a string once more as JSON.
pub(super) const SHAPE: Shape = Shape {
    name: "openai",
    title: "OpenAI's",
    columns: "`messages` with calls of functions",
    read_as: Some("`messages` and `tools` with the calls' arguments as objects"),
    recognises,
    convert,
    refusal: fits_all,
};

fn recognises(columns: &Map<String, Value>) -> bool {
    let Some(messages) = columns.get("messages").and_then(Value::as_array) else {
        return false;
    };
    let is_text = |call: &Value| call["function"]["arguments"].is_string();
    let calls = |message: &Value| {
        let calls = message.get("tool_calls").and_then(Value::as_array);
        message.get("function_call").is_some_and(Value::is_object)
            || calls.is_some_and(|calls| calls.iter().any(is_text))
    };
    columns.get("functions").is_some_and(Value::is_array) || messages.iter().any(calls)
}

fn convert(row: &mut Row, _: &RowFormat) -> Result<()> {
    if let Some(Value::Array(messages)) = row.columns.get_mut("messages") {
        for message in messages.iter_mut().filter_map(Value::as_object_mut) {
            call(message);
        }
    }
    if let Some(Value::Array(functions)) = row.columns.get("functions")
        && !row.columns.contains_key("tools")
    {
        let tools: Vec<Value> = (functions.iter())
            .map(|function| json!({"type": "function", "function": function}))
            .collect();
        row.columns.insert("tools".into(), Value::Array(tools));
    }
    Ok(())
}

/// Brings the calls of a message to the form of chat templates.
fn call(message: &mut Map<String, Value>) {
    if let Some(function @ Value::Object(_)) = message.remove("function_call") {
        let calls = json!([{"type": "function", "function": function}]);
        message.insert("tool_calls".into(), calls);
    }
    if message.get("role").is_some_and(|role| role == "function") {
        message.insert("role".into(), "tool".into());
    }
    let calls = message.get_mut("tool_calls").and_then(Value::as_array_mut);
    for call in calls.into_iter().flatten() {
        let Some(arguments) = call.pointer_mut("/function/arguments") else {
            continue;
        };
        // What is no object is left as it is.
        let parsed = arguments
            .as_str()
            .and_then(|text| serde_json::from_str(text).ok());
        if let Some(object @ Value::Object(_)) = parsed {
            *arguments = object;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::read;
    use super::*;

    fn columns(row: Value) -> Value {
        let (name, columns) = read(row, &RowFormat::default()).unwrap();
        assert_eq!(name, "openai");
        columns
    }

    #[test]
    fn arguments_are_objects() {
        let call = |arguments: Value| json!([{"id": "1", "type": "function", "function": {"name": "f", "arguments": arguments}}]);
        let messages = |calls: Value| {
            json!([
                {"role": "user", "content": "u"},
                {"role": "assistant", "content": null, "tool_calls": calls},
                {"role": "tool", "tool_call_id": "1", "content": "r"},
            ])
        };
        assert_eq!(
            columns(json!({"messages": messages(call(json!("{\"x\": [1]}"))), "tools": []})),
            json!({"messages": messages(call(json!({"x": [1]})))})
        );
        // Objects already, or no calls: not this layout.
        for row in [
            json!({"messages": messages(call(json!({"x": [1]})))}),
            json!({"messages": [{"role": "user", "content": "u"}]}),
        ] {
            assert_eq!(read(row, &RowFormat::default()).unwrap().0, "");
        }
        // Text that is no JSON is left alone.
        let odd = json!({"messages": messages(call(json!("x")))});
        assert_eq!(columns(odd), json!({}));
    }

    #[test]
    fn functions_are_the_older_tools() {
        let row = json!({"functions": [{"name": "f"}], "messages": [
            {"role": "assistant", "content": null, "function_call": {"name": "f", "arguments": "{}"}},
            {"role": "function", "name": "f", "content": "r"},
        ]});
        assert_eq!(
            columns(row),
            json!({
                "messages": [
                    {"role": "assistant", "content": null, "tool_calls": [
                        {"type": "function", "function": {"name": "f", "arguments": {}}},
                    ]},
                    {"role": "tool", "name": "f", "content": "r"},
                ],
                "tools": [{"type": "function", "function": {"name": "f"}}],
            })
        );
    }
}
