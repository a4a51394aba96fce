//! An untyped RON parser that records positions.
//!
//! The `ron` crate stops at its first error and records no positions. With the position of every key and value, all problems of a
//! recipe can be reported at once, each with line and column.

use std::collections::HashSet;
use std::ops::Range;

/// Deepest nesting; recipes need about eight levels.
const MAX_DEPTH: usize = 64;

/// A value of the text. Positions are indices into the text's characters (not bytes).
#[derive(Debug, Clone)]
pub(super) struct Node {
    /// The value's characters, its variant name included.
    pub(super) span: Range<usize>,
    /// Its kind.
    pub(super) kind: Kind,
}

/// The kind of a value, with its parts.
#[derive(Debug, Clone)]
pub(super) enum Kind {
    /// `(key: value, ..)`, `Name(key: value, ..)` or `{ "key": value, .. }`.
    Fields(Vec<Field>),
    /// `[a, b]`, `(a, b)` or `Name(a)`.
    Items(Vec<Node>),
    /// A string, unescaped.
    Text(String),
    /// A number, a character or a bare name.
    Leaf,
}

/// A key with its value.
#[derive(Debug, Clone)]
pub(super) struct Field {
    /// The key's name.
    pub(super) key: String,
    /// The key's characters.
    pub(super) key_span: Range<usize>,
    /// Key, value and the comma after it.
    pub(super) span: Range<usize>,
    /// The value.
    pub(super) value: Node,
}

impl Node {
    /// The value inside wrappers such as `Some(..)` and `Stage(..)`: variants with one unnamed argument.
    pub(super) fn inner(&self, text: &[char]) -> &Self {
        match &self.kind {
            Kind::Items(items) if items.len() == 1 && text[self.span.start] != '[' => {
                items[0].inner(text)
            }
            _ => self,
        }
    }

    /// The value of `key`.
    pub(super) fn field(&self, key: &str) -> Option<&Field> {
        match &self.kind {
            Kind::Fields(fields) => fields.iter().find(|field| field.key == key),
            _ => None,
        }
    }
}

/// Why the text is not RON.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct SyntaxError {
    /// Index of the offending character.
    pub(super) at: usize,
    /// What was expected and found.
    pub(super) message: String,
}

/// Parses a text that consists of one value.
pub(super) fn scan(text: &[char]) -> Result<Node, SyntaxError> {
    let mut scanner = Scanner { text, at: 0 };
    scanner.skip_attributes()?;
    let node = scanner.value(0)?;
    scanner.skip_space()?;
    match scanner.peek() {
        None => Ok(node),
        Some(c) => Err(scanner.error(format!("expected the end of the text, found `{c}`"))),
    }
}

/// 1-based line and column of a character. For many characters of a text there is [`Lines`].
pub(super) fn line_column(text: &[char], at: usize) -> (usize, usize) {
    let before = &text[..at.min(text.len())];
    let line = before.iter().filter(|&&c| c == '\n').count() + 1;
    let column = before.iter().rev().take_while(|&&c| c != '\n').count() + 1;
    (line, column)
}

/// Where the lines of a text begin.
#[derive(Debug)]
pub(super) struct Lines {
    starts: Vec<usize>,
    len: usize,
}

impl Lines {
    /// The lines of `text`.
    pub(super) fn of(text: &[char]) -> Self {
        let breaks = text.iter().enumerate().filter(|&(_, &c)| c == '\n');
        Self {
            starts: breaks.map(|(at, _)| at + 1).collect(),
            len: text.len(),
        }
    }

    /// [`line_column`] of a character.
    pub(super) fn position(&self, at: usize) -> (usize, usize) {
        let at = at.min(self.len);
        let before = self.starts.partition_point(|&start| start <= at);
        let start = before.checked_sub(1).map_or(0, |last| self.starts[last]);
        (before + 1, at - start + 1)
    }
}

/// Index of the character at a 1-based line and column.
pub(super) fn index_of(text: &[char], line: usize, column: usize) -> usize {
    let start = if line <= 1 {
        0
    } else {
        text.iter()
            .enumerate()
            .filter(|&(_, &c)| c == '\n')
            .nth(line - 2)
            .map_or(text.len(), |(i, _)| i + 1)
    };
    (start + column.saturating_sub(1)).min(text.len())
}

struct Scanner<'a> {
    text: &'a [char],
    at: usize,
}

