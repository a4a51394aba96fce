//! Formats values as Python does.

use std::sync::LazyLock;

use minijinja::value::{Value, ValueKind};
use minijinja::{Error, Output, State};
use regex::Regex;

use super::budget::{DEEPEST, charge, refused};

/// Prints `True`, `None` and `['a']` where minijinja would print `true`, `none` and `["a"]`.
pub(super) fn write_like_python(
    out: &mut Output,
    state: &State,
    value: &Value,
) -> Result<(), Error> {
    match value.kind() {
        ValueKind::Bool
        | ValueKind::None
        | ValueKind::Number
        | ValueKind::Seq
        | ValueKind::Iterable
        | ValueKind::Map => out.write_str(&python_repr(value)?).map_err(Error::from),
        _ => write_text(out, state, value),
    }
}

/// Prints as minijinja does, and charges for the text.
pub(super) fn write_text(out: &mut Output, state: &State, value: &Value) -> Result<(), Error> {
    charge(value.as_str().map_or(0, str::len) as u64 + 1)?;
    minijinja::escape_formatter(out, state, value)
}

/// Characters that Python's `repr` escapes, except the space: control, format, unassigned and separator characters.
static NOT_PRINTED: LazyLock<Regex> =
    LazyLock::new(|| Regex::new(r"[\p{C}\p{Z}]").expect("the pattern is a literal"));

/// Python's `repr` of plain data.
pub(super) fn python_repr(value: &Value) -> Result<String, Error> {
    nested_repr(value, 0)
}

fn nested_repr(value: &Value, depth: u32) -> Result<String, Error> {
    charge(value.as_str().map_or(0, str::len) as u64 + 1)?;
    if depth > DEEPEST {
        return Err(refused("a value is nested too deeply to be printed"));
    }
    let depth = depth + 1;
    Ok(match value.kind() {
        ValueKind::None => "None".into(),
        ValueKind::Bool => if value.is_true() { "True" } else { "False" }.into(),
        ValueKind::String => {
            let text = value.as_str().unwrap_or_default();
            // Python changes the quotes only where that saves escaping.
            let quote = if text.contains('\'') && !text.contains('"') {
                '"'
            } else {
                '\''
            };
            let mut out = String::from(quote);
            for c in text.chars() {
                match c {
                    '\n' => out.push_str("\\n"),
                    '\r' => out.push_str("\\r"),
                    '\t' => out.push_str("\\t"),
                    '\\' => out.push_str("\\\\"),
                    c if c == quote => {
                        out.push('\\');
                        out.push(c);
                    }
                    c if c != ' ' && NOT_PRINTED.is_match(c.encode_utf8(&mut [0; 4])) => {
                        let code = u32::from(c);
                        out.push_str(&match code {
                            0..=0xff => format!("\\x{code:02x}"),
                            0x100..=0xffff => format!("\\u{code:04x}"),
                            _ => format!("\\U{code:08x}"),
                        });
                    }
                    c => out.push(c),
                }
            }
            out.push(quote);
            out
        }
        ValueKind::Number => match f64::try_from(value.clone()) {
            Ok(x) if !value.is_integer() => float(x),
            _ => value.to_string(),
        },
        ValueKind::Seq | ValueKind::Iterable => {
            let items: Result<Vec<_>, _> =
                value.try_iter()?.map(|v| nested_repr(&v, depth)).collect();
            format!("[{}]", items?.join(", "))
        }
        ValueKind::Map => {
            let mut items = Vec::new();
            for key in value.try_iter()? {
                let item = value.get_item(&key)?;
                items.push(format!(
                    "{}: {}",
                    nested_repr(&key, depth)?,
                    nested_repr(&item, depth)?
                ));
            }
            format!("{{{}}}", items.join(", "))
        }
        _ => value.to_string(),
    })
}

/// Python's `repr` of a float: the shortest digits that read back, with an exponent below 1e-4 and from 1e16 on.
pub(super) fn float(x: f64) -> String {
    if !x.is_finite() {
        return match x {
            _ if x.is_nan() => "nan",
            _ if x > 0.0 => "inf",
            _ => "-inf",
        }
        .into();
    }
    let scientific = format!("{x:e}");
    let Some((digits, exponent)) = scientific.split_once('e') else {
        return scientific;
    };
    match exponent.parse::<i32>() {
        Ok(exponent) if x != 0.0 && !(-4..16).contains(&exponent) => {
            let sign = if exponent < 0 { '-' } else { '+' };
            format!("{digits}e{sign}{:02}", exponent.abs())
        }
        _ if x.fract() == 0.0 => format!("{x:.1}"),
        _ => x.to_string(),
    }
}
