//! Jinja as Python's Jinja2 and transformers write it, on minijinja: the environment that chat templates and row
//! formats share.

use minijinja::value::{Kwargs, Value, ValueKind};
use minijinja::{AutoEscape, Environment, Error, ErrorKind, Output, State, UndefinedBehavior};
use serde::Serialize;
use serde_json::ser::{Formatter, PrettyFormatter};

/// Name under which the one template of an environment is stored.
pub(crate) const TEMPLATE: &str = "template";

/// An environment with Python's string methods, Python's spelling of printed values, and transformers' `tojson`,
/// `raise_exception` and `strftime_now`. Nothing is escaped.
pub(crate) fn environment(undefined: UndefinedBehavior) -> Environment<'static> {
    let mut env = Environment::new();
    env.set_auto_escape_callback(|_| AutoEscape::None);
    env.set_undefined_behavior(undefined);
    env.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    env.set_formatter(write_like_python);
    env.add_filter("tojson", tojson);
    env.add_function(
        "raise_exception",
        |message: String| -> Result<Value, Error> {
            Err(Error::new(ErrorKind::InvalidOperation, message))
        },
    );
    env.add_function("strftime_now", |format: String| {
        let since = std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .unwrap_or_default();
        strftime(since.as_secs() as i64, &format)
    });
    env
}

/// An error with its causes in one line: minijinja keeps the useful half in `source`.
pub(crate) fn explain(error: &Error) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

/// Prints `True`, `None` and `['a']` where minijinja would print `true`, `none` and `["a"]`.
fn write_like_python(out: &mut Output, state: &State, value: &Value) -> Result<(), Error> {
    match value.kind() {
        ValueKind::Bool | ValueKind::None | ValueKind::Seq | ValueKind::Map => {
            let text = python_repr(value)?;
            out.write_str(&text).map_err(Error::from)
        }
        _ => minijinja::escape_formatter(out, state, value),
    }
}

/// Python's `repr` of plain data.
fn python_repr(value: &Value) -> Result<String, Error> {
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
                    c => out.push(c),
                }
            }
            out.push(quote);
            out
        }
        ValueKind::Seq => {
            let items: Result<Vec<_>, _> = value.try_iter()?.map(|v| python_repr(&v)).collect();
            format!("[{}]", items?.join(", "))
        }
        ValueKind::Map => {
            let mut items = Vec::new();
            for key in value.try_iter()? {
                let item = value.get_item(&key)?;
                items.push(format!("{}: {}", python_repr(&key)?, python_repr(&item)?));
            }
            format!("{{{}}}", items.join(", "))
        }
        _ => value.to_string(),
    })
}

/// transformers' `tojson`: `json.dumps(value, ensure_ascii=False, indent=indent)`, nothing escaped for HTML.
fn tojson(value: &Value, kwargs: Kwargs) -> Result<Value, Error> {
    let indent: Option<usize> = kwargs.get("indent")?;
    let _ignored: (Option<bool>, Option<bool>) =
        (kwargs.get("ensure_ascii")?, kwargs.get("sort_keys")?);
    kwargs.assert_all_used()?;
    let mut bytes = Vec::new();
    let written = match indent {
        Some(width) => {
            let spaces = " ".repeat(width);
            let pretty = PrettyFormatter::with_indent(spaces.as_bytes());
            value.serialize(&mut serde_json::Serializer::with_formatter(
                &mut bytes, pretty,
            ))
        }
        None => value.serialize(&mut serde_json::Serializer::with_formatter(
            &mut bytes,
            PythonSeparators,
        )),
    };
    written.map_err(|e| Error::new(ErrorKind::BadSerialization, e.to_string()))?;
    let text = String::from_utf8(bytes)
        .map_err(|e| Error::new(ErrorKind::BadSerialization, e.to_string()))?;
    Ok(Value::from(text))
}

/// `", "` and `": "`, as Python's `json.dumps` writes them on one line.
struct PythonSeparators;

impl Formatter for PythonSeparators {
    fn begin_array_value<W: ?Sized + std::io::Write>(
        &mut self,
        writer: &mut W,
        first: bool,
    ) -> std::io::Result<()> {
        if first {
            Ok(())
        } else {
            writer.write_all(b", ")
        }
    }

    fn begin_object_key<W: ?Sized + std::io::Write>(
        &mut self,
        writer: &mut W,
        first: bool,
    ) -> std::io::Result<()> {
        if first {
            Ok(())
        } else {
            writer.write_all(b", ")
        }
    }

    fn begin_object_value<W: ?Sized + std::io::Write>(
        &mut self,
        writer: &mut W,
    ) -> std::io::Result<()> {
        writer.write_all(b": ")
    }
}

