//! Jinja as in Python's Jinja2 and transformers, on minijinja: the environment of chat templates and row formats.

#[cfg(test)]
mod bombs;
mod budget;
mod date;
mod json;
mod print;
mod rewrite;
mod values;

pub(crate) use values::from_json;

use std::collections::BTreeSet;

use minijinja::value::{Value, ValueKind};
use minijinja::{AutoEscape, Environment, Error, ErrorKind, UndefinedBehavior};

use crate::guard::contain;

/// Name under which the one template of an environment is stored.
pub(crate) const TEMPLATE: &str = "template";

/// An environment with Python's string methods, Python's spelling of printed values, and transformers' `tojson`,
/// `raise_exception` and `strftime_now`. Nothing is escaped.
///
/// `now` is the time of `strftime_now` in seconds since 1970, by default the clock's. It is formatted in UTC; transformers uses
/// local time.
pub(crate) fn environment(undefined: UndefinedBehavior, now: Option<i64>) -> Environment<'static> {
    let mut env = Environment::new();
    env.set_auto_escape_callback(|_| AutoEscape::None);
    env.set_undefined_behavior(undefined);
    env.set_unknown_method_callback(budget::method);
    env.set_formatter(print::write_like_python);
    budget::install(&mut env);
    env.add_filter("tojson", json::tojson);
    env.add_filter("string", |value: &Value| -> Result<Value, Error> {
        Ok(match value.kind() {
            ValueKind::String | ValueKind::Undefined => Value::from(value.to_string()),
            _ => Value::from(print::python_repr(value)?),
        })
    });
    // In Python everything with a length and items is a sequence: strings, mappings, and Jinja2's undefined value.
    env.add_test("sequence", |value: &Value| {
        matches!(
            value.kind(),
            ValueKind::Seq | ValueKind::String | ValueKind::Map | ValueKind::Undefined
        )
    });
    env.add_test("iterable", |value: &Value| match value.kind() {
        ValueKind::String | ValueKind::Undefined => true,
        ValueKind::None => false,
        _ => value.try_iter().is_ok(),
    });
    env.add_function(
        "raise_exception",
        |message: String| -> Result<Value, Error> {
            Err(Error::new(ErrorKind::InvalidOperation, message))
        },
    );
    env.add_function("strftime_now", move |format: String| {
        let now = now.unwrap_or_else(|| {
            std::time::SystemTime::now()
                .duration_since(std::time::UNIX_EPOCH)
                .unwrap_or_default()
                .as_secs() as i64
        });
        date::strftime(now, &format)
    });
    env
}

/// An environment as minijinja makes it, within the limits of [`render`]. Nothing is escaped.
pub(crate) fn plain_environment() -> Environment<'static> {
    let mut env = Environment::new();
    env.set_auto_escape_callback(|_| AutoEscape::None);
    env.set_formatter(print::write_text);
    budget::install(&mut env);
    env
}

/// A [`plain_environment`] with the one template `source`, for which a name that is not there is an error, not an empty text.
///
/// # Errors
/// As [`compile`].
pub(crate) fn strict(source: &str) -> Result<Environment<'static>, Error> {
    let mut env = plain_environment();
    env.set_undefined_behavior(UndefinedBehavior::Strict);
    env.set_keep_trailing_newline(true);
    compile(&mut env, source)?;
    Ok(env)
}

/// Names of the items of `object` that the one template of an environment reads as `object.name`, sorted; items that it looks up by
/// other expressions are not seen.
pub(crate) fn items_read(env: &Environment<'_>, object: &str) -> Vec<String> {
    let Ok(template) = env.get_template(TEMPLATE) else {
        return Vec::new();
    };
    let names = template.undeclared_variables(true);
    let item = |name: &String| {
        let (of, rest) = name.split_once('.')?;
        (of == object).then(|| rest.split('.').next().unwrap_or(rest).to_owned())
    };
    let found: BTreeSet<String> = names.iter().filter_map(item).collect();
    found.into_iter().collect()
}

/// Compiles the one template of an environment, whose white space settings count. Rendering it by [`render`] is bounded in time and
/// memory.
///
/// # Errors
/// If it does not parse, or has chains or nesting beyond those of usual templates.
pub(crate) fn compile(env: &mut Environment<'static>, source: &str) -> Result<(), Error> {
    whole(|| {
        let source = rewrite::rewrite(env, TEMPLATE, source)?;
        env.add_template_owned(TEMPLATE, source)
    })
}

/// Renders the one template of an environment.
///
/// # Errors
/// Its own, and if it costs more than its input accounts for.
pub(crate) fn render(env: &Environment<'_>, context: Value) -> Result<String, Error> {
    let template = env.get_template(TEMPLATE)?;
    let input = values::text_size(&context);
    whole(|| budget::with_budget(input, || template.render(context)))
}

