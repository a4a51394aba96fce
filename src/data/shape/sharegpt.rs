//! Conversations in the manner of ShareGPT: `conversations` with `from` and `value`.

use serde_json::{Map, Value, json};

use super::{Shape, fits_all, optional_text};
use crate::data::RowFormat;
use crate::data::rows::{Row, json_kind};
use crate::error::Result;
use crate::suggest::did_you_mean;

/// Columns of a conversation, the usual one first.
const COLUMNS: [&str; 3] = ["conversations", "conversation", "messages"];

/// Who says a turn, and the role of chat templates.
const ROLES: [(&str, &str); 13] = [
    ("human", "user"),
    ("user", "user"),
    ("gpt", "assistant"),
    ("assistant", "assistant"),
    ("chatgpt", "assistant"),
    ("bot", "assistant"),
    ("model", "assistant"),
    ("system", "system"),
    ("tool", "tool"),
    ("observation", "tool"),
    ("function_response", "tool"),
    ("function_call", CALL),
    ("tool_call", CALL),
];

/// Stands for an assistant's turn that calls a function.
const CALL: &str = "a call";

/// ShareGPT's layout.
pub(super) const SHAPE: Shape = Shape {
    name: "sharegpt",
    title: "ShareGPT's",
    columns: "`conversations` (`from`, `value`)",
    read_as: Some("`messages` (`role`, `content`)"),
    recognises,
    convert,
    refusal: fits_all,
};

/// A first turn with `from` and `value`; under another name than `messages` one with `role` and `content`, too.
fn recognises(columns: &Map<String, Value>) -> bool {
    let turns = |name: &str| columns.get(name).and_then(Value::as_array);
    let first = |name| turns(name).and_then(|turns| turns.first());
    let is_turn = |turn: &Value, keys: [&str; 2]| keys.iter().all(|key| turn.get(*key).is_some());
    COLUMNS.iter().any(|name| {
        first(name).is_some_and(|turn| {
            is_turn(turn, ["from", "value"])
                || *name != "messages"
                    && !columns.contains_key("messages")
                    && is_turn(turn, ["role", "content"])
        })
    })
}

fn convert(row: &mut Row, _: &RowFormat) -> Result<()> {
    let named = (COLUMNS.into_iter()).find(|name| row.columns.contains_key(*name));
    let name = named.unwrap_or(COLUMNS[0]);
    let turns = match row.columns.get(name) {
        Some(Value::Array(turns)) => turns,
        Some(other) => {
            return Err(row.error(format!(
                "column `{name}`: expected a list of turns, found {}",
                json_kind(other)
            )));
        }
        None => return Err(row.error(format!("the row has no column `{name}`"))),
    };
    if turns.is_empty() {
        return Err(row.error(format!("column `{name}`: the list of turns is empty")));
    }
    let mut messages = Vec::with_capacity(turns.len() + 1);
    for (i, turn) in turns.iter().enumerate() {
        let place = format!("column `{name}`, turn {}", i + 1);
        messages.push(message(turn).map_err(|what| row.error(format!("{place}: {what}")))?);
    }
    if let Some(system) = optional_text(row, "system")?
        && messages[0]["role"] != "system"
    {
        messages.insert(0, json!({"role": "system", "content": system}));
    }
    // Preferences: the answers stand beside the conversation that they continue.
    let mut answers = Vec::new();
    for answer in ["chosen", "rejected"] {
        if let Some(turn @ Value::Object(_)) = row.columns.get(answer) {
            let place = format!("column `{answer}`");
            let turn = message(turn).map_err(|what| row.error(format!("{place}: {what}")))?;
            answers.push((answer, turn));
        }
    }
    let key = match answers.is_empty() {
        true => "messages",
        false => "prompt",
    };
    (row.columns).extend(
        answers
            .into_iter()
            .map(|(name, turn)| (name.to_owned(), json!([turn]))),
    );
    if key != name {
        // The same turns twice would double the row.
        row.columns.remove(name);
    }
    row.columns.insert(key.to_owned(), Value::Array(messages));
    Ok(())
}

