//! What one rendering may cost: a template of a downloaded model must not take all memory or time.
//!
//! [`super::rewrite`] sends every value that a template builds through [`bounded`], and every value that is compared or searched
//! through [`counted`]; both charge for its size. Printed text, JSON and look-ups in mappings are charged where they happen. Loops and
//! recursion are limited by minijinja's fuel and recursion limit.
//!
//! Not bounded: a single step over one value within the limits (sorting it, say), so that a template that does its worst takes about a
//! second for each rendering and some hundreds of megabytes.

use std::cell::Cell;

use minijinja::value::{Kwargs, Rest, StringInput, Value, ValueKind};
use minijinja::{Environment, Error, ErrorKind, State, filters};

use super::values;

/// Steps of the engine in one rendering. Published templates take some hundreds for each message.
const FUEL: u64 = 20_000_000;
/// Nested loops, blocks and macros, of which each counts four times.
const RECURSION: usize = 400;
/// Units of cost of one rendering, without those for the size of its input. A unit is about a nanosecond, and at most 16 bytes.
const COST: u64 = 16 << 20;
/// Further units for each byte of input.
const COST_PER_BYTE: u64 = 256;
/// Most bytes of one value, without those for the size of the input.
const LONGEST: u64 = 4 << 20;
/// Further bytes of a value for each byte of input.
const LONGEST_PER_BYTE: u64 = 16;
/// Deepest nesting of lists and mappings; JSON has at most 128 levels.
pub(super) const DEEPEST: u32 = 200;
/// Most columns or rows that `batch` and `slice` are asked for.
const COLUMNS: usize = 100_000;

thread_local! {
    static LEFT: Cell<u64> = const { Cell::new(u64::MAX) };
    static LIMIT: Cell<u64> = const { Cell::new(LONGEST) };
}

/// Renders `f` within the limits for an input of this size.
pub(super) fn with_budget<T>(input: u64, f: impl FnOnce() -> Result<T, Error>) -> Result<T, Error> {
    let extra = |factor: u64| input.saturating_mul(factor);
    LEFT.set(COST.saturating_add(extra(COST_PER_BYTE)));
    LIMIT.set(LONGEST.saturating_add(extra(LONGEST_PER_BYTE)));
    let outcome = f().and_then(|text| charge(0).map(|()| text));
    LEFT.set(u64::MAX);
    LIMIT.set(LONGEST);
    outcome
}

/// Takes units of cost.
pub(super) fn charge(units: u64) -> Result<(), Error> {
    match charge_silently(units) {
        true => Ok(()),
        false => Err(refused(
            "the template builds, prints or compares more than its input accounts for",
        )),
    }
}

/// The same where no error can be returned; the next charge is one. Returns whether there was enough.
pub(super) fn charge_silently(units: u64) -> bool {
    let left = LEFT.get().saturating_sub(units);
    LEFT.set(left);
    left > 0
}

/// Refuses a value of so many bytes.
pub(super) fn check_length(bytes: u64) -> Result<(), Error> {
    match bytes <= LIMIT.get() {
        true => Ok(()),
        false => Err(refused(format!(
            "the template builds a value of {bytes} bytes; at most {} are possible for this input",
            LIMIT.get()
        ))),
    }
}

pub(super) fn refused(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidOperation, message.into())
}

/// Sets the limits of an environment, its filters that check what they build, and those that rewritten templates use.
pub(super) fn install(env: &mut Environment<'_>) {
    env.set_fuel(Some(FUEL));
    env.set_recursion_limit(RECURSION);
    env.add_filter(BOUNDED, bounded);
    env.add_filter(COUNTED, counted);
    env.add_filter(UNAVAILABLE, unavailable);
    env.add_filter("replace", replace);
    env.add_filter("join", join);
    env.add_filter("indent", indent);
    env.add_filter("format", format);
    env.add_filter("batch", batch);
    env.add_filter("slice", slice);
}

/// The filter around every value that a template builds.
pub(super) const BOUNDED: &str = "bounded";
/// The filter around every value that is compared, searched or handed to a filter or method.
pub(super) const COUNTED: &str = "counted";
/// The filter of statements that need other templates.
pub(super) const UNAVAILABLE: &str = "unavailable";

/// The value, within the limits; lists and mappings as those of [`super::values`], which know their size.
fn bounded(value: &Value) -> Result<Value, Error> {
    match value.kind() {
        ValueKind::String => {
            let bytes = value.as_str().map_or(0, str::len) as u64;
            check_length(bytes)?;
            charge(bytes / 4 + 1)?;
            Ok(value.clone())
        }
        ValueKind::Seq | ValueKind::Iterable | ValueKind::Map => {
            charge(1)?;
            let value = values::adopt(value, 0)?;
            check_length(values::size(&value).map_or(0, |size| size.bytes))?;
            Ok(value)
        }
        _ => Ok(value.clone()),
    }
}

/// The value, charged for its size.
fn counted(value: &Value) -> Result<Value, Error> {
    match value.kind() {
        ValueKind::String => charge(value.as_str().map_or(0, str::len) as u64 / 4 + 1)?,
        ValueKind::Seq | ValueKind::Iterable | ValueKind::Map => {
            let size = match values::size(value) {
                Some(size) => size,
                None => values::snapshot_size(value)?,
            };
            check_length(size.bytes)?;
            charge(size.bytes / 4 + 1)?;
        }
        _ => {}
    }
    Ok(value.clone())
}

