//! Layouts of rows that are recognised by their columns and brought to TRL's: `prompt` and `completion`, `messages`, `chosen` and
//! `rejected`, `text`.

mod alpaca;
mod hh_rlhf;
mod kto;
mod openai;
mod sharegpt;
mod ultrafeedback;

use std::path::Path;

use serde_json::{Map, Value};

use crate::data::rows::{Row, json_kind};
use crate::data::{RowFormat, RowKind};
use crate::error::{Error, Result};
use crate::suggest::{did_you_mean, quoted};

/// Every layout; a row has the first one that recognises it.
const SHAPES: &[Shape] = &[
    sharegpt::SHAPE,
    openai::SHAPE,
    ultrafeedback::SHAPE,
    alpaca::SHAPE,
    hh_rlhf::SHAPE,
    kto::SHAPE,
];

/// The name of no layout: columns are taken as they are named.
const AS_NAMED: &str = "columns";

/// A layout of rows.
pub(crate) struct Shape {
    /// Its name in `format: (shape: ..)`.
    name: &'static str,
    /// Whose layout it is, for messages.
    title: &'static str,
    /// The columns that show it, for messages.
    columns: &'static str,
    /// What its rows are read as, for messages; `None` if they are left as they are.
    read_as: Option<&'static str>,
    /// Whether a row has it.
    recognises: fn(&Map<String, Value>) -> bool,
    /// Adds TRL's columns to a row.
    convert: fn(&mut Row, &RowFormat) -> Result<()>,
    /// Why it cannot be read as rows of a kind.
    refusal: fn(RowKind) -> Option<&'static str>,
}

/// Names for `format: (shape: ..)`.
pub fn shape_names() -> impl Iterator<Item = &'static str> {
    SHAPES.iter().map(|shape| shape.name).chain([AS_NAMED])
}

/// How the rows of a data set get their layout.
#[derive(Clone, Copy)]
pub(crate) enum Shaping {
    /// By their columns, row by row.
    Recognised,
    /// All have this one.
    Given(&'static Shape),
    /// Columns are taken as they are named.
    AsNamed,
}

impl Shaping {
    /// As a format asks: by its `shape`, by its templates, which name columns themselves, or by the columns.
    ///
    /// # Errors
    /// `Error::Usage` if there is no such layout.
    pub(crate) fn of(format: &RowFormat) -> Result<Self> {
        match format.shape.as_deref() {
            Some(AS_NAMED) => Ok(Self::AsNamed),
            Some(name) => match SHAPES.iter().find(|shape| shape.name == name) {
                Some(shape) => Ok(Self::Given(shape)),
                None => {
                    let near = did_you_mean(name, shape_names());
                    let near = near.map_or(String::new(), |near| format!("; {near}"));
                    Err(Error::Usage(format!(
                        "format.shape: there is no layout `{name}`; known are {}{near}",
                        quoted(shape_names())
                    )))
                }
            },
            None if format.has_templates() => Ok(Self::AsNamed),
            None => Ok(Self::Recognised),
        }
    }

    /// The layout of a row, if it is another than TRL's.
    pub(crate) fn shape(self, columns: &Map<String, Value>) -> Option<&'static Shape> {
        match self {
            Self::Recognised => SHAPES.iter().find(|shape| (shape.recognises)(columns)),
            Self::Given(shape) => Some(shape),
            Self::AsNamed => None,
        }
    }
}

impl Shape {
    /// Adds TRL's columns to a row of this layout.
    ///
    /// # Errors
    /// `Error::Data` if a column is missing or of another type.
    pub(crate) fn convert(&self, row: &mut Row, format: &RowFormat) -> Result<()> {
        (self.convert)(row, format)
    }

    /// Why a row of this layout cannot be read as one of `kind`.
    pub(crate) fn refusal(&self, kind: RowKind) -> Option<String> {
        (self.refusal)(kind).map(|why| {
            format!(
                "the columns {} are {}: {why}. `format: (shape: \"{AS_NAMED}\")` takes the columns as they are named",
                self.columns, self.title
            )
        })
    }

    /// What was recognised in how many rows of `path`, for the user; `None` if the rows are left as they are.
    pub(crate) fn notice(&self, path: &Path, rows: usize) -> Option<String> {
        let rows = match rows {
            1 => "1 row".to_owned(),
            rows => format!("{rows} rows"),
        };
        self.read_as.map(|read_as| {
            format!(
                "{}: {rows} with the columns {} are {}, read as {read_as} (`format: (shape: ..)` or templates override this)",
                path.display(),
                self.columns,
                self.title
            )
        })
    }

    /// Its name, for comparisons.
    pub(crate) fn name(&self) -> &'static str {
        self.name
    }
}

