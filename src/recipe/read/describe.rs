//! Errors of the RON parser in the words of recipes.

use ron::Error as Ron;

use crate::recipe::elsewhere;
use crate::suggest::{did_you_mean, quoted};

/// Message and advice for an error of the RON parser.
pub(super) fn describe(error: &Ron, found: &str) -> (String, Option<String>) {
    let expected = |what: &str| (format!("expected {what}, found `{found}`"), None);
    match error {
        Ron::NoSuchStructField {
            expected, found, ..
        } => (
            format!(
                "unknown key `{found}`; known keys: {}",
                quoted(expected.iter().copied())
            ),
            elsewhere::key(found, expected)
                .or_else(|| did_you_mean(found, expected.iter().copied())),
        ),
        Ron::NoSuchEnumVariant {
            expected, found, ..
        } => (
            format!(
                "unknown variant `{found}`; expected one of {}",
                quoted(expected.iter().copied())
            ),
            elsewhere::variant(found, expected)
                .or_else(|| did_you_mean(found, expected.iter().copied())),
        ),
        Ron::MissingStructField { field, .. } => {
            (format!("required key `{field}` is missing"), None)
        }
        Ron::DuplicateStructField { field, .. } => (
            format!("the key `{field}` is given twice"),
            Some("keep one of the two".into()),
        ),
        Ron::ExpectedString => expected("a string in double quotes"),
        Ron::ExpectedInteger | Ron::IntegerOutOfBounds => expected("a whole number of at least 0"),
        Ron::ExpectedFloat => expected("a number"),
        Ron::ExpectedBoolean => expected("`true` or `false`"),
        Ron::ExpectedArray => expected("a list in `[` and `]`"),
        Ron::ExpectedMap => expected("a map in `{` and `}`"),
        Ron::ExpectedIdentifier => expected("the name of a variant (without quotes)"),
        Ron::ExpectedStructLike | Ron::ExpectedNamedStructLike(_) => {
            expected("arguments in `(` and `)`")
        }
        Ron::ExpectedOption => expected("a value or `None`"),
        // A fraction where a whole number is expected, or arguments of a variant without any.
        Ron::ExpectedComma
            if found.starts_with(|c: char| c.is_ascii_digit())
                && found.contains(['.', 'e', 'E']) =>
        {
            expected("a whole number")
        }
        Ron::ExpectedComma | Ron::ExpectedStructLikeEnd => (
            format!("unexpected text after the value in `{found}`"),
            None,
        ),
        Ron::InvalidValueForType { expected, found } => {
            (format!("expected {expected}, found {found}"), None)
        }
        Ron::ExpectedDifferentLength { expected, found } => {
            (format!("expected {expected}, found {found} elements"), None)
        }
        other => (other.to_string(), None),
    }
}
