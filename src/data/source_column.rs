//! Columns that reward sources read, and whether a row has them.

use minijinja::context;
use serde::Serialize;
use serde_json::Value;

use crate::data::check::flag;
use crate::data::complaints::column_names;
use crate::data::rows::{self, Row};
use crate::data::{jinja, last_number};
use crate::error::Result;

/// A column that a stage's reward sources read, by its type.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub enum SourceColumn {
    /// Text.
    Text(String),
    /// True or false, or 1 or 0.
    Flag(String),
    /// Text or a number.
    Value(String),
    /// A number, or text with one.
    Number(String),
    /// Columns that a judge's template reads as `row.name`; it may have a condition for rows without them.
    OfTemplate {
        /// The template, over `prompt`, `response`, `highest` and `row`.
        text: String,
        /// The names.
        columns: Vec<String>,
    },
}

impl SourceColumn {
    /// Its name, or those of a template.
    pub fn names(&self) -> &[String] {
        match self {
            Self::Text(name) | Self::Flag(name) | Self::Value(name) | Self::Number(name) => {
                std::slice::from_ref(name)
            }
            Self::OfTemplate { columns, .. } => columns,
        }
    }

    /// Whether it is what a problem of a row is about.
    pub(crate) fn is_missed(&self, problem: &str) -> bool {
        self.names().iter().any(|name| {
            problem.starts_with(&format!("a reward source reads the column `{name}`"))
                || problem.starts_with(&format!("column `{name}`, which a reward source reads"))
        })
    }

    /// Checks that a row has it.
    pub(super) fn check(&self, row: &Row) -> Result<()> {
        let is_missing = |name: &str| {
            row.error(format!(
                "a reward source reads the column `{name}`; the row has {}",
                column_names(&row.columns)
            ))
        };
        let is_flag = |value: &Value| flag(value).is_some();
        let is_value = |value: &Value| value.is_string() || value.is_number();
        let has_number = |value: &Value| {
            value.is_number() || (value.as_str()).is_some_and(|text| last_number(text).is_some())
        };
        let (name, fits, expected): (_, &dyn Fn(&Value) -> bool, _) = match self {
            Self::OfTemplate { text, columns } => {
                return needed(text, columns, row).map_or(Ok(()), |name| Err(is_missing(name)));
            }
            Self::Text(name) => (name, &Value::is_string, "a string"),
            Self::Flag(name) => (name, &is_flag, "true or false, or 1 or 0"),
            Self::Value(name) => (name, &is_value, "text or a number"),
            Self::Number(name) => (name, &has_number, "a number, or text with one"),
        };
        let Some(value) = row.columns.get(name) else {
            return Err(is_missing(name));
        };
        if fits(value) {
            return Ok(());
        }
        let found = match value {
            Value::Number(number) => number.to_string(),
            Value::String(text) if matches!(self, Self::Number(_)) => {
                format!("{:?}", text.chars().take(60).collect::<String>())
            }
            value => rows::json_kind(value).to_owned(),
        };
        Err(row.error(format!(
            "column `{name}`, which a reward source reads: expected {expected}, found {found}"
        )))
    }
}

/// The column that a template cannot do without in a row; `None` if the row has all, or the template has a condition for the others.
fn needed<'a>(text: &str, columns: &'a [String], row: &Row) -> Option<&'a str> {
    let is_there = |name: &str| row.columns.contains_key(name);
    let missing: Vec<&str> = (columns.iter().map(String::as_str))
        .filter(|name| !is_there(name))
        .collect();
    let first = *missing.first()?;
    // One that does not parse is reported with the settings.
    let env = jinja::strict(text).ok()?;
    let fails_without = |without: &[&str]| {
        let mut columns = row.columns.clone();
        let others = missing.iter().filter(|name| !without.contains(name));
        columns.extend(others.map(|name| ((*name).to_owned(), "x".into())));
        let values = context! {
            prompt => "p", response => "r", highest => 10, row => minijinja::Value::from_serialize(&columns),
        };
        jinja::render(&env, values)
            .is_err_and(|error| error.kind() == minijinja::ErrorKind::UndefinedError)
    };
    fails_without(&missing)
        .then(|| (missing.iter().copied().find(|name| fails_without(&[*name]))).unwrap_or(first))
}
