//! Text of others on a terminal: control characters in it could move the cursor, hide what stands there or answer for the user.

use std::borrow::Cow;
use std::io::Write;

/// `text` with control characters as `\u{..}`, but for line breaks and tabs.
pub fn escaped(text: &str) -> Cow<'_, str> {
    let harmless = |c: char| !c.is_control() || matches!(c, '\n' | '\t');
    if text.chars().all(harmless) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        match harmless(c) {
            true => out.push(c),
            false => out.extend(c.escape_unicode()),
        }
    }
    Cow::Owned(out)
}

/// Writes a line to stderr, [`escaped`]. A closed stderr is not an error.
pub fn say(text: &str) {
    let _ = writeln!(std::io::stderr(), "{}", escaped(text));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_are_shown_and_not_sent() {
        // Clears the screen; overwrites the line; sets the title by an 8-bit control; a bell.
        assert_eq!(escaped("a\u{1b}[2Jb"), "a\\u{1b}[2Jb");
        assert_eq!(escaped("sure\rnot"), "sure\\u{d}not");
        assert_eq!(escaped("\u{9d}0;x\u{7}\u{7f}"), "\\u{9d}0;x\\u{7}\\u{7f}");
        let plain = "one\ttwo\nd\u{e9}j\u{e0} \u{1f642}";
        assert!(matches!(escaped(plain), Cow::Borrowed(text) if text == plain));
    }
}
