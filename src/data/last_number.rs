//! The last number in a text, by which answers are compared.

use std::sync::LazyLock;

use regex::Regex;

/// Digits with optional sign, groups of three, fraction and exponent.
static NUMBER: LazyLock<Regex> = LazyLock::new(|| {
    Regex::new(r"[-+]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?:[eE][-+]?\d+)?|[-+]?\.\d+")
        .expect("a literal")
});

/// The last number in `text`. A minus directly after a digit or letter is a dash.
pub(crate) fn last_number(text: &str) -> Option<f64> {
    let found = NUMBER.find_iter(text).last()?;
    let before = text[..found.start()].chars().next_back();
    let number = match before {
        Some(c) if c.is_alphanumeric() => found.as_str().trim_start_matches(['-', '+']),
        _ => found.as_str(),
    };
    number.replace(',', "").parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_number_counts() {
        for (text, want) in [
            ("3 apples and 4 make 7.", Some(7.0)),
            ("= $1,234.50", Some(1234.5)),
            ("#### -12", Some(-12.0)),
            ("between 3-5", Some(5.0)),
            ("about 6.02e23 of them", Some(6.02e23)),
            (".5", Some(0.5)),
            ("1,2", Some(2.0)),
            ("none", None),
        ] {
            assert_eq!(last_number(text), want, "{text}");
        }
    }
}
