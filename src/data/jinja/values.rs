//! Template values that convert to text as in Python, in filters, with `~` and when printed.

use std::fmt;
use std::sync::Arc;

use minijinja::value::{Enumerator, Object, ObjectRepr, Value};
use serde_json::{Map, Value as Json};

use super::print::python_repr;

/// JSON as a template sees it.
pub(crate) fn from_json(json: &Json) -> Value {
    match json {
        Json::Array(items) => Value::from_object(List(items.iter().map(from_json).collect())),
        Json::Object(entries) => from_entries(entries),
        plain => Value::from_serialize(plain),
    }
}

/// The same of a map's entries.
fn from_entries(entries: &Map<String, Json>) -> Value {
    let entries = entries.iter();
    Value::from_object(Dict(
        entries
            .map(|(key, item)| (Value::from(key.as_str()), from_json(item)))
            .collect(),
    ))
}

/// A list.
#[derive(Debug)]
struct List(Vec<Value>);

impl Object for List {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Seq
    }

    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        self.0.get(key.as_usize()?).cloned()
    }

    fn enumerate(self: &Arc<Self>) -> Enumerator {
        Enumerator::Seq(self.0.len())
    }

    fn render(self: &Arc<Self>, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        render(Value::from_dyn_object(self.clone()), f)
    }
}

/// A dictionary, in the order of its entries.
#[derive(Debug)]
struct Dict(Vec<(Value, Value)>);

impl Object for Dict {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Map
    }

    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        let mut entries = self.0.iter();
        let (_, value) = entries.find(|(known, _)| known == key)?;
        Some(value.clone())
    }

    fn enumerate(self: &Arc<Self>) -> Enumerator {
        Enumerator::Values(self.0.iter().map(|(key, _)| key.clone()).collect())
    }

    fn render(self: &Arc<Self>, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        render(Value::from_dyn_object(self.clone()), f)
    }
}

fn render(value: Value, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    f.write_str(&python_repr(&value).map_err(|_| fmt::Error)?)
}