/// C's `strftime` for the fields that chat templates use, in UTC; an unknown field stays as written.
fn strftime(unix_seconds: i64, format: &str) -> String {
    const MONTHS: [&str; 12] = [
        "January",
        "February",
        "March",
        "April",
        "May",
        "June",
        "July",
        "August",
        "September",
        "October",
        "November",
        "December",
    ];
    const DAYS: [&str; 7] = [
        "Sunday",
        "Monday",
        "Tuesday",
        "Wednesday",
        "Thursday",
        "Friday",
        "Saturday",
    ];
    let (days, seconds) = (
        unix_seconds.div_euclid(86_400),
        unix_seconds.rem_euclid(86_400),
    );
    let (year, month, day) = civil_date(days);
    let weekday = DAYS[(days + 4).rem_euclid(7) as usize]; // 1970-01-01 was a Thursday
    let month_name = MONTHS[month as usize - 1];
    let (hour, minute, second) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    let mut out = String::new();
    let mut chars = format.chars();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        let mut field = chars.next();
        let bare = field == Some('-'); // %-d: without the leading zero
        if bare {
            field = chars.next();
        }
        let two = |n: i64| {
            if bare {
                n.to_string()
            } else {
                format!("{n:02}")
            }
        };
        match field {
            Some('Y') => out.push_str(&year.to_string()),
            Some('y') => out.push_str(&two(year.rem_euclid(100))),
            Some('m') => out.push_str(&two(month)),
            Some('d') => out.push_str(&two(day)),
            Some('B') => out.push_str(month_name),
            Some('b') => out.push_str(&month_name[..3]),
            Some('A') => out.push_str(weekday),
            Some('a') => out.push_str(&weekday[..3]),
            Some('H') => out.push_str(&two(hour)),
            Some('I') => out.push_str(&two((hour + 11) % 12 + 1)),
            Some('p') => out.push_str(if hour < 12 { "AM" } else { "PM" }),
            Some('M') => out.push_str(&two(minute)),
            Some('S') => out.push_str(&two(second)),
            Some('%') => out.push('%'),
            Some(other) => {
                out.push('%');
                out.push(other);
            }
            None => out.push('%'),
        }
    }
    out
}

/// Gregorian year, month and day of a day number (0 = 1970-01-01).
///
/// # Source
/// Howard Hinnant, "chrono-Compatible Low-Level Date Algorithms", `civil_from_days`.
fn civil_date(days: i64) -> (i64, i64, i64) {
    let shifted = days + 719_468; // days since 0000-03-01
    let era = shifted.div_euclid(146_097);
    let day_of_era = shifted.rem_euclid(146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = (month_from_march + 2) % 12 + 1;
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    (year, month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn render(source: &str, context: serde_json::Value) -> String {
        environment(UndefinedBehavior::Lenient)
            .render_str(source, context)
            .unwrap_or_else(|e| explain(&e))
    }

    #[test]
    fn values_print_as_python_prints_them() {
        let context = serde_json::json!({"x": [true, null, "it's", 'a', 1.0, {"k": "v\n"}]});
        // Python: print([True, None, "it's", 'a', 1.0, {'k': 'v\n'}])
        assert_eq!(
            render("{{ x }} {{ x[0] }} {{ x[1] }} {{ x[2] }}", context),
            "[True, None, \"it's\", 'a', 1.0, {'k': 'v\\n'}] True None it's"
        );
    }

    #[test]
    fn tojson_is_json_dumps_without_ascii() {
        let context = serde_json::json!({"x": {"b": "<\u{e9}>", "a": [1, 2.5, null]}});
        // json.dumps(x, ensure_ascii=False): keys keep their order
        assert_eq!(
            render("{{ x | tojson }}", context.clone()),
            "{\"b\": \"<\u{e9}>\", \"a\": [1, 2.5, null]}"
        );
        assert_eq!(
            render("{{ x.a | tojson(indent=2) }}", context),
            "[\n  1,\n  2.5,\n  null\n]"
        );
    }

    #[test]
    fn slices_count_characters_and_python_methods_work() {
        let context = serde_json::json!({"t": "d\u{e9}j\u{e0} vu\n"});
        assert_eq!(
            render("{{ t[:4] }}|{{ t[-3:] }}", context.clone()),
            "d\u{e9}j\u{e0}|vu\n"
        );
        assert_eq!(
            render(
                "{{ t.strip().split(' ')[1].upper() }}{{ t.startswith('d') }}",
                context
            ),
            "VUTrue"
        );
        assert_eq!(
            render(
                "{% for i in [1,2,3] %}{% if i == 3 %}{% break %}{% endif %}{{ i }}{% endfor %}",
                serde_json::json!({})
            ),
            "12"
        );
    }

    #[test]
    fn dates_follow_the_calendar() {
        // date -u -d @951782400 => Tue Feb 29 00:00:00 UTC 2000
        assert_eq!(
            strftime(951_782_400, "%d %b %Y %A %-m %H:%M:%S %I%p %y %q %%"),
            "29 Feb 2000 Tuesday 2 00:00:00 12AM 00 %q %"
        );
        // date -u -d @1735689599 => Tue Dec 31 23:59:59 UTC 2024
        assert_eq!(
            strftime(1_735_689_599, "%Y-%m-%d %B %a %I%p"),
            "2024-12-31 December Tue 11PM"
        );
        assert_eq!(strftime(-86_400, "%Y-%m-%d %a"), "1969-12-31 Wed");
    }

    #[test]
    fn raise_exception_says_its_message() {
        let text = render(
            "{{ raise_exception('roles must alternate') }}",
            serde_json::json!({}),
        );
        assert!(text.contains("roles must alternate"), "{text}");
    }
}
