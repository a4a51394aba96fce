//! Error messages about rows.

use minijinja::Environment;
use serde_json::{Map, Value};

use crate::data::jinja::{self, TEMPLATE};
use crate::data::rows::{Row, json_kind};
use crate::data::shape::known_layouts;
use crate::error::Error;
use crate::suggest::nearest;

/// Columns that rows are read from, the names of TRL.
const READ: [&str; 6] = [
    "prompt",
    "completion",
    "messages",
    "text",
    "chosen",
    "rejected",
];

/// The error for a row that lacks columns; names those of `names` that are null.
pub(crate) fn missing(row: &Row, names: &[&str], expected: &str) -> Error {
    let nulls: Vec<String> = (names.iter())
        .filter(|name| row.columns.get(**name) == Some(&Value::Null))
        .map(|name| format!("`{name}`"))
        .collect();
    match nulls.as_slice() {
        [] => row.error(format!(
            "expected {expected}; the row has {}{}",
            column_names(&row.columns),
            advice_on_columns(&row.columns, names)
        )),
        [one] => row.error(format!("column {one} is null; expected {expected}")),
        more => row.error(format!(
            "columns {} are null; expected {expected}",
            more.join(" and ")
        )),
    }
}

/// Advice for rows with other columns than `names`.
fn advice_on_columns(columns: &Map<String, Value>, names: &[&str]) -> String {
    let has = |name: &str| columns.contains_key(name);
    let pairs = [
        ("question", "answer"),
        ("query", "response"),
        ("input", "output"),
        ("prompt", "response"),
        ("prompt", "output"),
    ];
    if let Some((prompt, completion)) = pairs.iter().find(|(a, b)| has(a) && has(b))
        && names.contains(&"completion")
    {
        return format!(
            "; other columns are named by `format: (prompt: \"{{{{ {prompt} }}}}\", completion: \"{{{{ {completion} }}}}\")`"
        );
    }
    let others = || {
        columns
            .keys()
            .map(String::as_str)
            .filter(|name| !READ.contains(name))
    };
    let slips: Vec<String> = (names.iter())
        .filter(|name| !has(name))
        .filter_map(|name| Some(format!("`{name}` by `{}`", nearest(name, others())?)))
        .collect();
    if !slips.is_empty() {
        return format!("; did you mean {}?", slips.join(" and "));
    }
    let texts = columns.iter().find(|(_, value)| value.is_string());
    match texts.filter(|_| !READ.iter().any(|name| has(name))) {
        Some((column, _)) => format!(
            "; name its columns in templates, as in `format: ({}: \"{{{{ {column} }}}}\")`. Layouts that are recognised: {}",
            names[0],
            known_layouts()
        ),
        None => String::new(),
    }
}

/// The problem of a message, if any.
pub(crate) fn message_problem(message: &Value) -> Option<String> {
    let kind = json_kind(message);
    match message.get("role") {
        Some(Value::String(_)) => {}
        Some(other) if message.is_object() => {
            return Some(format!("a `role` that is {}", json_kind(other)));
        }
        _ => return Some(format!("{kind} without a role")),
    }
    // A tool call needs no content; how an assistant's empty turn is rendered is the template's choice, as in transformers.
    let says_nothing = message["role"] == "assistant" && message.get("content").is_some();
    let speaks_otherwise = [
        "tool_calls",
        "function_call",
        "reasoning_content",
        "thinking",
    ]
    .iter()
    .any(|key| message.get(key).is_some_and(|value| !value.is_null()));
    match message.get("content") {
        Some(Value::String(_) | Value::Array(_)) => None,
        None | Some(Value::Null) if speaks_otherwise || says_nothing => None,
        None => Some(format!("{kind} without content")),
        Some(other) => Some(format!("a `content` that is {}", json_kind(other))),
    }
}

/// Advice for messages in the layout of widespread data sets.
pub(crate) fn advice_on_messages(message: &Value) -> &'static str {
    match message.get("from").is_some() && message.get("value").is_some() {
        true => "; it looks like ShareGPT's: name its keys `role` (user, assistant) and `content`",
        false => "",
    }
}

/// The columns that a template names.
pub(crate) fn columns_of(env: &Environment<'_>) -> Vec<String> {
    let Ok(template) = env.get_template(TEMPLATE) else {
        return Vec::new();
    };
    let globals: Vec<&str> = env.globals().map(|(name, _)| name).collect();
    let mut names: Vec<String> = (template.undeclared_variables(false).into_iter())
        .filter(|name| !globals.contains(&name.as_str()))
        .collect();
    names.sort();
    names
}

/// Names that a template slices, as in `prompt[:900]`; minijinja 2.24 omits them from a template's variables. Includes loop
/// variables, so it is for templates that failed.
fn sliced_names(env: &Environment<'_>) -> Vec<String> {
    let Ok(template) = env.get_template(TEMPLATE) else {
        return Vec::new();
    };
    let mut names = Vec::new();
    for (at, _) in template.source().match_indices('[') {
        let (before, after) = template.source().split_at(at);
        let slices = (after.split(']').next()).is_some_and(|inner| inner.contains(':'));
        let is_word = |c: char| c.is_alphanumeric() || c == '_';
        // As it is written again, to charge for its size.
        let before = before.strip_suffix("|counted)").unwrap_or(before);
        let name = before.rsplit(|c| !is_word(c)).next().unwrap_or_default();
        let is_field = before.trim_end_matches(is_word).ends_with('.');
        if slices && !name.is_empty() && !is_field && !names.iter().any(|known| known == name) {
            names.push(name.to_owned());
        }
    }
    names
}

/// The error for a template that cannot be rendered; names the columns that the row lacks.
pub(crate) fn template_error(
    row: &Row,
    name: &str,
    env: &Environment<'_>,
    error: &minijinja::Error,
) -> Error {
    let columns = column_names(&row.columns);
    let lacking: Vec<String> = (columns_of(env).into_iter())
        .chain(sliced_names(env))
        .filter(|column| !row.columns.contains_key(column))
        .map(|column| format!("`{column}`"))
        .collect();
    if error.kind() == minijinja::ErrorKind::UndefinedError && !lacking.is_empty() {
        return row.error(format!(
            "format.{name} names {}, which the row lacks; it has {columns}",
            lacking.join(", ")
        ));
    }
    row.error(format!(
        "format.{name}: {}; the row has {columns}",
        jinja::explain(error)
    ))
}

/// The distinct roles of a conversation, for messages.
pub(crate) fn roles(messages: &[Value]) -> String {
    let mut names: Vec<&str> = Vec::new();
    for message in messages {
        let role = message["role"].as_str().unwrap_or("");
        if !names.contains(&role) {
            names.push(role);
        }
    }
    names.join(", ")
}

/// The columns of a row, for messages.
pub(crate) fn column_names(columns: &Map<String, Value>) -> String {
    if columns.is_empty() {
        return "no columns".into();
    }
    let names: Vec<String> = columns.keys().map(|name| format!("`{name}`")).collect();
    format!("the columns {}", names.join(", "))
}