/// What `f` returns; a panic of the engine is an error.
fn whole<T>(f: impl FnOnce() -> Result<T, Error>) -> Result<T, Error> {
    contain(f).unwrap_or_else(|failure| {
        let message = format!("the template engine fails: {failure}");
        Err(budget::refused(message))
    })
}

/// Most characters of an error.
const LONGEST_ERROR: usize = 2000;

/// An error with its causes in one line: minijinja puts details in `source`.
pub(crate) fn explain(error: &Error) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    // What a template raises may be long.
    match text.char_indices().nth(LONGEST_ERROR) {
        Some((end, _)) => format!("{}..", &text[..end]),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn render(source: &str, context: serde_json::Value) -> String {
        let mut env = environment(UndefinedBehavior::Lenient, None);
        compile(&mut env, source)
            .and_then(|()| super::render(&env, from_json(&context)))
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
    fn data_turns_into_text_as_in_python_wherever_that_happens() {
        let context =
            serde_json::json!({"x": [{"type": "text", "n": null}], "y": {"a": [true, 1.0]}});
        // Python: str([{'type': 'text', 'n': None}]).upper(), 'a' + str({'a': [True, 1.0]}) ...
        assert_eq!(
            render(
                "{{ x | trim }}{{ x | upper }}{{ 'a' ~ y }}{{ y.a | join('+') }}",
                context.clone()
            ),
            "[{'type': 'text', 'n': None}][{'TYPE': 'TEXT', 'N': NONE}]a{'a': [True, 1.0]}True+1.0"
        );
        assert_eq!(
            render(
                "{{ x[0].type }}{{ x | length }}{{ y is mapping }}{{ x == [{'type': 'text', 'n': none}] }}{{ (x + [2])[1:] }}{{ y.items() | list }}{{ x | map(attribute='type') | first }}{{ y.nothing is undefined }}{{ x[-1].get('n', 3) }}{{ 'a' in y }}{{ x[5] is undefined }}",
                context
            ),
            "text1TrueTrue[2][['a', [True, 1.0]]]textTrueNoneTrueTrue"
        );
        assert_eq!(
            render(
                "{{ none is iterable }}{{ 'a' is iterable }}{{ none is sequence }}{{ nothing is iterable }}",
                serde_json::json!({})
            ),
            "FalseTrueFalseTrue"
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
    fn numbers_and_odd_characters_print_as_python_prints_them() {
        // Python: print([1e16, 1e15, 0.0001, 1e-05, -0.0, 1.5e300, 2.5, 'a\xa0\u200b\U000e0001 \x7f'])
        let context = serde_json::json!({"x": [1e16, 1e15, 0.0001, 1e-5, -0.0, 1.5e300, 2.5, "a\u{a0}\u{200b}\u{e0001} \u{7f}"]});
        assert_eq!(
            render("{{ x }} {{ x[0] }} {{ x | string }}", context),
            "[1e+16, 1000000000000000.0, 0.0001, 1e-05, -0.0, 1.5e+300, 2.5, 'a\\xa0\\u200b\\U000e0001 \\x7f'] 1e+16 \
             [1e+16, 1000000000000000.0, 0.0001, 1e-05, -0.0, 1.5e+300, 2.5, 'a\\xa0\\u200b\\U000e0001 \\x7f']"
        );
    }

    #[test]
    fn tojson_takes_json_dumps_arguments() {
        let context = serde_json::json!({"x": {"b": "\u{e9}\u{1f600}\n\u{1}\u{7f}", "a": [], "c": {"d": 1e20}}});
        // json.dumps(x, ensure_ascii=True, sort_keys=True, separators=(',', ':'))
        assert_eq!(
            render(
                "{{ x | tojson(ensure_ascii=true, sort_keys=true, separators=[',', ':']) }}",
                context.clone()
            ),
            "{\"a\":[],\"b\":\"\\u00e9\\ud83d\\ude00\\n\\u0001\u{7f}\",\"c\":{\"d\":1e+20}}"
        );
        assert_eq!(
            render(
                "{{ x.c | tojson(indent=1) }}{{ x.a | tojson(indent=1) }}",
                context
            ),
            "{\n \"d\": 1e+20\n}[]"
        );
        let text = render("{{ x.nothing | tojson }}", serde_json::json!({"x": {}}));
        assert!(text.contains("undefined has no JSON"), "{text}");
    }

    #[test]
    fn the_time_can_be_given() {
        let mut env = environment(UndefinedBehavior::Lenient, Some(951_782_400));
        env.add_template(TEMPLATE, "{{ strftime_now('%d %b %Y') }}")
            .unwrap();
        let text = env.get_template(TEMPLATE).unwrap().render(()).unwrap();
        assert_eq!(text, "29 Feb 2000");
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
    fn raise_exception_says_its_message() {
        let text = render(
            "{{ raise_exception('roles must alternate') }}",
            serde_json::json!({}),
        );
        assert!(text.contains("roles must alternate"), "{text}");
    }
}
