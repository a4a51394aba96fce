//! Who judges.

use rusqlite::{OptionalExtension, params};

use super::Store;
use crate::error::Result;
use crate::web::{Token, TokenHash};

/// An annotator.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Annotator {
    /// Its number in the project.
    pub id: i64,
    /// Its name.
    pub name: String,
}

/// Longest name in bytes.
const LONGEST_NAME: usize = 64;

/// Checks the names of annotators.
///
/// # Errors
/// For none, for equal names, and for characters that no file or terminal should see.
pub(crate) fn check_names(names: &[String]) -> Result<(), String> {
    if names.is_empty() {
        return Err("expected at least one name".into());
    }
    for (at, name) in names.iter().enumerate() {
        let fits = !name.trim().is_empty()
            && name.len() <= LONGEST_NAME
            && !name.chars().any(char::is_control);
        if !fits {
            return Err(format!(
                "expected names of 1 to {LONGEST_NAME} bytes on one line, found {name:?}"
            ));
        }
        if names[..at].contains(name) {
            return Err(format!("{name:?} is there twice"));
        }
    }
    Ok(())
}

impl Store {
    /// The annotator of that name, who is added if new, with a fresh token. Earlier tokens stay valid.
    ///
    /// # Errors
    /// `Error::Format` if the file cannot be written.
    pub(crate) fn annotator(&self, name: &str, now: i64) -> Result<(Annotator, Token)> {
        let token = Token::random()?;
        let hash = token.hash();
        let id = self.change(|change| {
            change.execute(
                "INSERT INTO annotators (name, created) VALUES (?1, ?2) ON CONFLICT (name) DO NOTHING",
                params![name, now],
            )?;
            let id: i64 = change.query_row("SELECT id FROM annotators WHERE name = ?1", params![name], |row| row.get(0))?;
            change.execute(
                "INSERT INTO tokens (hash, annotator, created) VALUES (?1, ?2, ?3)",
                params![hash.as_str(), id, now],
            )?;
            Ok(id)
        })?;
        let name = name.to_owned();
        Ok((Annotator { id, name }, token))
    }

    /// Makes the tokens of annotators of the same name in `other` valid here, too: an address stays the same over the rounds of a run.
    ///
    /// # Errors
    /// `Error::Format` if one of the files cannot be read or written.
    pub(crate) fn adopt_tokens(&self, other: &Self) -> Result<usize> {
        let known: Vec<(String, String, i64)> = other.read(|connection| {
            let mut all = connection.prepare(
                "SELECT hash, name, tokens.created FROM tokens JOIN annotators ON annotators.id = tokens.annotator",
            )?;
            all.query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?
                .collect()
        })?;
        self.change(|change| {
            let mut adopted = 0;
            for (hash, name, created) in &known {
                adopted += change.execute(
                    "INSERT INTO tokens (hash, annotator, created) SELECT ?1, id, ?3 FROM annotators WHERE name = ?2
                     ON CONFLICT (hash) DO NOTHING",
                    params![hash, name, created],
                )?;
            }
            Ok(adopted)
        })
    }

    /// Makes all tokens so far invalid.
    ///
    /// # Errors
    /// `Error::Format` if the file cannot be written.
    pub(crate) fn revoke_tokens(&self) -> Result<usize> {
        self.change(|change| change.execute("DELETE FROM tokens", []))
    }

    /// The annotator with this token.
    ///
    /// # Errors
    /// `Error::Format` if the file cannot be read.
    pub(crate) fn by_token(&self, secret: &str) -> Result<Option<Annotator>> {
        let hash = TokenHash::of(secret);
        self.read(|connection| {
            let mut find = connection.prepare(
                "SELECT annotators.id, annotators.name FROM tokens JOIN annotators ON annotators.id = tokens.annotator WHERE hash = ?1",
            )?;
            let annotator = |row: &rusqlite::Row<'_>| {
                Ok(Annotator {
                    id: row.get(0)?,
                    name: row.get(1)?,
                })
            };
            find.query_row(params![hash.as_str()], annotator).optional()
        })
    }
}