fn unavailable(what: String) -> Result<Value, Error> {
    Err(refused(format!(
        "the template needs others ({what}), which are not read"
    )))
}

/// A method of a string or collection, as in Python.
pub(super) fn method(
    state: &State<'_, '_>,
    value: &Value,
    name: &str,
    args: &[Value],
) -> Result<Value, Error> {
    let text = value.as_str();
    let arg = |index: usize| args.get(index).and_then(Value::as_str);
    match (name, text) {
        ("replace", Some(text)) => {
            if let (Some(from), Some(to)) = (arg(0), arg(1)) {
                check_replace(text, from, to)?;
            }
        }
        ("join", Some(text)) => {
            if let Some(values) = args.first() {
                counted(values)?;
                check_join(values, text)?;
            }
        }
        ("format", Some(text)) => check_format(text, args)?,
        // The library counts without end.
        ("count", Some(text)) if arg(0) == Some("") => {
            return Ok(Value::from(text.chars().count() + 1));
        }
        _ => {}
    }
    minijinja_contrib::pycompat::unknown_method_callback(state, value, name, args)
}

/// [`check_length`] of what a filter returns, which `map` may call for many items.
fn check_result(bytes: u64) -> Result<(), Error> {
    check_length(bytes)?;
    charge(bytes / 4)
}

fn check_replace(text: &str, from: &str, to: &str) -> Result<(), Error> {
    let count = text.matches(from).count() as u64;
    check_result((text.len() as u64).saturating_add(count.saturating_mul(to.len() as u64)))
}

fn check_join(values: &Value, separator: &str) -> Result<(), Error> {
    let count = match values.len() {
        Some(count) => count,
        None => values.try_iter().map_or(0, Iterator::count),
    };
    check_result((count as u64).saturating_mul(separator.len() as u64))
}

/// Every field may print every argument, and as many spaces or digits as any number in the format says.
fn check_format(text: &str, args: &[Value]) -> Result<(), Error> {
    let numbers = text.split(|c: char| !c.is_ascii_digit());
    let mut widest =
        numbers
            .filter(|number| !number.is_empty())
            .try_fold(0, |widest, number| {
                let number: u64 = number
                    .parse()
                    .map_err(|_| refused("a width without bound"))?;
                Ok::<u64, Error>(widest.max(number))
            })?;
    let mut bytes = 0;
    for arg in args {
        let size = values::size(&bounded(arg)?).map_or(32, |size| size.bytes);
        bytes += size.max(arg.as_str().map_or(0, str::len) as u64);
        // `%*d` takes its width from an argument.
        if text.contains('*') || text.contains("{:{") {
            widest = widest.max(u64::try_from(arg.clone()).unwrap_or(0));
        }
    }
    let fields = text.bytes().filter(|byte| b"%{".contains(byte)).count() as u64;
    let field = bytes.saturating_mul(2).saturating_add(widest);
    check_result(
        fields
            .saturating_mul(field)
            .saturating_add(text.len() as u64),
    )
}

fn replace(
    state: &State<'_, '_>,
    value: StringInput<'_>,
    from: StringInput<'_>,
    to: StringInput<'_>,
) -> Result<Value, Error> {
    check_replace(value.as_str(), from.as_str(), to.as_str())?;
    filters::replace(state, value, from, to)
}

fn join(
    state: &State<'_, '_>,
    value: &Value,
    separator: Option<StringInput<'_>>,
) -> Result<Value, Error> {
    if let Some(separator) = &separator {
        check_join(value, separator.as_str())?;
    }
    filters::join(state, value, separator)
}

fn indent(
    value: StringInput<'_>,
    width: Option<usize>,
    first: Option<bool>,
    blank: Option<bool>,
    kwargs: Kwargs,
) -> Result<Value, Error> {
    let named: Option<usize> = kwargs.peek("width").ok();
    let width = width.or(named).unwrap_or(4) as u64;
    let lines = value.as_str().bytes().filter(|byte| *byte == b'\n').count() as u64 + 1;
    check_result(
        lines
            .saturating_mul(width)
            .saturating_add(value.as_str().len() as u64),
    )?;
    filters::indent(value, width.try_into().ok(), first, blank, kwargs)
}

fn format(state: &State<'_, '_>, text: &Value, args: Rest<Value>) -> Result<Value, Error> {
    check_format(text.as_str().unwrap_or_default(), &args)?;
    filters::format(state, text, args)
}

fn check_columns(count: usize) -> Result<(), Error> {
    match count <= COLUMNS {
        true => charge(count as u64 * 4),
        false => Err(refused(format!(
            "{count} columns; at most {COLUMNS} are possible"
        ))),
    }
}

fn batch(
    state: &State<'_, '_>,
    value: Value,
    count: usize,
    fill: Option<Value>,
) -> Result<Value, Error> {
    check_columns(count)?;
    filters::batch(state, value, count, fill)
}

fn slice(
    state: &State<'_, '_>,
    value: Value,
    count: usize,
    fill: Option<Value>,
) -> Result<Value, Error> {
    check_columns(count)?;
    filters::slice(state, value, count, fill)
}