/// The layouts with their columns, for messages.
pub(crate) fn known_layouts() -> String {
    let all: Vec<String> = (SHAPES.iter())
        .map(|shape| format!("{} ({})", shape.title, shape.columns))
        .collect();
    all.join(", ")
}

/// Whether a row has one of these columns.
fn has_any(columns: &Map<String, Value>, names: &[&str]) -> bool {
    names.iter().any(|name| columns.contains_key(*name))
}

/// A text column.
///
/// # Errors
/// `Error::Data` if it is missing or not a string.
fn text<'a>(row: &'a Row, name: &str) -> Result<&'a str> {
    match row.columns.get(name) {
        Some(Value::String(text)) => Ok(text),
        Some(Value::Null) => Err(row.error(format!("column `{name}` is null"))),
        Some(other) => Err(row.error(format!(
            "column `{name}`: expected a string, found {}",
            json_kind(other)
        ))),
        None => Err(row.error(format!("the row has no column `{name}`"))),
    }
}

/// A text column that may be missing or null; `None` if it is empty.
fn optional_text<'a>(row: &'a Row, name: &str) -> Result<Option<&'a str>> {
    match row.columns.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(_) => text(row, name).map(|text| (!text.trim().is_empty()).then_some(text)),
    }
}

/// No kind is refused.
fn fits_all(_: RowKind) -> Option<&'static str> {
    None
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn row(columns: Value) -> Row {
        let Value::Object(columns) = columns else {
            panic!("a row is an object")
        };
        Row {
            columns,
            path: "rows.jsonl".into(),
            line: 3,
        }
    }

    /// The layout that a row is recognised as, and the columns that it gets.
    pub(super) fn read(columns: Value, format: &RowFormat) -> Result<(&'static str, Value)> {
        let mut row = row(columns.clone());
        let shape = Shaping::of(format)?.shape(&row.columns);
        let Some(shape) = shape else {
            return Ok(("", json!({})));
        };
        shape.convert(&mut row, format)?;
        let new = |(name, value): &(&String, &Value)| columns.get(name.as_str()) != Some(*value);
        let added: Map<String, Value> = (row.columns.iter())
            .filter(new)
            .map(|(name, value)| (name.clone(), value.clone()))
            .collect();
        Ok((shape.name, Value::Object(added)))
    }

    /// The message for a row that cannot be read, without its place.
    pub(super) fn refused(columns: Value) -> String {
        let error = read(columns, &RowFormat::default()).unwrap_err();
        let text = error.to_string();
        text.strip_prefix("rows.jsonl:3: ").unwrap().to_owned()
    }

    #[test]
    fn rows_of_trl_are_left_as_they_are() {
        for columns in [
            json!({"text": "t"}),
            json!({"prompt": "p", "completion": "c", "label": 7}),
            json!({"prompt": "p", "chosen": "c", "rejected": "r"}),
            json!({"chosen": "x c", "rejected": "x r"}),
            json!({"messages": [{"role": "user", "content": "c"}]}),
            json!({"prompt": "p", "chosen": [{"role": "user", "content": "p"}], "rejected": [], "messages": []}),
            json!({"prompt": "p", "completion": "c", "instruction": "i", "output": "o"}),
            json!({"question": "q", "answer": "a"}),
        ] {
            let (shape, _) = read(columns.clone(), &RowFormat::default()).unwrap();
            assert_eq!(shape, "", "{columns}");
        }
    }

    #[test]
    fn a_format_overrides_what_columns_show() {
        let columns = json!({"instruction": "i", "output": "o"});
        let shape = |shape: Option<&str>, template: Option<&str>| {
            let format = RowFormat {
                shape: shape.map(str::to_owned),
                prompt: template.map(str::to_owned),
                ..RowFormat::default()
            };
            let read = read(columns.clone(), &format);
            read.map(|(name, _)| name).map_err(|e| e.to_string())
        };
        assert_eq!(shape(None, None).unwrap(), "alpaca");
        assert_eq!(shape(None, Some("{{ instruction }}")).unwrap(), "");
        assert_eq!(shape(Some("columns"), None).unwrap(), "");
        assert_eq!(
            shape(Some("alpaca"), Some("{{ instruction }}")).unwrap(),
            "alpaca"
        );
        assert_eq!(
            shape(Some("sharegpt"), None).unwrap_err(),
            "rows.jsonl:3: the row has no column `conversations`"
        );
        let unknown = shape(Some("alpacca"), None).unwrap_err();
        assert!(
            unknown.contains("there is no layout `alpacca`; known are `sharegpt`, ")
                && unknown.ends_with("did you mean `alpaca`?"),
            "{unknown}"
        );
    }
}