impl Scanner<'_> {
    fn peek(&self) -> Option<char> {
        self.text.get(self.at).copied()
    }

    fn starts_with(&self, pattern: &str) -> bool {
        pattern
            .chars()
            .enumerate()
            .all(|(i, c)| self.text.get(self.at + i) == Some(&c))
    }

    fn error(&self, message: impl Into<String>) -> SyntaxError {
        self.error_at(self.at, message)
    }

    fn error_at(&self, at: usize, message: impl Into<String>) -> SyntaxError {
        SyntaxError {
            at,
            message: message.into(),
        }
    }

    fn skip_space(&mut self) -> Result<(), SyntaxError> {
        loop {
            if self.peek().is_some_and(char::is_whitespace) {
                self.at += 1;
            } else if self.starts_with("//") {
                while self.peek().is_some_and(|c| c != '\n') {
                    self.at += 1;
                }
            } else if self.starts_with("/*") {
                self.skip_block_comment()?;
            } else {
                return Ok(());
            }
        }
    }

    fn skip_block_comment(&mut self) -> Result<(), SyntaxError> {
        let start = self.at;
        let mut depth = 0;
        loop {
            if self.starts_with("/*") {
                depth += 1;
                self.at += 2;
            } else if self.starts_with("*/") {
                depth -= 1;
                self.at += 2;
                if depth == 0 {
                    return Ok(());
                }
            } else if self.peek().is_none() {
                return Err(self.error_at(start, "this comment is never closed with `*/`"));
            } else {
                self.at += 1;
            }
        }
    }

    /// Skips `#![enable(..)]` lines: the loader enables the needed extensions.
    fn skip_attributes(&mut self) -> Result<(), SyntaxError> {
        self.skip_space()?;
        while self.starts_with("#!") {
            while self.peek().is_some_and(|c| c != ']') {
                self.at += 1;
            }
            self.at += 1;
            self.skip_space()?;
        }
        Ok(())
    }

    fn value(&mut self, depth: usize) -> Result<Node, SyntaxError> {
        self.skip_space()?;
        let start = self.at;
        if depth > MAX_DEPTH {
            return Err(self.error(format!("nested more than {MAX_DEPTH} levels deep")));
        }
        let kind = match self.peek() {
            None => return Err(self.error("expected a value, found the end of the text")),
            Some('"') => Kind::Text(self.string()?),
            Some('r') if self.raw_string_hashes(1).is_some() => Kind::Text(self.raw_string(1)?),
            Some('b') if self.starts_with("b\"") => {
                self.at += 1;
                self.string()?;
                Kind::Leaf
            }
            Some('b') if self.starts_with("br") && self.raw_string_hashes(2).is_some() => {
                self.raw_string(2)?;
                Kind::Leaf
            }
            Some('\'') => self.character()?,
            Some('[') => Kind::Items(self.items(']', depth)?),
            Some('{') => Kind::Fields(self.map(depth)?),
            Some('(') => self.parenthesis(depth)?,
            Some(c) if c.is_alphabetic() || c == '_' => {
                self.identifier();
                let end = self.at;
                self.skip_space()?;
                if self.peek() == Some('(') {
                    self.parenthesis(depth)?
                } else {
                    self.at = end;
                    Kind::Leaf
                }
            }
            Some(c) if c.is_ascii_digit() || matches!(c, '+' | '-' | '.') => {
                while self
                    .peek()
                    .is_some_and(|c| c.is_alphanumeric() || matches!(c, '+' | '-' | '.' | '_'))
                {
                    self.at += 1;
                }
                Kind::Leaf
            }
            Some(c) => return Err(self.error(format!("expected a value, found `{c}`"))),
        };
        Ok(Node {
            span: start..self.at,
            kind,
        })
    }

    fn identifier(&mut self) -> String {
        if self.starts_with("r#") {
            self.at += 2;
        }
        let start = self.at;
        while self.peek().is_some_and(|c| c.is_alphanumeric() || c == '_') {
            self.at += 1;
        }
        self.text[start..self.at].iter().collect()
    }

    /// Number of `#` when a raw string starts `prefix` characters from here.
    fn raw_string_hashes(&self, prefix: usize) -> Option<usize> {
        let rest = &self.text[(self.at + prefix).min(self.text.len())..];
        let hashes = rest.iter().take_while(|&&c| c == '#').count();
        (rest.get(hashes) == Some(&'"')).then_some(hashes)
    }

    fn raw_string(&mut self, prefix: usize) -> Result<String, SyntaxError> {
        let start = self.at;
        let hashes = self.raw_string_hashes(prefix).unwrap_or(0);
        self.at += prefix + hashes + 1;
        let content = self.at;
        let close: String = std::iter::once('"')
            .chain(std::iter::repeat_n('#', hashes))
            .collect();
        while !self.starts_with(&close) {
            if self.peek().is_none() {
                return Err(self.error_at(start, "this string is never closed"));
            }
            self.at += 1;
        }
        let value = self.text[content..self.at].iter().collect();
        self.at += hashes + 1;
        Ok(value)
    }

    fn string(&mut self) -> Result<String, SyntaxError> {
        let start = self.at;
        self.at += 1;
        let mut value = String::new();
        loop {
            match self.peek() {
                None => return Err(self.error_at(start, "this string is never closed")),
                Some('"') => {
                    self.at += 1;
                    return Ok(value);
                }
                Some('\\') => {
                    // Simple escapes suffice for keys and stage names; ron checks all others.
                    match self.text.get(self.at + 1) {
                        Some('n') => value.push('\n'),
                        Some('t') => value.push('\t'),
                        Some(&c) => value.push(c),
                        None => {}
                    }
                    self.at += 2;
                }
                Some(c) => {
                    value.push(c);
                    self.at += 1;
                }
            }
        }
    }

    fn character(&mut self) -> Result<Kind, SyntaxError> {
        let start = self.at;
        self.at += if self.text.get(self.at + 1) == Some(&'\\') {
            3
        } else {
            2
        };
        while self.peek().is_some_and(|c| c != '\'' && c != '\n') {
            self.at += 1;
        }
        if self.peek() != Some('\'') {
            return Err(self.error_at(start, "this character is never closed with `'`"));
        }
        self.at += 1;
        Ok(Kind::Leaf)
    }

    fn parenthesis(&mut self, depth: usize) -> Result<Kind, SyntaxError> {
        let open = self.at;
        self.at += 1;
        self.skip_space()?;
        if self.peek() == Some(')') {
            self.at += 1;
            return Ok(Kind::Fields(Vec::new()));
        }
        let content = self.at;
        let key = self.identifier();
        self.skip_space()?;
        let named = !key.is_empty() && self.peek() == Some(':');
        self.at = content;
        if named {
            self.fields(open, depth).map(Kind::Fields)
        } else {
            self.at = open;
            self.items(')', depth).map(Kind::Items)
        }
    }

    fn fields(&mut self, open: usize, depth: usize) -> Result<Vec<Field>, SyntaxError> {
        let mut fields = Vec::new();
        loop {
            self.skip_space()?;
            if self.peek() == Some(')') {
                self.at += 1;
                return Ok(fields);
            }
            let start = self.at;
            let key = self.identifier();
            let key_span = start..self.at;
            if key.is_empty() {
                return Err(self.unexpected(open, "a key", ')'));
            }
            self.skip_space()?;
            if self.peek() != Some(':') {
                return Err(self.error(format!("expected `:` after the key `{key}`")));
            }
            self.at += 1;
            let value = self.value(depth + 1)?;
            self.comma(open, ')')?;
            fields.push(Field {
                key,
                key_span,
                span: start..self.at,
                value,
            });
        }
    }

    fn map(&mut self, depth: usize) -> Result<Vec<Field>, SyntaxError> {
        let open = self.at;
        self.at += 1;
        let mut keys = HashSet::new();
        let mut fields = Vec::new();
        loop {
            self.skip_space()?;
            match self.peek() {
                Some('}') => {
                    self.at += 1;
                    return Ok(fields);
                }
                None => return Err(self.unexpected(open, "a key", '}')),
                Some(_) => {}
            }
            let key_node = self.value(depth + 1)?;
            let key = match key_node.kind {
                Kind::Text(key) => key,
                _ => self.text[key_node.span.clone()].iter().collect(),
            };
            self.skip_space()?;
            if self.peek() != Some(':') {
                return Err(self.error(format!("expected `:` after the key `{key}`")));
            }
            self.at += 1;
            // serde keeps the last one without a word.
            if !keys.insert(key.clone()) {
                let message = format!("the key {key:?} is given twice in one map");
                return Err(self.error_at(key_node.span.start, message));
            }
            let value = self.value(depth + 1)?;
            self.comma(open, '}')?;
            fields.push(Field {
                key,
                span: key_node.span.start..self.at,
                key_span: key_node.span,
                value,
            });
        }
    }

    fn items(&mut self, close: char, depth: usize) -> Result<Vec<Node>, SyntaxError> {
        let open = self.at;
        self.at += 1;
        let mut items = Vec::new();
        loop {
            self.skip_space()?;
            match self.peek() {
                Some(c) if c == close => {
                    self.at += 1;
                    return Ok(items);
                }
                None | Some(')' | ']' | '}') => {
                    return Err(self.unexpected(open, "a value", close));
                }
                Some(_) => {}
            }
            items.push(self.value(depth + 1)?);
            self.comma(open, close)?;
        }
    }

    /// Consumes the comma after a value, or checks that the closing bracket follows.
    fn comma(&mut self, open: usize, close: char) -> Result<(), SyntaxError> {
        let end = self.at;
        self.skip_space()?;
        match self.peek() {
            Some(',') => self.at += 1,
            Some(c) if c == close => self.at = end,
            _ => return Err(self.unexpected(open, "`,`", close)),
        }
        Ok(())
    }

    fn unexpected(&self, open: usize, wanted: &str, close: char) -> SyntaxError {
        let opened = self.text[open];
        match self.peek() {
            None => self.error_at(
                open,
                format!("this `{opened}` is never closed with `{close}`"),
            ),
            Some(found) => {
                let (line, column) = line_column(self.text, open);
                self.error(format!(
                    "expected {wanted} or `{close}` for the `{opened}` of {line}:{column}, found `{found}`"
                ))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chars(text: &str) -> Vec<char> {
        text.chars().collect()
    }

    #[test]
    fn keys_keep_their_places() {
        let text = chars("// é\n(a: \"x,)\", b: Sft(c: [1, 2,], /* ) */ d: Some(3)),)");
        let root = scan(&text).unwrap();
        let b = root.field("b").unwrap();
        assert_eq!(line_column(&text, b.key_span.start), (2, 12));
        let d = b.value.field("d").unwrap();
        assert_eq!(line_column(&text, d.key_span.start), (2, 39));
        let inner = d.value.inner(&text);
        assert_eq!(text[inner.span.clone()].iter().collect::<String>(), "3");
        assert!(matches!(&root.field("a").unwrap().value.kind, Kind::Text(t) if t == "x,)"));
    }

    #[test]
    fn a_key_of_a_map_is_given_once() {
        assert!(scan(&chars("({\"a\": 1, \"b\": {\"a\": 2}})")).is_ok());
        let error = scan(&chars("({\"a\": 1, \"a\": 2})")).unwrap_err();
        assert_eq!(error.at, 10);
        assert_eq!(error.message, "the key \"a\" is given twice in one map");
    }

    #[test]
    fn index_of_inverts_line_column() {
        let text = chars("ab\ncd\n\ne");
        for at in 0..text.len() {
            let (line, column) = line_column(&text, at);
            assert_eq!(index_of(&text, line, column), at);
            assert_eq!(Lines::of(&text).position(at), (line, column));
        }
    }

    #[test]
    fn brackets_are_matched() {
        let error = |text: &str| {
            let text = chars(text);
            let e = scan(&text).unwrap_err();
            (line_column(&text, e.at), e.message)
        };
        assert_eq!(
            error("(a: [1, 2)"),
            (
                (1, 10),
                "expected `,` or `]` for the `[` of 1:5, found `)`".into()
            )
        );
        assert_eq!(
            error("(\n a: (b: 1,\n"),
            ((2, 5), "this `(` is never closed with `)`".into())
        );
        assert_eq!(
            error("(a: \"x)"),
            ((1, 5), "this string is never closed".into())
        );
        assert_eq!(
            error("(a: 1 b: 2)"),
            (
                (1, 7),
                "expected `,` or `)` for the `(` of 1:1, found `b`".into()
            )
        );
        assert_eq!(
            error("(a: )"),
            ((1, 5), "expected a value, found `)`".into())
        );
        assert_eq!(
            error("(a: 1) x"),
            ((1, 8), "expected the end of the text, found `x`".into())
        );
    }

    #[test]
    fn raw_strings_hide_their_brackets() {
        let text = chars("(a: r#\"(\"[\"#, b: 1)");
        let root = scan(&text).unwrap();
        assert!(matches!(&root.field("a").unwrap().value.kind, Kind::Text(t) if t == "(\"["));
        assert!(root.field("b").is_some());
    }
}
