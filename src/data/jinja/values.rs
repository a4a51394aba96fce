//! Template values that convert to text as in Python, in filters, with `~` and when printed, and that know their size.

use std::fmt;
use std::sync::Arc;

use minijinja::Error;
use minijinja::value::{Enumerator, Object, ObjectRepr, Value, ValueKind};
use serde_json::{Map, Value as Json};

use super::budget::{DEEPEST, charge, charge_silently, check_length, refused};

use super::print::python_repr;

/// Bytes of a number, or of what is shorter than others.
const ITEM_BYTES: u64 = 4;

/// Size of a value as text, about: what is in it several times counts several times.
#[derive(Debug, Clone, Copy)]
pub(super) struct Size {
    pub(super) bytes: u64,
    depth: u32,
}

impl Size {
    /// That of nothing.
    pub(super) const NONE: Self = Self { bytes: 0, depth: 0 };

    fn of(value: &Value) -> Self {
        match value.as_str() {
            Some(text) => Self {
                bytes: text.len() as u64 + 4,
                depth: 0,
            },
            None => size(value).unwrap_or(Self {
                bytes: ITEM_BYTES,
                depth: 0,
            }),
        }
    }

    /// That of a collection of values.
    fn around<'a>(values: impl Iterator<Item = &'a Value>) -> Self {
        let whole = Self { bytes: 4, depth: 1 };
        values.map(Self::of).fold(whole, |whole, size| Self {
            bytes: whole.bytes.saturating_add(size.bytes),
            depth: whole.depth.max(size.depth + 1),
        })
    }
}

/// The size of a list or dictionary of this module; `None` for other values.
pub(super) fn size(value: &Value) -> Option<Size> {
    if let Some(list) = value.downcast_object_ref::<List>() {
        return Some(list.size);
    }
    value.downcast_object_ref::<Dict>().map(|dict| dict.size)
}

/// Bytes of the text in a value, about.
pub(super) fn text_size(value: &Value) -> u64 {
    let known = size(value).or_else(|| snapshot_size(value).ok());
    known.map_or(0, |size| size.bytes)
}

/// The value as a list or dictionary of this module, if it is one of another kind; so are those inside of it.
///
/// # Errors
/// If it is nested too deeply, or costs more than is left.
pub(super) fn adopt(value: &Value, depth: u32) -> Result<Value, Error> {
    let is_collection = matches!(
        value.kind(),
        ValueKind::Seq | ValueKind::Iterable | ValueKind::Map
    );
    if !is_collection {
        charge(4)?;
        return Ok(value.clone());
    }
    let adopted = if size(value).is_some() {
        charge(4)?;
        value.clone()
    } else if depth > DEEPEST {
        return Err(too_deep());
    } else if is_namespace(value) {
        return Err(refused(
            "the template puts a namespace into a list, a mapping or a namespace, which could hold itself",
        ));
    } else if value.kind() == ValueKind::Map {
        let mut entries = Vec::new();
        for key in value.try_iter()? {
            let item = value.get_item(&key)?;
            entries.push((adopt(&key, depth + 1)?, adopt(&item, depth + 1)?));
        }
        Value::from_object(Dict::new(entries))
    } else {
        // Lists are multiplied without being built.
        let len = value.len().unwrap_or(0) as u64;
        check_length(len.saturating_mul(ITEM_BYTES))?;
        let items = value.try_iter()?.map(|item| adopt(&item, depth + 1));
        Value::from_object(List::new(items.collect::<Result<_, _>>()?))
    };
    match size(&adopted).is_some_and(|size| size.depth > DEEPEST) {
        true => Err(too_deep()),
        false => Ok(adopted),
    }
}

/// The size of a value of another kind than this module's. It may be a namespace.
pub(super) fn snapshot_size(value: &Value) -> Result<Size, Error> {
    if !is_namespace(value) {
        return Ok(size(&adopt(value, 0)?).unwrap_or(Size::NONE));
    }
    let keys = value.try_iter()?;
    let items = keys.map(|key| adopt(&value.get_item(&key)?, 1));
    let items: Vec<Value> = items.collect::<Result<_, _>>()?;
    Ok(Size::around(items.iter()))
}

/// Whether it is what `namespace()` returns.
fn is_namespace(value: &Value) -> bool {
    let object = value.as_object();
    object.is_some_and(|object| object.type_name().ends_with("::Namespace"))
}

fn too_deep() -> Error {
    refused(format!(
        "the template nests lists or mappings more than {DEEPEST} levels deep"
    ))
}

/// JSON as a template sees it.
pub(crate) fn from_json(json: &Json) -> Value {
    match json {
        Json::Array(items) => Value::from_object(List::new(items.iter().map(from_json).collect())),
        Json::Object(entries) => from_entries(entries),
        plain => Value::from_serialize(plain),
    }
}

/// The same of a map's entries.
fn from_entries(entries: &Map<String, Json>) -> Value {
    let entries = entries.iter();
    Value::from_object(Dict::new(
        entries
            .map(|(key, item)| (Value::from(key.as_str()), from_json(item)))
            .collect(),
    ))
}

/// A list.
#[derive(Debug)]
struct List {
    items: Vec<Value>,
    size: Size,
}

impl List {
    fn new(items: Vec<Value>) -> Self {
        let size = Size::around(items.iter());
        Self { items, size }
    }
}

impl Object for List {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Seq
    }

    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        self.items.get(key.as_usize()?).cloned()
    }

    fn enumerate(self: &Arc<Self>) -> Enumerator {
        Enumerator::Seq(self.items.len())
    }

    fn render(self: &Arc<Self>, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        render(Value::from_dyn_object(self.clone()), f)
    }
}

/// A dictionary, in the order of its entries.
#[derive(Debug)]
struct Dict {
    entries: Vec<(Value, Value)>,
    size: Size,
}

impl Dict {
    fn new(entries: Vec<(Value, Value)>) -> Self {
        let size = Size::around(entries.iter().flat_map(|(key, item)| [key, item]));
        Self { entries, size }
    }
}

/// A look-up in this many entries costs a unit.
const ENTRIES_PER_UNIT: u64 = 32;

impl Object for Dict {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Map
    }

    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        if !charge_silently(self.entries.len() as u64 / ENTRIES_PER_UNIT) {
            return None;
        }
        let mut entries = self.entries.iter();
        let (_, value) = entries.find(|(known, _)| known == key)?;
        Some(value.clone())
    }

    fn enumerate(self: &Arc<Self>) -> Enumerator {
        Enumerator::Values(self.entries.iter().map(|(key, _)| key.clone()).collect())
    }

    fn render(self: &Arc<Self>, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        render(Value::from_dyn_object(self.clone()), f)
    }
}

fn render(value: Value, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    f.write_str(&python_repr(&value).map_err(|_| fmt::Error)?)
}