/// A turn as a message; the error says what is wrong with it.
fn message(turn: &Value) -> Result<Value, String> {
    if turn.get("role").is_some() && turn.get("from").is_none() {
        return Ok(turn.clone());
    }
    let part = |key: &str| match turn.get(key) {
        Some(Value::String(text)) => Ok(text.as_str()),
        Some(other) => Err(format!(
            "expected `{key}` as a string, found {}",
            json_kind(other)
        )),
        None => Err(format!("expected `from` and `value`, found {}", keys(turn))),
    };
    let (from, value) = (part("from")?, part("value")?);
    let role = (ROLES.iter()).find(|(name, _)| from.eq_ignore_ascii_case(name));
    match role {
        Some((_, CALL)) => {
            let call: Value = serde_json::from_str(value)
                .map_err(|e| format!("expected the call of a function as JSON: {e}"))?;
            let calls = match call {
                Value::Array(calls) => calls,
                call => vec![call],
            };
            let calls: Vec<Value> = (calls.into_iter())
                .map(|call| json!({"type": "function", "function": call}))
                .collect();
            Ok(json!({"role": "assistant", "content": "", "tool_calls": calls}))
        }
        Some((_, role)) => Ok(json!({"role": role, "content": value})),
        None => {
            let names = || ROLES.iter().map(|(name, _)| *name);
            let near = did_you_mean(from, names());
            let near = near.map_or(String::new(), |near| format!("; {near}"));
            Err(format!(
                "is from `{from}`; expected `human`, `gpt`, `system`, `observation` or `function_call`{near}"
            ))
        }
    }
}

/// The keys of a turn, for messages.
fn keys(turn: &Value) -> String {
    match turn.as_object() {
        Some(turn) if !turn.is_empty() => {
            let names: Vec<String> = turn.keys().map(|key| format!("`{key}`")).collect();
            names.join(", ")
        }
        Some(_) => "no keys".to_owned(),
        None => json_kind(turn).to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{read, refused};
    use super::*;

    fn columns(row: Value) -> Value {
        let (name, columns) = read(row, &RowFormat::default()).unwrap();
        assert_eq!(name, "sharegpt");
        columns
    }

    #[test]
    fn turns_are_messages() {
        let row = json!({"id": "a", "conversations": [
            {"from": "human", "value": "h"}, {"from": "gpt", "value": "g", "weight": 1},
        ]});
        let said = json!([
            {"role": "user", "content": "h"}, {"role": "assistant", "content": "g"},
        ]);
        assert_eq!(columns(row.clone()), json!({"messages": said}));
        // The column's other names; roles as they are; a system message of its own.
        let named = json!({"messages": row["conversations"]});
        assert_eq!(columns(named), json!({"messages": said}));
        assert_eq!(
            columns(json!({"conversation": said})),
            json!({"messages": said})
        );
        let system = json!({"conversations": row["conversations"], "system": "s"});
        assert_eq!(
            columns(system)["messages"][0],
            json!({"role": "system", "content": "s"})
        );
    }

    #[test]
    fn functions_are_called_and_answers_compared() {
        let row = json!({"conversations": [
            {"from": "Human", "value": "h"},
            {"from": "function_call", "value": "{\"name\": \"f\", \"arguments\": {\"x\": 1}}"},
            {"from": "observation", "value": "2"},
        ], "chosen": {"from": "gpt", "value": "c"}, "rejected": {"from": "gpt", "value": "r"}});
        assert_eq!(
            columns(row),
            json!({
                "prompt": [
                    {"role": "user", "content": "h"},
                    {"role": "assistant", "content": "", "tool_calls": [
                        {"type": "function", "function": {"name": "f", "arguments": {"x": 1}}},
                    ]},
                    {"role": "tool", "content": "2"},
                ],
                "chosen": [{"role": "assistant", "content": "c"}],
                "rejected": [{"role": "assistant", "content": "r"}],
            })
        );
    }

    #[test]
    fn what_is_no_turn_is_named() {
        let second = |turn: Value| {
            refused(json!({"conversations": [{"from": "human", "value": "h"}, turn]}))
        };
        for (turn, message) in [
            (
                json!({"from": "gtp", "value": "g"}),
                "is from `gtp`; expected `human`, `gpt`, `system`, `observation` or `function_call`; did you mean `gpt`?",
            ),
            (
                json!({"from": "gpt", "value": null}),
                "expected `value` as a string, found null",
            ),
            (
                json!({"speaker": "gpt"}),
                "expected `from` and `value`, found `speaker`",
            ),
            (json!("g"), "expected `from` and `value`, found a string"),
            (
                json!({"from": "function_call", "value": "f("}),
                "expected the call of a function as JSON: expected ident at line 1 column 2",
            ),
        ] {
            assert_eq!(
                second(turn),
                format!("column `conversations`, turn 2: {message}")
            );
        }
    }
}
