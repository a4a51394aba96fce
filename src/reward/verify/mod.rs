//! Verifiable rewards: a response is right or wrong by a rule, 1 or 0.

mod groups;
mod number;
mod program;
mod schema;

use groups::Groups;
use number::Number;
use program::Program;
use schema::{Schema, SchemaReward};

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use serde_json::Value;

use super::{Completion, RewardConfig, RewardSource, columns};
use crate::error::{Error, Problem, Result};
use crate::outside;

/// A row's column as text.
///
/// # Errors
/// `Error::Reward` if the row does not have it, or it is neither text nor a number.
fn column(completion: &Completion, name: &str, source: &str) -> Result<String> {
    let value = completion.row.get(name).and_then(text_or_number);
    value.ok_or_else(|| Error::Reward {
        name: source.to_owned(),
        message: format!(
            "reads the column {name:?} as text or a number; this row has {}",
            columns(&completion.row)
        ),
    })
}

/// The source that `config` names, called `name` in messages.
///
/// # Errors
/// A regular expression that does not parse, a schema that cannot be read, and another kind of source.
pub(super) fn build(config: &RewardConfig, name: String) -> Result<Box<dyn RewardSource>> {
    Ok(match config {
        RewardConfig::Number { answer, tolerance } => Box::new(Number {
            answer: answer.clone(),
            tolerance: *tolerance,
            name,
        }),
        RewardConfig::Groups {
            regex,
            columns,
            ignore_case,
        } => Box::new(Groups {
            regex: parsed(regex, name.clone())?,
            columns: columns.clone(),
            ignore_case: *ignore_case,
            name,
        }),
        RewardConfig::Schema { file } => Box::new(SchemaReward {
            schema: read_schema(file).map_err(|message| Error::Reward { name, message })?,
        }),
        RewardConfig::Program {
            command, timeout_s, ..
        } => Box::new(Program::new(
            name,
            command.clone(),
            Duration::from_secs_f64(*timeout_s),
        )),
        _ => {
            return Err(Error::Reward {
                name,
                message: "is no rule that verifies responses".into(),
            });
        }
    })
}

/// Problems of `config` that show before it runs; those of a program's command are found with other commands'.
pub(super) fn problems(config: &RewardConfig, place: &str) -> Vec<Problem> {
    match config {
        RewardConfig::Number { tolerance, .. } if !(*tolerance >= 0.0 && tolerance.is_finite()) => {
            let message =
                format!("tolerance is {tolerance}; expected a finite number of at least 0");
            vec![Problem::new(format!("{place}.tolerance"), message)]
        }
        RewardConfig::Groups { regex, columns, .. } => match regex::Regex::new(regex) {
            Err(error) => vec![Problem::new(format!("{place}.regex"), error.to_string())],
            Ok(regex) => group_problems(&regex, columns, &format!("{place}.columns")),
        },
        RewardConfig::Schema { file } => (read_schema(file).err().into_iter())
            .map(|message| Problem::new(format!("{place}.file"), message))
            .collect(),
        _ => Vec::new(),
    }
}

/// A regular expression of the source `name`.
///
/// # Errors
/// `Error::Reward` if it does not parse.
pub(super) fn parsed(regex: &str, name: String) -> Result<regex::Regex> {
    regex::Regex::new(regex).map_err(|error| Error::Reward {
        name,
        message: error.to_string(),
    })
}

/// Groups that the expression does not have, or a comparison with nothing.
fn group_problems(
    regex: &regex::Regex,
    columns: &BTreeMap<String, String>,
    place: &str,
) -> Vec<Problem> {
    let known: Vec<&str> = regex.capture_names().flatten().collect();
    if columns.is_empty() {
        let message = "no group is compared with a column";
        return vec![Problem::new(place, message).with_help(
            "e.g. `columns: {\"answer\": \"answer\"}` for the group `(?P<answer>..)`; `Pattern(..)` only matches",
        )];
    }
    (columns.keys())
        .filter(|group| !known.contains(&group.as_str()))
        .map(|group| {
            let message = format!("the expression has no group named {group:?}");
            Problem::new(place, message).with_help(format!("write it as `(?P<{group}>..)`"))
        })
        .collect()
}

/// Text, or a number as it is written.
fn text_or_number(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        _ => None,
    }
}

/// The JSON schema in a file.
///
/// # Errors
/// What cannot be read, or is not a schema that is supported.
fn read_schema(path: &Path) -> Result<Schema, String> {
    let text = outside::read_text(path, outside::SETTINGS).map_err(|error| error.to_string())?;
    Schema::parse(&text).map_err(|why| format!("{}: {why}", path.display()))
}
